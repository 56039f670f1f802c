"""ACR against recorded steps of the published code, and how its adjustment follows the pool."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_selmix import cli
from ssl_selmix.algorithm import Context
from ssl_selmix.algorithms.acr import ACR
from ssl_selmix.contract import subjects
from ssl_selmix.data.batch import Task
from ssl_selmix.metrics import confusion_matrix
from ssl_selmix.splits import Counts, long_tail_counts
from ssl_selmix.training import checkpoint
from ssl_selmix.training.engine import predict
from tests.helpers.golden import (
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

RECORDED = read("acr.npz")
STEPS = ("K10.consistent", "K10.reversed", "K3.uniform")
COUNTS = ("counts.c10_100", "counts.c10_1500", "counts.c100_20")
BLOCKS = ("x", "u_w", "u_s1", "u_s2")


def test_every_recorded_case_is_compared() -> None:
    variants = {f"{case}.{name}" for case in STEPS for name in ("as_shipped", "histogram")}
    assert cases(RECORDED) == {*STEPS, *variants, *COUNTS, "predict"}


def replaying(given: Vectors, kind: str) -> ACR:
    """The method with the settings of a recorded run, on features that are both heads' logits."""
    k, periods = len(given["labeled_counts"]), int(given["epochs"])
    heads = torch.eye(2 * k).split(k)
    config = ACR.Config(
        steps=periods * int(given["steps_per_epoch"]),
        periods=periods,
        adapt_from=(int(given["est_epoch"]) + 1) / periods,
        histogram="shipped" if kind == "as_shipped" else "counts",
        tau_update="shipped",
        tau_max=float(given["tau1"]),
        tau_pseudo=float(given["tau12"]),
        tau_balanced=float(given["tau2"]),
        memory=float(given["memory"]),
        threshold=float(given["threshold"]),
    )
    net = Recorded(torch.zeros(1, 2 * k), linear(heads[0], torch.zeros(k)))
    acr = ACR(net, task_of(given["labeled_counts"]), config)
    acr.balanced = linear(heads[1], torch.zeros(k))
    return acr


def step_of(acr: ACR, given: Vectors, step: int) -> Vectors:
    """One step of a recorded run: all that was recorded of it."""
    cfg, k = acr.config, len(given["labeled_counts"])
    f, g = ([given[f"{head}_{name}"][step] for name in BLOCKS] for head in "fg")
    rows = torch.cat([torch.cat(f), torch.cat(g)], dim=1)
    acr.net.rows = torch.nn.Parameter(rows)
    acr.labeled_too.copy_(given["pool_is_labeled"][step].bool())
    ctx, tau = Context(step, cfg.steps, acr), acr.tau.clone()
    counted: list[Tensor] = []
    histogram = ACR.histogram

    def noted(classes: Tensor, mask: Tensor) -> Tensor:
        counted.append(histogram(acr, classes, mask))
        return counted[-1]

    acr.histogram = noted  # type: ignore[method-assign]
    sizes = [len(block) for block in f]
    losses, logs = acr(batch_of(sizes, given["y"][step]), ctx)
    loss = torch.stack(list(losses.values())).sum()
    loss.backward()
    grad = acr.net.rows.grad
    assert isinstance(grad, Tensor)
    got = {
        f"grad_{head}_{name}": part
        for head, half in zip("fg", grad.split(k, dim=1), strict=True)
        for name, part in zip(BLOCKS, half.split(sizes), strict=True)
    }
    names = ("labeled", "balanced", "unlabeled", "unlabeled_balanced")
    got |= dict(zip(("Lx", "Lx_b", "Lu", "Lu_b"), (losses[n] for n in names), strict=True))
    target_f, mask_f = acr.choose(f[1], f[1], tau)
    target_g, mask_g = acr.choose(f[1], g[1], cfg.tau_pseudo)
    confidence, own = g[1].softmax(1).max(1)
    counts = counted[0] if counted else torch.zeros(k)
    torch.testing.assert_close(logs["mask_rate"], mask_g.mean())
    got |= {
        **{"target_f": target_f, "mask_f": mask_f, "target_g": target_g, "mask_g": mask_g},
        **{"own_g": own, "mask_own_g": (confidence >= cfg.threshold).float(), "loss": loss},
        **{"histogram": counts / counts.sum().clamp_min(1), "pool": acr.pool.clone()},
        **{"sum_KL": acr.distances.clone(), "tau": tau, "adjustment": acr.adjustment(tau)},
    }
    acr.after_step(Context(step + 1, cfg.steps, acr))
    return got


