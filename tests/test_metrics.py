import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from sklearn.metrics import recall_score
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from ssl_selmix import metrics
from ssl_selmix.metrics import (
    confusion_matrix,
    evaluate,
    expected_calibration_error,
    from_confusion,
)
from ssl_selmix.training.log import StageLog

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "metrics.json").read_text())


def _published_metrics(labels: list[int], preds: list[int], num_classes: int) -> dict[str, Any]:
    """The formulas of the published `get_metrics`, from hard predictions.

    The file holds the official confusion matrices; its "metrics" entries are empty.
    """
    recall = recall_score(labels, preds, labels=range(num_classes), average=None, zero_division=0)
    coverage = np.bincount(preds, minlength=num_classes) / len(preds)
    cut = int(0.9 * num_classes)
    with np.errstate(divide="ignore"):
        h_mean = num_classes / (1 / recall).sum()
    return {
        "mean_recall": recall.mean(),
        "min_recall": recall.min(),
        "min_ht_recall": min(recall[:cut].mean(), recall[cut:].mean()),
        "g_mean": recall.prod() ** (1 / num_classes),
        "h_mean": h_mean,
        "min_coverage": coverage.min(),
        "accuracy": np.mean(np.equal(labels, preds)),
        "per_class_recall": recall.tolist(),
        "per_class_coverage": coverage.tolist(),
    }


@pytest.mark.parametrize("case", sorted(GOLDEN))
def test_golden_cases(case: str) -> None:
    golden = GOLDEN[case]
    labels, preds = golden["labels"], golden["preds"]
    num_classes = len(golden["confusion"])
    confusion = confusion_matrix(torch.tensor(labels), torch.tensor(preds), num_classes)
    torch.testing.assert_close(
        confusion, torch.tensor(golden["confusion"], dtype=torch.float64), atol=1e-12, rtol=0
    )
    assert golden["metrics"] == {}, "golden metrics appeared: compare with them too"
    # The published tail starts at int(0.9 K). For K = 3, 4 and 10 that is our last class as well;
    # only for some other K (11, 12, 25, ...) the two roundings differ. (Its objectives, not its
    # metrics, count a third class of 3 as head.)
    ours = from_confusion(confusion)
    for name, value in _published_metrics(labels, preds, num_classes).items():
        assert ours[name] == pytest.approx(value, abs=1e-12), name


def test_the_default_tail_is_a_tenth_of_the_classes() -> None:
    recall = torch.linspace(1, 0.05, 20)
    confusion = torch.diag(recall)
    confusion[:, 0] += 1 - recall
    value = from_confusion(confusion)["min_ht_recall"]
    assert value == pytest.approx(float(recall[18:].mean()), abs=1e-6)
    value = from_confusion(confusion, tail=[0, 19])["min_ht_recall"]
    assert value == pytest.approx(float(recall[1:19].mean()), abs=1e-6)


@pytest.mark.parametrize("tail", [[], [0, 1, 2], [3], [-1]])
def test_a_tail_of_no_or_all_or_other_classes_is_refused(tail: list[int]) -> None:
    with pytest.raises(ValueError, match=r"some but not all of the classes 0\.\.2"):
        from_confusion(torch.eye(3), tail=tail)


