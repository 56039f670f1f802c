"""How a run is asked to end, by a signal or because its time is up, and where it may.

Between two steps of training a request is noted and answered after what is done has been saved;
anywhere else a signal ends the run at once, like Ctrl-C.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TIME_IS_UP = 75  # exit code; EX_TEMPFAIL of sysexits.h: try again later
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Stopped(KeyboardInterrupt):
    """The run was asked to end; `code` is the exit code, as a shell has it for signals."""

    def __init__(self, code: int, where: str = "") -> None:
        super().__init__()
        self.code, self.where = code, where

    def __str__(self) -> str:
        if self.code == TIME_IS_UP:
            return f"the time is up{self.where}"
        return f"ended by {signal.Signals(self.code - 128).name}{self.where}"


class Stop:
    """Whether a run is asked to end.

    Args:
        deadline: by `time.monotonic()`; None: there is no limit of time.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self._deadline, self._number, self._deferred = deadline, 0, False

    @property
    def asked(self) -> int:
        """The exit code to end with; 0: go on."""
        if self._number:
            return 128 + self._number
        late = self._deadline is not None and time.monotonic() >= self._deadline
        return TIME_IS_UP if late else 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Answer signals, but for those that the caller of this process has it ignore (nohup)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        usual = (signal.SIG_DFL, signal.default_int_handler)
        before = {n: signal.getsignal(n) for n in SIGNALS if signal.getsignal(n) in usual}
        for number in before:
            signal.signal(number, self._answer)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        again, self._number = self._number, self._number or number
        if number == signal.SIGINT and again:
            raise KeyboardInterrupt  # of somebody who does not want to wait
        if not (self._deferred or again):
            raise Stopped(self.asked)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Note signals, for somebody who looks at `asked`.

        Raises:
            Stopped: at the end, if a signal was noted and not answered.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._number:
            raise Stopped(self.asked)
