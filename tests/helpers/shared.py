"""What takes long to make is made once, however many processes the tests have."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder of this name, which the first process to ask fills while the others wait.

    Tests may only read it. A folder that could not be made whole is made again by the next.
    """
    base = factory.getbasetemp()
    # pytest-xdist gives every process a folder of its own in one that they share.
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / name, base / f"{name}.done"
    with FileLock(base / f"{name}.lock"):
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder
