"""The words of a command line: a parser, kinds of words, and lists of what there is.

Imports nothing heavy, nor may the modules `command`, which use it: asking for help is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ssl_selmix.common import plugins
from ssl_selmix.common.names import printable
from ssl_selmix.common.paths import expanded

SWEEPS = "sweeps (ssl-selmix sweep NAME)"


class Parser(argparse.ArgumentParser):
    """Takes no abbreviated options; tells a mistake in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """End with code 2; argparse would print the usage first."""
        message = message.replace(", key=value", "")  # Settings are never required.
        self.exit(2, printable(f"error: {message}; see {self.prog} --help\n"))


@dataclass(frozen=True)
class Command:
    """A word after `ssl-selmix`: its parser, and its work, which returns the exit code.

    goes_on: what to say after an interrupt; kept: what to say after a file could not be written.
    """

    parser: Callable[[], Parser]
    work: Callable[[argparse.Namespace], int]
    goes_on: str = ""
    kept: str = ""


def path(text: str) -> Path:
    """A path that names something.

    Raises:
        argparse.ArgumentTypeError: the text is empty, or begins with a ~ of nobody.
    """
    if not text:
        raise argparse.ArgumentTypeError("an empty path names no file")
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """A whole number from 1 on.

    Raises:
        argparse.ArgumentTypeError: the text is none.
    """
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def section(title: str, entries: Mapping[str, str]) -> str:
    """A title, and a line for each name with what is said of it."""
    width = max(map(len, entries), default=0)
    lines = (f"  {name:{width}}  {text}" for name, text in entries.items())
    return "\n".join([f"{title}:", *lines])


def listing() -> str:
    """Algorithms, datasets, objectives, presets and sweeps, a line each."""
    parts = {
        "algorithms": plugins.available("algorithm"),
        "datasets": plugins.available("dataset"),
        "objectives of SelMix (selmix.objective=NAME)": plugins.objectives(),
        "presets": plugins.presets(),
        SWEEPS: plugins.sweeps(),
    }
    return "\n\n".join(section(title, entries) for title, entries in parts.items())
