"""Imports of large packages, without what Python's garbage collector adds to them."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import torch and what needs it in here, at the start of a program.

    Modules are never garbage, yet the collector looks through all that they define, again and again
    while they are imported, and once more when the program ends: a third of the time of both.
    """
    if "torch" in sys.modules or not gc.isenabled():  # somebody else's program
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    gc.freeze()
    atexit.register(gc.freeze)
