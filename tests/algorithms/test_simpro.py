"""SimPro against recorded runs of the published code, and its strong view of labeled images."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_selmix import cli
from ssl_selmix.algorithm import Context
from ssl_selmix.algorithms.simpro import SimPro, labeled_weight
from ssl_selmix.contract import subjects
from ssl_selmix.metrics import confusion_matrix
from ssl_selmix.models import Classifier
from ssl_selmix.splits import Counts, long_tail_counts
from ssl_selmix.training import engine
from tests.helpers.golden import (
    Given,
    Recorded,
    Vectors,
    assert_reproduces,
    batch_of,
    cases,
    linear,
    part,
    read,
    task_of,
)

RECORDED = read("simpro.npz")
RUNS = ("K10.tau2", "K10.scale", "K3.tau1", "K3.none_confident")
COUNTS = ("counts.c10_100", "counts.c10_150", "counts.c100_20")


def test_every_recorded_case_is_compared() -> None:
    assert cases(RECORDED) == {*RUNS, *COUNTS, "traj.K3", "lr", "adjustment"}


def replaying(given: Vectors, net: Classifier, batch: int, mu: int) -> SimPro:
    """The method with the settings of a recorded run, and as many whole batches of each set."""
    periods = int(given["epochs"])
    counts = given["prior"].double() * int(given["batches_labeled"]) * batch
    config = SimPro.Config(
        steps=periods * int(given["steps_per_epoch"]),
        periods=periods,
        batch=batch,
        mu=mu,
        tau=float(given["tau"]),
        threshold=float(given["threshold"]),
        memory=float(given["memory"]),
    )
    task = task_of(counts, num_unlabeled=int(given["batches_unlabeled"]) * batch * mu)
    return SimPro(net, task, config)


def step_of(algorithm: SimPro, y: Tensor, weak: Tensor, step: int) -> Vectors:
    """A step on images that are row numbers: x weak, x strong, and three views of the pool."""
    m = len(weak)
    plain = batch_of([len(y), len(y), m, m, m], y)
    views = Given([plain.u[view] for view in (1, 2, 3)])
    batch = replace(plain, u=views, index_u=torch.arange(m), more_x=(plain.u[0],))
    q, mask = algorithm.guess(weak)
    found, logs = algorithm(batch, Context(step, algorithm.config.steps, algorithm))
    torch.testing.assert_close(logs["mask_rate"], mask.mean())
    loss = torch.stack(list(found.values())).sum()
    return {
        **{"pseudo_label": q, "max_probs": q.amax(1), "mask": mask},
        **{"Lx": found["labeled"], "Lu": found["unlabeled"], "loss": loss},
    }


@pytest.mark.parametrize("case", RUNS)
def test_a_run_equals_the_published_code(case: str) -> None:
    given = part(RECORDED, case, "in")
    names = ("l_w", "l_s", "u_w", "u_s1", "u_s2")
    k = len(given["prior"])
    net = Recorded(torch.zeros(1, k))
    algorithm = replaying(given, net, int(given["B"]), int(given["mu"]))
    steps: list[Vectors] = []
    ends: list[Vectors] = []
    priors = [{"pool_prior": algorithm.pool.clone(), "adapt_prior": algorithm.seen.clone()}]
    every = int(given["steps_per_epoch"])
    for step in range(algorithm.config.steps):
        blocks = [given[f"logits_{name}"][step] for name in names]
        net.rows = nn.Parameter(torch.cat(blocks))
        adjusted = {
            "adjustment_pseudo": algorithm.adjustment(algorithm.pool),
            "adjustment_loss": algorithm.adjustment(algorithm.seen),
        }
        got = step_of(algorithm, given["y"][step], blocks[2], step)
        got["loss"].backward()
        grad = net.rows.grad
        assert isinstance(grad, Tensor)
        grads = grad.split([len(block) for block in blocks])
        got |= {f"grad_{name}": g for name, g in zip(names, grads, strict=True)}
        steps.append(got | adjusted)
        if (step + 1) % every == 0:
            s, c = algorithm.pool_sum.clone(), algorithm.labeled_sum.clone()
            sums = {"sum_pseudo": s, "count_labeled": c, "epoch_estimate": s / (s.sum() + 1)}
            ends.append(sums)
        algorithm.after_step(Context(step + 1, algorithm.config.steps, algorithm))
        if (step + 1) % every == 0:
            priors.append(
                {"pool_prior": algorithm.pool.clone(), "adapt_prior": algorithm.seen.clone()}
            )
    stacked = {
        name: torch.stack([row[name].detach() for row in rows])
        for rows in (steps, ends, priors)
        for name in rows[0]
    }
    stacked["scale_ratio"] = torch.tensor(1 / algorithm.weight).double()
    if "test_logits" in given:
        stacked |= on_test_images(algorithm, given, len(ends))
    assert_reproduces(RECORDED, case, stacked)


def on_test_images(algorithm: SimPro, given: Vectors, times: int) -> Vectors:
    """The raw arg-max on recorded test logits, which are the same in every period."""
    algorithm.net.rows = nn.Parameter(given["test_logits"])
    y, k = given["test_y"], given["test_logits"].shape[1]
    logits = algorithm(torch.arange(float(len(y)))[:, None, None, None])
    top1 = 100 * confusion_matrix(y, logits.argmax(1), k).diagonal().sum()
    loss = nn.functional.cross_entropy(logits, y)
    found = {"test_top1": top1.expand(times), "test_loss": loss.double().expand(times)}
    return {"test_pred": logits.argmax(1), **found}


def test_a_trajectory_equals_the_published_code() -> None:
    given = part(RECORDED, "traj.K3", "in")
    views = [given[name] for name in ("x_w", "x_s", "u_w", "u_s1", "u_s2")]
    layer = linear(given["W0"], given["b0"])
    net = Recorded(torch.zeros(1, 5), layer)
    net.rows.requires_grad_(False)
    algorithm = replaying(given, net, views[0].shape[1], 2)
    lr, total, momentum = float(given["lr"]), int(given["total_steps"]), float(given["momentum"])
    decay = float(given["weight_decay"])
    optimizer = torch.optim.SGD(
        algorithm.param_groups(), lr, momentum, nesterov=True, weight_decay=decay
    )
    mean = {name: p.detach().clone() for name, p in layer.named_parameters()}
    rows: list[Vectors] = []
    for step in range(total):
        rate = lr * engine.schedule("cosine_7_16", step, total)
        for group in optimizer.param_groups:
            group["lr"] = rate
        blocks = [view[step] for view in views]
        net.rows.data = torch.cat(blocks)
        weak = layer(blocks[2]).detach()
        got = step_of(algorithm, given["y"][step], weak, step)
        optimizer.zero_grad()
        got["loss"].backward()
        optimizer.step()
        for name, p in layer.named_parameters():
            mean[name].lerp_(p.detach(), 1 - float(given["ema_decay"]))
        algorithm.after_step(Context(step + 1, total, algorithm))
        state = {"W": layer.weight, "b": layer.bias, "W_ema": mean["weight"], "b_ema": mean["bias"]}
        row = {name: value.detach().clone() for name, value in state.items()}
        after = torch.tensor(lr * engine.schedule("cosine_7_16", step + 1, total)).double()
        rows.append({**row, "loss": got["loss"], "mask": got["mask"], "lr_after": after})
    stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    stacked |= {"pool_prior": algorithm.pool, "adapt_prior": algorithm.seen}
    assert_reproduces(RECORDED, "traj.K3", stacked)


def test_rates_and_adjustments() -> None:
    given = part(RECORDED, "lr", "in")
    total = int(given["total_steps"])
    rates = [engine.schedule("cosine_7_16", int(step), total) for step in given["steps"]]
    got = {"lr": float(given["base_lr"]) * torch.tensor(rates).double()}
    assert_reproduces(RECORDED, "lr", got)
    algorithm, given = make(), part(RECORDED, "adjustment", "in")
    adjusted: Vectors = {}
    for tau in given["tau"].tolist():
        algorithm.config.tau = tau
        adjusted[f"tau{tau:g}"] = algorithm.adjustment(given["p"])
    assert_reproduces(RECORDED, "adjustment", adjusted)


@pytest.mark.parametrize("case", COUNTS)
def test_counts_of_the_five_pools(case: str) -> None:
    given = {name: int(value) for name, value in part(RECORDED, case, "in").items()}
    k = given["K"]
    shapes = {
        **{"consistent": "long_tail", "uniform": "uniform", "reversed": "inverted"},
        **{"middle": "middle", "headtail": "head_tail"},
    }
    got = {
        name: torch.tensor(Counts(given["M1"], given["gamma_u"], shape=shape).counts(k))
        for name, shape in shapes.items()
    }
    got["labeled"] = torch.tensor(long_tail_counts(given["N1"], given["gamma_l"], k))
    assert_reproduces(RECORDED, case, got)


# By hand.


def make(**options: Any) -> SimPro:
    data, _ = subjects.make_data()
    return SimPro(subjects.make_net(data), data.task, SimPro.Config(steps=100, **options))


def test_the_weight_of_the_labeled_loss() -> None:
    task = task_of(torch.tensor([60.0, 40.0]), num_unlabeled=350)
    settings = {name: SimPro.Config(batch=8, mu=2, labeled_weight=name) for name in WEIGHTS}
    got = {name: labeled_weight(task, config) for name, config in settings.items()}
    assert got == {"exact": 2 * 100 / 350, "floored": 12 / 21, "one": 1}
    few = task_of(torch.tensor([3.0, 2.0]), num_unlabeled=10)  # not a batch of either
    assert labeled_weight(few, settings["floored"]) == 1


WEIGHTS = ("exact", "floored", "one")


@pytest.mark.parametrize("steps", [43_000, 1000, 50])
def test_frequencies_move_once_in_a_period(steps: int) -> None:
    algorithm = make(threshold=0.0)
    moved = 0
    for step in range(1, steps + 1):
        algorithm.labeled_sum[0] = 1.0
        algorithm.after_step(Context(step, steps, algorithm))
        moved += int(algorithm.labeled_sum[0] == 0)
    assert moved == min(86, steps)


def test_labeled_images_have_a_strong_view_too() -> None:
    data, _ = subjects.make_data()
    algorithm = make(batch=4)
    batch = next(algorithm.batches(data, 3))
    plain = next(data.batches(algorithm.views, 4, 2, 3))
    (strong,) = batch.more_x
    assert torch.equal(batch.x, plain.x) and torch.equal(batch.y, plain.y)
    assert torch.equal(batch.u[1], plain.u[1]) and not plain.more_x
    assert strong.shape == batch.x.shape and not torch.equal(strong, batch.x)
    assert algorithm.images_per_step == 4 * (2 + 2 * 3)
    with pytest.raises(ValueError, match="a view is weak or strong, not 'stong'"):
        data.batches(algorithm.views, 4, 2, 0, labeled_views=("weak", "stong"))


@pytest.mark.slow
def test_selmix_and_offsets_follow_and_the_log_knows_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--algo", "simpro", "simpro.steps=60", "simpro.ema=0.9", "simpro.lr=0.1"]
    words += ["simpro.evaluate_every=30", "simpro.threshold=0.5", "model.name=cnn-8"]
    words += ["--then", "selmix", "--then", "posthoc", "selmix.steps=10", "pictures=false"]
    assert cli.main([*words, "--out", "run"]) == 0
    rows = [json.loads(r) for r in Path("run/1-simpro/metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "validation"][-1]
    counts = Counts(60, 15).counts(10)  # the default pool, which only the log knows
    assert last["true_prior"] == pytest.approx([n / sum(counts) for n in counts])
    assert sum(last["estimated_prior"]) == pytest.approx(1)
    assert max(last["estimated_prior"]) > 0.1001
    first = json.loads(Path("run/2-selmix/metrics.jsonl").read_text().partition("\n")[0])
    results = json.loads(Path("run/results.json").read_text())
    assert first["per_class_recall"] == results["stages"][0]["validation"]["per_class_recall"]
