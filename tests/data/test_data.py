"""Batches as functions of (seed, stage, step), lazy views, class pairs, and no leak of labels."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_selmix import models
from ssl_selmix.algorithm import Algorithm, Batch, load
from ssl_selmix.augment.tensor import Strong, StrongParams, Weak
from ssl_selmix.common.seeds import seed_of
from ssl_selmix.data import Data, Diagnostics, ImageSet, assemble
from ssl_selmix.data.pool import LazyViews, MemoryPool, Normalisation
from ssl_selmix.selmix.pairs import ClassPairSampler
from ssl_selmix.splits import Split

SAMPLER = {
    k: torch.from_numpy(np.asarray(v))
    for k, v in np.load(Path(__file__).parents[1] / "golden" / "sampler.npz").items()
}
CPU = torch.device("cpu")


def contents(batch: Batch) -> list[Tensor]:
    return [batch.x, batch.y, batch.index_u, *(batch.u[view] for view in range(len(batch.u)))]


def equal(first: Batch, second: Batch) -> bool:
    return all(map(torch.equal, contents(first), contents(second)))


def in_memory(data: Data) -> MemoryPool:
    assert isinstance(data.pool, MemoryPool)
    return data.pool


def without_shift(data: Data) -> Data:
    pool = in_memory(data)
    assert isinstance(pool.weak, Weak)
    weak = dataclasses.replace(pool.weak, pad=0)
    return dataclasses.replace(data, pool=dataclasses.replace(pool, weak=weak))


def batch_at(data: Data, step: int) -> Batch:
    return next(data.batches(("weak", "strong"), 4, 2, step))


# Randomness.


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalising_is_the_same_arithmetic_in_both_memory_formats(
    dtype: torch.dtype,
) -> None:
    images = torch.randint(256, (3, 3, 5, 7)).to(dtype)
    mean, std = (torch.rand(3, 1, 1) * 100 + 1 for _ in range(2))
    normalise = Normalisation(mean, std)
    expected = (images.float() - mean) / std
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        before = given.clone()
        found = normalise(given)
        assert torch.equal(found, expected) and torch.equal(given, before)
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_starting_at_a_step_equals_running_to_it(tiny_data: Data) -> None:
    run = list(itertools.islice(tiny_data.batches(("weak", "strong"), 4, 2, 0), 6))
    for step in (0, 3, 5):
        assert equal(batch_at(tiny_data, step), run[step])


def test_views_do_not_depend_on_when_they_are_asked_for(tiny_data: Data) -> None:
    late, now = batch_at(tiny_data, 2), batch_at(tiny_data, 2)
    batch_at(tiny_data, 3).u[1]
    torch.rand(5)
    assert torch.equal(late.u[1], now.u[1])
    assert torch.equal(late.u[0], now.u[0])


def test_batches_differ_between_seeds_stages_and_steps(tiny_data: Data) -> None:
    others = [
        batch_at(dataclasses.replace(tiny_data, seed=1), 0),
        batch_at(tiny_data.at_stage("2-test"), 0),
        batch_at(tiny_data, 1),
    ]
    here = contents(batch_at(tiny_data, 0))
    for other in others:
        for mine, its in zip(here, contents(other), strict=True):
            assert not torch.equal(mine, its)


def test_batches_leave_the_global_generator_alone(tiny_data: Data) -> None:
    before = torch.get_rng_state()
    contents(batch_at(tiny_data, 0))
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_depend_on_every_part_of_the_key() -> None:
    keys: list[tuple[int | str, ...]] = [(0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "b", 1)]
    keys += [(0, "a1"), ("0", "a", 1), (0, "a", "1")]
    assert len({seed_of(*key) for key in keys}) == len(keys)
    assert all(0 <= seed_of(*key) < 2**63 for key in keys)


# Batches.


def test_shapes_and_types(tiny_data: Data) -> None:
    batch = batch_at(tiny_data, 0)
    assert [tuple(t.shape) for t in contents(batch)] == [
        (4, 1, 8, 8),
        (4,),
        (8,),
        (8, 1, 8, 8),
        (8, 1, 8, 8),
    ]
    assert batch.x.dtype == torch.float32 and batch.y.dtype == torch.int64


def test_labels_belong_to_the_images(tiny_data: Data, tiny_source: ImageSet) -> None:
    centres = torch.stack([tiny_source.train[30 * k : 30 * k + 30].float() for k in range(3)])
    data = without_shift(tiny_data)
    centres = in_memory(data).normalise(centres.mean(1)).flatten(1)
    for step in range(5):
        batch = batch_at(data, step)
        nearest = torch.cdist(batch.x.flatten(1), centres).argmin(1)
        assert torch.equal(nearest, batch.y)


def test_index_u_points_into_the_pool(tiny_data: Data) -> None:
    data = without_shift(tiny_data)
    batch = batch_at(data, 0)
    images = data.take(data.unlabeled[batch.index_u])
    assert torch.equal(batch.u[0], in_memory(data).normalise(images))


def test_both_streams_are_uniform(tiny_data: Data) -> None:
    batch = next(tiny_data.batches(("weak",), 2000, 2, 0))
    labeled = torch.bincount(batch.y, minlength=3).double() / 2000
    assert torch.allclose(labeled, tiny_data.task.labeled_prior, atol=0.04)
    pool = torch.bincount(batch.index_u, minlength=len(tiny_data.unlabeled)).double()
    assert chi_square(pool, torch.full_like(pool, 1 / len(pool))) < chi_square_bound(len(pool))


def test_no_views_means_no_unlabeled_image(tiny_data: Data) -> None:
    batch = next(tiny_data.batches((), 4, 2, 0))
    assert len(batch.u) == 0 and len(batch.index_u) == 0


def test_an_empty_pool_is_refused_by_a_method_with_views(tiny_data: Data) -> None:
    data = dataclasses.replace(tiny_data, unlabeled=tiny_data.unlabeled[:0])
    with pytest.raises(ValueError, match="needs unlabeled images"):
        next(data.batches(("weak",), 4, 2, 0))
    assert len(next(data.batches((), 4, 2, 0)).index_u) == 0


def test_normalisation_and_plain_views_in_order(tiny_data: Data) -> None:
    plain = torch.cat(list(tiny_data.plain(tiny_data.validation, size=5)))
    images = tiny_data.take(tiny_data.validation)
    torch.testing.assert_close(plain, (images.float() - 127.5) / 94)
    tests = torch.cat(list(tiny_data.test_batches(size=7)))
    torch.testing.assert_close(tests, (tiny_data.take(tiny_data.test).float() - 127.5) / 94)


def test_task(tiny_data: Data) -> None:
    task = tiny_data.task
    assert task.labeled_counts.tolist() == [12, 6, 3]
    assert (task.num_classes, task.num_unlabeled, task.num_validation) == (3, 26, 12)
    assert task.tail == [2]
    assert torch.allclose(task.labeled_prior, torch.tensor([12, 6, 3]).double() / 21)


def test_a_class_without_labeled_images_still_counts(tiny_data: Data) -> None:
    kept = tiny_data.labels != 1
    data = dataclasses.replace(
        tiny_data, labels=tiny_data.labels[kept], labeled=tiny_data.labeled[kept]
    )
    assert data.task.labeled_counts.tolist() == [12, 0, 3]


def test_own_test_images_replace_held_out_ones(tiny_source: ImageSet, tiny_split: Split) -> None:
    other = tiny_source.train[:4] // 2
    source = dataclasses.replace(tiny_source, test=other, test_labels=np.array([0, 1, 2, 0]))
    data, _ = assemble(source, tiny_split, 0, CPU)
    assert torch.equal(data.test_pool.take(data.test), other)
    assert data.test_labels.tolist() == [0, 1, 2, 0]


# Lazy views.


@dataclass(frozen=True, kw_only=True)
class Counting(Strong):
    """Notes how many images it augmented."""

    calls: list[int] = field(default_factory=list)

    def __call__(self, images: Tensor, params: StrongParams) -> Tensor:
        self.calls.append(len(images))
        return super().__call__(images, params)


def test_strong_view_is_made_once_and_only_when_asked_for(tiny_data: Data) -> None:
    pool = in_memory(tiny_data)
    assert isinstance(pool.weak, Weak)
    strong = Counting(weak=pool.weak)
    counted = dataclasses.replace(tiny_data, pool=dataclasses.replace(pool, strong=strong))
    batch = batch_at(counted, 0)
    assert batch.u[0].shape == (8, 1, 8, 8)
    assert strong.calls == []
    batch.u.select(1, torch.tensor([2, 5]))
    assert strong.calls == [2]
    assert batch.u[1] is batch.u[1]
    assert strong.calls == [2, 8]


@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("rows", [[], [3], [7, 0, 2], [1, 1, 6], list(range(8))])
def test_select_equals_rows_of_the_full_view(tiny_data: Data, view: int, rows: list[int]) -> None:
    batch = batch_at(tiny_data, 4)
    index = torch.tensor(rows, dtype=torch.int64)
    assert torch.equal(batch.u.select(view, index), batch.u[view][index])


def test_repeated_views_are_different_draws(tiny_data: Data) -> None:
    batch = next(tiny_data.batches(("weak", "strong", "strong"), 4, 2, 0))
    assert len(batch.u) == 3
    assert not torch.equal(batch.u[1], batch.u[2])


def test_unknown_view_names_the_known_ones(tiny_data: Data) -> None:
    with pytest.raises(ValueError, match=r"weak or strong, not 'medium'"):
        tiny_data.batches(("medium",), 4, 2, 0)


# What must not leak.


def tensors(root: object) -> Iterator[Tensor]:
    """Every tensor and array that can be reached from an object."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Tensor):
            yield node
        elif isinstance(node, np.ndarray):
            yield torch.from_numpy(node)
        elif isinstance(node, dict):
            waiting += [*node.keys(), *node.values()]
        elif isinstance(node, list | tuple | set):
            waiting += node
        elif type(node).__module__.startswith("ssl_selmix"):
            waiting.append(vars(node))


def reveals(tensor: Tensor, pool: Tensor, labels: Tensor) -> bool:
    """Whether the pool's labels stand in a row in it, or at the pool's places."""
    flat = tensor.flatten()
    if len(flat) > int(pool.max()) and torch.equal(flat[pool].double(), labels.double()):
        return True
    if len(flat) < len(labels):
        return False
    return bool((flat.unfold(0, len(labels), 1) == labels).all(1).any())


def test_no_path_leads_from_data_or_task_to_the_labels_of_the_pool(
    tiny_source: ImageSet, tiny_split: Split
) -> None:
    data, diagnostics = assemble(tiny_source, tiny_split, 0, CPU)
    pool, labels = data.unlabeled, diagnostics.labels
    assert labels.tolist() == [0] * 6 + [1] * 8 + [2] * 12
    for known in (tiny_source, [data, {"report": diagnostics}]):  # the search would find them
        assert any(reveals(tensor, pool, labels) for tensor in tensors(known))
    batch = batch_at(data, 0)
    for root in (data, data.at_stage("2"), data.task, batch):
        found = list(tensors(root))
        assert found and not any(reveals(tensor, pool, labels) for tensor in found)
    assert not any(torch.equal(t, labels[batch.index_u]) for t in tensors(batch))


def test_wrong_labels_of_the_pool_change_nothing(tiny_source: ImageSet, tiny_split: Split) -> None:
    poisoned = tiny_source.train_labels.copy()
    poisoned[tiny_split.unlabeled] = (poisoned[tiny_split.unlabeled] + 1) % 3
    data, truth = assemble(tiny_source, tiny_split, 0, CPU)
    other, lies = assemble(
        dataclasses.replace(tiny_source, train_labels=poisoned), tiny_split, 0, CPU
    )
    assert not torch.equal(truth.labels, lies.labels)
    mine, its = list(tensors(data)), list(tensors(other))
    assert len(mine) == len(its) and all(map(torch.equal, mine, its))


