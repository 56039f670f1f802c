"""P and pseudo-labels from an evaluation."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_selmix import gains, objectives
from ssl_selmix.algorithm import Evaluation, Task
from ssl_selmix.selmix.pairing import Pairing, centroid_logits, class_means

K, D, M = 3, 5, 400


def estimated(**settings: Any) -> tuple[Pairing, dict[str, Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    task = Task(tuple("abc"), torch.tensor([20.0, 6.0, 2.0], dtype=torch.float64), M, 30)
    given: dict[str, Any] = {
        "confusion": torch.tensor([[30.0, 1, 1], [6, 20, 6], [14, 10, 8]]).double(),
        "prototypes": torch.randn(K, D, dtype=torch.float64, generator=generator),
        "pool": torch.randn(M, K, generator=generator),
        "head": nn.Linear(D, K).double(),
    }
    bias_trained, mixed = settings.pop("bias_trained", True), settings.pop("mixed", True)
    pairing = Pairing(task, Pairing.Config(**settings), bias_trained)
    counts = given["confusion"].long()
    labels = torch.arange(K).repeat_interleave(counts.sum(1))
    predicted = torch.cat([torch.arange(K).repeat_interleave(row) for row in counts])
    logits = torch.nn.functional.one_hot(predicted, K).double() * 2
    evaluation = Evaluation(torch.zeros(len(labels), D), logits, labels, given["pool"])
    _, logs = pairing.estimate(
        objectives.get("mean_recall", K), evaluation, given["prototypes"], given["head"], mixed
    )
    return pairing, logs, given


@pytest.mark.parametrize("bias_trained", [True, False])
@pytest.mark.parametrize("label_term", ["mixed", "published"])
def test_gains_are_those_of_the_formula(bias_trained: bool, label_term: str) -> None:
    torch.manual_seed(0)
    _, logs, given = estimated(bias_trained=bias_trained, label_term=label_term, smoothing=0.05)
    gradient = gains.logit_gradient(
        objectives.get("mean_recall", K), given["confusion"], smoothing=0.05
    )
    expected = gains.gain_matrix(
        gradient,
        given["prototypes"],
        given["head"].weight.detach(),
        given["head"].bias.detach(),
        mix=0.8,
        bias_trained=bias_trained,
        label_term=label_term,
    )
    torch.testing.assert_close(logs["gain_matrix"], expected)


@pytest.mark.parametrize("mixed", [True, False])
def test_a_promise_is_the_gain_of_what_is_trained_on(mixed: bool) -> None:
    torch.manual_seed(0)
    usual, _, _ = estimated()
    torch.manual_seed(0)
    pairing, logs, given = estimated(mixed=mixed)
    assert torch.equal(pairing.pairs, usual.pairs)
    expected = gains.gain_matrix(
        gains.logit_gradient(objectives.get("mean_recall", K), given["confusion"], smoothing=0.01),
        given["prototypes"],
        given["head"].weight.detach(),
        given["head"].bias.detach(),
        mix=0.8 if mixed else 1.0,
        bias_trained=True,
    )
    torch.testing.assert_close(logs["gain_expected"], (pairing.pairs * expected).sum())


def test_pseudo_labels_are_the_models_and_confidence_weighs_if_asked() -> None:
    pairing, _, given = estimated()
    assert torch.equal(pairing.pseudo_labels, given["pool"].argmax(1))
    assert (pairing.weights == 1).all()
    pairing, _, given = estimated(pseudo_weight="confidence")
    torch.testing.assert_close(pairing.weights, given["pool"].double().softmax(1).max(1).values)


def biased_evaluation(pool_prior: list[float]) -> tuple[Evaluation, Tensor]:
    """Exact posteriors under a long-tailed prior, too sharp by half; balanced validation."""
    generator = torch.Generator().manual_seed(0)
    centres = 1.5 * torch.eye(K, dtype=torch.float64)

    def posterior(labels: Tensor) -> Tensor:
        x = centres[labels] + torch.randn(len(labels), K, dtype=torch.float64, generator=generator)
        logits = -0.5 * torch.cdist(x, centres).square()
        return 1.5 * (logits + torch.tensor([0.8, 0.15, 0.05], dtype=torch.float64).log())

    labels = torch.arange(600) % K
    pool = torch.multinomial(torch.tensor(pool_prior), M, replacement=True, generator=generator)
    return Evaluation(torch.zeros(600, D), posterior(labels), labels, posterior(pool)), pool


def test_an_estimated_prior_makes_pseudo_labels_right_where_the_model_is_biased() -> None:
    accuracy = {}
    evaluation, truth = biased_evaluation([0.05, 0.15, 0.8])
    for prior in ("none", "estimated"):
        task = Task(tuple("abc"), torch.tensor([80.0, 15.0, 5.0]), M, 600)
        pairing = Pairing(task, Pairing.Config(pseudo_prior=prior), bias_trained=True)
        logs = pairing._pseudo_label(evaluation)
        accuracy[prior] = float((pairing.pseudo_labels == truth).double().mean())
    assert float(logs["estimated_prior"][2]) == pytest.approx(0.8, abs=0.12)
    assert accuracy["none"] < 0.7 < 0.85 < accuracy["estimated"]


def test_a_prior_that_fell_back_to_counting_corrects_nothing() -> None:
    plain, _, _ = estimated()
    moved, logs, _ = estimated(pseudo_prior="estimated")
    assert "estimated_prior" in logs or torch.equal(moved.pseudo_labels, plain.pseudo_labels)
    evaluation, _ = biased_evaluation([0.4, 0.3, 0.3])
    never = evaluation.logits.clone()
    never[:, 2] -= 50  # class 2 is never predicted: EM is ill-posed
    blind = Evaluation(evaluation.features, never, evaluation.labels % 2, evaluation.pool_logits)
    task = Task(tuple("abc"), torch.tensor([80.0, 15.0, 5.0]), M, 600)
    pairing = Pairing(task, Pairing.Config(pseudo_prior="estimated"), bias_trained=True)
    pairing._pseudo_label(blind)
    assert evaluation.pool_logits is not None
    assert torch.equal(pairing.pseudo_labels, evaluation.pool_logits.argmax(1))


def test_uniform_share_is_mixed_in() -> None:
    torch.manual_seed(0)
    plain, _, _ = estimated(policy="greedy")
    torch.manual_seed(0)
    mixed, _, _ = estimated(policy="greedy", uniform_share=0.25)
    torch.testing.assert_close(mixed.pairs, 0.75 * plain.pairs + 0.25 / K**2)


def test_natural_pairs_follow_class_frequencies() -> None:
    pairing, _, _ = estimated(policy="natural")
    torch.testing.assert_close(
        pairing.pairs.sum(1), torch.tensor([20.0, 6.0, 2.0], dtype=torch.float64) / 28
    )
    counts = torch.bincount(pairing.pseudo_labels, minlength=K).double()
    assert (pairing.pairs.sum(0) - counts / M).abs().max() < 0.02


def test_centroids_and_their_logits() -> None:
    features = torch.tensor([[1.0, 0.0], [3.0, 2.0], [0.0, 5.0]])
    means = class_means(features, torch.tensor([1, 1, 0]), 2)
    assert means.tolist() == [[0, 5], [2, 1]]
    head = nn.Linear(2, 2)
    torch.testing.assert_close(
        centroid_logits(means, head), head.double()(means), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("spread", [0.5, 1.0, 4.0, 1e9])
def test_spread_multiplies_the_automatic_temperature(spread: float) -> None:
    pairing, logs, _ = estimated(spread=spread)
    gain = logs["gain_matrix"]
    heat = spread * gains.auto_temperature(gain)
    expected = torch.where(gain > 0, (gain / heat).exp(), 0)
    torch.testing.assert_close(pairing.pairs, expected / expected.sum(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"temperature": "warm"}, "temperature must be one of auto"),
        ({"temperature": 0.1, "spread": 2.0}, "set spread=1"),
    ],
)
def test_temperature_is_positive_or_auto(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pairing.Config(**settings)