@pytest.mark.parametrize("kind", ["as_shipped", "histogram"])
@pytest.mark.parametrize("case", STEPS)
def test_a_run_equals_the_published_code(case: str, kind: str) -> None:
    given = part(RECORDED, case, "in")
    acr = replaying(given, kind)
    steps = [step_of(acr, given, step) for step in range(acr.config.steps)]
    got = {name: torch.stack([step[name].detach() for step in steps]) for name in steps[0]}
    assert_reproduces(RECORDED, f"{case}.{kind}", got | {"prior": acr.anchors[0]})


def test_the_balanced_head_predicts_as_recorded() -> None:
    given, k = part(RECORDED, "predict", "in"), 10
    acr = replaying({**part(RECORDED, "K10.consistent", "in")}, "histogram")
    acr.net.rows = torch.nn.Parameter(torch.cat([given["f"], given["g"]], dim=1))
    logits = acr(torch.arange(20.0)[:, None, None, None])
    got: Vectors = {"pred": logits.argmax(1)}
    got["loss"] = torch.nn.functional.cross_entropy(logits, given["y"])
    for name, found in (("g", logits), ("f", given["f"])):
        accuracy = confusion_matrix(given["y"], found.argmax(1), k).diagonal().sum()
        got[f"top1_{name}"] = 100 * accuracy
    assert_reproduces(RECORDED, "predict", got)


@pytest.mark.parametrize("case", COUNTS)
def test_counts(case: str) -> None:
    given = {name: int(value) for name, value in part(RECORDED, case, "in").items()}
    k, largest, rho = given["K"], given["M1"], given["gamma_u"]
    got = {
        "labeled": torch.tensor(long_tail_counts(given["N1"], given["gamma_l"], k)),
        "unlabeled": torch.tensor(long_tail_counts(largest, rho, k)),
        "reversed": torch.tensor(Counts(largest, rho, shape="inverted").counts(k)),
    }
    assert_reproduces(RECORDED, case, got)


# By hand.


def make(counts: list[float], **options: Any) -> ACR:
    data, _ = subjects.make_data(len(counts))
    task = Task(tuple("abc"[: len(counts)]), torch.tensor(counts).double(), 10, 10)
    return ACR(subjects.make_net(data), task, ACR.Config(steps=100, batch=4, **options))


def test_the_pool_is_compared_with_three_anchors() -> None:
    acr = make([3.0, 6.0, 1.0], memory=0.0, adapt_from=0.0)
    anchors = torch.tensor([[0.3, 0.6, 0.1], [1 / 3] * 3, [0.3, 0.1, 0.6]])
    torch.testing.assert_close(acr.anchors, anchors)
    taus: list[float] = []
    for counts in ([3, 6, 1], [1, 1, 1], [3, 1, 6]):  # like the labeled images, uniform, reversed
        classes = torch.arange(3).repeat_interleave(torch.tensor(counts))
        acr.remember(classes, torch.ones(len(classes)))
        acr.after_step(Context(len(taus) + 1, 100, acr))
        p, q = torch.tensor(counts).double() / sum(counts), acr.anchors.double()
        torch.testing.assert_close(acr.pool.double(), p, rtol=1e-6, atol=0)
        both = [((a * (a / p).log()).sum() + (p * (p / a).log()).sum()) / 2 for a in q]
        expected = 2 * torch.stack(both).softmax(0)[0]
        torch.testing.assert_close(acr.tau.double(), expected, rtol=1e-5, atol=0)
        taus.append(float(acr.tau))
    assert taus[0] < taus[1] < taus[2]
    acr.remember(torch.tensor([0, 1]), torch.zeros(2))  # none is confident: nothing is learnt
    acr.after_step(Context(4, 100, acr))
    assert float(acr.tau) == taus[2]
    acr.config.tau_update = "shipped"  # the distances of such a period are 0
    acr.after_step(Context(5, 100, acr))
    assert float(acr.tau) == pytest.approx(2 / 3)


