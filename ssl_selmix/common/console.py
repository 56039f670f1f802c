"""What the user reads on the terminal while a command works."""

from __future__ import annotations

import os

from rich.console import Console


def console() -> Console:
    """The terminal, or plain text of a fixed width when the output goes elsewhere.

    Of several processes, the first one speaks.
    """
    if int(os.environ.get("RANK", "0")):
        return Console(quiet=True)
    found = Console()
    return found if found.is_terminal else Console(width=110, color_system=None, soft_wrap=True)


def say(text: str) -> None:
    """One line for the user."""
    console().print(text, highlight=False, markup=False)


def warn(text: str) -> None:
    """Say something that the user should know and that does not stop the run."""
    console().print(f"warning: {text}", style="yellow", highlight=False, markup=False)


def tell(text: str) -> None:
    """A line on the standard error, where it cannot stand between results."""
    Console(stderr=True, soft_wrap=True).print(text, highlight=False, markup=False)
