"""Executes the gallery: `python examples/gallery/_build.py [NAME ...]`, or `make gallery`.

Each script runs in an empty folder of its own. Its picture and what it printed itself, without what
the commands print that it calls, come to lie beside it as NAME.png and NAME.txt, from which the
site makes its page.
"""

from __future__ import annotations

import builtins
import os
import resource
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MOST = 60  # seconds of processors that a script may take


def names() -> list[str]:
    """All scripts."""
    return sorted(path.stem for path in HERE.glob("[!_]*.py"))


def run(name: str) -> list[str]:
    """Run a script in this process and folder; the lines that it printed itself."""
    script, printed, own = str(HERE / f"{name}.py"), list[str](), builtins.print

    def noted(*values: Any, **options: Any) -> None:
        if sys._getframe(1).f_code.co_filename == script:
            printed.append(" ".join(map(str, values)))
        own(*values, **options)

    builtins.print = noted
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        builtins.print = own
    return printed


def build(name: str) -> float:
    """Run a script in a process of its own, and keep what it made; its seconds of processors.

    Raises:
        SystemExit: it failed.
    """
    code = (
        "import sys; sys.path[:0] = sys.argv[2:4]; import _build; from pathlib import Path;"
        "Path('printed').write_text(chr(10).join(_build.run(sys.argv[1])) + chr(10), 'utf-8')"
    )
    words = [sys.executable, "-c", code, name, str(ROOT), str(HERE)]
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = os.environ | {"MPLBACKEND": "agg"}
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stderr}")
        (HERE / f"{name}.png").write_bytes((Path(folder) / f"{name}.png").read_bytes())
        (HERE / f"{name}.txt").write_bytes((Path(folder) / "printed").read_bytes())
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    for name in sys.argv[1:] or names():
        seconds = build(name)
        print(f"{name:20} {seconds:5.1f} s{'' if seconds < MOST else ' (too long)'}", flush=True)
