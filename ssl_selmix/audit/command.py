"""`ssl-selmix data`; imports nothing heavy until there is work."""

from __future__ import annotations

import argparse

from ssl_selmix.common.arguments import Command, Parser, path


def _parser() -> Parser:
    parser = Parser(
        prog="ssl-selmix data",
        description="Look at a data set before training: counts, sizes, damaged files, copies, "
        "look-alike class names, groups in two parts.",
        epilog="Every image is read once; nothing is trained, resized or written but the reports. "
        "Exit code 1: something should be mended first.",
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="image_folder, table, arrays, ... or ./file.py")
    add("settings", metavar="key=value", nargs="*", help="of it, such as data.root=PATH")
    add("--json", metavar="FILE", type=path, help="write all that was found, with every name")
    add("--html", metavar="FILE", type=path, help="write one page with examples of each class")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _data(args: argparse.Namespace) -> int:
    from ssl_selmix.audit import report

    return report.run(args.dataset, args.settings, args.json, args.html)


COMMANDS = {"data": Command(_parser, _data)}
