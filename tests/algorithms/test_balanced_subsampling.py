"""Class-balanced subsets of the labeled images, and what learns from them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_selmix.algorithms.balanced_subsampling import BalancedSubsampling
from ssl_selmix.contract import subjects
from tests.helpers import gaussians

RAREST, CLASSES = 4, 4  # of the 32, 16, 8, 4 labeled images
SIZE = RAREST * CLASSES


def drawn(batch: int, steps: int, *, renew: bool = True, start: int = 0) -> tuple[Tensor, Tensor]:
    """Positions in the pool and labels of the images that these steps draw, in order."""
    data = gaussians.make_data()
    draws = list(itertools.islice(data._undersampled(batch, start, renew), steps))
    assert [draw.step for draw in draws] == list(range(start, start + steps))
    assert all(len(draw.labeled) == batch for draw in draws)
    return torch.cat([d.labeled for d in draws]), torch.cat([d.y for d in draws])


def test_every_epoch_has_each_class_as_often_as_the_rarest() -> None:
    index, y = drawn(10, 8)  # batches of 10 from epochs of 16
    for epoch in range(5):
        part = slice(epoch * SIZE, (epoch + 1) * SIZE)
        assert torch.equal(torch.bincount(y[part]), torch.full((CLASSES,), RAREST))
        assert len(set(index[part].tolist())) == SIZE  # without replacement
    assert not torch.equal(y[:SIZE], y[SIZE : 2 * SIZE])  # in an order of its own


@pytest.mark.parametrize("renew", [True, False])
def test_a_new_subset_each_time_or_always_the_first(renew: bool) -> None:
    index, y = drawn(SIZE, 40, renew=renew)
    frequent = {int(i) for i in index[y == 0]}
    assert len(frequent) == (32 if renew else RAREST)
    assert len({int(i) for i in index[y == 3]}) == RAREST


def test_a_batch_depends_on_its_step_alone() -> None:
    whole, later = drawn(10, 8)[0], drawn(10, 3, start=5)[0]
    assert torch.equal(whole[50:], later)


def test_a_class_without_images_is_left_out() -> None:
    data = gaussians.make_data()
    kept = data.labels != 3
    less = replace(data, labeled=data.labeled[kept], labels=data.labels[kept])
    batch = next(less.undersampled(24, 0))
    assert torch.bincount(batch.y).tolist() == [8, 8, 8]


ALL = {"classifier": "kept", "body_lr": 0.1, "lr": 3e-4, "batch_norm": "batch"}


@pytest.mark.parametrize("settings", [{}, {"classifier": "kept"}, ALL], ids=["new", "kept", "all"])
def test_what_learns(settings: dict[str, Any], tmp_path: Path) -> None:
    data, net = gaussians.make_data().at_stage("2-test"), gaussians.make_net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    config = BalancedSubsampling.Config(steps=6, batch=16, keep="last", **settings)
    algorithm = BalancedSubsampling(net, data.task, config)
    head = net.classifier
    same = torch.equal(head.weight, before["classifier.weight"])
    assert same == ("classifier" in settings) and (same or not head.bias.any())
    after = subjects.fit(algorithm, data, tmp_path).algorithm.export().state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    weights = {"backbone.1.weight", "backbone.2.num_batches_tracked"} if settings == ALL else set()
    assert moved == {"classifier.weight", "classifier.bias", *weights}
