"""CReST, CReST+ and distribution alignment, against recorded runs of published code and by hand."""

import copy
import dataclasses
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix import losses
from ssl_selmix.algorithm import Context, Evaluation
from ssl_selmix.algorithms.crest import CReST, class_rates, select
from ssl_selmix.algorithms.crest_plus import CReSTPlus
from ssl_selmix.algorithms.fixmatch import FixMatch
from ssl_selmix.contract import subjects
from ssl_selmix.data import Data
from ssl_selmix.methods.pseudo_labels import DistributionAlignment
from ssl_selmix.models import Classifier
from ssl_selmix.training import checkpoint, engine
from tests.helpers import gaussians
from tests.helpers.golden import (
    Recorded,
    Vectors,
    assert_reproduces,
    batch_of,
    cases,
    part,
    read,
    task_of,
)

CREST = read("crest.npz")
SELECTIONS = ["select.alpha1", "select.alpha2", "select.alpha3"]
ALIGNMENTS = ["align.T1", "align.T0.5", "align.window"]


def test_every_recorded_case_is_compared() -> None:
    assert cases(CREST) == {*SELECTIONS, *ALIGNMENTS, "temperature", "step", "tf_official"}


# Recorded runs.


@pytest.mark.parametrize("case", SELECTIONS)
def test_rates_and_selection_are_the_published_ones(case: str) -> None:
    given = part(CREST, case, "in")
    p, counts = given["unl_probs"], given["labelled_counts"]
    rates = class_rates(counts, float(given["alpha"]))
    chosen = select(p, rates)
    classes = p.argmax(1)
    per_class = torch.bincount(classes[chosen], minlength=10)
    got = {
        "rate_by_rank": rates.flip(0),  # recorded from the largest class's rate to take, 1, down
        "rate_per_class": rates,
        "pred_counts": torch.bincount(classes, minlength=10),
        "selected_indices": chosen,
        "selected_labels": classes[chosen],
        "selected_per_class": per_class,
        "new_labelled_counts": counts + per_class,
    }
    assert_reproduces(CREST, case, got)


def test_rates_of_the_original_code_come_from_the_ideal_distribution() -> None:
    """Ours come from the counts, as in DASO's code: the two differ by the rounding of counts."""
    given = part(CREST, "tf_official", "in")
    rates = class_rates(given["gt_p_data"] * 1e9, float(given["alpha"]))
    got = {"rate_per_class": rates, "added_per_class": (rates * given["pred_counts"]).long()}
    assert_reproduces(CREST, "tf_official", got)


@pytest.mark.parametrize("case", ALIGNMENTS)
def test_alignment_is_the_published_one(case: str) -> None:
    given = part(CREST, case, "in")
    alignment = DistributionAlignment(given["target"], int(given["window"]))
    temperature = float(given.get("temperature", 1.0))
    aligned = [alignment(p, temperature) for p in given["p"]]
    assert len(aligned) > 3 or case != "align.window"
    assert_reproduces(CREST, case, {"aligned": torch.stack(aligned), "aligned_last": aligned[-1]})


def make(
    kind: type[CReST],
    rows: Tensor | None = None,
    counts: Tensor | None = None,
    num_unlabeled: int = 16,
    **settings: Any,
) -> Any:
    """The method on recorded logits; its network can be made anew from the same ones."""
    net = Recorded(torch.zeros(1, 3) if rows is None else rows)
    counts = torch.tensor([9.0, 3.0, 1.0]) if counts is None else counts
    return kind(net, task_of(counts, num_unlabeled), kind.Config(**settings))


def test_generations_and_temperatures_are_the_published_ones() -> None:
    given = part(CREST, "temperature", "in")
    total, length = int(given["max_iter"]), int(given["gen_steps"])
    algorithm = make(
        CReSTPlus, steps=total, generations=total // length, t_min=float(given["t_min"])
    )
    steps = given["iters"].tolist()
    got = {
        "generation": torch.tensor([algorithm.generation(t) + 1 for t in steps]),
        "max_gen": torch.tensor(algorithm.generations),
        "temperature": torch.tensor([algorithm.temperature(t) for t in steps]).double(),
    }
    assert_reproduces(CREST, "temperature", got)


