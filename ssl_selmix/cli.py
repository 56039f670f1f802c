"""The command line: finds the command that is asked for, and tells a mistake in one line.

Imports nothing heavy until there is something to train.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper

from ssl_selmix.common.arguments import Command
from ssl_selmix.common.names import printable

# The room of each command; its module `command` has the parser and the work.
ROOMS = {
    "train": "runs",
    "list": "runs",
    "estimate": "deploy",
    "check": "contract",
    "sweep": "sweep",
    "predict": "deploy",
    "export": "deploy",
    "compare": "compare",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command: 0 if it succeeded, 1 if a check failed, 2 after a mistake, told in a line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # A notebook's and a test's may be another.
            # A terminal or pipe that is no UTF-8 gets what it can show.
            utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
            with suppress(OSError):  # It is flushed; a disk may be full.
                stream.reconfigure(errors="backslashreplace" if utf8 else "replace")
    words = list(sys.argv[1:] if argv is None else argv)
    name = words.pop(0) if words and words[0] in ROOMS else "train"
    command: Command = import_module(f"ssl_selmix.{ROOMS[name]}.command").COMMANDS[name]
    parser = command.parser()
    if name == "train":  # Its help is that of the program.
        others = ", ".join(other for other in ROOMS if other != name)
        parser.epilog = f"{parser.epilog}\nOther commands (each has --help): ssl-selmix {others}"
    args = parser.parse_intermixed_args(words)  # Settings may stand between options.
    try:
        return command.work(args)
    except KeyboardInterrupt:
        return _fail(f"interrupted{command.goes_on}", 130)
    except (ValueError, OSError, RuntimeError) as error:
        code = _code(error)
        if args.debug or not code:
            raise
        return _fail(_one_line(error, command.kept), code)


def _code(error: Exception) -> int:
    """The exit code: 2 for a mistake, 1 for that of another process, 0 for a defect of ours."""
    from ssl_selmix.common.processes import ProcessesApart
    from ssl_selmix.training.engine import NonFiniteLoss

    if isinstance(error, ProcessesApart):
        return 1
    return 2 if isinstance(error, ValueError | OSError | NonFiniteLoss) else 0


def _one_line(error: Exception, kept: str) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}{kept}"
    return " ".join(f"{error}{_line_of_the_user(error)}".split())


def _line_of_the_user(error: Exception) -> str:
    """Where it was raised, if that is in a file of the user's own: a method, an objective."""
    import sysconfig
    import traceback

    package = os.path.join(os.path.dirname(__file__), "")  # not that of ssl_selmix_of_mine
    places = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    libraries = tuple(os.path.join(place, "") for place in places)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(package):
            return ""
        if not frame.filename.startswith((*libraries, "<")):
            return f" ({os.path.basename(frame.filename)}, line {frame.lineno})"
    return ""


def _fail(text: str, code: int) -> int:
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        # If the first process made the same mistake it says so, and torchrun ends this one.
        time.sleep(3)
        text = f"process {rank}: {text}"
    print(printable(f"error: {text}"), file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
