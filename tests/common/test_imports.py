"""The garbage collector rests while a program imports, and only then."""

import gc
import subprocess
import sys

from ssl_selmix.common.imports import quick_imports

PROGRAM = """
import gc
from ssl_selmix.common.imports import quick_imports
try:
    with quick_imports():
        assert not gc.isenabled()
        raise ValueError("no torch")
except ValueError:
    assert gc.isenabled() and not gc.get_freeze_count()
with quick_imports():
    import json.tool
assert gc.isenabled() and gc.get_freeze_count()
gc.unfreeze()
import atexit
atexit._run_exitfuncs()
print(gc.get_freeze_count() > 0)
"""


def test_the_collector_rests_while_modules_are_imported() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_nothing_changes_in_a_program_that_has_torch_already() -> None:
    import torch  # noqa: F401

    before = gc.get_freeze_count()
    with quick_imports():
        assert gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() == before
    assert "torch" in sys.modules
