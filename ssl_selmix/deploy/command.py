"""`ssl-selmix predict` and other looks at finished runs; imports nothing heavy before it must."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from ssl_selmix.common.arguments import Command, Parser, path

TRUST = "execute this Python file or module, from which the run has its images"


def _predict_parser() -> Parser:
    parser = Parser(
        (
            ("ssl-selmix predict runs/a photos --out found.csv", "a row for each image"),
            ("ssl-selmix predict runs/a cat.jpg --top 3", "the three most probable classes"),
            ("ssl-selmix predict runs/a labels.csv --evaluate", "recall of each class, too"),
            ("ssl-selmix predict runs/a --part test", "the run's own test images"),
        ),
        prog="ssl-selmix predict",
        usage="ssl-selmix predict RUN [PATH ...] [options] [key=value ...]",
        description="Predict images with a finished run's model: class, probability and entropy.",
        epilog="Rows are CSV, sorted by name in each folder, or in the order of a table or an "
        "array; entropy is in nats. Exit code 1: some files could not be read.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=path, help="the folder of a run with a finished stage")
    words = "images, folders, 'patterns/*.jpg', tables, arrays (npz), tar shards, saved sets; and"
    add("words", metavar="PATH", nargs="*", help=f"{words} settings such as device=cpu")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--trust", metavar="FILE", action="append", default=[], help=TRUST)
    add = parser.group("which images, in the place of paths")
    add("--dataset", metavar="D", help="as for training, with data.key=value")
    parts = "train, validation, test or unlabeled; without paths, of the run's own images"
    add("--part", metavar="P", help=parts)
    add = parser.group("what to write, and where to")
    told = "print recall by class and what classes are taken for; adds a column label"
    add("--evaluate", action="store_true", help=told)
    add("--out", metavar="FILE", type=path, help="default: -, which is the standard output")
    add("--force", action="store_true", help="overwrite FILE")
    add("--top", metavar="N", type=int, default=1, help="the N most probable classes of each image")
    add = parser.group("how to read")
    add("--batch", metavar="N", type=int, default=128, help="images at once (default: 128)")
    add("--strict", action="store_true", help="end at the first file that cannot be read")
    return parser


def _predict(args: argparse.Namespace) -> int:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from ssl_selmix.deploy import predictions

    if args.out == Path("-"):
        args.out = None
    keys = ("out", "top", "batch", "strict", "force", "dataset", "part", "evaluate", "trust")
    options = {key: vars(args)[key] for key in keys}
    return predictions.to_csv(predictions.Request.of_words(args.run, args.words, **options))


class _Gone(argparse.Action):
    """Answers an option of version 0.1 with what to use."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.error(
            "--torchscript is no format any more, for torch calls TorchScript deprecated; use "
            "--pt2 FILE (torch.export) or --onnx FILE"
        )


