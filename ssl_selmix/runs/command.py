"""`ssl-selmix train`, `list` and `explain`; imports nothing heavy until there is work."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence

from ssl_selmix import __version__
from ssl_selmix.common import plugins
from ssl_selmix.common.arguments import (
    Command,
    Parser,
    duration,
    listing,
    listings,
    path,
    section,
)
from ssl_selmix.common.imports import quick_imports
from ssl_selmix.common.names import near
from ssl_selmix.runs import defaults


def _train_parser() -> Parser:
    parser = Parser(
        (
            ("ssl-selmix train --algo fixmatch --then selmix", "handwritten digits, no download"),
            (
                "ssl-selmix train --algo supervised --then posthoc --dataset image_folder \\\n"
                "      data.root=PATH data.size=32",
                "your own images, labels alone, and a decision rule for rare classes",
            ),
            (
                "ssl-selmix train --algo fixmatch --then selmix --preset cifar10-lt --dry-run",
                "what it would do, and about how long it would take",
            ),
            ("ssl-selmix train --algo fixmatch --help", "all settings of a method, too"),
        ),
        usage="ssl-selmix train --algo A [--then B] [options] [key=value ...]",
        description="Train a classifier, then fine-tune it with SelMix. Classes may be rare, "
        "and most images without a label.",
        epilog=listing()
        + "\n\nThe file config.yaml of a run shows every key that decides its results. ssl-selmix "
        "explain KEY says what a key means; ssl-selmix init writes a file of your own.",
        add_help=False,
    )
    words = "such as data.labeled.rho=15 selmix.objective=g_mean"
    parser.add_argument("settings", metavar="key=value", nargs="*", help=words)
    add = parser.group("what to train")
    add("--algo", metavar="A", help="first stage: a name below, ./file.py or module:Class")
    add("--then", metavar="B", action="append", default=[], help="next stage; may be repeated")
    add("--init", metavar="PATH", type=path, help="start from a run's folder or a state dict")
    add("--seed", metavar="S", type=int, help="of the split, the initial weights and the batches")
    add = parser.group("on which images, with which settings")
    add("--dataset", metavar="D", help="default: the preset's, or digits, which needs no download")
    add("--preset", metavar="P", help="a name below, a YAML file, or none; default: the dataset's")
    repeat = "settings, stages and data set of a YAML file: your own, or a run's config.yaml"
    add("--config", metavar="FILE", type=path, help=repeat)
    trust = "execute this Python file or module, which the configuration names"
    add("--trust", metavar="FILE", action="append", default=[], help=trust)
    add = parser.group("the run")
    add("--out", metavar="DIR", type=path, help="default: runs/<dataset>-<algorithms>-seed<seed>")
    add("--resume", action="store_true", help="continue the run in its directory, exactly")
    limit = "save and end after this time, such as 3h50m; exit code 75, --resume goes on"
    add("--for", metavar="TIME", type=duration, dest="time", help=limit)
    dry = "print plan, images, steps, time and memory by a few steps; write nothing"
    add("--dry-run", action="store_true", help=dry)
    add = parser.add_argument
    add("-h", "--help", action="store_true", help="this; with --algo A also the settings of A")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--version", action="version", version=f"ssl-selmix {__version__}", help="print it")
    return parser


def _help(args: argparse.Namespace) -> int:
    """Print what there is to say, with the settings of the stages and of the data set if named."""
    print(_train_parser().format_help())
    names = [*filter(None, (args.algo,)), *args.then, *filter(None, (args.dataset,))]
    names = [plugins.parted(name)[0] for name in names]
    if names:
        from ssl_selmix.runs import reference

        show = {"algorithm": reference.of_algorithm, "dataset": reference.of_dataset}
        for name in names:
            print(f"\n{show[reference.kind_of(name)](name)}")
    return 0


def _train(args: argparse.Namespace) -> int:
    if args.help:
        return _help(args)
    _check_words(args.settings)
    deadline = None if args.time is None else time.monotonic() + args.time  # imports count
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    with quick_imports():
        from ssl_selmix.runs import dry, plan, train

    work = dry.run if args.dry_run else train.run
    work(
        plan.Request(
            algorithms=[*filter(None, [args.algo]), *args.then],
            dataset=args.dataset or "",
            preset=args.preset,
            config=args.config,
            trust=args.trust,
            init=args.init,
            out=args.out,
            resume=args.resume,
            deadline=deadline,
            settings=[*args.settings, *([f"seed={args.seed}"] if args.seed is not None else [])],
        )
    )
    return 0


def _check_words(words: Sequence[str]) -> None:
    """Refuse what is no setting, with the option that it belongs to.

    Raises:
        ValueError: a word without =.
    """
    for word in words:
        if "=" in word:
            continue
        options = {"--algo": "algorithm", "--dataset": "dataset"}
        found = [o for o, kind in options.items() if word in plugins.available(kind)]
        found += ["--preset"] if word in plugins.presets() else []
        said = "".join(f", or {option} {word}" for option in found) or ", such as seed=1"
        raise ValueError(f"{word!r} is no setting; write key=value{said}")


def _features_parser() -> Parser:
    parser = Parser(
        (
            (
                "ssl-selmix features image_folder data.root=PATH --out feats \\\n"
                "      --model timm:vit_small_patch14_dinov2.lvd142m",
                "once; training on them then takes seconds",
            ),
            (
                "ssl-selmix train --dataset features data.root=feats --algo supervised",
                "a classifier on these features",
            ),
        ),
        prog="ssl-selmix features",
        usage="ssl-selmix features DATASET --out FOLDER [options] [key=value ...]",
        description="Make features of all images by a pre-trained network, once.",
        epilog="Interrupted, the same command goes on; several at once share the work. Train on "
        "the folder with --dataset features data.root=FOLDER, or on the images with "
        "model.tune=head features.dir=FOLDER.",
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="a name of ssl-selmix list, or ./file.py")
    settings = "such as data.root=PATH model.pretrained=FILE features.weak=2 features.strong=4"
    add("settings", metavar="key=value", nargs="*", help=f"{settings} features.dtype=float16")
    add("--debug", action="store_true", help="show the traceback of an error")
    add = parser.group("which network, and where to")
    add("--model", metavar="NAME", help="such as timm:vit_small_patch14_dinov2.lvd142m")
    add("--init", metavar="PATH", type=path, help="take the body of a run, or of a state dict")
    add("--out", metavar="FOLDER", type=path, required=True, help="is made, or gone on with")
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
        (
            ("ssl-selmix list", "a line for everything there is"),
            ("ssl-selmix list presets", "one kind: algorithms, datasets, objectives, ..."),
            ("ssl-selmix list fixmatch", "all settings of a method"),
            ("ssl-selmix list image_folder model run", "of a data set, the network, a run"),
        ),
        prog="ssl-selmix list",
        usage="ssl-selmix list [NAME ...]",
        description="List what there is, or the settings of a method or data set.",
        epilog="NAME: an algorithm, dataset, objective, preset or sweep, a method or data set of "
        "your own (./file.py), a kind of them such as presets; model, views or run.",
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="default: a line of everything")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _list(args: argparse.Namespace) -> int:
    found = []
    for name in args.names:
        kinds = {title.split()[0]: (title, entries) for title, entries in listings().items()}
        if kind := near(name if name.endswith("s") else f"{name}s", kinds, cutoff=1):
            found.append(section(*kinds[kind[0]]))
            continue
        from ssl_selmix.runs import reference

        found.append(reference.of_name(name))
    print("\n\n\n".join(found) or f"{listing()}\n\n{defaults.listing()}")
    return 0


def _explain_parser() -> Parser:
    parser = Parser(
        (
            ("ssl-selmix explain fixmatch.lr", "one setting"),
            ("ssl-selmix explain rho", "every setting of this name"),
        ),
        prog="ssl-selmix explain",
        usage="ssl-selmix explain KEY [KEY ...]",
        description="Say what a setting means: type, rule, default, paper's symbol, presets.",
    )
    words = "such as fixmatch.lr, data.labeled.rho or threshold"
    parser.add_argument("keys", metavar="KEY", nargs="+", help=words)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _explain(args: argparse.Namespace) -> int:
    from ssl_selmix.runs import reference

    print("\n\n".join(reference.explain(key) for key in args.keys))
    return 0


def _completion_parser() -> Parser:
    parser = Parser(
        (
            (
                "ssl-selmix completion bash > \\\n"
                "    ~/.local/share/bash-completion/completions/ssl-selmix",
                "for every bash that starts from now on",
            ),
            ('ssl-selmix completion zsh > "${fpath[1]}/_ssl-selmix"', "for zsh"),
            (
                "ssl-selmix completion fish > ~/.config/fish/completions/ssl-selmix.fish",
                "for fish",
            ),
            ('eval "$(ssl-selmix completion bash)"', "for this shell alone"),
        ),
        prog="ssl-selmix completion",
        usage="ssl-selmix completion {bash,zsh,fish}",
        description="Print what lets a shell complete words. The script knows commands, options, "
        "names, keys of settings and their values; after an update of the package, make it anew.",
    )
    shells = ("bash", "zsh", "fish")
    parser.add_argument("shell", metavar="SHELL", choices=shells, help=", ".join(shells))
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _completion(args: argparse.Namespace) -> int:
    from ssl_selmix.runs import completion

    print(completion.script(args.shell), end="")
    return 0


COMMANDS = {
    "train": Command(_train_parser, _train),
    "features": Command(
        _features_parser, _features, goes_on="; repeat the command to go on with the folder"
    ),
    "list": Command(_list_parser, _list),
    "explain": Command(_explain_parser, _explain),
    "completion": Command(_completion_parser, _completion),
}
