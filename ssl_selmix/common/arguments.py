"""The words of a command line: a parser, kinds of words, and lists of what there is.

Imports nothing heavy, nor may the modules `command`, which use it: asking for help is quick.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ssl_selmix.common import plugins
from ssl_selmix.common.names import near, printable
from ssl_selmix.common.paths import expanded

SWEEPS = "sweeps (ssl-selmix sweep NAME)"


class Parser(argparse.ArgumentParser):
    """Takes no abbreviated options; tells a mistake in one line."""

    def __init__(self, **options: Any) -> None:
        self.names: list[str] = []  # of all arguments
        super().__init__(allow_abbrev=False, **options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As argparse's, but that no word may be empty."""
        if options.get("action") in (None, "append", "extend"):
            options.setdefault("type", word)
        self.names += names
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        """End with code 2; argparse would print the usage first."""
        message = message.replace(", key=value", "")  # Settings are never required.
        if message.startswith(UNKNOWN):
            message += self._meant(message.removeprefix(UNKNOWN).split()[0])
        self.exit(2, printable(f"error: {message}; see {self.prog} --help\n"))

    def _meant(self, option: str) -> str:
        """What may be meant by an option that does not exist."""
        name, _, value = option.lstrip("-").partition("=")
        options = [known for known in self.names if known.startswith("--")]
        if found := near(f"--{name}", options, cutoff=0.7):
            return f"; did you mean {' or '.join(found)}?"
        if option.startswith("--") and "settings" in self.names:
            said = f"{name.replace('-', '_') or 'key'}={value or 'value'}"
            return f"; a setting is written {said}, without dashes"
        return ""


UNKNOWN = "unrecognized arguments: "


@dataclass(frozen=True)
class Command:
    """A word after `ssl-selmix`: its parser, and its work, which returns the exit code.

    goes_on: what to say after an interrupt, unless the error says it.
    """

    parser: Callable[[], Parser]
    work: Callable[[argparse.Namespace], int]
    goes_on: str = ""


def word(text: str) -> str:
    """A word as it was typed.

    Raises:
        argparse.ArgumentTypeError: there is nothing in it.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty word names nothing; leave it out, or name it")
    return text


def path(text: str) -> Path:
    """A path that names something.

    Raises:
        argparse.ArgumentTypeError: the text is empty, or begins with a ~ of nobody.
    """
    if not text.strip():
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


def duration(text: str) -> float:
    """Seconds of a time such as 3h50m, 90s, 45m or 1d12h.

    Raises:
        argparse.ArgumentTypeError: the text is none, or no time at all.
    """
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text, re.ASCII)
    parts = [float(part or 0) for part in found.groups("")] if found and text else [0]
    seconds = sum(n * unit for n, unit in zip(parts, (86400, 3600, 60, 1), strict=False))
    if not seconds:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write it as in 3h50m, 45m or 90s")
    return seconds


def section(title: str, entries: Mapping[str, str]) -> str:
    """A title, and a line for each name with what is said of it."""
    width = max(map(len, entries), default=0)
    lines = (f"  {name:{width}}  {text}" for name, text in entries.items())
    return "\n".join([f"{title}:", *lines])


def listings() -> dict[str, dict[str, str]]:
    """Algorithms, datasets, objectives, presets and sweeps by title, with a line each."""
    return {
        "algorithms": plugins.available("algorithm"),
        "datasets": plugins.available("dataset"),
        "objectives of SelMix (selmix.objective=NAME)": plugins.objectives(),
        "presets": plugins.presets(),
        SWEEPS: plugins.sweeps(),
    }


def listing() -> str:
    """All of them in a text."""
    return "\n\n".join(section(title, entries) for title, entries in listings().items())