def step(given: Vectors, **settings: Any) -> Vectors:
    """The recorded step, in the third of five generations."""
    blocks = [given[k] for k in ("logits_x", "logits_u_w", "logits_u_s")]
    algorithm = make(
        CReSTPlus,
        torch.cat(blocks),
        given["target"],
        steps=250_000,
        threshold=float(given["threshold"]),
        **settings,
    )
    t = int(given["iter"])
    ctx, batch = Context(t, 250_000, algorithm), batch_of([8, 16, 16], given["y"])
    p = copy.deepcopy(algorithm).guess(blocks[1], batch, ctx)  # a copy: it takes up the batch
    parts, _ = algorithm(batch, ctx)
    loss = torch.stack(list(parts.values())).sum()
    loss.backward()
    classes, mask = losses.pseudo_label(p, float(given["threshold"]))
    return {
        "temperature": torch.tensor(algorithm.temperature(t)),
        "p_aligned": p,
        "mask": mask,
        "targets_u": classes,
        "Lx": parts["labeled"],
        "Lu": parts["unlabeled"],
        "loss": loss,
        "grad_logits_u_s": algorithm.net.rows.grad[24:],
        "grad_logits_u_w": algorithm.net.rows.grad[8:24],
    }


def test_a_step_is_the_published_one() -> None:
    got = step(part(CREST, "step", "in"))
    assert_reproduces(CREST, "step", got)
    assert float(got["temperature"]) == float(CREST["step.in.temperature"])
    assert not got["grad_logits_u_w"].any()


def test_the_recorded_step_tells_the_temperature() -> None:
    got = step(part(CREST, "step", "in"), t_min=0.6)["p_aligned"]
    assert float((got - CREST["step.out.p_aligned"]).abs().max()) > 1e-3


# Alignment.


def test_alignment_by_hand() -> None:
    alignment = DistributionAlignment(torch.tensor([3.0, 1.0]))  # counts are taken for shares
    first = alignment(torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(first, torch.tensor([[0.75, 0.25]]))
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9]], requires_grad=True)
    second = alignment(p)  # pbar is still (1/2, 1/2)
    torch.testing.assert_close(second[:, 0], torch.tensor([0.675 / 0.7, 0.075 / 0.3]))
    assert not second.requires_grad


def test_the_window_forgets_the_oldest_batch() -> None:
    alignment = DistributionAlignment(torch.ones(2), window=2)
    for share in (0.1, 0.6, 0.8):
        alignment(torch.tensor([[share, 1 - share]]))
    torch.testing.assert_close(alignment.means.mean(0)[0], torch.tensor(0.7))
    alignment.reset()
    alignment(torch.tensor([[0.3, 0.7]]))
    torch.testing.assert_close(alignment.means.sum(0)[0], torch.tensor(0.3))


def test_the_moving_average_starts_at_the_first_batch() -> None:
    alignment = DistributionAlignment(torch.ones(2), momentum=0.9)
    alignment(torch.tensor([[0.2, 0.8]]))
    torch.testing.assert_close(alignment.means, torch.tensor([[0.2, 0.8]]))
    p = torch.tensor([[0.7, 0.3]])
    aligned = alignment(p)
    pbar = torch.tensor([[0.25, 0.75]])
    torch.testing.assert_close(alignment.means, pbar)
    expected = (p / pbar) / (p / pbar).sum()
    torch.testing.assert_close(aligned, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_alignment_goes_on_from_its_state(momentum: float | None) -> None:
    p = torch.rand(7, 4, 3, generator=torch.Generator().manual_seed(0)).softmax(2)
    old = DistributionAlignment(torch.ones(3), window=4, momentum=momentum)
    for batch in p[:5]:
        old(batch)
    new = DistributionAlignment(torch.tensor([1.0, 2, 3]), window=4, momentum=momentum)
    new.load_state_dict(old.state_dict())
    assert all(torch.equal(new(batch), old(batch)) for batch in p[5:])


def test_a_class_that_is_never_predicted_or_absent_from_the_target_leaves_it_finite() -> None:
    alignment = DistributionAlignment(torch.tensor([1.0, 1.0, 0.0]))
    aligned = alignment(torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]), temperature=0.5)
    assert aligned.isfinite().all()
    torch.testing.assert_close(aligned.sum(1), torch.ones(2))


