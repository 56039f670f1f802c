"""How the network sees the views of a batch: joint, split and lazy steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_selmix import contract
from ssl_selmix.algorithm import Batch
from ssl_selmix.contract import life, subjects
from ssl_selmix.data import Data
from ssl_selmix.methods import views
from ssl_selmix.methods.views import Look
from ssl_selmix.models import Classifier
from ssl_selmix.models.batch_norm import batch_norms
from ssl_selmix.models.execution import Execution, ViewsConfig

VIEWS = ("weak", "strong", "strong")


class Counting(Classifier):
    """Remembers how many images passed in each forward pass, and whether with gradient."""

    passes: list[tuple[int, bool]]

    def share_features(self, x: Tensor) -> Tensor:
        self.passes.append((len(x), torch.is_grad_enabled()))
        return super().share_features(x)


def counting(data: Data, how: str) -> Counting:
    made = subjects.make_net(data)
    net = Counting(made.backbone, made.classifier)
    net.passes = []
    return net.prepared(Execution(views=how))


@pytest.fixture
def data() -> Data:
    return subjects.make_data()[0]


@pytest.fixture
def batch(data: Data) -> Batch:
    return next(data.batches(VIEWS, 4, 2, 0))


def test_settings_have_one_name_each() -> None:
    names = {(c.split, c.lazy): c.name for c in (ViewsConfig(s, z) for s, z in FLAGS)}
    assert names == dict(zip(FLAGS, ("joint", "split", "lazy", "lazy"), strict=True))


FLAGS = [(False, False), (True, False), (False, True), (True, True)]


def test_a_joint_step_is_one_pass_over_all_views(data: Data, batch: Batch) -> None:
    net = counting(data, "joint")
    look = Look(net, batch)
    assert not look.weak().requires_grad
    x, strong = look.rest(torch.zeros(8, dtype=torch.bool))
    assert net.passes == [(4 + 3 * 8, True)]
    assert x.shape == (4, 8) and [h.shape for h in strong] == [(8, 8)] * 2
    expected = views.joint_features(net, batch)
    for a, b in zip([x, look.weak(), *strong], expected, strict=True):
        assert torch.equal(a, b)


def test_a_split_step_passes_the_weak_view_apart(data: Data, batch: Batch) -> None:
    net = counting(data, "split")
    look = Look(net, batch)
    look.weak()
    assert not look.weak().requires_grad  # asked for twice, passed once
    look.rest(torch.zeros(8, dtype=torch.bool))
    assert net.passes == [(8, False), (4 + 2 * 8, True)]


@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_a_lazy_step_passes_what_is_needed(data: Data, batch: Batch, count: int) -> None:
    net = counting(data, "lazy")
    look = Look(net, batch)
    look.weak()
    needed = torch.arange(8) >= 8 - count
    x, strong = look.rest(needed)
    assert net.passes == [(8, False), (4 + 2 * count, True)]
    for view in strong:
        assert not view[~needed].any()
        assert view[needed].any(1).all()
    (x.sum() + torch.cat(strong).sum()).backward()


def test_rows_come_back_in_their_places(data: Data, batch: Batch) -> None:
    found = {}
    for how in ("joint", "split", "lazy"):
        net = counting(data, how)
        for module in batch_norms(net):
            module.eval()
        look = Look(net, batch)
        needed = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0], dtype=torch.bool)
        found[how] = [look.weak_logits(), *look.rest_logits(needed)]
    rows = needed.repeat(2)
    for how in ("split", "lazy"):
        weak, x, strong = found[how]
        torch.testing.assert_close(weak, found["joint"][0])
        torch.testing.assert_close(x, found["joint"][1])
        torch.testing.assert_close(strong[rows], found["joint"][2][rows])


def test_few_sizes_where_a_new_size_costs_more_than_more_images(data: Data) -> None:
    batch = next(data.batches(VIEWS, 4, 8, 0))  # 32 images: buckets of 4
    sizes = set()
    for count in range(33):
        net = counting(data, "lazy")
        needed = torch.zeros(32, dtype=torch.bool)
        needed[torch.randperm(32)[:count]] = True
        with net.trained_by(net.backbone.__call__):  # as if it were compiled
            look = Look(net, batch)
            look.weak()
            _, strong = look.rest(needed)
        assert strong[0][needed].any(1).all()
        passed = (net.passes[1][0] - 4) // 2
        assert count <= passed < count + 4
        sizes.add(passed)
    assert sizes == set(range(0, 33, 4))


def test_a_lazy_step_augments_what_it_passes(data: Data, batch: Batch) -> None:
    asked: list[tuple[int, int]] = []

    class Spy:
        def __len__(self) -> int:
            return len(batch.u)

        def __getitem__(self, view: int) -> Tensor:
            asked.append((view, 8))
            return batch.u[view]

        def select(self, view: int, rows: Tensor) -> Tensor:
            asked.append((view, len(rows)))
            return batch.u.select(view, rows)

    look = Look(counting(data, "lazy"), dataclasses.replace(batch, u=Spy()))
    look.weak()
    look.rest(torch.arange(8) < 3)
    assert asked == [(0, 8), (1, 3), (2, 3)]


@pytest.mark.parametrize("how", ["joint", "split", "lazy"])
def test_a_guide_sees_the_weak_views_in_the_students_place(
    data: Data, batch: Batch, how: str
) -> None:
    net, guide = counting(data, how), subjects.make_net(data, seed=7).train()
    with torch.no_grad():
        guide.eval()
        features = guide.features(batch.u[0])
        expected = guide.classifier(features)
    guide.train()
    before = subjects.digest(guide)
    look = Look(net, batch, guide)
    assert torch.equal(look.weak(), features) and torch.equal(look.weak_logits(), expected)
    needed = torch.arange(8) < 3
    x, strong = look.rest_logits(needed)
    assert net.passes == [(4 + 2 * (3 if how == "lazy" else 8), True)]
    assert guide.training and subjects.digest(guide) == before
    (x.sum() + strong.sum()).backward()
    assert all(p.grad is None for p in guide.parameters())


@pytest.mark.parametrize("name", ["fixmatch", "abc", "acr", "simpro", "cdmad"])
def test_pseudo_labels_of_the_teacher_are_those_of_its_plain_forward_pass(
    data: Data, name: str
) -> None:
    """The teacher has the student's weights here, so that a forward pass by hand tells them."""
    algorithm: Any  # of a class that a subject only knows by name
    algorithm, ctx = contract.subject(name).started(data, pseudo_labels="teacher")
    batch = next(algorithm.batches(data, 0))
    ctx.teacher.eval()
    with torch.no_grad():
        features = ctx.teacher.net.features(batch.u[0])
        logits = ctx.teacher.net.classifier(features)
        if name == "simpro":
            logits = logits + algorithm.adjustment(algorithm.pool).to(logits)
        confidence = logits.softmax(1).amax(1)
        if name == "acr":
            adjusted = (logits - algorithm.adjustment(2.0)).softmax(1).amax(1)
            confidence = torch.maximum(ctx.teacher.head(features).softmax(1).amax(1), adjusted)
    # So that some count and others do not.
    algorithm.config.threshold = float(confidence.mean())
    kept = (confidence >= algorithm.config.threshold).float().mean()
    _, logs = subjects.take_step(algorithm, batch, ctx)
    assert 0 < kept < 1 and torch.equal(logs["mask_rate"], kept)


