"""`ssl-selmix train` and `ssl-selmix list`; imports nothing heavy until there is work."""

from __future__ import annotations

import argparse
import os
import time

from ssl_selmix import __version__
from ssl_selmix.common.arguments import Command, Parser, duration, listing, path


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


def _features_parser() -> Parser:
    parser = Parser(
        prog="ssl-selmix features",
        description="Let a pre-trained network make features of all images of a data set, once.",
        epilog="Interrupted, the same command goes on; several at once share the work. Train on "
        "the folder with --dataset features data.root=FOLDER, or on the images with "
        "model.tune=head features.dir=FOLDER.",
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="a name of ssl-selmix list, or ./file.py")
    add("--model", metavar="NAME", help="such as timm:vit_small_patch14_dinov2.lvd142m")
    add("--init", metavar="PATH", type=path, help="take the body of a run, or of a state dict")
    add("--out", metavar="FOLDER", type=path, required=True, help="is made, or gone on with")
    add("--debug", action="store_true", help="show the traceback of an error")
    settings = "such as data.root=PATH model.pretrained=FILE features.weak=2 features.strong=4"
    add("settings", metavar="key=value", nargs="*", help=f"{settings} features.dtype=float16")
    return parser


def _features(args: argparse.Namespace) -> int:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from ssl_selmix.runs import cached, plan
    from ssl_selmix.training import machine

    settings = [f"model.name={args.model}"] if args.model else []
    if not args.init:  # weights of somebody else, those of the library unless a file is named
        settings.append("model.pretrained=true")
    settings += [*args.settings, "model.tune=head", "features=cached"]
    request = plan.Request(["supervised"], args.dataset, init=args.init, settings=settings)
    asked = plan.Plan(request)
    machine.use_threads(asked.run.threads)
    cached.to_folder(asked, args.out)
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
    "features": Command(
        _features_parser, _features, goes_on="; repeat the command to go on with the folder"
    ),
    "list": Command(_list_parser, _list),
}
