"""`ssl-selmix compare`; imports nothing heavy until there is work."""

from __future__ import annotations

import argparse

from ssl_selmix.common.arguments import Command, Parser, path


def _parser() -> Parser:
    parser = Parser(
        prog="ssl-selmix compare",
        description="Compare finished runs: tables with intervals, figures, a report. Runs that "
        "differ in what makes figures comparable are refused; each split gets its own table.",
        epilog="A FILE that is - is the standard output. The tables: docs/howto/compare.md.",
    )
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", type=path, help="run folders, results.json, or folders")
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
        add(f"--{name}", metavar="FILE", type=path)
    add("--figures", metavar="DIR", type=path, help="every figure as PNG and PDF")
    add("--force", action="store_true", help="overwrite files, but never those of a run")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _compare(args: argparse.Namespace) -> int:
    from ssl_selmix.compare import outputs, tables

    choice = tables.Choice(args.part, tuple(args.metrics), args.against)
    files = {name: getattr(args, name) for name in ("markdown", "latex", "csv", "html")}
    files |= {"figures": args.figures, "force": args.force}
    outputs.run(outputs.Request(args.runs, args.allow, args.by, choice, **files))
    return 0


COMMANDS = {"compare": Command(_parser, _compare)}