@pytest.mark.parametrize("how", ["split", "lazy"])
def test_labeled_images_pass_with_the_weak_views_for_their_statistics(
    data: Data, batch: Batch, how: str
) -> None:
    net = counting(data, how).prepared(Execution(views=how, with_labeled=True))
    look = Look(net, batch)
    weak = look.weak()
    assert not weak.requires_grad and net.passes == [(4 + 8, False)]
    other = counting(data, "joint")
    expected = views.together(other, [batch.x, batch.u[0]])[1]
    assert torch.equal(weak, expected)
    look.rest(torch.arange(8) < 3)
    assert net.passes[1:] == [(4 + 2 * (3 if how == "lazy" else 8), True)]


def test_labeled_images_cannot_join_where_they_are_already() -> None:
    with pytest.raises(ValueError, match="changes nothing in a joint step"):
        ViewsConfig(with_labeled=True)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), [("cdmad", "joint"), ("daso", "split"), ("abc", "lazy")])
def test_a_run_with_the_teachers_pseudo_labels_goes_on_bit_by_bit(
    name: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = subjects.make_net

    def net(data: Data, seed: int = 1) -> Classifier:
        return made(data, seed).prepared(Execution(views=how))

    monkeypatch.setattr(subjects, "make_net", net)
    life.check_resume(contract.subject(name, pseudo_labels="teacher"), tmp_path)
