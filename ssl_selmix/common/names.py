"""Messages about names: the nearest known ones, and the place of an error in a user's file."""

from __future__ import annotations

import difflib
import os
import traceback
import unicodedata
from collections.abc import Iterable
from pathlib import Path


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for an unknown name: nearest names first, else all of them."""
    known = sorted(known)
    found = near(name, known)
    hint = f"did you mean {' or '.join(found)}?" if found else f"known: {', '.join(known)}"
    return f"unknown {kind} {name!r}; {hint}"


def near(name: str, known: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """Up to three known names that are spelt like this one; case and hyphens do not count.

    >>> near("FixMach", ["crest", "fixmatch"])
    ['fixmatch']
    """
    spelt: dict[str, list[str]] = {}
    for one in dict.fromkeys(known):
        spelt.setdefault(respelt(one), []).append(one)
    if same := spelt.get(respelt(name)):
        return same[:3]
    found = difflib.get_close_matches(respelt(name), spelt, n=3, cutoff=cutoff)
    return [one for spelling in found for one in spelt[spelling]][:3]


def respelt(name: str) -> str:
    """A name in small letters and with underscores: what it is compared by."""
    return name.lower().replace("-", "_").replace(" ", "_")


def printable(text: str) -> str:
    r"""Text from outside as a terminal may show it: what would command it is spelled out.

    Names of files and classes, and files that others made, may hold escape sequences, which move
    the cursor or rename the window, marks that turn the order of letters, and bytes that are no
    UTF-8.

    >>> print(printable("\x1b]0;mine\x07cat"))
    \x1b]0;mine\x07cat
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in "\n\t" or not _commands(c) else ascii(c)[1:-1] for c in text)


def _commands(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or (
        unicodedata.bidirectional(character) in BIDI or character in "\u200e\u200f\u061c"
    )


BIDI = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def blame(error: Exception, file: str) -> str:
    """An error in one line, and where in this file it came from, if it did."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    frames, place = traceback.extract_tb(error.__traceback__), os.path.realpath(file)
    own = [frame for frame in frames if os.path.realpath(frame.filename) == place]
    frame = (own or frames)[-1]
    return f"{text} ({Path(frame.filename).name}, line {frame.lineno})"


def short_name(algorithm: str) -> str:
    """The name by which a run calls an algorithm: `my` for `./my.py`, `mine` for `lab.a:Mine`."""
    location, _, wanted = algorithm.partition(":")
    return wanted.lower() or location.removesuffix(".py").replace("/", ".").rpartition(".")[2]
