"""`ssl-selmix check`; imports nothing heavy until there is work."""

from __future__ import annotations

import argparse

from ssl_selmix.common.arguments import Command, Parser


def _parser() -> Parser:
    parser = Parser(
        (
            ("ssl-selmix check ./my_method.py", "every rule that a method has to keep"),
            ("ssl-selmix check ./my_data.py data.root=PATH", "those of a data set"),
            ("ssl-selmix check ./my_objective.py:function", "those of an objective"),
        ),
        prog="ssl-selmix check",
        usage="ssl-selmix check A [--debug] [key=value ...]",
        description="Apply the contract tests to a method, a data set or an objective: a shipped "
        "one or, better, your own.",
    )
    what = "./method.py, ./data.py, ./objective.py:function, module:Class or a shipped name"
    parser.add_argument("name", metavar="A", help=what)
    words = "of a data set, such as data.root=PATH"
    parser.add_argument("settings", metavar="key=value", nargs="*", help=words)
    parser.add_argument("--debug", action="store_true", help="show the tracebacks of failed checks")
    return parser


def _check(args: argparse.Namespace) -> int:
    from ssl_selmix.contract.reporting import report
    from ssl_selmix.training import machine

    machine.use_threads(1)  # The tensors are too small to be worth sharing.
    return 0 if report(args.name, args.debug, args.settings) else 1


COMMANDS = {"check": Command(_parser, _check)}
