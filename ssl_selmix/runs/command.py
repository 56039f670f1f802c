"""`ssl-selmix train` and `ssl-selmix list`; imports nothing heavy until there is work."""

from __future__ import annotations

import argparse
import os
import time

from ssl_selmix import __version__
from ssl_selmix.common.arguments import Command, Parser, duration, listing, path
from ssl_selmix.common.imports import quick_imports


def _train_parser() -> Parser:
    parser = Parser(
        description="Train a long-tailed semi-supervised classifier and fine-tune it with SelMix.",
        epilog=listing() + "\n\nconfig.yaml of any run shows every key that decides its results.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--algo", metavar="A", help="first stage: a name below, ./file.py or module:Class")
    add("--then", metavar="B", action="append", default=[], help="next stage; may be repeated")
    add("--dataset", metavar="D", default="digits", help="default: digits, which needs no download")
    add("--preset", metavar="P", help="a name below, a YAML file, or none; default: the dataset's")
    add("--init", metavar="PATH", type=path, help="start from a run's folder or a state dict")
    add("--out", metavar="DIR", type=path, help="default: runs/<dataset>-<algorithms>-seed<seed>")
    add("--resume", action="store_true", help="continue the run in its directory, exactly")
    limit = "save and end after this time, such as 3h50m; exit code 75, --resume goes on"
    add("--for", metavar="TIME", type=duration, dest="time", help=limit)
    add("--seed", metavar="S", type=int, help="of the split, the initial weights and the batches")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--version", action="version", version=f"ssl-selmix {__version__}")
    settings = "such as data.labeled.rho=15 selmix.objective=g_mean"
    add("settings", metavar="key=value", nargs="*", help=settings)
    return parser


def _train(args: argparse.Namespace) -> int:
    deadline = None if args.time is None else time.monotonic() + args.time  # imports count
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    with quick_imports():
        from ssl_selmix.runs import plan, train

    train.run(
        plan.Request(
            algorithms=[a for a in (args.algo, *args.then) if a],
            dataset=args.dataset,
            preset=args.preset,
            init=args.init,
            out=args.out,
            resume=args.resume,
            deadline=deadline,
            settings=[*args.settings, *([f"seed={args.seed}"] if args.seed is not None else [])],
        )
    )
    return 0


def _list_parser() -> Parser:
    parser = Parser(
        prog="ssl-selmix list",
        description=listing(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _list(args: argparse.Namespace) -> int:
    print(listing())
    return 0


COMMANDS = {
    "train": Command(_train_parser, _train),
    "list": Command(_list_parser, _list),
}
