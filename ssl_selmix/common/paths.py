"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with the home folder in place of a `~` that no shell saw.

    A shell leaves it in `--out=~/runs`, a YAML file and a notebook always do; and nobody wants a
    folder of that name.

    Raises:
        ValueError: there is no such user.
    """
    text = os.fspath(path)
    found = os.path.expanduser(text)
    if found.startswith("~"):
        user = text.partition("/")[0]
        raise ValueError(f"{text}: {user} names no user's home folder; write ./{text} for a file")
    return Path(found)