# Rates and selection.


def test_rates_by_hand() -> None:
    rates = class_rates(torch.tensor([64, 8, 1]), alpha=3.0)
    torch.testing.assert_close(rates, torch.tensor([0.25, 0.5, 1.0]).double())


def test_rates_follow_the_counts_and_not_the_order_of_classes() -> None:
    counts = torch.tensor([150, 97, 40, 40, 26, 0])
    order = torch.tensor([3, 5, 0, 4, 1, 2])
    rates = class_rates(counts, 3.0)
    torch.testing.assert_close(class_rates(counts[order], 3.0), rates[order])


def test_equal_counts_have_equal_rates() -> None:
    rates = class_rates(torch.tensor([8, 8, 1]), alpha=3.0)
    torch.testing.assert_close(rates, torch.tensor([0.75, 0.75, 1.0]).double())
    assert class_rates(torch.tensor([5, 5, 5]), 3.0).tolist() == [1, 1, 1]


def test_a_class_without_images_counts_as_one_with_a_single_image() -> None:
    assert class_rates(torch.tensor([8, 0]), 3.0).tolist() == [0.5, 1.0]


def test_selection_by_hand() -> None:
    classes = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    confidence = torch.tensor([0.5, 0.9, 0.7, 0.8, 0.6, 0.7, 0.4])
    p = F.one_hot(classes, 4) * confidence[:, None]
    rates = torch.tensor([0.5, 0.5, 0.9, 1.0]).double()
    # Two of four, one of two, int(0.9) of one, all of none.
    assert select(p, rates).tolist() == [1, 3, 5]


def test_rounding_does_not_lose_an_image() -> None:
    rates = torch.tensor(
        [0.29, 1.0], dtype=torch.float64
    )  # 0.29 * 100 is less than 29 in floating point
    assert float(rates[0] * 100) < 29
    p = F.one_hot(torch.zeros(100, dtype=torch.int64), 2).double()
    assert select(p, rates).tolist() == list(range(29))


# Generations.


@pytest.mark.parametrize(("steps", "generations"), [(20, 4), (23, 5), (7, 3), (3, 5), (9, 1)])
def test_generations_have_equal_lengths_and_fill_the_run(steps: int, generations: int) -> None:
    algorithm = make(CReST, steps=steps, generations=generations)
    clock = [algorithm.clock(t) for t in range(steps)]
    starts = [t for t in range(steps) if clock[t][0] == 0]
    lengths = [b - a for a, b in pairwise([*starts, steps])]
    assert len(starts) == min(steps, generations)
    assert max(lengths) - min(lengths) <= 1
    expected = [(i, length) for length in lengths for i in range(length)]
    assert clock == expected
    assert [t for t in range(steps + 1) if algorithm.begins(t)] == starts[1:]
    assert [t for t in range(steps + 1) if algorithm.needs_pool(t)] == starts[1:]


def fit(algorithm: FixMatch, data: Data) -> engine.Fitted:
    with TemporaryDirectory() as folder:
        return subjects.fit(algorithm, data, Path(folder))


