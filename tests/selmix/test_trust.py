"""The step that keeps its promise: what is measured, what is taken back, how the rate moves."""

import math

import pytest
import torch
from torch import Tensor, nn

from ssl_selmix import objectives
from ssl_selmix.algorithm import Evaluation, Task
from ssl_selmix.metrics import confusion_matrix
from ssl_selmix.objectives import normalise_rows
from ssl_selmix.selmix.trust import (
    LEAST_INTERVAL,
    TrustRegion,
    Verdict,
    measured_change,
    standard_error,
)

K, N = 3, 60
LABELS = torch.arange(N) % K


def predictions(wrong: dict[int, int]) -> Tensor:
    """All right, but for the first so many images of each class given, called the next class."""
    found = LABELS.clone()
    for k, count in wrong.items():
        rows = torch.nonzero(LABELS == k)[:count, 0]
        found[rows] = (k + 1) % K
    return found


def evaluation(predicted: Tensor) -> Evaluation:
    logits = torch.nn.functional.one_hot(predicted, K).float()
    return Evaluation(logits, logits, LABELS)


def region(interval: int = 40, relative: bool = False) -> tuple[TrustRegion, nn.Linear]:
    torch.manual_seed(0)
    net = nn.Linear(2, K)
    task = Task(tuple("abc"), torch.ones(K), 0, N)
    return TrustRegion(net, task, interval, 16, relative), net


def judged(trust: TrustRegion, old: Tensor, new: Tensor, moved: float = 0.0) -> Verdict:
    """The verdict after predictions went from old to new and a centroid logit by `moved`."""
    objective = objectives.get("mean_recall", K)
    trust.accept(nn.Linear(2, K), evaluation(old), torch.zeros(K, K), torch.eye(K), torch.ones(()))
    logits = torch.zeros(K, K, dtype=torch.float64)
    logits[0, 0] = moved
    return trust.judge(objective, logits, evaluation(new), 0.0)


def test_change_is_that_of_the_objective_when_multipliers_stay() -> None:
    old, new = predictions({2: 10}), predictions({2: 4})
    mean = objectives.get("mean_recall", K)
    change, error = measured_change(mean, old, new, LABELS, 0.0)
    assert change == pytest.approx(6 / 20 / 3)
    # Six images moved, each worth 1/60: a paired comparison has the error sqrt(6)/60.
    assert error == pytest.approx(math.sqrt(6) / 60)


def test_raising_one_class_by_dropping_another_as_deep_counts_for_nothing() -> None:
    old, new = predictions({2: 10}), predictions({0: 10})
    objective = objectives.get("min_recall", K)
    objective.update(confusion_matrix(LABELS, old, K))
    change, error = measured_change(objective, old, new, LABELS, 0.0)
    assert abs(change) < 1e-9 < error
    # Under the multipliers of before it would look like a triumph.
    first, last = (normalise_rows(confusion_matrix(LABELS, p, K)) for p in (old, new))
    assert float(objective.value(last) - objective.value(first)) > 0.4


def test_a_collapse_of_one_class_outweighs_any_rise_of_another() -> None:
    objective = objectives.get("min_recall", K)
    change, _ = measured_change(objective, predictions({2: 14}), predictions({0: 19}), LABELS, 0.0)
    assert change == pytest.approx(0.05 - 0.3, abs=0.01)


def test_error_is_the_spread_under_chance() -> None:
    """Images that change at random give changes whose spread is the stated error."""
    mean = objectives.get("mean_recall", K)
    generator = torch.Generator().manual_seed(0)
    old = predictions({0: 10, 1: 10, 2: 10})
    changes, errors = [], []
    for _ in range(300):
        flip = torch.rand(N, generator=generator) < 0.2
        right, wrong = LABELS, (LABELS + 1) % K
        coin = torch.rand(N, generator=generator) < 0.5
        first = torch.where(flip, torch.where(coin, right, wrong), old)
        second = torch.where(flip, torch.where(coin, wrong, right), old)
        change, error = measured_change(mean, first, second, LABELS, 0.0)
        changes.append(change)
        errors.append(error)
    spread = torch.tensor(changes).std().item()
    assert torch.tensor(errors).mean().item() == pytest.approx(spread, rel=0.15)


