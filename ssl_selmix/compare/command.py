"""`ssl-selmix compare`; imports nothing heavy until there is work."""

from __future__ import annotations

import argparse
from typing import Any

from ssl_selmix.common.arguments import Command, Parser, count, path


def _parser() -> Parser:
    parser = Parser(
        (
            ("ssl-selmix compare runs", "tables of all finished runs below a folder"),
            ("ssl-selmix compare runs --html report.html", "one page to read and to send"),
            (
                "ssl-selmix compare runs --against fixmatch --metrics g_mean min_recall",
                "differences from one method, in two figures",
            ),
        ),
        prog="ssl-selmix compare",
        usage="ssl-selmix compare RUN [RUN ...] [options]",
        description="Compare finished runs: tables with intervals, figures, a report. Runs that "
        "differ in what makes figures comparable are refused; each split gets its own table.",
        epilog="A FILE that is - is the standard output. The tables: docs/howto/compare.md.",
    )
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", type=path, help="run folders, results.json, or folders")
    add("--debug", action="store_true", help="show the traceback of an error")
    add = parser.group("what to compare")
    more: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    part = "of the images: test or validation (default: test)"
    add("--part", metavar="P", choices=("test", "validation"), default="test", help=part)
    names = "figures, such as g_mean min_ht_recall; default: the usual ones"
    add("--metrics", metavar="NAME", help=names, **more)
    add("--against", metavar="ROW", help="row to compare with; default: the best on validation")
    add("--by", metavar="KEY", help="tables for every value of KEY, such as network", **more)
    allow = "compare although KEY differs; the output says so"
    add("--allow", metavar="KEY", help=allow, **more)
    add = parser.group("what to write")
    for name, told in (
        ("html", "one page with tables, figures and the worst confusions"),
        ("markdown", "tables for GitHub"),
        ("latex", "tables for a paper (booktabs)"),
        ("csv", "a row for every figure of every run and class"),
    ):
        add(f"--{name}", metavar="FILE", type=path, help=told)
    worst = "rows whose worst confusions the page shows with images (default: 1; 0: none)"
    add("--examples", metavar="N", type=count, default=1, help=worst)
    add("--figures", metavar="DIR", type=path, help="every figure as PNG and PDF")
    add("--force", action="store_true", help="overwrite files, but never those of a run")
    return parser


def _compare(args: argparse.Namespace) -> int:
    from ssl_selmix.compare import outputs, tables

    choice = tables.Choice(args.part, tuple(args.metrics), args.against)
    files = {name: getattr(args, name) for name in ("markdown", "latex", "csv", "html")}
    files |= {"figures": args.figures, "examples": args.examples, "force": args.force}
    outputs.run(outputs.Request(args.runs, args.allow, args.by, choice, **files))
    return 0


COMMANDS = {"compare": Command(_parser, _compare)}