class Watched(CReST):
    """Keeps what it was given and what it chose, and a digest of the weights it started from."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[dict[str, Any]] = []

    def batches(self, data: Any, start: int) -> Any:
        stream = super().batches(data, start)
        drawn = [next(stream) for _ in range(20)]
        self.seen.append(
            {
                "step": start,
                "y": torch.bincount(torch.cat([b.y for b in drawn]), minlength=4),
                "net": checkpoint.digest(self.net.state_dict()),
                "selected": self.selected.clone(),
                "classes": self.classes.clone(),
                "log_pi": self.labeled_loss.log_pi.clone(),
            }
        )
        return super().batches(data, start)


@cache
def watched_run() -> tuple[Watched, engine.Fitted]:
    """A run of three generations of 20 steps."""
    data = gaussians.make_data()
    torch.manual_seed(0)
    config = Watched.Config(
        steps=60, generations=3, batch=16, evaluate_every=10, ema=0.9, logit_adjustment=1.0
    )
    algorithm = Watched(gaussians.make_net(), data.task, config)
    return algorithm, fit(algorithm, data)


def test_every_generation_starts_anew_from_more_labels() -> None:
    algorithm, _ = watched_run()
    first, second, third = algorithm.seen
    assert [seen["step"] for seen in algorithm.seen] == [0, 20, 40]
    assert len({seen["net"] for seen in algorithm.seen}) == 3
    assert not first["selected"].any() and second["selected"].any() and third["selected"].any()
    rare = second["y"][2:].sum() / second["y"].sum()
    assert rare > first["y"][2:].sum() / first["y"].sum()


def test_the_adjustment_follows_the_enlarged_labeled_set() -> None:
    algorithm, _ = watched_run()
    for seen in algorithm.seen:
        chosen = seen["classes"][seen["selected"]]
        counts = gaussians.make_data().task.labeled_counts + torch.bincount(chosen, minlength=4)
        expected = (counts / counts.sum()).log().float()
        torch.testing.assert_close(seen["log_pi"], expected)


class Spy(Data):
    """Data that is returned in place of its batches."""

    def batches(self, *args: Any, **settings: Any) -> Any:
        return self


def test_the_labeled_set_is_the_original_one_and_the_chosen_images() -> None:
    """Never those of the generation before; and the pool stays as it is."""
    data = gaussians.make_data()
    spy = Spy(**{f.name: getattr(data, f.name) for f in dataclasses.fields(data)})
    algorithm = CReST(gaussians.make_net(), data.task, CReST.Config())
    for chosen, label in (([5, 7], 2), ([6], 3)):
        algorithm.selected.zero_()[chosen] = True
        algorithm.classes.fill_(label)
        found: Any = algorithm.batches(spy, 0)
        assert torch.equal(found.labeled, torch.cat([data.labeled, data.unlabeled[chosen]]))
        expected = torch.cat([data.labels, torch.full((len(chosen),), label)])
        assert torch.equal(found.labels, expected)
        assert torch.equal(found.unlabeled, data.unlabeled)
    assert torch.equal(spy.labeled, data.labeled)


def test_the_chosen_are_the_shares_of_what_the_teacher_predicts() -> None:
    data = gaussians.make_data()
    task = data.task
    torch.manual_seed(0)
    algorithm = CReST(gaussians.make_net(), task, CReST.Config(steps=4, generations=2))
    logits = torch.randn(task.num_unlabeled, 4)
    none = torch.zeros(0, 4)
    evaluation = Evaluation(none, none, torch.zeros(0, dtype=torch.int64), logits)
    algorithm.selected.fill_(True)  # in the generation before
    logs = algorithm.on_validation(evaluation, Context(2, 4, algorithm))
    chosen = select(logits.double().softmax(1), class_rates(task.labeled_counts, 3.0))
    assert sorted(chosen.tolist()) == algorithm.selected.nonzero().flatten().tolist()
    assert torch.equal(algorithm.classes, logits.argmax(1))
    expected = torch.bincount(logits.argmax(1)[chosen], minlength=4)
    assert torch.equal(logs["selected"], expected.double())
    share = expected / torch.bincount(logits.argmax(1), minlength=4)
    assert share.tolist() == sorted(share.tolist())  # class 3 has the fewest labeled images
    # Only at the end of a generation.
    before = checkpoint.digest(algorithm.state_dict())
    evaluation = dataclasses.replace(evaluation, pool_logits=-logits)
    silent = algorithm.on_validation(evaluation, Context(1, 4, algorithm))
    assert "selected" not in silent
    assert checkpoint.digest(algorithm.state_dict()) == before


def test_labeled_images_within_the_pool_keep_their_labels() -> None:
    data = gaussians.make_data()
    data = dataclasses.replace(data, unlabeled=torch.cat([data.labeled, data.unlabeled]))
    torch.manual_seed(0)
    algorithm = CReST(gaussians.make_net(), data.task, CReST.Config(steps=4, generations=2))
    algorithm.rates.fill_(1)  # every image, if it may
    algorithm.batches(data, 0)
    logits = torch.randn(len(data.unlabeled), 4)
    none = torch.zeros(0, 4)
    evaluation = Evaluation(none, none, torch.zeros(0, dtype=torch.int64), logits)
    algorithm.on_validation(evaluation, Context(2, 4, algorithm))
    n = len(data.labeled)
    assert not algorithm.selected[:n].any() and algorithm.selected[n:].all()


def test_the_weights_kept_are_the_best_of_the_last_generation() -> None:
    algorithm, fitted = watched_run()
    assert fitted.step > 40
    logs = algorithm.on_validation
    none = torch.zeros(0, 4)
    evaluation = Evaluation(none, none, torch.zeros(0, dtype=torch.int64))
    first = [float(logs(evaluation, Context(t, 60, algorithm))["feasibility"]) for t in (0, 10)]
    last = [float(logs(evaluation, Context(t, 60, algorithm))["feasibility"]) for t in (50, 60)]
    assert first == [-2.0, -2.0] and last == [0.0, 0.0]


def test_a_network_that_cannot_be_made_anew_is_refused_at_once() -> None:
    data = gaussians.make_data()
    made = gaussians.make_net()
    net = Classifier(made.backbone, made.classifier)  # put together by hand
    with pytest.raises(ValueError, match="rebuild"):
        CReST(net, data.task, CReST.Config())
    CReST(net, data.task, CReST.Config(generations=1))


def test_one_generation_is_fixmatch() -> None:
    data = gaussians.make_data()

    def weights(kind: type[FixMatch], **settings: Any) -> str:
        torch.manual_seed(0)
        config = kind.Config(steps=12, batch=8, logit_adjustment=0.0, schedule="cosine", **settings)
        fitted = fit(kind(gaussians.make_net(), data.task, config), data)
        return checkpoint.digest(fitted.algorithm.net.state_dict())

    plain = weights(FixMatch)
    assert weights(CReST, generations=1) == plain
    assert weights(CReST, generations=2) != plain
    assert weights(CReSTPlus, generations=1, threshold=0.0) != weights(FixMatch, threshold=0.0)


def test_the_schedule_runs_within_a_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    data = gaussians.make_data()
    torch.manual_seed(0)
    config = CReST.Config(steps=12, generations=3, batch=8, schedule="cosine")
    algorithm = CReST(gaussians.make_net(), data.task, config)
    rates: list[float] = []
    monkeypatch.setattr(algorithm, "after_step", lambda ctx: rates.append(ctx.lr))
    fit(algorithm, data)
    assert rates[:4] == rates[4:8] == rates[8:] and rates[0] == 0.03 > rates[1] > rates[3]


def test_a_restart_makes_network_and_thresholds_as_they_were_at_the_start() -> None:
    data = gaussians.make_data()
    config = CReST.Config(steps=4, generations=2, batch=8, confidence="flex", threshold=0.0)
    torch.manual_seed(7)
    algorithm = CReST(gaussians.make_net(), data.task, config)
    start = {key: value.clone() for key, value in algorithm.state_dict().items()}
    fit(algorithm, data)
    torch.manual_seed(7)
    algorithm.restart(Context(2, 4, algorithm))
    end = algorithm.state_dict()
    for key in start:
        if key.startswith(("net.", "confidence.")):
            assert torch.equal(end[key], start[key]), key
    assert any(key.startswith("confidence.") for key in start)


def test_alignment_starts_anew_with_the_network() -> None:
    algorithm = make(CReSTPlus, steps=4, generations=2)
    algorithm.alignment(torch.ones(1, 3) / 3)
    algorithm.restart(Context(2, 4, algorithm))
    assert int(algorithm.alignment.seen) == 0 and not algorithm.alignment.means.any()


# What it is for.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["crest", "crest_plus"])
def test_the_rarest_class_is_found_more_often_than_by_fixmatch_and_supervised(name: str) -> None:
    found = gaussians.recalls(name, steps=600, generations=2, seed=1)[-1]
    assert found > gaussians.recalls("fixmatch", logit_adjustment=0.0, seed=1)[-1] + 0.1
    assert found > gaussians.recalls("supervised", logit_adjustment=0.0, seed=1)[-1] + 0.1
