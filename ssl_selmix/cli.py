"""The command line; imports nothing heavy until there is something to train."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path

from ssl_selmix import __version__
from ssl_selmix.common import plugins
from ssl_selmix.common.names import printable
from ssl_selmix.common.paths import expanded

COMMANDS = ("train", "list", "estimate", "check", "sweep", "predict", "export", "compare")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command: 0 if it succeeded, 1 if a check failed, 2 after a mistake, told in a line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a notebook's and a test's may be another
            # A terminal or pipe that is no UTF-8 gets what it can show.
            utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="backslashreplace" if utf8 else "replace")
    words = list(sys.argv[1:] if argv is None else argv)
    command = words.pop(0) if words and words[0] in COMMANDS else "train"
    if command == "list":
        print(listing())
        return 0
    parser, work = {
        "train": (_parser, _train),
        "estimate": (_estimate_parser, _estimate),
        "check": (_check_parser, _check),
        "predict": (_predict_parser, _predict),
        "export": (_export_parser, _export),
        "sweep": (_sweep_parser, _sweep),
        "compare": (_compare_parser, _compare),
    }[command]
    args = parser().parse_intermixed_args(words)  # settings may stand between options
    try:
        return work(args)
    except KeyboardInterrupt:
        goes_on = "; repeat the command with --resume to go on" if command == "train" else ""
        return _fail(f"interrupted{goes_on}", 130)
    except (ValueError, OSError, RuntimeError) as error:
        if not args.debug and _ended_elsewhere(error):
            return _fail("another process of this run ended; see its message", 1)
        if args.debug or not _is_users(error):
            raise
        return _fail(_one_line(error, kept=command == "train"), 2)


def _train(args: argparse.Namespace) -> int:
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
            settings=[*args.settings, *([f"seed={args.seed}"] if args.seed is not None else [])],
        )
    )
    return 0


def _estimate(args: argparse.Namespace) -> int:
    from ssl_selmix import label_shift
    from ssl_selmix.common import console
    from ssl_selmix.deploy import estimate

    methods = args.method or label_shift.METHODS
    if args.json:  # what is said about the images must not stand between the lines of JSON
        with contextlib.redirect_stdout(sys.stderr):
            found = estimate.of_run(args.run, methods, args.settings)
        print(json.dumps(found.plain(), indent=1, allow_nan=False))
        return 0
    estimate.show(estimate.of_run(args.run, methods, args.settings), console.console())
    return 0


def _check(args: argparse.Namespace) -> int:
    import torch

    from ssl_selmix import contract

    torch.set_num_threads(1)  # the tensors are too small to be worth sharing
    return 0 if contract.report(args.algorithm, args.debug) else 1


def _sweep(args: argparse.Namespace) -> int:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from ssl_selmix.sweep import command, spec

    place = ["--out", str(args.out)] if args.out else []
    try:
        return command.sweep(
            spec.read(args.spec, args.settings, args.out),
            [args.spec, *place, *args.settings],
            dry_run=args.dry_run,
            only=args.only,
            jobs=args.jobs,
            engine=args.engine,
            slurm=args.slurm,
        )
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on", 130)


def _predict(args: argparse.Namespace) -> int:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from ssl_selmix.deploy import predictions

    if args.out == Path("-"):
        args.out = None
    options = {key: vars(args)[key] for key in ("out", "top", "batch", "strict", "force")}
    return predictions.to_csv(predictions.Request.of_words(args.run, args.words, **options))


def _export(args: argparse.Namespace) -> int:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from ssl_selmix.deploy import export

    export.command(
        args.run,
        {kind: path for kind in export.FORMATS if (path := vars(args)[kind])},
        normalise=args.normalise,
        force=args.force,
        tolerance=args.tolerance,
        settings=args.settings,
    )
    return 0


def _compare(args: argparse.Namespace) -> int:
    from ssl_selmix.compare import command, tables

    choice = tables.Choice(args.part, tuple(args.metrics), args.against)
    outputs = {name: getattr(args, name) for name in ("markdown", "latex", "csv", "html")}
    allow, by = args.allow, args.by
    outputs |= {"figures": args.figures, "force": args.force}
    command.run(command.Request(args.runs, allow, by, choice, **outputs))
    return 0


def _is_users(error: Exception) -> bool:
    from ssl_selmix.data.workers import died
    from ssl_selmix.training.engine import NonFiniteLoss

    return isinstance(error, ValueError | OSError | NonFiniteLoss) or died(error)


def _ended_elsewhere(error: Exception) -> bool:
    """Whether this is what is left of a mistake that another process tells about."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and any(words in str(error) for words in ("by peer", "Connection refused"))