def test_a_class_without_examples_has_no_recall_and_does_not_count() -> None:
    confusion = torch.tensor([[0.4, 0.1, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    values = from_confusion(confusion)
    assert values["per_class_recall"] == [pytest.approx(0.8), 1.0, None]
    assert values["mean_recall"] == pytest.approx(0.9)
    assert values["min_ht_recall"] == pytest.approx(0.9)  # the tail is empty: the head alone
    assert values["h_mean"] == pytest.approx(2 / (1 / 0.8 + 1))
    assert values["min_coverage"] == 0.0  # coverage is of predictions, so it counts every class
    json.dumps(values, allow_nan=False)


def test_counts_serve_as_a_confusion_matrix() -> None:
    counts = torch.tensor([[3, 1], [2, 2]])
    assert from_confusion(counts) == from_confusion(counts / 8)


@given(st.integers(2, 12), st.integers(1, 60), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_every_metric_is_a_fraction_and_means_are_ordered(k: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(k, (n,), generator=generator)
    logits = 3 * torch.randn(n, k, generator=generator)
    values: dict[str, Any] = evaluate(logits, labels, k)
    assert tuple(values) == metrics.NAMES
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    bins = values.pop("reliability")
    flat = [v for value in values.values() for v in (value if isinstance(value, list) else [value])]
    assert all(v is None or 0 <= v <= 1 for v in flat)
    assert_consistent(bins, values, n)
    order = [values[name] for name in ("min_recall", "h_mean", "g_mean", "mean_recall")]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(order))
    assert sum(values["per_class_coverage"]) == pytest.approx(1)


def assert_consistent(bins: dict[str, list[Any]], values: dict[str, Any], n: int) -> None:
    """The bins say the same as the figures beside them."""
    assert sum(bins["count"]) == n and all(len(column) == 15 for column in bins.values())
    rows = list(zip(bins["confidence"], bins["accuracy"], bins["count"], strict=True))
    for b, (confidence, accuracy, count) in enumerate(rows):
        assert (count == 0) == (confidence is None) == (accuracy is None)
        assert count == 0 or b / 15 - 1e-9 <= confidence <= (b + 1) / 15 + 1e-9
    full = [(c, a, m) for c, a, m in rows if m]
    assert sum(m * abs(a - c) for c, a, m in full) / n == pytest.approx(values["ece"], abs=1e-12)
    assert sum(m * a for _, a, m in full) / n == pytest.approx(values["accuracy"], abs=1e-12)


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_renaming_the_classes_renames_the_recalls(k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    confusion = torch.rand(k, k, generator=generator, dtype=torch.float64)
    order = torch.randperm(k, generator=generator)
    one = from_confusion(confusion, tail=[int(order[0])])
    two = from_confusion(confusion[order][:, order], tail=[0])
    recall = one["per_class_recall"]
    assert isinstance(recall, list)
    assert two["per_class_recall"] == pytest.approx([recall[i] for i in order.tolist()])
    for name in ("mean_recall", "min_recall", "min_ht_recall", "g_mean", "h_mean", "accuracy"):
        assert two[name] == pytest.approx(one[name])


def test_ece_by_hand() -> None:
    # 15 bins of width 1/15. 0.95 and 1.0 fall in the last one (14/15 = 0.933 < confidence),
    # 0.70 and 0.72 in bin (10/15, 11/15], 0.55 in (8/15, 9/15].
    confidence = torch.tensor([0.95, 1.0, 0.70, 0.72, 0.55], dtype=torch.float64)
    probs = torch.stack([confidence, 1 - confidence], dim=1)
    labels = torch.tensor([0, 1, 1, 1, 0])
    gaps = [abs(1 - 1.95), abs(0 - 1.42), abs(1 - 0.55)]
    assert float(expected_calibration_error(probs, labels)) == pytest.approx(sum(gaps) / 5)
    values = evaluate(probs.log(), labels, 2)
    assert values["ece"] == pytest.approx(sum(gaps) / 5)
    assert values["accuracy"] == pytest.approx(2 / 5)


def test_a_confidence_on_the_edge_belongs_to_the_lower_bin() -> None:
    # 0.6 = 9/15 shares the bin (8/15, 9/15] with 0.55, so that their errors cancel.
    confidence = torch.tensor([0.6, 0.55], dtype=torch.float64)
    probs = torch.stack([confidence, 1 - confidence], dim=1)
    value = expected_calibration_error(probs, torch.tensor([0, 1]))
    assert float(value) == pytest.approx(abs(1 - 1.15) / 2)


def test_reliability_by_hand() -> None:
    confidence = torch.tensor([0.95, 1.0, 0.70, 0.72, 0.55], dtype=torch.float64)
    probs = torch.stack([confidence, 1 - confidence], dim=1)
    found = metrics.reliability(probs, torch.tensor([0, 1, 1, 0, 0]))
    expected = {8: (0.55, 1.0, 1), 10: (0.71, 0.5, 2), 14: (0.975, 0.5, 2)}
    for b in range(15):
        row = found["confidence"][b], found["accuracy"][b], found["count"][b]
        assert row == (pytest.approx(expected[b]) if b in expected else (None, None, 0))


def test_calibration_extremes() -> None:
    labels = torch.tensor([0, 1, 1])
    right = 1000.0 * torch.nn.functional.one_hot(labels, 2)
    for key in ("ece", "classwise_ece"):
        assert evaluate(right, labels, 2)[key] == 0.0
        assert evaluate(-right, labels, 2)[key] == 1.0


@given(st.integers(2, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_classwise_ece_is_the_mean_over_classes_of_a_binary_one(k: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(k, (n,), generator=generator)
    probs = (3 * torch.randn(n, k, generator=generator, dtype=torch.float64)).softmax(1)
    total = 0.0
    for c in range(k):
        for b in range(15):
            inside = [i for i in range(n) if b == max(0, math.ceil(float(probs[i, c]) * 15) - 1)]
            share = sum(int(labels[i]) == c for i in inside)
            total += abs(share - sum(float(probs[i, c]) for i in inside)) / n
    found = float(metrics.classwise_calibration_error(probs, labels))
    assert found == pytest.approx(total / k, abs=1e-12)


def test_classwise_ece_sees_what_cancels_in_ece() -> None:
    # Always 0.7: right 9 times of 10 for class 0, and 5 times of 10 for class 1.
    probs = torch.tensor([[0.7, 0.3]] * 10 + [[0.3, 0.7]] * 10, dtype=torch.float64)
    labels = torch.tensor([0] * 9 + [1] + [1] * 5 + [0] * 5)
    assert float(expected_calibration_error(probs, labels)) == pytest.approx(0)
    found = float(metrics.classwise_calibration_error(probs, labels))
    assert found == pytest.approx((0.2 * 10 + 0.2 * 10) / 20)


def test_reliability_in_a_log(tmp_path: Path) -> None:
    """A nested figure is a part of the row and no curve of TensorBoard."""
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.0]])
    figures = evaluate(logits, torch.tensor([0, 1, 1]), 2)
    log = StageLog(tmp_path, "1-x", ("a", "b"), Console(file=io.StringIO()), images=1)
    with log.stage(0, 1, resumed=False):
        log.validation(0, figures, {}, torch.eye(2) / 2)
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row["reliability"] == figures["reliability"]
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()["scalars"]
    assert "validation/classwise_ece" in tags and not any("reliability" in tag for tag in tags)


def test_half_precision_logits_are_measured_in_double() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 5, generator=generator).bfloat16().requires_grad_()
    labels = torch.randint(5, (200,), generator=generator)
    assert evaluate(logits, labels, 5) == evaluate(logits.double(), labels, 5)


def test_g_mean_of_many_small_recalls_does_not_underflow() -> None:
    k = 1000
    confusion = torch.full((k, k), 0.99 / (k - 1), dtype=torch.float64)
    confusion.fill_diagonal_(0.01)
    value = from_confusion(confusion)["g_mean"]
    assert isinstance(value, float)
    assert math.isclose(value, 0.01, rel_tol=1e-9)


LONG = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        (LONG[:0], LONG[:0], "at least 1 example"),
        (LONG, LONG[:1], "equal length"),
        (LONG, torch.eye(2), r"logits need \.argmax"),
        (LONG, LONG.float(), "integers"),
        (LONG + 1, LONG, r"labels must lie in 0\.\.1, got 1\.\.2"),
        (LONG, LONG - 1, r"predictions must lie in 0\.\.1, got -1\.\.0"),
    ],
)
def test_bad_classes_are_refused(
    labels: torch.Tensor, predictions: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        confusion_matrix(labels, predictions, 2)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.eye(2), LONG[:1], r"\(1, 2\), got \(2, 2\)"),
        (torch.zeros(2, 3), LONG, r"\(2, 2\), got \(2, 3\)"),
        (torch.zeros(0, 2), LONG[:0], "at least 1 example"),
        (torch.eye(2), LONG - 1, "labels must lie in"),
        (torch.tensor([[0.0, math.nan], [0.0, 1.0]]), LONG, "training diverged"),
    ],
)
def test_bad_logits_are_refused(logits: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(logits, labels, 2)


@pytest.mark.parametrize(
    ("confusion", "message"),
    [
        (torch.zeros(2, 2), "sums to 1"),
        (torch.full((2, 2), math.nan), "sums to 1"),
        (torch.zeros(2, 3), "square"),
        (torch.ones(1, 1), "2 classes or more"),
    ],
)
def test_bad_confusion_matrices_are_refused(confusion: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_confusion(confusion)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_confusion_matrix_does_not_wait_for_the_device() -> None:
    labels = torch.randint(10, (1000,), device="cuda")
    predictions = torch.randint(10, (1000,), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        confusion = confusion_matrix(labels, predictions, 10)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = confusion_matrix(labels.cpu(), predictions.cpu(), 10)
    torch.testing.assert_close(confusion.cpu(), expected)
