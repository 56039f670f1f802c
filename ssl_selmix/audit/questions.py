"""The questions of `ssl-selmix init`, on a terminal or answered by options."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from ssl_selmix.audit import begin
from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.common.console import say
from ssl_selmix.common.names import printable

T = TypeVar("T")
NAMES = [field.name for field in fields(begin.Answers)]
QUESTIONS = {
    "goal": ("What counts?", {name: told for name, (told, _) in begin.GOALS.items()}),
    "network": ("Which network?", begin.NETWORKS),
    "time": ("How long may it train?", begin.TIMES),
    "use": ("What may it learn from?", begin.USES),
}


def run(
    images: str | None, given: Mapping[str, str | None], yes: bool, out: Path, force: bool
) -> None:
    """Look at the images, ask what is not given, and write the file.

    Args:
        images: a folder, a file or the name of a data set; None: it is asked for.
        given: answers by name; None where there is none.
        yes: take the defaults in the place of questions.
        out: the YAML file.
        force: it may exist.

    Raises:
        ValueError: the images or the answers are no good, or there is nobody to ask.
        OSError: the file cannot be written.
    """
    if (out.exists() or out.is_symlink()) and not force:
        raise ValueError(f"{out} exists and is not overwritten; add --force, or --out FILE")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"no folder {out.absolute().parent} for {out.name}; make it first")
    open_ones = [] if yes else [name for name in NAMES if given[name] is None]
    if (images is None or open_ones) and not sys.stdin.isatty():
        options = " ".join(f"--{name} {name.upper()}" for name in open_ones)
        more = f" {options} (or --yes for the defaults)" if open_ones else ""
        place = " --images PATH" if images is None else ""
        raise ValueError(f"init asks on a terminal, and this is none; give{place}{more}")
    begin.Answers(**{name: word for name, word in given.items() if word is not None})
    try:
        found = _look(images)
        say(printable(f"found {found.told()}"))
        text = begin.text(found, _answers(found, given, yes), str(out))
    except EOFError:
        raise ValueError("there are no more answers (Ctrl-D); nothing was written") from None
    write_atomically(out, text.encode())
    say(f"wrote {out}; next:")
    say(f"  ssl-selmix train --config {out} --dry-run   # plan and time")
    say(f"  ssl-selmix train --config {out}")


def _look(images: str | None) -> begin.Look:
    if images is not None:
        return begin.look(images)
    return _asked(
        "1. Where are your images? A folder with train/<class>/*, a table such as labels.csv, an "
        "npz file, a folder of tar shards or of save_to_disk; digits to try it out: ",
        begin.look,
    )


def _answers(found: begin.Look, given: Mapping[str, str | None], yes: bool) -> begin.Answers:
    usual, words = begin.defaults(found), dict[str, str]()
    for number, name in enumerate(NAMES, 2):
        default = getattr(usual, name)
        word = given[name] or (default if yes else None)
        words[name] = word or _asked_of(found, number, name, default)
    return begin.Answers(**words)


def _asked_of(found: begin.Look, number: int, name: str, default: str) -> str:
    """The answer to one question, asked again until it makes sense."""
    title, choices = QUESTIONS[name]
    say(f"{number}. {title}")
    for choice, told in choices.items():
        steps = begin.STEPS[choice][found.device] if name == "time" else ()
        more = f"{steps[0]:,} steps, then {steps[1]:,}" if steps else ""
        said = ", ".join(part for part in (told, more) if part)
        say(f"   {choice:10} {said}")

    def checked(word: str) -> str:
        begin.check(found, begin.Answers(**{name: word}))
        return word

    return _asked(f"   [{default}] ", checked, default)


def _asked(prompt: str, accept: Callable[[str], T], default: str = "") -> T:
    while True:
        word = input(prompt).strip() or default
        if not word:
            continue
        try:
            return accept(word)
        except ValueError as error:
            say(printable(f"   {error}"))
