"""Intervals and marks: coverage, noise of test images, Holm, and when nothing is earned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from ssl_selmix.compare import intervals
from ssl_selmix.compare.intervals import DRAWS, Estimate, Measured
from tests.helpers.results import measure

NONE = np.zeros(DRAWS)


def estimate(values: list[float]) -> Estimate:
    return intervals._estimate(values, [NONE] * len(values), (-100, 100))


def of(recalls: list[float], seed: int = 0, count: int | None = 50) -> Measured:
    counts = None if count is None else [count] * len(recalls)
    figures = measure(recalls)
    return Measured(figures["min_recall"], "min_recall", figures, counts, (seed, str(seed)))


@pytest.mark.parametrize("n", [3, 5, 10])
def test_an_interval_of_few_normal_seeds_covers_their_mean_as_often_as_it_says(n: int) -> None:
    rng = np.random.default_rng(7)
    found = [estimate(list(rng.normal(1, 1, n))).interval for _ in range(300)]
    covered = np.mean([low <= 1 <= high for low, high in found if (low, high)])  # type: ignore[misc]
    assert 0.90 <= covered <= 0.98


def test_a_plain_percentile_interval_of_three_seeds_would_cover_far_less() -> None:
    rng = np.random.default_rng(7)
    draws = rng.normal(1, 1, (300, 3))
    inside = [
        (np.quantile(d[rng.integers(0, 3, (2000, 3))].mean(1), [0.025, 0.975]) - 1) for d in draws
    ]
    assert np.mean([low <= 0 <= high for low, high in inside]) < 0.85


def test_the_interval_has_about_the_length_of_students() -> None:
    values = list(np.random.default_rng(3).normal(0, 1, 30))
    low, high = estimate(values).interval or (0, 0)
    sure = stats.t.interval(0.95, 29, np.mean(values), stats.sem(values))
    assert high - low == pytest.approx(sure[1] - sure[0], rel=0.08)


def test_one_seed_has_no_spread_and_an_interval_of_its_test_images_alone() -> None:
    found = intervals.difference([of([0.5, 0.9])], [of([0.7, 0.9])])
    assert (found.n, found.spread, found.p) == (1, None, None)
    assert found.interval is not None and found.interval[0] < 0.2 < found.interval[1]
    # Two independent proportions of 50: the textbook's standard error.
    error = (0.5 * 0.5 / 50 + 0.7 * 0.3 / 50) ** 0.5
    low, high = found.interval
    assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=0.15)


def test_more_test_images_narrow_the_interval_and_unknown_ones_add_nothing() -> None:
    widths = []
    for count in (20, 1000):
        pairs = (
            [of([0.5, 0.9], s, count) for s in range(3)],
            [of([0.7, 0.9], s, count) for s in range(3)],
        )
        low, high = intervals.difference(*pairs).interval or (0, 0)
        widths.append(high - low)
    assert widths[1] < widths[0] / 4
    unknown = intervals.difference([of([0.5, 0.9], 0, None)], [of([0.7, 0.9], 0, None)])
    assert unknown.interval is None


def test_a_stage_that_kept_its_start_changed_nothing_for_sure() -> None:
    kept = intervals.difference([of([0.5, 0.9])] * 3, [of([0.5, 0.9])] * 3)
    assert (kept.mean, kept.interval, kept.p) == (0, (0, 0), 1)
    assert not kept.excludes_zero


def test_equal_recalls_of_two_seeds_are_no_equal_predictions() -> None:
    assert not np.array_equal(of([0.5, 0.9], 0).noise(), of([0.5, 0.9], 1).noise())


def test_the_noise_of_images_is_centred_though_noisy_minima_are_lower() -> None:
    recalls = [0.5] * 10  # the minimum of ten draws lies far below 0.5
    assert of(recalls).noise().mean() == pytest.approx(0, abs=1e-12)
    found = intervals.difference([of(recalls)], [of([0.5] + [0.95] * 9)])
    assert found.interval is not None and abs(sum(found.interval)) < 0.08


def test_differences_that_agree_by_the_coarseness_of_a_test_set_are_not_certain() -> None:
    before, after = ([of([value, 0.9], s) for s in range(5)] for value in (0.5, 0.52))
    found = intervals.difference(before, after)
    assert found.spread == pytest.approx(0) and not found.excludes_zero
    assert intervals.earned([found]) == [False]


def test_marks_need_seeds_an_interval_without_zero_and_holm() -> None:
    clear = Estimate(5, 0.2, 0.01, (0.18, 0.22), 0.001)
    assert intervals.earned([clear]) == [True]
    assert intervals.earned([Estimate(4, 0.2, 0.01, (0.18, 0.22), 0.001)]) == [False]
    assert intervals.earned([Estimate(5, 0.2, 0.01, (-0.01, 0.22), 0.001)]) == [False]
    weak = Estimate(5, 0.2, 0.1, (0.01, 0.4), 0.03)
    assert intervals.earned([weak]) == [True]
    assert intervals.earned([weak, weak]) == [False, False]  # 0.06 each
    assert intervals.earned([weak, clear]) == [True, True]  # 0.03 and 0.002
    assert intervals.earned([Estimate(1, 0.2, None, (0.1, 0.3), None), clear]) == [False, True]


def test_rounding_earns_no_mark() -> None:
    # 0.3 - 0.1 and 0.9 - 0.7 differ in their last bit, and so would a spread of 3e-17.
    pairs = [(0.1, 0.3), (0.7, 0.9), (0.5, 0.7), (0.6, 0.8), (0.2, 0.4)]
    assert len({b - a for a, b in pairs}) > 1
    before = [of([a, 0.95], s, None) for s, (a, _) in enumerate(pairs)]
    after = [of([b, 0.95], s, None) for s, (_, b) in enumerate(pairs)]
    found = intervals.difference(before, after)
    assert found.mean == 0.2 and found.spread == 0 and found.interval is None
    assert found.p == 2 * 0.5**5
    assert intervals.earned([found]) == [False]


def test_a_recall_of_one_or_zero_is_as_uncertain_as_few_images_leave_it() -> None:
    for recall in (0.0, 1.0):
        other = 0.96 if recall else 0.04
        found = intervals.difference([of([recall, recall], 0)], [of([other, other], 0)])
        again = intervals.difference([of([recall, recall], 0)], [of([recall, recall], 1)])
        assert found.interval is not None and found.interval[1] - found.interval[0] > 0.02
        assert again.interval is not None and again.interval[1] > again.interval[0]
    noise = of([1.0, 1.0]).noise()
    assert noise.mean() == pytest.approx(0, abs=1e-12) and noise.std() > 0.005


def ht(recalls: list[float], value: float, tail: list[int] | None) -> Measured:
    figures = measure(recalls, min_ht_recall=value)
    counts = [50] * len(recalls)
    return Measured(value, "min_ht_recall", figures, counts, (0, "0"), tail)


def test_the_worse_of_head_and_tail_has_the_noise_of_its_own_classes() -> None:
    recalls = [0.9, 0.4, 0.8]
    last, first = ht(recalls, 0.65, [2]), ht([0.4, 0.9, 0.8], 0.4, [0])
    one = (0.4 * 0.6 / 50) ** 0.5  # a tail of one class is as noisy as the class
    assert first.noise().std() == pytest.approx(one, rel=0.1)
    half = ((0.9 * 0.1 + 0.4 * 0.6) / 50 / 4) ** 0.5
    assert last.noise().std() == pytest.approx(half, rel=0.15)


def test_without_a_recorded_tail_it_earns_nothing() -> None:
    before = [ht([0.9, 0.4, 0.8], 0.11 + s / 1000, None) for s in range(8)]
    after = [ht([0.9, 0.4, 0.8], 0.55 + s / 900, None) for s in range(8)]
    assert not before[0].known
    found = intervals.difference(before, after)
    assert found.p is not None and found.p < 1e-6
    assert found.interval is None and intervals.earned([found]) == [False]


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=8))
def test_holm_keeps_order_and_only_raises(p_values: list[float | None]) -> None:
    corrected = intervals.holm(p_values)
    known = [
        (p, c) for p, c in zip(p_values, corrected, strict=True) if p is not None and c is not None
    ]
    assert all(p <= c <= 1 for p, c in known)
    assert all(c <= d for (p, c) in known for (q, d) in known if p < q)
    assert [c is None for c in corrected] == [p is None for p in p_values]


def test_intervals_stay_among_the_possible_values() -> None:
    wide = [of([0.0, 0.9], 0), of([1.0, 1.0], 1)]
    assert intervals.mean(wide).interval == (0, 1)
    low, high = intervals.difference(wide, wide[::-1]).interval or (9, 9)
    assert (low, high) == (-1, 1)
