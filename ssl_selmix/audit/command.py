"""`ssl-selmix data`; imports nothing heavy until there is work."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssl_selmix.common.arguments import Command, Parser, path


def _parser() -> Parser:
    parser = Parser(
        (
            ("ssl-selmix data image_folder data.root=PATH", "a folder with train/<class>/*"),
            (
                "ssl-selmix data table data.file=labels.csv --html data.html",
                "a table of images; the page shows examples of each class",
            ),
        ),
        prog="ssl-selmix data",
        usage="ssl-selmix data DATASET [options] [key=value ...]",
        description="Look at a data set before training: counts, sizes, damaged files, copies, "
        "look-alike class names, groups in two parts.",
        epilog="Every image is read once; nothing is trained, resized or written but the reports. "
        "Exit code 1: something should be mended first.",
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="image_folder, table, arrays, ... or ./file.py")
    add("settings", metavar="key=value", nargs="*", help="of it, such as data.root=PATH")
    add("--debug", action="store_true", help="show the traceback of an error")
    add = parser.group("what to write")
    add("--json", metavar="FILE", type=path, help="all that was found, with every name")
    add("--html", metavar="FILE", type=path, help="one page with examples of each class")
    return parser


def _data(args: argparse.Namespace) -> int:
    from ssl_selmix.audit import report

    return report.run(args.dataset, args.settings, args.json, args.html)


def _init_parser() -> Parser:
    parser = Parser(
        (
            ("ssl-selmix init", "asks five questions, and writes selmix.yaml"),
            ("ssl-selmix init --images PATH --yes", "asks nothing: defaults that fit the images"),
            (
                "ssl-selmix init --images PATH --goal worst --network pretrained --yes",
                "some of the answers as options",
            ),
            ("ssl-selmix train --config selmix.yaml", "trains by that file"),
        ),
        prog="ssl-selmix init",
        usage="ssl-selmix init [options]",
        description="Ask five questions and write the settings of a training. It looks at the "
        "images first, so that the defaults fit them.",
        epilog="The file is YAML with comments, to be changed at will. Ctrl-C ends the questions; "
        "nothing is written then.",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add = parser.group("answers")
    place = "a folder with train/<class>/*, a table, an npz file, tar shards, a saved set, digits"
    add("--images", metavar="PATH", help=place)
    goals = "every, worst or mean class, or an objective of ssl-selmix list"
    add("--goal", metavar="G", help=f"what counts: {goals}")
    add("--network", metavar="N", help="small, pretrained, or a name such as torchvision:resnet18")
    add("--time", metavar="T", help="try, normal or long")
    add("--use", metavar="U", help="what it learns from: labels, or pool (unlabeled images, too)")
    add("--yes", action="store_true", help="take the defaults in the place of other questions")
    add = parser.group("what to write")
    usual = Path("selmix.yaml")
    add("--out", metavar="FILE", type=path, default=usual, help=f"default: {usual}")
    add("--force", action="store_true", help="overwrite FILE")
    return parser


def _init(args: argparse.Namespace) -> int:
    from ssl_selmix.audit import questions

    given = {name: getattr(args, name) for name in questions.NAMES}
    questions.run(args.images, given, args.yes, args.out, args.force)
    return 0


COMMANDS = {
    "data": Command(_parser, _data),
    "init": Command(_init_parser, _init, goes_on="; nothing was written"),
}
