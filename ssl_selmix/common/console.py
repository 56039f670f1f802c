"""What the user reads on the terminal while a command works."""

from __future__ import annotations

import os
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from ssl_selmix.common.names import printable


class Terminal(Console):
    """A console that shows text from outside and never obeys it: see `printable`."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments of what is shown; rich's own colours are no part of their text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def console() -> Console:
    """The terminal, or plain text of a fixed width when the output goes elsewhere.

    Of several processes, the first one speaks.
    """
    if int(os.environ.get("RANK", "0")):
        return Terminal(quiet=True)
    found = Terminal()
    return found if found.is_terminal else Terminal(width=110, color_system=None, soft_wrap=True)


def say(text: str) -> None:
    """One line for the user."""
    console().print(text, highlight=False, markup=False)


def warn(text: str) -> None:
    """Say something that the user should know and that does not stop the run."""
    console().print(f"warning: {text}", style="yellow", highlight=False, markup=False)


def tell(text: str) -> None:
    """A line on the standard error, where it cannot stand between results."""
    Terminal(stderr=True, soft_wrap=True).print(text, highlight=False, markup=False)
