"""Self-training: what it learns from, when, and that the vote about the pool helps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix.algorithm import Context, Evaluation
from ssl_selmix.algorithms.selftrain import SelfTraining
from ssl_selmix.contract import subjects
from ssl_selmix.data import Data
from ssl_selmix.models import Classifier, heads
from ssl_selmix.training import engine
from ssl_selmix.training.log import SilentLog
from tests.helpers import gaussians


def make(data: Data, **settings: Any) -> SelfTraining:
    torch.manual_seed(0)
    options: dict[str, Any] = {"steps": 40, "batch": 8, "ema": 0.9, "evaluate_every": 40}
    return SelfTraining(gaussians.make_net(), data.task, SelfTraining.Config(**options | settings))


def seen_by(algorithm: SelfTraining, data: Data) -> Evaluation:
    return engine.evaluate(algorithm, data, features=("pool",))


def voted(algorithm: SelfTraining, data: Data, step: int) -> dict[str, Tensor]:
    evaluation = seen_by(algorithm, data)
    return algorithm.on_validation(evaluation, Context(step, 40, algorithm))


def test_rounds_begin_evenly_after_the_warm_up() -> None:
    data = gaussians.make_data()
    for settings, wanted in (
        ({"warmup": 0.25, "rounds": 3}, [10, 20, 30]),
        ({"warmup": 0.0, "rounds": 2}, [0, 20]),
        ({"warmup": 0.9, "rounds": 1}, [36]),
    ):
        algorithm = make(data, **settings)
        assert [t for t in range(41) if algorithm.begins(t)] == wanted
        assert [t for t in range(41) if algorithm.needs_features(t)] == wanted
        assert [t for t in range(41) if algorithm.evaluation_due(t)] == sorted({0, 40, *wanted})


def test_the_vote_follows_the_pool_and_is_what_is_learned() -> None:
    data = gaussians.make_data()
    algorithm = make(data, warmup=0.0, prior="given", prior_given=[8.0, 4, 2, 1])
    logs = voted(algorithm, data, 0)
    evaluation = seen_by(algorithm, data)
    assert evaluation.pool_features is not None
    q = torch.tensor([8.0, 4, 2, 1]).double() / 15
    p = algorithm.voting.votes(evaluation.pool_features) * q
    p = p / p.sum(1, keepdim=True)
    assert torch.allclose(algorithm.targets.double(), p, atol=1e-3)
    mass = algorithm.targets.double().sum(0)
    assert torch.allclose(logs["votes"], mass / mass.sum())
    assert torch.allclose(
        algorithm.log_mass.double(), ((mass + 1) / (mass + 1).sum()).log(), atol=1e-6
    )
    # The losses, written out, with batch statistics that do not depend on who passes together.
    algorithm.eval()
    batch = next(algorithm.batches(data, 0))
    losses, found = algorithm(batch, Context(0, 40, algorithm))
    z_x, z_u = (algorithm.voting(algorithm.net.features(v)) for v in (batch.x, batch.u[0]))
    prior = data.task.labeled_prior.log().float()
    targets = algorithm.targets[batch.index_u].float()
    labeled = [F.cross_entropy(z_x[:, h] + prior, batch.y) for h in range(5)]
    unlabeled = [F.cross_entropy(z_u[:, h] + algorithm.log_mass, targets) for h in range(5)]
    assert torch.allclose(losses["labeled"], torch.stack(labeled).mean(), atol=1e-5)
    assert torch.allclose(losses["unlabeled"], torch.stack(unlabeled).mean(), atol=1e-4)
    assert float(found["mask_rate"]) == 1


def test_hard_targets_and_a_threshold() -> None:
    data = gaussians.make_data()
    all_count = make(data, warmup=0.0, prior="none")
    voted(all_count, data, 0)
    threshold = float(all_count.targets.amax(1).median())
    algorithm = make(data, warmup=0.0, targets="hard", threshold=threshold, prior="none")
    logs = voted(algorithm, data, 0)
    evaluation = seen_by(algorithm, data)
    assert evaluation.pool_features is not None
    p = algorithm.voting.votes(evaluation.pool_features)
    counts = p.amax(1) >= threshold
    assert 0 < int(counts.sum()) < len(p)
    assert float(logs["votes_counted"]) == pytest.approx(float(counts.double().mean()))
    assert not algorithm.targets[~counts].any()
    assert torch.equal(algorithm.targets[counts].argmax(1), p[counts].argmax(1))
    assert (algorithm.targets[counts].sum(1) == 1).all()


def test_before_the_warm_up_ends_no_unlabeled_image_is_asked_for() -> None:
    data = gaussians.make_data()
    algorithm = make(data, warmup=0.5)
    batch = next(algorithm.batches(data, 0))
    views = subjects.Recorder(batch.u)
    losses, _ = algorithm(
        type(batch)(batch.x, batch.y, views, batch.index_u), Context(19, 40, algorithm)
    )
    assert losses.keys() == {"labeled"} and not views.asked
    losses, _ = algorithm(batch, Context(20, 40, algorithm))
    assert losses.keys() == {"labeled", "unlabeled"}


def test_the_vote_about_the_pool_helps_where_labels_are_few(tmp_path: Path) -> None:
    """Four labeled images a class, a linear layer on the pixels."""
    data = gaussians.make_data()
    few = torch.cat([(data.labels == k).nonzero()[:4, 0] for k in range(4)])
    data = dataclasses.replace(data, labeled=data.labeled[few], labels=data.labels[few])
    recalls: dict[float, float] = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        net = Classifier(nn.Flatten(), nn.Linear(36, 4))
        config = SelfTraining.Config(
            steps=120, batch=16, lr=0.01, ema=0.9, evaluate_every=120, lambda_u=weight, keep="last"
        )
        algorithm = SelfTraining(net, data.task, config)
        fitted = subjects.fit(algorithm, data, tmp_path / str(weight)).algorithm
        recalls[weight] = engine.measure_test(fitted, data)["mean_recall"]
    assert recalls[1.0] > recalls[0.0] + 0.03


def test_it_starts_from_a_cosine_head_and_hands_on_a_linear_one(tmp_path: Path) -> None:
    data = gaussians.make_data()
    net = heads.begin(gaussians.make_net(), "cosine")
    torch.manual_seed(0)
    algorithm = SelfTraining(net, data.task, SelfTraining.Config(steps=4, batch=8))
    fitted = engine.fit(algorithm, data, tmp_path, SilentLog(), "f").algorithm
    exported = fitted.export()
    assert type(exported.classifier) is nn.Linear and isinstance(exported, Classifier)
    x = next(data.test_batches())
    with torch.no_grad():
        assert torch.equal(exported.eval()(x), fitted.eval().predict(x))