def _export_parser() -> Parser:
    parser = Parser(
        (
            ("ssl-selmix export runs/a --onnx a.onnx", "for ONNX Runtime"),
            ("ssl-selmix export runs/a --state-dict a.pt", "for torchvision, timm or torch"),
            (
                "ssl-selmix export runs/a --pt2 a.pt2 --normalise",
                "torch.export; the model takes pixels as they are",
            ),
        ),
        prog="ssl-selmix export",
        usage="ssl-selmix export RUN --onnx FILE [options] [key=value ...]",
        description="Write a finished run's model for use elsewhere, and check it.",
        epilog="FILE.json beside each file has class names, image shape and normalisation. Some of "
        "the run's images take part in the check; settings say where they are now.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=path, help="the folder of a run with a finished stage")
    add("settings", metavar="key=value", nargs="*", help="of the machine, such as data.root=PATH")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--trust", metavar="FILE", action="append", default=[], help=TRUST)
    add = parser.group("what to write (one of them, or several)")
    for option, what in (
        ("--onnx", "ONNX; needs pip install 'ssl_selmix[onnx]'"),
        ("--state-dict", "tensors by name, as torchvision or timm name them where they have it"),
        ("--pt2", "torch.export, in a file whose name ends in .pt2"),
    ):
        add(option, metavar="FILE", type=path, help=what)
    add("--torchscript", action=_Gone, nargs="?", help=argparse.SUPPRESS)
    add("--force", action="store_true", help="overwrite files")
    add = parser.group("the model, and its check")
    add("--normalise", action="store_true", help="the model takes pixels in 0..255 as they are")
    limit = "of the difference, relative to the largest logit (default: 1e-5)"
    add("--tolerance", metavar="T", type=float, default=1e-5, help=limit)
    return parser


def _export(args: argparse.Namespace) -> int:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from ssl_selmix.deploy import export

    export.command(
        args.run,
        {kind: file for kind in export.FORMATS if (file := vars(args)[kind])},
        normalise=args.normalise,
        force=args.force,
        tolerance=args.tolerance,
        settings=args.settings,
        trust=args.trust,
    )
    return 0


def _estimate_parser() -> Parser:
    parser = Parser(
        (
            ("ssl-selmix estimate runs/a", "by every method, with intervals"),
            ("ssl-selmix estimate runs/a --method bbse --json", "by one, for a program"),
        ),
        prog="ssl-selmix estimate",
        usage="ssl-selmix estimate RUN [options] [key=value ...]",
        description="Estimate the class distribution of a run's unlabeled pool.",
        epilog="The estimates never use the pool's true labels; they are shown beside if known.",
    )
    add = parser.add_argument
    methods = ("count", "soft_count", "bbse", "rlls", "em")
    add("run", metavar="RUN", type=path, help="the folder of a run with a finished stage")
    add("settings", metavar="key=value", nargs="*", help="of the machine, such as data.root=PATH")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--trust", metavar="FILE", action="append", default=[], help=TRUST)
    add = parser.group("which estimates, and how they are printed")
    told = f"{', '.join(methods)}; may be repeated; default: all"
    add("--method", metavar="M", action="append", choices=methods, help=told)
    add("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _estimate(args: argparse.Namespace) -> int:
    from ssl_selmix import label_shift
    from ssl_selmix.common import console
    from ssl_selmix.deploy import estimate

    methods = args.method or label_shift.METHODS
    if args.json:  # Notes on the images must not stand between the lines of JSON.
        with contextlib.redirect_stdout(sys.stderr):
            found = estimate.of_run(args.run, methods, args.settings, args.trust)
        print(json.dumps(found.plain(), indent=1, allow_nan=False))
        return 0
    estimate.show(estimate.of_run(args.run, methods, args.settings, args.trust), console.console())
    return 0


def _shares(text: str) -> list[float]:
    """Numbers between commas.

    Raises:
        argparse.ArgumentTypeError: one is none.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no numbers between commas") from None


def _posthoc_parser() -> Parser:
    parser = Parser(
        (
            ("ssl-selmix posthoc scores.npz", "offsets for the harmonic mean of the recalls"),
            (
                "ssl-selmix posthoc scores.npz --objective min_recall --out rule.json",
                "for the worst class; the rule is kept in a file",
            ),
            ("ssl-selmix posthoc runs/a --rule gains", "on a run's validation images"),
        ),
        prog="ssl-selmix posthoc",
        usage="ssl-selmix posthoc SCORES.npz|RUN [options] [key=value ...]",
        description="Choose a decision rule on held-out scores, without training.",
        epilog="SCORES.npz has the arrays scores (logits, images × classes) or probs, labels, and, "
        "if you like, class_names. Of a run, its last model's validation logits are taken. "
        "docs/methods/posthoc.md explains the rules and the figures.",
    )
    add = parser.add_argument
    add("source", metavar="SCORES.npz|RUN", type=path, help="held-out scores, or a finished run")
    add("settings", metavar="key=value", nargs="*", help="of the machine, such as data.root=PATH")
    add("--debug", action="store_true", help="show the traceback of an error")
    add = parser.group("which rule")
    told = "a name of ssl-selmix list, or ./file.py:function (default: h_mean)"
    add("--objective", metavar="O", default="h_mean", help=told)
    add("--constraint", metavar="G", action="append", default=[], help="./file.py:function, >= 0")
    rules = ("offsets", "gains", "mixture")
    told = f"{', '.join(rules)} (default: offsets)"
    add("--rule", metavar="R", choices=rules, default="offsets", help=told)
    add("--prior", metavar="P", type=_shares, help="class shares at deployment, as 0.9,0.1")
    add = parser.group("how it is judged")
    add("--folds", metavar="N", type=int, default=5, help="of the cross-fitting (default: 5)")
    told = "temperature or none (default: temperature)"
    add(
        "--calibrate",
        metavar="C",
        choices=("temperature", "none"),
        default="temperature",
        help=told,
    )
    add("--seed", metavar="S", type=int, default=0, help="of folds and bootstrap (default: 0)")
    add("--test", metavar="FILE.npz", type=path, help="scores of other images to judge the rule by")
    add = parser.group("what to write")
    add("--out", metavar="FILE", type=path, help="write the rule (DecisionRule.load reads it)")
    add("--force", action="store_true", help="overwrite FILE")
    add("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _posthoc(args: argparse.Namespace) -> int:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from ssl_selmix.common import console
    from ssl_selmix.deploy import posthoc

    names = ("source", "objective", "rule", "prior", "folds", "calibrate", "seed")
    options = {key: vars(args)[key] for key in (*names, "test", "out", "force", "settings")}
    request = posthoc.Request(**options, constraints=args.constraint)
    if args.json:  # Notes on the images must not stand between the lines of JSON.
        with contextlib.redirect_stdout(sys.stderr):
            found = posthoc.command(request)
        print(json.dumps(found.plain(), indent=1, allow_nan=False))
        return 0
    posthoc.show(posthoc.command(request), console.console())
    return 0


def _advise_parser() -> Parser:
    parser = Parser(
        (
            ("ssl-selmix advise runs/a", "what limits it, and what to try next"),
            (
                "ssl-selmix advise runs/a --against runs/labels",
                "also whether the unlabeled images help",
            ),
        ),
        prog="ssl-selmix advise",
        usage="ssl-selmix advise RUN [options] [key=value ...]",
        description="Say what limits a finished run and what to try next. Each has its figure.",
        epilog="All figures are those of the validation images and of the run's logs; test images "
        "and the true labels of the pool are not looked at. The words: docs/methods/posthoc.md.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=path, help="the folder of a run with a finished stage")
    add("settings", metavar="key=value", nargs="*", help="of the machine, such as data.root=PATH")
    add("--debug", action="store_true", help="show the traceback of an error")
    words = "a run on the same split that learned from labels alone"
    add = parser.group("by what to judge, and how it is printed")
    add("--against", metavar="RUN", type=path, help=words)
    add("--objective", metavar="O", help="default: that of the last stage, or h_mean")
    add("--json", action="store_true", help="print JSON instead of sentences")
    return parser


def _advise(args: argparse.Namespace) -> int:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from ssl_selmix.common import console
    from ssl_selmix.deploy import advise

    asked = (args.run, args.against, args.objective, args.settings)
    if args.json:  # Notes on the images must not stand between the lines of JSON.
        with contextlib.redirect_stdout(sys.stderr):
            found = advise.of_run(*asked)
        print(json.dumps(found.plain(), indent=1, allow_nan=False))
        return 0
    advise.show(advise.of_run(*asked), console.console())
    return 0


COMMANDS = {
    "predict": Command(_predict_parser, _predict),
    "export": Command(_export_parser, _export),
    "estimate": Command(_estimate_parser, _estimate),
    "posthoc": Command(_posthoc_parser, _posthoc),
    "advise": Command(_advise_parser, _advise),
}