def _one_line(error: Exception, kept: bool) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        then = "; what was saved before is kept, --resume continues it" if kept else ""
        return f"{error.strerror}{where}{then}"
    return " ".join(f"{error}{_line_of_the_user(error)}".split())


def _line_of_the_user(error: Exception) -> str:
    """Where it was raised, if that is in a file of the user's own: a method, an objective."""
    import sysconfig
    import traceback

    package = os.path.join(os.path.dirname(__file__), "")  # not that of ssl_selmix_of_mine
    places = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    libraries = tuple(os.path.join(place, "") for place in places)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(package):
            return ""
        if not frame.filename.startswith((*libraries, "<")):
            return f" ({os.path.basename(frame.filename)}, line {frame.lineno})"
    return ""


def _fail(text: str, code: int) -> int:
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        # If the first process made the same mistake it says so, and torchrun ends this one.
        time.sleep(3)
        text = f"process {rank}: {text}"
    print(printable(f"error: {text}"), file=sys.stderr, flush=True)
    return code


def listing() -> str:
    """Algorithms, datasets, objectives, presets and sweeps, a line each."""
    parts = {
        "algorithms": plugins.available("algorithm"),
        "datasets": plugins.available("dataset"),
        "objectives of SelMix (selmix.objective=NAME)": plugins.objectives(),
        "presets": plugins.presets(),
        SWEEPS: plugins.sweeps(),
    }
    return "\n\n".join(_section(title, entries) for title, entries in parts.items())


SWEEPS = "sweeps (ssl-selmix sweep NAME)"