def test_what_is_less_than_one_image_cannot_be_seen_and_lets_the_rate_grow() -> None:
    trust, _ = region()
    verdict = judged(trust, LABELS, LABELS, moved=0.01)
    assert verdict.actual == 0 and verdict.error == pytest.approx(1 / N)
    assert not verdict.broken
    assert trust.factor == 3 and trust.interval == 2 * LEAST_INTERVAL


def test_a_fall_beyond_chance_shrinks_rate_and_interval_and_is_taken_back() -> None:
    trust, net = region()
    trust.interval = 40
    good = {k: v.clone() for k, v in net.state_dict().items()}
    verdict = judged(trust, predictions({}), predictions({2: 10}))
    assert verdict.broken
    assert trust.factor == 0.25 and trust.interval == 20
    trust.accept(net, evaluation(LABELS), torch.zeros(K, K), torch.eye(K), torch.ones(()))
    with torch.no_grad():
        net.weight.add_(1)
    trust.take_back(net)
    assert all(torch.equal(v, good[k]) for k, v in net.state_dict().items())


def test_a_fall_within_chance_is_kept() -> None:
    trust, _ = region()
    verdict = judged(trust, predictions({0: 3}), predictions({1: 3}))
    assert not verdict.broken
    one = judged(trust, predictions({}), predictions({0: 1}))
    assert one.actual == pytest.approx(-one.error) and not one.broken


@pytest.mark.parametrize(
    ("moved", "factor"),
    [
        (-0.5, 0.5),
        (-0.01, 3.0),
        (0.03, 3.0),
        (0.09, 2.0),
        (0.39, 2.0),
        (0.5, 1.0),
        (0.99, 1.0),
        (1.1, 0.5),
    ],
)
def test_rate_follows_the_share_of_the_movement_that_had_its_effect(
    moved: float, factor: float
) -> None:
    trust, _ = region()
    verdict = judged(trust, predictions({2: 6}), predictions({}), moved)  # gains 0.1 +- 0.04
    assert verdict.actual == pytest.approx(0.1) and verdict.moved == pytest.approx(moved)
    assert trust.factor == factor
    assert trust.interval == (2 if factor > 1 else 1) * LEAST_INTERVAL


def test_small_falls_do_not_let_the_rate_grow() -> None:
    trust, _ = region()
    assert not judged(trust, predictions({}), predictions({0: 1})).broken
    assert trust.factor == 1


def test_recovery_takes_back_and_shrinks_until_the_rate_is_at_its_least() -> None:
    trust, net = region()
    judged(trust, LABELS, LABELS)
    trust.accept(net, evaluation(LABELS), torch.zeros(K, K), torch.eye(K), torch.ones(()))
    with torch.no_grad():
        net.weight.fill_(math.nan)
    assert trust.recover(net, 30) and bool(net.weight.isfinite().all())
    assert trust.factor == 3 / 16 and trust.due == 30 + trust.interval
    while trust.recover(net, 40):
        pass
    assert trust.factor == 1e-3


def test_intervals_respect_the_cost_of_a_re_estimation() -> None:
    net = nn.Linear(2, K)
    task = Task(tuple("abc"), torch.ones(K), 7443, 5000)
    assert TrustRegion(net, task, 100, 64).interval == 64
    assert TrustRegion(net, task, 50, 64).interval == 50
    assert TrustRegion(net, task, 4, 64).interval == 4


def test_promise_is_rate_times_expected_gain() -> None:
    trust, _ = region()
    trust.rate_sum += 0.02
    trust.rate_sum += 0.01
    assert judged(trust, LABELS, LABELS).promised == pytest.approx(0.03)  # expected gain 1
    trust.start_interval(100)
    assert float(trust.rate_sum) == 0 and trust.due == 100 + trust.interval


def test_rate_stays_within_its_range_and_interval_between_its_bounds() -> None:
    trust, _ = region()
    for _ in range(30):
        judged(trust, LABELS, LABELS)
    assert trust.factor == 1e3 and trust.interval == 40
    for _ in range(30):
        judged(trust, predictions({}), predictions({2: 10}))
    assert trust.factor == 1e-3 and trust.interval == LEAST_INTERVAL


def test_state_round_trip() -> None:
    trust, _ = region()
    judged(trust, LABELS, LABELS)
    trust.start_interval(7)
    other, _ = region()
    other.load_state_dict(trust.state_dict())
    assert other.get_extra_state() == trust.get_extra_state()
    assert torch.equal(other.logits, trust.logits)


