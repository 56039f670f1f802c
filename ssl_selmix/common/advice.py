"""What to do about an error, added where it is known, told where the error is."""

from __future__ import annotations


def add(error: BaseException, text: str) -> None:
    """Let an error say this after its own words."""
    error.__dict__["advice"] = text


def of(error: BaseException) -> str:
    """What was added, to be put behind the error's own words."""
    found = error.__dict__.get("advice")
    return f"; {found}" if found else ""
