"""Pages whose tables are made from committed results, in the places that the page marks.

A table goes between `<!-- table NAME -->` and `<!-- end of table -->`, whatever stands there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ssl_selmix.common.atomic import write_atomically

PLACE = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end of table -->)", re.S)


def fill(page: Path, made: Callable[[str], str]) -> None:
    """Put the table of each name in its place, and say so.

    Raises:
        ValueError: from `made`, of a name that there is no table of.
    """
    text = PLACE.sub(lambda at: f"{at[1]}\n{made(at[2])}\n\n{at[3]}", page.read_text("utf-8"))
    write_atomically(page, text.encode())
    print(f"filled {page}")
