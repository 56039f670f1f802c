"""The line between two networks: its ends to the last bit, and the point that is chosen."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from ssl_selmix import objectives
from ssl_selmix.algorithm import Algorithm, Evaluation
from ssl_selmix.methods import weight_line
from ssl_selmix.models import Classifier
from ssl_selmix.training import engine
from tests.helpers import gaussians


@cache
def networks() -> tuple[Classifier, Classifier]:
    """Two networks with other weights and other batch statistics."""
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = gaussians.make_net()
        net.train()
        for _ in range(1 + seed):
            net(torch.randn(8, 1, gaussians.SIDE, gaussians.SIDE) + seed)
        made.append(net.eval())
    return made[0], made[1]


def ends() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    start, end = networks()
    return weight_line.weights_of(start), weight_line.weights_of(end)


def at(alpha: float) -> dict[str, Tensor]:
    net = gaussians.make_net()
    weight_line.move(net, *ends(), alpha)
    return weight_line.weights_of(net)


def test_the_ends_are_the_two_networks_to_the_last_bit() -> None:
    start, end = ends()
    counter = "backbone.2.num_batches_tracked"
    assert {k for k in start if not start[k].is_floating_point()} == {counter}
    for alpha, wanted in ((0.0, start), (1.0, end)):
        found = at(alpha)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[k], wanted[k]) for k in wanted if k != counter)
        assert found[counter] == 2  # counts nothing that a line has


def test_a_point_is_the_weighted_mean_of_all_tensors_and_batch_statistics() -> None:
    start, end = ends()
    found = at(0.3)
    assert not torch.equal(start["backbone.2.running_var"], end["backbone.2.running_var"])
    for key, value in found.items():
        if value.is_floating_point():
            assert torch.allclose(value, 0.7 * start[key] + 0.3 * end[key], atol=1e-6), key


def test_a_missing_bias_of_the_start_is_zero_and_other_tensors_are_refused() -> None:
    start, end = ends()
    bias = start.pop("classifier.bias")
    weight_line.check_ends(start, end)
    net = gaussians.make_net()
    weight_line.move(net, start, end, 0.25)
    assert torch.allclose(net.classifier.bias, 0.25 * end["classifier.bias"])
    other = {**start, "classifier.bias": bias, "classifier.weight": torch.zeros(5, 32)}
    for wrong in (other, {k: v for k, v in end.items() if "running" not in k}):
        with pytest.raises(ValueError, match=r"have other tensors .* two stages of one network"):
            weight_line.check_ends(wrong, end)
    with pytest.raises(ValueError, match="have other tensors"):
        weight_line.check_ends(end, start)


def evaluation(net: nn.Module) -> Evaluation:
    data = gaussians.make_data()
    assert isinstance(net, Classifier)
    return engine.evaluate(Algorithm(net, data.task, Algorithm.Config()), data)


@pytest.mark.parametrize("name", ["h_mean", "mean_recall", "min_recall"])
def test_the_chosen_point_is_the_best_of_the_grid(name: str) -> None:
    start, _ = ends()
    net = gaussians.make_net()
    net.load_state_dict(networks()[1].state_dict())
    objective = objectives.get(name, gaussians.NUM_CLASSES)
    points = weight_line.choose(net, start, 5, objective, lambda: evaluation(net))
    assert [p.alpha for p in points] == [0, 0.25, 0.5, 0.75, 1]
    ranks = []
    for point in points:
        other = gaussians.make_net()
        weight_line.move(other, *ends(), point.alpha)
        confusion = evaluation(other).confusion
        recalls = confusion.diagonal() / confusion.sum(1)
        assert point.objective == pytest.approx(objective.metric(confusion))
        assert point.mean_recall == pytest.approx(float(recalls.mean()))
        ranks.append((point.objective, point.mean_recall, -abs(point.alpha - 0.5)))
    chosen = points[ranks.index(max(ranks))].alpha
    assert weight_line.best(points).alpha == chosen
    assert torch.equal(net.classifier.weight, at(chosen)["classifier.weight"])


def test_constraints_come_first_and_the_middle_last() -> None:
    def point(alpha: float, *rest: float) -> weight_line.Point:
        return weight_line.Point(alpha, *rest)

    kept = point(0.9, 0.0, 0.2, 0.3)
    assert weight_line.best([point(0.1, -0.1, 0.9, 0.9), kept]) is kept
    tied = [point(a, 0.0, 0.5, 0.6) for a in (0.1, 0.4, 1.0)]
    assert weight_line.best(tied).alpha == 0.4
    assert weight_line.best([*tied, point(1.0, 0.0, 0.5, 0.7)]).mean_recall == 0.7
