"""Requests to end: answered at once, or noted while what is in progress is to be saved."""

import os
import signal
import threading
from types import SimpleNamespace

import pytest

from ssl_selmix.common import stopping
from ssl_selmix.common.stopping import Stop, Stopped


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_ends_at_once_or_is_noted(name: str, code: int) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    for deferred in (False, True):
        stop, reached = Stop(), False
        with pytest.raises(Stopped, match=f"ended by {name}") as told, stop.listening():
            if deferred:
                with stop.deferred():
                    send(number)
                    assert stop.asked == code
                    reached = True
            else:
                send(number)
        assert (told.value.code, reached) == (code, deferred)
        assert signal.getsignal(number) is before


def test_the_second_ctrl_c_does_not_wait() -> None:
    stop, reached = Stop(), False
    with pytest.raises(KeyboardInterrupt) as told, stop.listening(), stop.deferred():
        send(signal.SIGINT)
        reached = True
        send(signal.SIGINT)
    assert reached and not isinstance(told.value, Stopped)


def test_a_cluster_that_asks_twice_is_asking_once() -> None:
    stop, times = Stop(), 0
    with pytest.raises(Stopped, match="SIGTERM"), stop.listening(), stop.deferred():
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            send(number)
            times += 1
    assert times == 3


def test_what_the_caller_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop().listening():
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_listens_to_nothing() -> None:
    def listen() -> None:
        with Stop().listening():
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    found: list[object] = []
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [before]


def test_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: now[0]))
    stop = Stop(deadline=12.0)
    assert (stop.asked, Stop().asked) == (0, 0)
    now[0] = 12.0
    assert (stop.asked, Stop().asked) == (75, 0)
    with stop.deferred():  # which only signals end
        pass
    assert str(Stopped(75, " after step 3")) == "the time is up after step 3"