def test_diagnostics_report_the_accuracy_of_pseudo_labels() -> None:
    logits = torch.eye(3)[[0, 1, 2, 2]]
    report = Diagnostics(torch.tensor([0, 1, 2, 0])).of(logits)
    assert float(report["pool_accuracy"]) == 0.75
    assert Diagnostics(torch.tensor([0, 1, -1, 0])).of(logits) == {}
    assert Diagnostics(torch.tensor([], dtype=torch.int64)).of(logits[:0]) == {}


# Class pairs.


def chi_square(counts: Tensor, probability: Tensor) -> float:
    """Pearson's statistic; cells that expect fewer than 5 draws are pooled."""
    expected = probability.flatten() * counts.sum()
    counts = counts.flatten().double()
    rare = expected < 5
    merged = torch.cat([counts[~rare], counts[rare].sum().view(1)])
    expected = torch.cat([expected[~rare], expected[rare].sum().view(1)])
    used = expected > 0
    assert not merged[~used].any()
    return float(((merged - expected) ** 2 / expected)[used].sum())


def chi_square_bound(cells: int) -> float:
    """Mean plus five standard deviations of the statistic."""
    return cells + 5 * math.sqrt(2 * cells)


def classes(counts: Tensor) -> Tensor:
    """Labels of a set with so many images of each class, shuffled."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]


def drawn(
    labels: Tensor, pseudo: Tensor, distribution: Tensor, size: int = 100_000
) -> tuple[Tensor, Tensor, Tensor]:
    """How often each pair of classes was drawn, and the positions."""
    num_classes = len(distribution)
    sampler = ClassPairSampler(labels, pseudo, num_classes)
    generator = torch.Generator().manual_seed(3)
    sampler.refresh(distribution)
    first, second = sampler.draw(size, generator)
    cell = labels[first] * num_classes + torch.cat([labels, pseudo])[second]
    counts = torch.bincount(cell, minlength=num_classes**2)
    return counts.view(num_classes, num_classes), first, second


@pytest.mark.parametrize("k", [3, 10])
def test_pairs_are_drawn_by_p_itself(k: int) -> None:
    p, released = SAMPLER[f"K{k}/P"], SAMPLER[f"K{k}/effective_joint"]
    labels, pseudo = classes(SAMPLER[f"K{k}/counts1"]), classes(SAMPLER[f"K{k}/counts2"])
    counts, _, second = drawn(labels, pseudo, p)
    assert chi_square(counts, p) < chi_square_bound(k * k)
    # The released code adds K^-3 to every entry, so that 1 pair in K + 1 is drawn uniformly.
    torch.testing.assert_close(released, (p + k**-3) / (1 + 1 / k), rtol=1e-5, atol=1e-5)
    assert chi_square(counts, released) > 20 * chi_square_bound(k * k)
    assert int(second.min()) >= len(labels)  # every class has pseudo-labels: no labeled partner


def test_images_of_a_class_are_drawn_uniformly() -> None:
    labels, pseudo = classes(torch.tensor([20, 13, 5])), classes(torch.tensor([30, 20, 10]))
    p = SAMPLER["K3/P"]
    _, first, second = drawn(labels, pseudo, p)
    rows, columns = p.sum(1), p.sum(0)
    expected = rows[labels] / torch.bincount(labels)[labels]
    assert chi_square(torch.bincount(first, minlength=38), expected) < chi_square_bound(38)
    partners = torch.bincount(second - 38, minlength=60)
    expected = columns[pseudo] / torch.bincount(pseudo)[pseudo]
    assert chi_square(partners, expected) < chi_square_bound(60)


def test_weights_choose_among_the_partners_of_a_class() -> None:
    labels, pseudo = classes(torch.tensor([5, 4, 3])), classes(torch.tensor([6, 0, 4]))
    weights = torch.rand(10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights[0] = 0
    sampler = ClassPairSampler(labels, pseudo, 3, weights)
    p = sampler.refresh(SAMPLER["K3/P"])
    _, second = sampler.draw(100_000, torch.Generator().manual_seed(3))
    columns = p.sum(0)
    inside = torch.zeros(3, dtype=torch.float64).index_add_(0, pseudo, weights)
    expected = torch.cat(
        [columns[labels] * (labels == 1) / 4, columns[pseudo] * weights / inside[pseudo]]
    )
    counts = torch.bincount(second, minlength=22)
    assert chi_square(counts, expected) < chi_square_bound(22)
    assert not counts[expected == 0].any()


def test_partners_are_independent_of_the_first_image() -> None:
    labels, pseudo = classes(torch.tensor([4, 4])), classes(torch.tensor([4, 4]))
    _, first, second = drawn(labels, pseudo, torch.full((2, 2), 0.25))
    cells = torch.bincount(first * 8 + second - 8, minlength=64)
    assert chi_square(cells, torch.full((64,), 1 / 64)) < chi_square_bound(64)


def test_pairs_with_probability_zero_are_never_drawn() -> None:
    p = torch.zeros(3, 3, dtype=torch.float64)
    p[1, 0], p[0, 2] = 0.25, 0.75
    counts, _, _ = drawn(classes(torch.tensor([3, 3, 3])), classes(torch.tensor([3, 3, 3])), p)
    assert int(counts.sum()) == int(counts[1, 0] + counts[0, 2])


def test_a_class_without_pseudo_labels_lends_its_labeled_images() -> None:
    labels, pseudo = classes(torch.tensor([5, 4, 3])), classes(torch.tensor([6, 0, 2]))
    sampler = ClassPairSampler(labels, pseudo, 3)
    uniform = torch.full((3, 3), 1 / 9, dtype=torch.float64)
    assert torch.equal(sampler.refresh(uniform), uniform / uniform.sum())
    counts, _, second = drawn(labels, pseudo, uniform)
    assert chi_square(counts, uniform) < chi_square_bound(9)
    from_labeled = second[second < len(labels)]
    assert set(labels[from_labeled].tolist()) == {1}
    assert set(pseudo[second[second >= len(labels)] - len(labels)].tolist()) == {0, 2}


def test_without_a_pool_all_partners_are_labeled() -> None:
    labels = classes(torch.tensor([5, 4, 3]))
    none = torch.tensor([], dtype=torch.int64)
    p = SAMPLER["K3/P"]
    counts, _, second = drawn(labels, none, p)
    assert chi_square(counts, p) < chi_square_bound(9)
    assert int(second.max()) < len(labels)


def test_a_class_absent_from_the_labeled_set_comes_never_first() -> None:
    labels, pseudo = classes(torch.tensor([5, 0, 3])), classes(torch.tensor([6, 4, 2]))
    sampler = ClassPairSampler(labels, pseudo, 3)
    p = SAMPLER["K3/P"]
    restricted = sampler.refresh(p)
    expected = p.clone()
    expected[1] = 0
    torch.testing.assert_close(restricted, expected / expected.sum())
    counts, _, _ = drawn(labels, pseudo, p)
    assert not counts[1].any() and counts[:, 1].any()
    assert chi_square(counts, restricted) < chi_square_bound(9)


def test_a_class_that_nobody_has_is_no_partner_either() -> None:
    labels, pseudo = classes(torch.tensor([5, 0, 3])), classes(torch.tensor([6, 0, 2]))
    sampler = ClassPairSampler(labels, pseudo, 3)
    restricted = sampler.refresh(torch.full((3, 3), 1 / 9))
    assert not restricted[1].any() and not restricted[:, 1].any()
    assert float(restricted.sum()) == pytest.approx(1)


def test_mass_on_impossible_pairs_alone_becomes_uniform() -> None:
    labels, pseudo = classes(torch.tensor([5, 0, 3])), classes(torch.tensor([6, 0, 2]))
    p = torch.zeros(3, 3)
    p[1, 1] = 1
    restricted = ClassPairSampler(labels, pseudo, 3).refresh(p)
    expected = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 0, 1]]).double() / 4
    assert torch.equal(restricted, expected)


@pytest.mark.parametrize("pool", [[0, 0, 7], [0, 0, 0], [9, 0, 0]])
def test_one_class_only(pool: list[int]) -> None:
    labels, pseudo = classes(torch.tensor([0, 6, 0])), classes(torch.tensor(pool))
    counts, first, second = drawn(labels, pseudo, torch.full((3, 3), 1 / 9), size=500)
    assert int(counts[1].sum()) == 500
    assert 0 <= int(first.min()) and int(first.max()) < 6
    assert 0 <= int(second.min()) and int(second.max()) < 6 + len(pseudo)


def test_a_single_class_in_all() -> None:
    counts, _, _ = drawn(torch.zeros(4).long(), torch.zeros(2).long(), torch.ones(1, 1), size=50)
    assert counts.tolist() == [[50]]


def test_the_ends_of_the_uniform_interval_pick_existing_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels, pseudo = classes(torch.tensor([5, 0, 3])), classes(torch.tensor([6, 4, 0]))
    sampler = ClassPairSampler(labels, pseudo, 3)
    p = torch.full((3, 3), 1 / 9)
    p[0, 0] = p[2, 2] = 0  # the cells where a careless search would end
    sampler.refresh(p)
    largest = 1 - 2.0**-53
    for u in (0.0, largest):

        def constant(*shape: int, u: float = u, **_: Any) -> Tensor:
            return torch.full(shape, u, dtype=torch.float64)

        monkeypatch.setattr(torch, "rand", constant)
        first, second = sampler.draw(2, torch.Generator())
        y = int(labels[first[0]]), int(torch.cat([labels, pseudo])[second[0]])
        assert y == ((0, 1) if u == 0 else (2, 1))


def buffer(algorithm: Algorithm, name: str) -> Tensor:
    (found,) = (b for n, b in algorithm.named_buffers() if n.rpartition(".")[2] == name)
    return found


def test_selmix_pairs_labeled_images_with_pseudo_labelled_ones(tiny_data: Data) -> None:
    kind = load("selmix")[1]
    net = models.build(models.Config("cnn-2"), 3, 1)
    algorithm = kind(net, tiny_data.task, kind.Config(batch=40))
    pseudo = torch.arange(len(tiny_data.unlabeled)) % 2  # wrong on purpose, and class 2 has none
    buffer(algorithm, "pseudo_labels").copy_(pseudo)
    pairs = torch.zeros(3, 3, dtype=torch.float64)
    pairs[0, 1] = pairs[1, 2] = 0.5
    buffer(algorithm, "pairs").copy_(pairs)
    batch = next(algorithm.batches(tiny_data, 0))
    from_pool = batch.index_u >= 0
    assert torch.equal(from_pool, batch.y == 0)
    assert set(pseudo[batch.index_u[from_pool]].tolist()) == {1}
    labeled = len(tiny_data.labeled) + batch.index_u[~from_pool]  # positions in the labeled set
    assert set(tiny_data.labels[labeled].tolist()) == {2}
    assert isinstance(batch.u, LazyViews) and batch.u[0].shape == batch.x.shape


def test_selmix_batches_depend_on_the_step_alone(tiny_data: Data) -> None:
    kind = load("selmix")[1]
    net = models.build(models.Config("cnn-2"), 3, 1)

    def batches(start: int) -> Iterator[Batch]:
        return kind(net, tiny_data.task, kind.Config(batch=8)).batches(tiny_data, start)

    run = list(itertools.islice(batches(0), 4))
    assert equal(next(batches(3)), run[3])
    assert not equal(run[2], run[3])