def _section(title: str, entries: Mapping[str, str]) -> str:
    width = max(map(len, entries), default=0)
    lines = (f"  {name:{width}}  {text}" for name, text in entries.items())
    return "\n".join([f"{title}:", *lines])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        # argparse prints the usage first; a mistake deserves one line. Settings are never required.
        message = message.replace(", key=value", "")
        self.exit(2, printable(f"error: {message}; see {self.prog} --help\n"))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        description="Train a long-tailed semi-supervised classifier and fine-tune it with SelMix.",
        epilog=listing() + "\n\nconfig.yaml of any run shows every key that decides its results."
        "\nOther commands (each has --help): ssl-selmix "
        + ", ".join(name for name in COMMANDS if name != "train"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--algo", metavar="A", help="first stage: a name below, ./file.py or module:Class")
    add("--then", metavar="B", action="append", default=[], help="next stage; may be repeated")
    add("--dataset", metavar="D", default="digits", help="default: digits, which needs no download")
    add("--preset", metavar="P", help="a name below, a YAML file, or none; default: the dataset's")
    add("--init", metavar="PATH", type=_path, help="start from a run's folder or a state dict")
    add("--out", metavar="DIR", type=_path, help="default: runs/<dataset>-<algorithms>-seed<seed>")
    add("--resume", action="store_true", help="continue the run in its directory, exactly")
    add("--seed", metavar="S", type=int, help="of the split, the initial weights and the batches")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--version", action="version", version=f"ssl-selmix {__version__}")
    settings = "such as data.labeled.rho=15 selmix.objective=g_mean"
    add("settings", metavar="key=value", nargs="*", help=settings)
    return parser


def _estimate_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ssl-selmix estimate",
        description="Estimate the class distribution of a finished run's unlabeled pool.",
        epilog="The estimates never use the pool's true labels; they are shown beside if known.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    methods = ("count", "soft_count", "bbse", "rlls", "em")
    add("run", metavar="RUN", type=_path, help="the folder of a run with a finished stage")
    add("--method", action="append", choices=methods, help="may be repeated; default: all")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("settings", metavar="key=value", nargs="*", help="of the machine, such as data.root=PATH")
    return parser


def _predict_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ssl-selmix predict",
        description="Write class, probability and entropy of images, by a finished run's model.",
        epilog="Rows are CSV, sorted by name in each folder; entropy is in nats. Exit code 1: some "
        "files could not be read.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=_path, help="the folder of a run with a finished stage")
    words = "images, folders of them (with their sub-folders), and settings such as device=cpu"
    add("words", metavar="PATH", nargs="*", help=f"{words} or data.workers=2")
    add("--out", metavar="FILE", type=_path, help="default: - is the standard output")
    add("--top", metavar="N", type=int, default=1, help="the N most probable classes of each image")
    add("--batch", metavar="N", type=int, default=128, help="images at once (default: 128)")
    add("--strict", action="store_true", help="end at the first file that cannot be read")
    add("--force", action="store_true", help="overwrite FILE")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _export_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ssl-selmix export",
        description="Write a finished run's model for use elsewhere, and check what was written.",
        epilog="FILE.json beside each file has class names, image shape and normalisation. Some of "
        "the run's images take part in the check; settings say where they are now.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=_path, help="the folder of a run with a finished stage")
    for option, what in (
        ("--onnx", "ONNX; needs pip install 'ssl_selmix[onnx]'"),
        ("--state-dict", "tensors by name, as torchvision or timm name them where they have it"),
        ("--torchscript", "TorchScript, which torch itself calls deprecated"),
        ("--pt2", "torch.export, which follows it"),
    ):
        add(option, metavar="FILE", type=_path, help=what)
    add("--normalise", action="store_true", help="the model takes pixels in 0..255 as they are")
    limit = "of the difference, relative to the largest logit (default: 1e-5)"
    add("--tolerance", metavar="T", type=float, default=1e-5, help=limit)
    add("--force", action="store_true", help="overwrite files")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("settings", metavar="key=value", nargs="*", help="of the machine, such as data.root=PATH")
    return parser


def _compare_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ssl-selmix compare",
        description="Compare finished runs: tables with intervals, figures, a report. Runs that "
        "differ in what makes figures comparable are refused; each split gets its own table.",
        epilog="A FILE that is - is the standard output. docs/compare.md explains every table.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", type=_path, help="run folders, results.json, or folders")
    for name, text in (
        ("--allow", "compare although KEY differs; the output says so"),
        ("--by", "tables of their own for every value of KEY, such as network"),
    ):
        add(name, metavar="KEY", nargs="+", action="extend", default=[], help=text)
    add("--part", choices=("test", "validation"), default="test", help="default: test")
    names = "figures, such as g_mean min_ht_recall; default: the usual ones"
    add("--metrics", metavar="NAME", nargs="+", action="extend", default=[], help=names)
    add("--against", metavar="ROW", help="row to compare with; default: the best on validation")
    for name in ("markdown", "latex", "csv", "html"):
        add(f"--{name}", metavar="FILE", type=_path)
    add("--figures", metavar="DIR", type=_path, help="every figure as PNG and PDF")
    add("--force", action="store_true", help="overwrite files, but never those of a run")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _check_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ssl-selmix check",
        description="Apply the contract tests to a method: a shipped one or, better, your own.",
        allow_abbrev=False,
    )
    parser.add_argument("algorithm", metavar="A", help="./file.py, module:Class or a shipped name")
    parser.add_argument("--debug", action="store_true", help="show the tracebacks of failed checks")
    return parser


def _sweep_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ssl-selmix sweep",
        description="Run algorithms × splits × seeds: what is missing, not what is finished.",
        epilog=_section(SWEEPS, plugins.sweeps()) + "\n\ndocs/sweep.md describes the file. "
        "ssl-selmix compare makes tables of the folder.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("spec", metavar="SPEC", help="a YAML file, or the name of a shipped one")
    add("--out", metavar="DIR", type=_path, help="folder of all runs; default: the file's")
    add("--dry-run", action="store_true", help="list the runs and how far each has come")
    add("--jobs", metavar="N", type=_positive, help="at a time; default: by cores, threads, GPUs")
    add("--only", metavar="CHAIN", help="a run and what starts from it: number or first folder")
    add("--engine", choices=("processes", "ray"), default="processes", help="what starts the runs")
    add("--slurm", metavar="FILE", type=_path, help="write a job array instead of running")
    add("--debug", action="store_true", help="show the traceback of an error")
    help = "of every run, such as data.root=PATH algo.steps=100 then.steps=50"
    add("settings", metavar="key=value", nargs="*", help=help)
    return parser


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty path names no file")
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


if __name__ == "__main__":
    raise SystemExit(main())
