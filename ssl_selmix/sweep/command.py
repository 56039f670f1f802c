"""`ssl-selmix sweep`; imports nothing heavy until there is work."""

from __future__ import annotations

import argparse
import os

from ssl_selmix.common import plugins
from ssl_selmix.common.arguments import SWEEPS, Command, Parser, path, positive, section
from ssl_selmix.common.imports import quick_imports


def _parser() -> Parser:
    parser = Parser(
        prog="ssl-selmix sweep",
        description="Run algorithms × splits × seeds: what is missing, not what is finished.",
        epilog=section(SWEEPS, plugins.sweeps()) + "\n\ndocs/howto/sweep.md describes the file. "
        "ssl-selmix compare makes tables of the folder.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("spec", metavar="SPEC", help="a YAML file, or the name of a shipped one")
    add("--out", metavar="DIR", type=path, help="folder of all runs; default: the file's")
    add("--dry-run", action="store_true", help="list the runs and how far each has come")
    add("--jobs", metavar="N", type=positive, help="at a time; default: by cores, threads, GPUs")
    add("--only", metavar="CHAIN", help="a run and what starts from it: number or first folder")
    engines = "what starts the runs: copies of a process that has imported all, programs, or Ray"
    add("--engine", choices=("forks", "processes", "ray"), default="forks", help=engines)
    add("--slurm", metavar="FILE", type=path, help="write a job array instead of running")
    add("--debug", action="store_true", help="show the traceback of an error")
    help = "of every run, such as data.root=PATH algo.steps=100 then.steps=50"
    add("settings", metavar="key=value", nargs="*", help=help)
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