def test_a_class_without_labels_has_a_finite_adjustment() -> None:
    acr = make([8.0, 0.0, 2.0])
    torch.testing.assert_close(acr.anchors[0], torch.tensor([8.0, 1.0, 2.0]) / 11)
    for _ in range(2000):  # a class that is never seen: no logarithm of zero, whatever the memory
        acr.remember(torch.tensor([0]), torch.ones(1))
    assert acr.distances.isfinite().all()


@pytest.mark.parametrize(("steps", "starts"), [(250_000, 3000), (1000, 12), (60, 1)])
def test_the_published_schedule_is_a_share_of_the_run(steps: int, starts: int) -> None:
    acr = make([8.0, 2.0])
    assert next(s for s in range(steps) if acr.period(s, steps) >= acr.first_period) == starts


def test_labeled_images_of_the_pool_are_not_counted() -> None:
    data, _ = subjects.make_data()
    both = torch.cat([data.unlabeled, data.labeled[:2]])
    acr = ACR(subjects.make_net(data), data.task, ACR.Config())
    with pytest.raises(RuntimeError):  # of another pool
        acr.labeled_too.copy_(torch.isin(both, data.labeled))
    object.__setattr__(data, "unlabeled", both)
    acr = ACR(subjects.make_net(data), data.task, ACR.Config(adapt_from=0.0, threshold=0.0))
    batch = next(acr.batches(data, 0))
    assert acr.labeled_too.nonzero().flatten().tolist() == [len(both) - 2, len(both) - 1]
    acr.labeled_too[:] = True
    acr(batch, Context(0, 100, acr))
    assert not acr.counted


@pytest.mark.slow
def test_selmix_starts_from_the_balanced_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--algo", "acr", "--then", "selmix", "acr.steps=60", "acr.ema=0.9", "acr.lr=0.1"]
    words += ["acr.evaluate_every=30", "selmix.steps=10", "model.name=cnn-8", "acr.threshold=0.5"]
    assert cli.main([*words, "pictures=false", "--out", "run"]) == 0
    results = json.loads(Path("run/results.json").read_text())
    assert [stage["head"] for stage in results["stages"]] == ["balanced", "classifier"]
    kept = checkpoint.load(Path("run/1-acr/best.pt"))["teacher"]
    handed_on = checkpoint.load(Path("run/1-acr/model.pt"))["teacher"]
    assert torch.equal(handed_on["net.classifier.weight"], kept["balanced.weight"])
    assert not torch.equal(kept["balanced.weight"], kept["net.classifier.weight"])
    rows = [json.loads(line) for line in Path("run/1-acr/metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "validation"][-1]
    counts = Counts(60, 15).counts(10)  # the default pool, which only the log knows
    assert last["true_prior"] == pytest.approx([n / sum(counts) for n in counts])
    assert sum(last["estimated_prior"]) == pytest.approx(1)
    first = json.loads(Path("run/2-selmix/metrics.jsonl").read_text().partition("\n")[0])
    assert first["step"] == 0 and first["kind"] == "validation"
    assert first["per_class_recall"] == results["stages"][0]["validation"]["per_class_recall"]


def test_the_balanced_head_predicts() -> None:
    acr = make([8.0, 2.0])
    with torch.no_grad():
        acr.balanced.weight.neg_()
    data, _ = subjects.make_data(2)
    features, logits = predict(acr, data.plain(data.validation), len(data.validation))
    assert torch.equal(logits, acr.balanced(features))
    assert not torch.equal(logits, acr.net.classifier(features))
