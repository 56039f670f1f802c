"""`ssl-selmix sweep`; imports nothing heavy until there is work."""

from __future__ import annotations

import argparse
import os

from ssl_selmix.common import plugins
from ssl_selmix.common.arguments import SWEEPS, Command, Parser, path, positive, section
from ssl_selmix.common.imports import quick_imports


def _parser() -> Parser:
    parser = Parser(
        (
            ("ssl-selmix sweep digits --dry-run", "the runs, and how far each has come"),
            ("ssl-selmix sweep digits --out runs/digits --jobs 2", "runs what is missing"),
            ("ssl-selmix sweep my.yaml --slurm job.sh", "a job array for a cluster"),
            ("ssl-selmix compare runs/digits", "tables of what is finished"),
        ),
        prog="ssl-selmix sweep",
        usage="ssl-selmix sweep SPEC [options] [key=value ...]",
        description="Run algorithms × splits × seeds: what is missing, not what is finished.",
        epilog=section(SWEEPS, plugins.sweeps()) + "\n\ndocs/howto/sweep.md describes the file.",
    )
    add = parser.add_argument
    add("spec", metavar="SPEC", help="a YAML file, or the name of a shipped one")
    help = "of every run, such as data.root=PATH algo.steps=100 then.steps=50"
    add("settings", metavar="key=value", nargs="*", help=help)
    add("--debug", action="store_true", help="show the traceback of an error")
    add = parser.group("which runs, and where")
    add("--out", metavar="DIR", type=path, help="folder of all runs; default: the file's")
    add("--only", metavar="CHAIN", help="a run and what starts from it: number or first folder")
    add("--dry-run", action="store_true", help="list the runs and how far each has come")
    add = parser.group("how they are run")
    add("--jobs", metavar="N", type=positive, help="at a time; default: by cores, threads, GPUs")
    engines = (
        "forks: copies of a process that has imported all; processes: programs; ray "
        "(default: forks)"
    )
    kinds = ("forks", "processes", "ray")
    add("--engine", metavar="E", choices=kinds, default="forks", help=engines)
    add("--slurm", metavar="FILE", type=path, help="write a job array instead of running")
    return parser


def _sweep(args: argparse.Namespace) -> int:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    with quick_imports():
        from ssl_selmix.sweep import launch, spec

    place = ["--out", str(args.out)] if args.out else []
    return launch.sweep(
        spec.read(args.spec, args.settings, args.out),
        [args.spec, *place, *args.settings],
        dry_run=args.dry_run,
        only=args.only,
        jobs=args.jobs,
        engine=args.engine,
        slurm=args.slurm,
    )


COMMANDS = {"sweep": Command(_parser, _sweep, goes_on="; the same command goes on")}
