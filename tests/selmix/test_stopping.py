"""Early stopping of a fine-tuning stage."""

import pytest

from ssl_selmix.selmix.stopping import Stopping


def steps_until(rule: str, figures: list[tuple[float, float]], patience: int = 3) -> int | None:
    stopping = Stopping(rule, patience)
    for i, (gain, objective) in enumerate(figures):
        stopping.record(gain, objective)
        if stopping.finished:
            return i
    return None


@pytest.mark.parametrize(
    ("gains", "stop"),
    [
        ([1.0] * 12, 9),  # ten equal gains: their mean is the last one
        ([0.0] * 12, 9),  # no gain left: the released code would go on for ever
        ([0.9**i for i in range(30)], None),  # falling too fast to be called flat
        ([5.0, 4.0, 3.0, *[1.0] * 12], 12),
        ([1.0] * 9, None),
    ],
)
def test_gain_rule(gains: list[float], stop: int | None) -> None:
    assert steps_until("gain", [(g, 0.0) for g in gains]) == stop


def test_patience_counts_from_the_best_objective() -> None:
    objectives = [0.1, 0.2, 0.2, 0.3, 0.3, 0.29, 0.3]
    assert steps_until("patience", [(1.0, o) for o in objectives]) == 6
    assert steps_until("patience", [(1.0, o) for o in objectives], patience=4) is None


def test_steps_that_were_taken_back_are_no_better_ones() -> None:
    stopping = Stopping("patience", 3)
    stopping.record(1.0, 0.5)
    for _ in range(2):
        stopping.missed()
    assert not stopping.finished
    stopping.record(1.0, 0.5)
    assert stopping.finished


def test_none_never_stops() -> None:
    assert steps_until("none", [(0.0, 0.0)] * 50) is None


def test_state_round_trip() -> None:
    first, second = Stopping("gain", 3), Stopping("gain", 3)
    for _ in range(6):
        first.record(1.0, 0.5)
    second.load_state_dict(first.state_dict())
    for _ in range(4):
        first.record(1.0, 0.5)
        second.record(1.0, 0.5)
    assert second.finished and first.finished and first.since == second.since
