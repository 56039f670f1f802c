"""A start with offsets, and the images that judge it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix import decision, objectives
from ssl_selmix.algorithm import Evaluation
from ssl_selmix.algorithms.selmix import SelMix
from ssl_selmix.contract import subjects
from ssl_selmix.selmix.offsets import FittedStart
from ssl_selmix.training import engine
from ssl_selmix.training.log import SilentLog
from tests.helpers import gaussians

K, N = 4, 240


def evaluation() -> Evaluation:
    torch.manual_seed(0)
    labels = torch.arange(N) % K
    logits = torch.randn(N, K) + 1.5 * F.one_hot(labels, K) + torch.linspace(2, 0, K)
    return Evaluation(torch.randn(N, 3), logits, labels)


def test_images_are_judged_by_offsets_that_did_not_see_them() -> None:
    seen, start = evaluation(), FittedStart(K, N)
    move = start.fit(objectives.get("h_mean", K), seen, protect_mean=False)
    rule = decision.posthoc(seen.logits, seen.labels, objective="h_mean")
    torch.testing.assert_close(move, rule.offsets)
    moved = Evaluation(seen.features, seen.logits + move.float(), seen.labels)
    figure = objectives.get("h_mean", K).metric
    assert figure(moved.confusion) == pytest.approx(rule.after["h_mean"])
    assert figure(start.judged(moved).confusion) == pytest.approx(rule.cross_fitted["h_mean"])
    assert rule.after["h_mean"] > rule.cross_fitted["h_mean"]


def stage(folder: Path, **settings: Any) -> tuple[SelMix, list[dict[str, Tensor]]]:
    data, log = gaussians.make_data().at_stage("2-selmix"), SilentLog(keep=True)
    torch.manual_seed(0)
    net = gaussians.make_net()
    with torch.no_grad():
        net.classifier.bias.copy_(torch.tensor([2.0, 1.0, 0.0, -1.0]))
    config = SelMix.Config(steps=12, evaluate_every=6, objective="h_mean", **settings)
    fitted = subjects.fit(SelMix(net, data.task, config), data, folder, log=log).algorithm
    assert isinstance(fitted, SelMix)
    return fitted, log.extras


def test_the_stage_starts_from_offsets_and_keeps_nothing_that_is_worse(tmp_path: Path) -> None:
    _, plain = stage(tmp_path / "plain")
    fitted, logs = stage(tmp_path / "fitted", offsets="fitted")
    assert logs[0]["objective"] > plain[0]["objective"]  # judged fairly, the start is better
    data = gaussians.make_data()
    kept = engine.evaluate(fitted, data)
    assert fitted.start is not None
    figure = objectives.get("h_mean", K).metric(fitted.start.judged(kept).confusion)
    assert figure >= max(float(row["objective"]) for row in logs) - 1e-6


def test_offsets_need_a_bias_to_move() -> None:
    with pytest.raises(ValueError, match="offsets=fitted moves the classifier's bias"):
        SelMix.Config(offsets="fitted", train_bias=False)
