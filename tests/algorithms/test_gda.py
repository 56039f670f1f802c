"""The stage `gda`: its EM against one written out, what it writes, what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_selmix import cli
from ssl_selmix.algorithm import Context, Evaluation
from ssl_selmix.algorithms.gda import GDA
from ssl_selmix.contract import subjects
from ssl_selmix.data.batch import Task
from ssl_selmix.models import Classifier
from ssl_selmix.training import engine
from ssl_selmix.training.log import SilentLog
from tests.helpers import gaussians

K, D = 3, 6


def em_by_hand(
    x: NDArray[np.float64], y: Tensor, u: NDArray[np.float64], q: NDArray[np.float64], a: float
) -> NDArray[np.float64]:
    """Log posteriors, but for a constant an image, of the pool after one round of weight 1."""
    one_hot = np.eye(K)[y.numpy()]

    def step(r: NDArray[np.float64], data: NDArray[np.float64]) -> NDArray[np.float64]:
        means = (r.T @ data) / r.sum(0)[:, None]
        c = np.zeros((data.shape[1],) * 2)
        for k in range(K):
            off = data - means[k]
            c += (off * r[:, k : k + 1]).T @ off
        c /= r.sum() - K
        s = (1 - a) * c + a * np.trace(c) / len(c) * np.eye(len(c))
        off = u[:, None] - means
        found: NDArray[np.float64] = np.einsum("mkd,de,mke->mk", off, np.linalg.inv(s), off)
        return -0.5 * found

    z = step(one_hot, x) + np.log(q)
    r = np.exp(z - z.max(1, keepdims=True))
    r /= r.sum(1, keepdims=True)
    found: NDArray[np.float64] = step(np.concatenate([one_hot, r]), np.concatenate([x, u]))
    return found


def drawn(counts: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.eye(K, D)
    labels = torch.arange(K).repeat_interleave(torch.tensor(counts))
    return centres[labels] + torch.randn(len(labels), D, generator=generator), labels


def on_features(
    labeled: tuple[int, ...] = (40, 10, 4), pool: tuple[int, ...] = (80, 20, 8), **settings: Any
) -> tuple[GDA, Evaluation, dict[str, Tensor]]:
    """The stage on features as they are, what it saw and what it logged."""
    (x, y), (u, _), (v, truth) = drawn(labeled, 0), drawn(pool, 1), drawn((30, 30, 30), 2)
    torch.manual_seed(0)
    net = Classifier(nn.Identity(), nn.Linear(D, K))
    task = Task(("a", "b", "c"), torch.tensor(labeled).double(), len(u), len(v))
    algorithm = GDA(net, task, GDA.Config(**settings))
    seen = Evaluation(
        *(v, net.classifier(v).detach(), truth),
        pool_features=u,
        labeled_features=x,
        labeled_classes=y,
    )
    return algorithm, seen, algorithm.on_validation(seen, Context(0, 1, algorithm))


def test_a_round_of_em_is_that_of_a_mixture_with_one_covariance() -> None:
    plain: dict[str, Any] = {"shrinkage": 0.2, "corrected": False, "calibrate": "none"}
    q = torch.tensor([40.0, 10, 4]).double() / 54
    algorithm, seen, _ = on_features(
        em=1, em_weight=1.0, em_covariance="both", em_prior="labeled", **plain
    )
    assert seen.labeled_features is not None and seen.pool_features is not None
    assert seen.labeled_classes is not None
    x, u = (t.double().numpy() for t in (seen.labeled_features, seen.pool_features))
    by_hand = torch.from_numpy(em_by_hand(x, seen.labeled_classes, u, q.numpy(), 0.2))
    found = algorithm.net.classifier(seen.pool_features).double()
    assert torch.allclose(found.softmax(1), by_hand.softmax(1), atol=1e-5)
    before = on_features(**plain)[0].net.classifier(seen.pool_features)
    assert (before.softmax(1) - found.softmax(1)).abs().max() > 0.05  # the round changed something


def test_it_takes_the_place_of_the_classifier_and_leaves_the_body() -> None:
    data = gaussians.make_data().at_stage("2-gda")
    torch.manual_seed(0)
    net = gaussians.make_net()
    before, log = {k: v.clone() for k, v in net.state_dict().items()}, SilentLog(keep=True)
    with TemporaryDirectory() as folder:
        algorithm = GDA(net, data.task, GDA.Config())
        fitted = subjects.fit(algorithm, data, Path(folder), log=log).algorithm
    after = fitted.export().state_dict()
    moved = {key for key in after if not torch.equal(before[key], after[key])}
    assert moved == {"classifier.weight", "classifier.bias"}
    # On a body with random weights it is far above chance, 0.25, in the worst class as well.
    figures = engine.measure_test(fitted, data)
    assert figures["mean_recall"] > 0.7 and figures["min_recall"] > 0.5
    told = log.extras[0]
    kept = engine.measure(engine.evaluate(fitted, data), data.task.tail)
    assert float(told["found_mean_recall"]) == pytest.approx(kept["mean_recall"], abs=0.01)
    assert "chosen on validation" in fitted.remarks()[0]


def test_the_formula_and_a_number_choose_nothing() -> None:
    by_formula, _, logs = on_features(shrinkage_by="formula")
    assert float(logs["shrinkage"]) == pytest.approx(D / (53 + D))
    assert "chosen" not in by_formula.remarks()[0]
    assert float(on_features(shrinkage=0.25)[2]["shrinkage"]) == 0.25


def test_a_prior_is_added_to_calibrated_logits() -> None:
    uniform, labeled = (
        on_features(prior=name)[0].net.classifier for name in ("uniform", "labeled")
    )
    assert torch.equal(uniform.weight, labeled.weight)
    added = labeled.bias - uniform.bias
    wanted = torch.tensor([40.0, 10, 4]).log()
    assert torch.allclose(added - added.mean(), wanted - wanted.mean(), atol=1e-5)
    pool, _, logs = on_features(prior="pool")
    assert logs["estimated_prior"].argmax() == 0 and pool.net.classifier.bias.argmax() == 0


def test_a_pool_that_misleads_is_not_used() -> None:
    settings: dict[str, Any] = {"em": 2, "em_prior": "uniform"}
    algorithm, seen, logs = on_features((400, 400, 400), (600, 0, 0), **settings)
    assert float(logs["em_weight"]) == 0
    assert "the pool does not help there" in algorithm.remarks()[0]
    alone = on_features((400, 400, 400), (600, 0, 0))[0]
    assert torch.equal(alone.net.classifier.weight, algorithm.net.classifier.weight)
    forced = on_features((400, 400, 400), (600, 0, 0), em_weight=1.0, **settings)[0]
    assert not torch.equal(alone.net.classifier.weight, forced.net.classifier.weight)
    assert seen.pool_features is not None


def test_a_class_without_labeled_images_is_never_predicted() -> None:
    cases: tuple[dict[str, Any], ...] = ({}, {"em": 2}, {"prior": "pool"})
    for settings in cases:
        algorithm, seen, _ = on_features((40, 0, 10), (80, 30, 20), **settings)
        predicted = algorithm.net.classifier(seen.features).argmax(1)
        assert predicted.unique().tolist() == [0, 2]
        assert algorithm.remarks()[-1].endswith("never predicted: b.")


def test_it_asks_for_what_it_uses() -> None:
    task = Task(("a", "b"), torch.ones(2).double(), 5, 5)
    for config, names in (
        (GDA.Config(), {"labeled"}),
        (GDA.Config(em=1), {"labeled", "pool"}),
        (GDA.Config(prior="pool"), {"labeled", "pool"}),
    ):
        net = Classifier(nn.Identity(), nn.Linear(D, 2))
        assert set(GDA(net, task, config).needs_features(0)) == names
    empty = dataclasses.replace(task, num_unlabeled=0)
    with pytest.raises(ValueError, match="em=1 needs unlabeled images"):
        GDA(Classifier(nn.Identity(), nn.Linear(D, 2)), empty, GDA.Config(em=1))


def test_without_a_body_that_knows_anything_it_cannot_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--algo", "gda", "--dataset", "digits"]) == 2
    assert "gda trains nothing and cannot come first" in capsys.readouterr().err