def test_a_checkpoint_sets_no_other_attribute() -> None:
    trust, _ = region()
    state = trust.get_extra_state() | {"interval": 17, "judge": None, "longest": 1}
    trust.set_extra_state(state)
    assert trust.interval == 17 and trust.longest == 40 and callable(trust.judge)


def test_smoothing_reaches_the_measured_change() -> None:
    old, new = predictions({2: 20}), predictions({2: 10})
    g_mean = objectives.get("g_mean", K)
    change, _ = measured_change(g_mean, old, new, LABELS, 0.03)
    values = [
        float(g_mean.value(normalise_rows(confusion_matrix(LABELS, p, K), 0.03)))
        for p in (old, new)
    ]
    assert change == pytest.approx(values[1] - values[0])


def test_standard_error_is_the_spread_over_other_images() -> None:
    generator = torch.Generator().manual_seed(0)
    right = torch.tensor([0.9, 0.6, 0.7])
    h_mean, found, errors = objectives.get("h_mean", K), [], []
    labels = torch.arange(300) % K
    for _ in range(300):
        hit = torch.rand(300, generator=generator) < right[labels]
        confusion = confusion_matrix(labels, torch.where(hit, labels, (labels + 1) % K), K)
        found.append(h_mean.metric(confusion))
        errors.append(standard_error(h_mean, confusion, labels, 0.0))
    assert torch.tensor(errors).mean().item() == pytest.approx(
        torch.tensor(found).std().item(), rel=0.1
    )


def test_standard_error_is_at_least_one_image() -> None:
    everything_right = confusion_matrix(LABELS, LABELS, K)
    found = standard_error(objectives.get("mean_recall", K), everything_right, LABELS, 0.0)
    assert found == pytest.approx(1 / N)


def test_first_relative_rate_promises_one_standard_error() -> None:
    trust, _ = region(relative=True)
    trust.promise = 2.0
    trust.begin(error=0.01, reference=64.0)
    assert trust.factor * 3e-4 * trust.interval * trust.promise == pytest.approx(0.01)


@pytest.mark.parametrize("promise", [1e-9, 0.0])
def test_first_relative_rate_moves_logits_by_a_few_temperatures_at_most(promise: float) -> None:
    trust, _ = region(relative=True)
    trust.promise = promise
    trust.begin(error=0.01, reference=64.0)
    assert trust.factor * 3e-4 * trust.interval * 64 == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("moved", "new", "factor"),
    [
        (1e-6, {}, 10.0),  # nothing to see, nothing moved
        (0.005, {}, 0.03 / 0.005),  # twice the error of one image is more than may be aimed at
        (0.9 / 60, {}, 3.0),
        (0.15, {2: -3}, 2.0),  # seen, and as large as it should be
    ],
)
def test_a_relative_rate_grows_quickly_until_the_first_fall(
    moved: float, new: dict[int, int], factor: float
) -> None:
    trust, _ = region(relative=True)
    old = predictions({2: 6})
    judged(trust, old, predictions({2: 6 + new.get(2, 0)}), moved)
    assert trust.factor == pytest.approx(factor)
    judged(trust, predictions({}), predictions({2: 10}))
    before = trust.factor
    judged(trust, LABELS, LABELS, 1e-6)
    assert trust.factor == pytest.approx(3 * before)


def test_a_collapse_shrinks_a_relative_rate_by_more() -> None:
    trust, _ = region(relative=True)
    verdict = Verdict(promised=0.0, moved=0.0, actual=-0.5, error=0.04)
    assert verdict.relative_factor(True) == verdict.relative_factor(False) == 1 / 16
    judged(trust, predictions({}), predictions({2: 10}))
    assert trust.factor == 0.25 and trust.falls == 1


def test_range_of_a_relative_rate_follows_the_first_one() -> None:
    trust, _ = region(relative=True)
    trust.factor = trust.first = 50.0
    for _ in range(30):
        judged(trust, LABELS, LABELS)
    assert trust.factor == pytest.approx(50e4)
    for _ in range(40):
        judged(trust, predictions({}), predictions({2: 10}))
    assert trust.factor == pytest.approx(50e-4)


def test_state_of_a_relative_rate_round_trip() -> None:
    trust, _ = region(relative=True)
    trust.factor = trust.first = 7.0
    judged(trust, predictions({}), predictions({2: 10}))
    other, _ = region(relative=True)
    other.load_state_dict(trust.state_dict())
    assert other.first == 7.0 and other.falls == 1 and other.factor == trust.factor
