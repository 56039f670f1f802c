"""The words of a command line: a parser, kinds of words, and lists of what there is.

Imports nothing heavy, nor may the modules `command`, which use it: asking for help is quick.
"""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from ssl_selmix.common import plugins
from ssl_selmix.common.names import near, printable
from ssl_selmix.common.paths import expanded

SWEEPS = "sweeps (ssl-selmix sweep NAME)"
UNLIMITED, NARROWEST = (
    10_000,
    40,
)  # columns of a listing that nobody reads on a terminal; of its text


class Paragraphs(argparse.HelpFormatter):
    """Fills the paragraphs of a text, but for those that have lines of their own."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = (
            part if "\n" in part else textwrap.fill(part, width, break_on_hyphens=False)
            for part in text.split("\n\n")
        )
        return textwrap.indent("\n\n".join(filled), indent)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """Takes no abbreviated options; tells a mistake in one line; its help begins with examples.

    Args:
        examples: commands, each with what it does in a few words.
        options: those of argparse.
    """

    def __init__(self, examples: Sequence[tuple[str, str]] = (), **options: Any) -> None:
        self.names: list[str] = []  # of all arguments
        self.examples = examples
        options.setdefault("formatter_class", Paragraphs)
        super().__init__(allow_abbrev=False, **options)
        self._positionals.title, self._optionals.title = "arguments", "other options"
        for action in self._optionals._group_actions:
            action.help = "show this"  # argparse adds --help itself

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As argparse's, but that no word may be empty."""
        return super().add_argument(*names, **self._kept(names, options))

    def group(self, title: str) -> Callable[..., argparse.Action]:
        """What adds arguments under a title of the help; options without one stand last."""
        found = self.add_argument_group(title)

        def add(*names: Any, **options: Any) -> argparse.Action:
            return found.add_argument(*names, **self._kept(names, options))

        return add

    def _kept(self, names: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
        if options.get("action") in (None, "append", "extend"):
            options.setdefault("type", word)
        self.names += names
        return options

    def format_help(self) -> str:
        """What it does, examples, usage, the options by group, and what else there is to say."""
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        if self.examples:
            lines = (f"  # {told}\n  {line}" for line, told in self.examples)
            formatter.add_text("\n".join(["examples:", *lines]))
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        last = self._optionals
        for group in [g for g in self._action_groups if g is not last] + [last]:
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

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
# The room of each command, in the order of work; its module `command` has the parser and the work.
ROOMS = {
    "train": "runs",
    "init": "audit",
    "data": "audit",
    "features": "runs",
    "list": "runs",
    "explain": "runs",
    "sweep": "sweep",
    "compare": "compare",
    "advise": "deploy",
    "posthoc": "deploy",
    "estimate": "deploy",
    "predict": "deploy",
    "export": "deploy",
    "check": "contract",
    "completion": "runs",
}


@dataclass(frozen=True)
class Command:
    """A word after `ssl-selmix`: its parser, and its work, which returns the exit code.

    goes_on: what to say after an interrupt, unless the error says it.
    """

    parser: Callable[[], Parser]
    work: Callable[[argparse.Namespace], int]
    goes_on: str = ""


def command(name: str) -> Command:
    """The command of this name, whose room is imported for it."""
    found: Command = import_module(f"ssl_selmix.{ROOMS[name]}.command").COMMANDS[name]
    return found


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


def count(text: str) -> int:
    """A whole number from 0 on.

    Raises:
        argparse.ArgumentTypeError: the text is none.
    """
    return 0 if text.strip() == "0" else positive(text)


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
    """A title, and for each name what is said of it, in lines that fit into the terminal."""
    width = max(map(len, entries), default=0)
    # What goes into a file or a pipe has a line for each name, for whoever looks for words in it.
    room = shutil.get_terminal_size((UNLIMITED, 24)).columns - width - 4
    lines = []
    for name, text in entries.items():
        first, *rest = textwrap.wrap(text, max(room, NARROWEST), break_on_hyphens=False) or [""]
        lines += [f"  {name:{width}}  {first}".rstrip(), *(f"{'':{width + 4}}{r}" for r in rest)]
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


def names(entries: Iterable[str]) -> str:
    """Names in columns, as many as fit into a line."""
    known = list(entries)
    width = max(map(len, known), default=0) + 3
    each = max(1, (shutil.get_terminal_size((80, 24)).columns - 1) // width)
    rows = (known[i : i + each] for i in range(0, len(known), each))
    return "\n".join("".join(f"  {name} ".ljust(width) for name in row) for row in rows)


def listing() -> str:
    """All of them in a text."""
    return "\n\n".join(section(title, entries) for title, entries in listings().items())
