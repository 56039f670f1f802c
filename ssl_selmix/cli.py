"""The command line: finds the command that is asked for, and tells a mistake in one line.

Imports nothing heavy until there is something to train.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper

from ssl_selmix.common import advice, plugins
from ssl_selmix.common.arguments import ROOMS as ROOMS  # which others read here
from ssl_selmix.common.arguments import command, listings, names, section
from ssl_selmix.common.names import near, printable, unknown
from ssl_selmix.common.stopping import Stopped

HELP = ("help", "-h", "--help")
# What people look for under another name.
OTHERWISE = {
    "finetune": "ssl_selmix.finetune(model, ...) in Python (docs/howto/finetune.md)",
    "version": "ssl-selmix --version",
    "resume": "the command that began the run, with --resume",
    "test": "ssl-selmix compare RUN, for test figures, or ssl-selmix check METHOD",
    "evaluate": "ssl-selmix compare RUN",
    "eval": "ssl-selmix compare RUN",
    "settings": "ssl-selmix list NAME",
    "new": "ssl-selmix init",
    "config": "ssl-selmix init, or ssl-selmix train --config FILE",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; every end but success and a defect is told in a line.

    Returns:
        0: it succeeded; 1: a check failed, or another process; 2: a mistake; 75: the time of --for
        is up; 130, 143, 129: Ctrl-C, SIGTERM, SIGHUP.
    """
    _show_what_streams_can()
    try:
        code = _answer(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # Whoever read the output has seen enough, as `head` has.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _show_what_streams_can() -> None:
    """Let a terminal or pipe that is no UTF-8 get what it can show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # A notebook's and a test's may be another.
            utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
            with suppress(OSError):  # It is flushed; a disk may be full.
                stream.reconfigure(errors="backslashreplace" if utf8 else "replace")


def _answer(words: list[str]) -> int:
    if not words or words[0] == "help" or (len(words) == 1 and words[0] in HELP):
        words = words[1:] if words and words[0] == "help" else []
        if not words or words[0] in HELP:
            print(overview())
            return 0
        if words[0] not in ROOMS and near(words[0], ROOMS, cutoff=0.8):
            return _fail(_no_command(words[0]), 2)
        key = "." in words[0] and not words[0].endswith(".py")
        words = (
            [words[0], "--help"] if words[0] in ROOMS else ["explain" if key else "list", *words]
        )
    first = words[0]
    if first not in ROOMS and not first.startswith("-") and "=" not in first:
        return _fail(_no_command(first), 2)
    name = words.pop(0) if first in ROOMS else "train"
    asked = command(name)
    args = asked.parser().parse_intermixed_args(words)  # Settings may stand between options.
    try:
        return asked.work(args)
    except Stopped as error:
        return _stopped(error)
    except KeyboardInterrupt as error:
        return _fail(f"interrupted{advice.of(error) or asked.goes_on}", 130)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        code = _code(error)
        if args.debug or not code:
            raise
        return _fail(_one_line(error), code)


def overview() -> str:
    """The commands with a line each, how to learn more, and all names."""
    lines = {name: command(name).parser().description or "" for name in ROOMS}
    first = {name: re.split(r"(?<=[.:;])\s", text)[0].rstrip(":;.") for name, text in lines.items()}
    known = "\n\n".join(f"{title}:\n{names(found)}" for title, found in listings().items())
    return f"""Long-tailed semi-supervised image classification, and SelMix.

examples:
  # handwritten digits, no download: FixMatch, then SelMix
  ssl-selmix train --algo fixmatch --then selmix
  # your own images: look at them, answer five questions, train
  ssl-selmix data image_folder data.root=PATH
  ssl-selmix init --images PATH
  ssl-selmix train --config selmix.yaml

usage: ssl-selmix COMMAND ...

{section("commands", first)}

  ssl-selmix COMMAND --help           examples and options of a command
  ssl-selmix list fixmatch            the settings of a method, a data set, ...
  ssl-selmix explain fixmatch.lr      what a setting means

{known}

ssl-selmix list says what each of them is."""


def _no_command(name: str) -> str:
    """The message for a first word that is no command; says what it is instead."""
    options = {
        "--algo": plugins.available("algorithm"),
        "--dataset": plugins.available("dataset"),
        "--preset": plugins.presets(),
    }
    found = [
        f"ssl-selmix train {option} {name}" for option, names in options.items() if name in names
    ]
    found += [f"ssl-selmix sweep {name}"] if name in plugins.sweeps() else []
    found += [f"ssl-selmix train --algo {name}"] if name.partition(":")[0].endswith(".py") else []
    found += [OTHERWISE[name]] if name in OTHERWISE else []
    if found:
        return f"{name} is no command; write {' or '.join(found)}"
    return f"{unknown('command', name, ROOMS)} (ssl-selmix help says what they do)"


def _stopped(error: Stopped) -> int:
    """Tell that the run ended as it was asked to; of several processes, the first one does."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{error}{advice.of(error)}", file=sys.stderr, flush=True)
    return error.code


def _code(error: Exception) -> int:
    """The exit code: 2 for a mistake, 1 for that of another process, 0 for a defect of ours."""
    from ssl_selmix.common.processes import ProcessesApart
    from ssl_selmix.training.engine import NonFiniteLoss

    if isinstance(error, ProcessesApart):
        return 1
    return 2 if isinstance(error, ValueError | OSError | MemoryError | NonFiniteLoss) else 0


def _one_line(error: Exception) -> str:
    if isinstance(error, MemoryError):
        text = "there is not enough memory (batch, workers or images at once may be fewer)"
    elif isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        text = f"{error.strerror}{where}{_REMEDIES.get(error.errno or 0, '')}"
    elif library := _library(error):
        text = f"{library} says {type(error).__name__}: {error}; --debug shows where"
    else:
        text = f"{error}{_line_of_the_user(error)}"
    return " ".join(f"{text}{advice.of(error)}".split())


# What to do about what the operating system says.
_REMEDIES = {
    errno.ENOSPC: "; free some space, or write elsewhere",
    errno.EDQUOT: "; free some space, or write elsewhere",
    errno.EROFS: "; write elsewhere",
    errno.EACCES: "; change its permissions, or name another place",
    errno.EPERM: "; change its permissions, or name another place",
    errno.ENOENT: "; check the path",
    errno.ENOTDIR: "; check the path",
    errno.ENAMETOOLONG: "; choose a shorter name",
    errno.EMFILE: "; lower data.workers, or raise the limit (ulimit -n)",
}


def _library(error: Exception) -> str:
    """The library whose message it is; "" if it is ours, or that of the user's own file.

    Ours are those that a statement `raise` made; what a library in C finds wrong comes without.
    """
    import dis

    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    frame = trace.tb_frame
    file = frame.f_code.co_filename
    # The package may be installed among the libraries.
    if file.startswith(_libraries()) and not file.startswith(_package()):
        return str(frame.f_globals.get("__name__", "a library")).partition(".")[0]
    opcode = dis.opname[frame.f_code.co_code[trace.tb_lasti]]
    return "" if opcode in ("RAISE_VARARGS", "RERAISE") else "a library"


def _package() -> str:
    return os.path.join(os.path.dirname(__file__), "")  # not that of ssl_selmix_of_mine


def _libraries() -> tuple[str, ...]:
    import sysconfig

    places = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    return tuple(os.path.join(place, "") for place in places)


def _line_of_the_user(error: Exception) -> str:
    """Where it was raised, if that is in a file of the user's own: a method, an objective."""
    import traceback

    libraries = _libraries()
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(_package()):
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
