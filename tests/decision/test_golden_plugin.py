"""Plug-in classifiers against recorded vectors of the published code (sheet plugin_classifier.md).

Deliberate deviations, in writing:
- fw_*_T8 `weights`: the shipped last stage optimises a mixture of running averages and applies its
  weights to the rules themselves (trap 1), after it has made the best direction the worst (trap 2).
  Frank-Wolfe's own shares give `fw_confusion`, which is compared; the recorded weights are checked
  to give the recorded `confusion` and `loss` with the rules that are found here.
- fw_minmax_lp: the linear program has many solutions (trap 11); its worst recall is compared.
- public_classes: the classes do one inner step (trap 4) and keep every bisection rule (trap 5);
  their weights and counts are replayed; nothing here has either.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_selmix import objectives
from ssl_selmix.decision.goal import Goal
from ssl_selmix.decision.solvers import Sample, best_mixture, bisect_ratio, frank_wolfe, gain_rule
from tests.decision import published
from tests.decision.golden import arrays, read, reproduces
from tests.decision.published import gain_of, measure, micro_f1_parts, potential, sample_of
from tests.helpers import golden

VECTORS = read("plugin_classifier.npz")
SIZES = ("K3", "K10")
CASES = {
    *("data", "rule", "gain_rule", "measures", "bisection", "split_fw", "public_classes"),
    *(f"fw_{name}_T{steps}" for name in ("hmean", "gmean", "qmean") for steps in (1, 8)),
    *("fw_minmax", "fw_minmax_lp", "coco_qmean_free", "coco_qmean_nae0.05"),
    *("fraco_f1_free", "fraco_f1_cov0.3"),
}


def test_every_recorded_case_is_compared_or_excused_above() -> None:
    assert golden.cases(VECTORS) == {f"{size}.{case}" for size in SIZES for case in CASES}


def sample(size: str) -> Sample:
    return sample_of(VECTORS[f"{size}.data.in.probs"], VECTORS[f"{size}.data.in.labels"])


def micro_f1_loss(confusion: Tensor | np.ndarray) -> float:
    c = np.asarray(confusion)
    a, b = micro_f1_parts(len(c))
    return float(1 - (a * c).sum() / (b * c).sum())


def loss(name: str, mass: np.ndarray, confusion: np.ndarray) -> float:
    return float(measure(name, mass)(torch.from_numpy(confusion)))


@pytest.mark.parametrize("size", SIZES)
def test_cost_rules(size: str) -> None:
    costs = arrays(VECTORS, f"{size}.rule")["cost"]
    found = [sample(size).confusion(-cost) for cost in costs]
    reproduces(VECTORS, f"{size}.rule", {"confusion": np.stack(found)})


@pytest.mark.parametrize("size", SIZES)
def test_gain_rule(size: str) -> None:
    images, gain = sample(size), arrays(VECTORS, f"{size}.gain_rule")["gain"]
    predicted = gain_rule(images.scores, gain)
    confusion = images.of(predicted)
    reproduces(VECTORS, f"{size}.gain_rule", {"predicted": predicted, "confusion": confusion})


@pytest.mark.parametrize("size", SIZES)
def test_measures_and_their_gradients_by_autograd(size: str) -> None:
    mass = sample(size).mass
    found = arrays(VECTORS, f"{size}.measures")["confusion"]
    got: dict[str, Any] = {
        name: [loss(name, mass, c) for c in found] for name in ("hmean", "gmean", "qmean")
    }
    for name in ("hmean", "gmean", "qmean"):
        gradient = gain_of(potential(name, mass))
        got[f"grad_{name}_original"] = [-gradient(c) for c in found]
    a, b = micro_f1_parts(len(mass))
    got |= {"micro_f1": [micro_f1_loss(c) for c in found], "micro_f1_A": a, "micro_f1_B": b}
    reproduces(VECTORS, f"{size}.measures", got)


@pytest.mark.parametrize("size", SIZES)
def test_floors_aside_the_published_gradients_are_those_of_our_objectives(size: str) -> None:
    images = sample(size)
    matrix = images.confusion(np.diag(1 / images.mass))  # every class has hits
    hits = matrix.diagonal()
    for name, theirs in (("h_mean", images.mass / hits**2), ("g_mean", 1 / hits)):
        gain = gain_of(objectives.get(name, len(matrix)).value)(matrix)
        # A constant added to a row of gains changes no rule, nor does a factor.
        own = gain.diagonal() - (gain.sum(1) - gain.diagonal()) / (len(gain) - 1)
        np.testing.assert_allclose(own / own.max(), theirs / theirs.max(), rtol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_bisection(size: str) -> None:
    images = sample(size)
    a, b = micro_f1_parts(len(images.mass))
    iterations = int(arrays(VECTORS, f"{size}.bisection")["iters"])
    gain, confusion = bisect_ratio(images.confusion, a, b, iterations)
    got = {"cost": -gain, "confusion": confusion, "loss": micro_f1_loss(confusion)}
    reproduces(VECTORS, f"{size}.bisection", got)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["hmean", "gmean", "qmean"])
@pytest.mark.parametrize("steps", [1, 8])
def test_frank_wolfe(size: str, name: str, steps: int) -> None:
    images, case = sample(size), f"{size}.fw_{name}_T{steps}"
    k = len(images.mass)
    start, gradient = np.full((k, k), 1 / k**2), gain_of(potential(name, images.mass))
    gains, found, shares = frank_wolfe(images.confusion, gradient, start, steps)
    weights = arrays(VECTORS, case, "out")["weights"]
    shipped = np.tensordot(weights, np.stack(found), 1)
    got = {
        "costs": -np.stack(gains),
        "fw_confusion": np.tensordot(shares, np.stack(found), 1),
        "confusion": shipped,
        "loss": loss(name, images.mass, shipped),
        "weights": shares,
    }
    reproduces(VECTORS, case, got, without=() if steps == 1 else ("weights",))


@pytest.mark.parametrize("size", SIZES)
def test_the_published_worst_case_reaches_chance_and_ours_does_not(size: str) -> None:
    images, case = sample(size), f"{size}.fw_minmax"
    k, mass = len(images.mass), torch.from_numpy(images.mass)

    def worst(confusion: Tensor) -> Tensor:
        recall = confusion.diagonal() / mass
        return recall[int(recall.argmin())]

    steps = int(arrays(VECTORS, case)["iters"])
    start = np.full((k, k), 1 / k**2)
    gains, found, _ = frank_wolfe(images.confusion, gain_of(worst), start, steps)
    goal = Goal(objectives.get("min_recall", k), images.mass, 1e-7)
    level = best_mixture(goal, found).value
    got = {"costs": -np.stack(gains), "worst_recall": level, "reported_loss": 1 - level}
    reproduces(VECTORS, case, got)
    weights = arrays(VECTORS, f"{size}.fw_minmax_lp", "out")["weights_one_solution"]
    theirs = np.tensordot(weights, np.stack(found), 1)
    assert (theirs.diagonal() / images.mass).min() == pytest.approx(level, abs=1e-6)
    ours = best_mixture(goal, [*found, images.confusion(np.diag(1 / images.mass))]).value
    assert ours > level + 0.1


@pytest.mark.parametrize("size", SIZES)
def test_split_frank_wolfe(size: str) -> None:
    given = arrays(VECTORS, f"{size}.split_fw")
    got = published.split_steps(
        sample(size).confusion,
        given["target"],
        epsilon=float(given["epsilon"]),
        lam=float(given["lam"]),
        rates=given["etas"],
        steps=int(given["iters"]),
    )
    reproduces(VECTORS, f"{size}.split_fw", got)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["free", "nae0.05"])
def test_coco(size: str, kind: str) -> None:
    images, case = sample(size), f"{size}.coco_qmean_{kind}"
    given = {name: value.item() for name, value in arrays(VECTORS, case).items()}
    gains, weights, confusion = published.coco(images.confusion, images.mass, **given)
    error = np.abs(confusion.sum(0) - images.mass).sum() / (1 - images.mass.min()) / 2
    got: dict[str, Any] = {"gains": gains, "weights": weights, "confusion": confusion, "nae": error}
    got["qmean"] = loss("qmean", images.mass, confusion)
    reproduces(VECTORS, case, got)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["free", "cov0.3"])
def test_fraco(size: str, kind: str) -> None:
    images, case = sample(size), f"{size}.fraco_f1_{kind}"
    given = {name: value.item() for name, value in arrays(VECTORS, case).items()}
    gains, weights, confusion = published.fraco(images.confusion, len(images.mass), **given)
    got: dict[str, Any] = {"gains": gains, "weights": weights, "confusion": confusion}
    got |= {"microF1": micro_f1_loss(confusion), "cov": 1 - confusion[:, 0].sum()}
    reproduces(VECTORS, case, got)


@pytest.mark.parametrize("size", SIZES)
def test_public_classes(size: str) -> None:
    images, case = sample(size), f"{size}.public_classes"
    k, mass = len(images.mass), images.mass
    # One inner step of COCO without a constraint is all that FrankWolfeClassifier does.
    gain, _, _ = published.coco(images.confusion, mass, eps=1, eta=0.1, outer=1, inner=1)
    _, weights, _ = published.fraco(images.confusion, k, eps=1, eta=0.1, iters=1)
    got: dict[str, Any] = {"fw_gain": gain[0], "bisection_weights": weights}
    got |= {"fw_classifiers": len(gain), "bisection_classifiers": len(weights)}
    reproduces(VECTORS, case, got)
