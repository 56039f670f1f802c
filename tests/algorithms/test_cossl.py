"""CoSSL against recorded steps of the published code: its head, its features, its warm-up."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_selmix import cli, contract
from ssl_selmix.algorithm import Context
from ssl_selmix.algorithms.cossl import CoSSL, TwoBatches
from ssl_selmix.contract import life, subjects
from ssl_selmix.data.batch import Batch
from ssl_selmix.methods import tail_features
from ssl_selmix.models import Classifier
from ssl_selmix.training import checkpoint, engine
from tests.helpers.golden import (
    Given,
    Vectors,
    assert_reproduces,
    cases,
    linear,
    part,
    read,
    task_of,
)

RECORDED = read("cossl.npz")
# Labeled images are drawn by searching the cumulative sum of 1 / n_k for a random number, so that
# there is no array of weights to compare; test_data.py looks at the frequencies that come out.
SAMPLERS = {"K3.sampler", "K10.sampler"}


def test_every_recorded_case_is_compared() -> None:
    others = {f"K{k}.{name}" for k in (3, 10) for name in ("steps", "warmup")}
    assert cases(RECORDED) == {*others, *SAMPLERS}


def replaying(given: Vectors) -> tuple[CoSSL, CoSSL]:
    """The method and its average as they were before the first recorded step."""
    low, threshold = float(given["lam_low"]), float(given["threshold"])
    config = CoSSL.Config(
        steps=100, batch=8, mu=1, pretrain=0.0, threshold=threshold, blend_low=low
    )
    task = task_of(given["labeled_counts"])
    made = []
    for who in ("net", "avg"):
        body = nn.Linear(6, 6, bias=False)
        with torch.no_grad():
            body.weight.copy_(given[f"{who}_enc_weight"])
        classifier = linear(given[f"{who}_output_weight"], given[f"{who}_output_bias"])
        cossl = CoSSL(Classifier(body, classifier), task, config)
        head = "avg_head" if who == "avg" else "head"
        cossl.tail = linear(given[f"{head}_weight"], given[f"{head}_bias"])
        cossl.begun.fill_(True)
        made.append(cossl)
    return made[0], made[1].requires_grad_(False)


def batch_at(given: Vectors, step: int) -> TwoBatches:
    """The recorded images of a step, which are vectors."""
    x, y = given["x"][step], given["y"][step]
    views = Given([given[name][step] for name in ("u_weak", "u_s1", "u_s2")])
    index = torch.arange(len(y))
    head = Batch(given["bal_x"][step], given["bal_y"][step], Given([given["mix_u"][step]]), index)
    return TwoBatches(x, y, views, index, head=head)


def adam(cossl: CoSSL, given: Vectors) -> torch.optim.Adam:
    """The optimizers of the published code, which have two decays."""
    decay, lr = float(given["wd_head"]), float(given["lr"])
    assert cossl.tail.bias is not None
    groups: list[dict[str, Any]] = [
        {"params": list(cossl.net.parameters()), "weight_decay": float(given["wd_net"])},
        {"params": [cossl.tail.weight], "weight_decay": decay},
        {"params": [cossl.tail.bias]},
    ]
    return torch.optim.Adam(groups, lr=lr)


def state_of(cossl: CoSSL, teacher: CoSSL) -> Vectors:
    """All numbers of network, head and averages, by the names of the recording."""
    found: Vectors = {}
    for who, model in (("net", cossl), ("avg", teacher)):
        head = "avg_head" if who == "avg" else "head"
        for name, value in model.state_dict().items():
            module, _, kind = name.rpartition(".")
            known = {"net.backbone": f"{who}_enc", "net.classifier": f"{who}_output", "tail": head}
            if module in known:
                found[f"{known[module]}_{kind}"] = value.clone()
    return found


class Watched:
    """What passes between the parts of a step, with the gradient of the logits."""

    def __init__(self, cossl: CoSSL, coin: Tensor, weight: Tensor) -> None:
        self.seen: Vectors = {}
        self._logits: list[Tensor] = []
        self._draws = coin, weight
        self._plain = {name: getattr(cossl, name) for name in ("guess", "objective", "blended")}
        for name in (*self._plain, "draw"):
            setattr(cossl, name, getattr(self, name))

    def draw(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._draws

    def guess(self, *given: Any) -> Tensor:
        self.seen["pseudo_probs"] = self._plain["guess"](*given)
        return self.seen["pseudo_probs"]

    def blended(self, *given: Any) -> Tensor:
        self.seen["mixed_feature"] = self._plain["blended"](*given)
        return self.seen["mixed_feature"]

    def objective(self, logits_x: Tensor, y: Tensor, kept: Any, logits_s: Tensor) -> Any:
        self.seen |= {"pseudo": kept[0], "mask": kept[1]}
        self._logits = [logits_x, logits_s]
        for logits in self._logits:
            logits.retain_grad()
        return self._plain["objective"](logits_x, y, kept, logits_s)

    @property
    def gradient(self) -> Tensor:
        grads = [logits.grad for logits in self._logits]
        return torch.cat([grad for grad in grads if grad is not None])


@pytest.mark.parametrize("case", ["K10.steps", "K3.steps"])
def test_steps_equal_the_published_code(case: str) -> None:
    given = part(RECORDED, case, "in")
    cossl, teacher = replaying(given)
    optimizer = adam(cossl, given)
    rows: list[Vectors] = []
    for step in range(len(given["y"])):
        stepping = copy.copy(cossl)  # whose parts are watched
        watched = Watched(stepping, given["coin"][step], given["lam"][step])
        feature_u = teacher.net.features(given["u_weak"][step])
        found, _ = stepping(batch_at(given, step), Context(step, 100, teacher))
        optimizer.zero_grad()
        torch.stack(list(found.values())).sum().backward()
        assert cossl.tail.weight.grad is not None and cossl.tail.bias.grad is not None
        row = {
            **{"Lx": found["labeled"], "Lu": found["unlabeled"], "head_loss": found["head"]},
            **{"loss": found["labeled"] + found["unlabeled"], "feature_u": feature_u},
            **{"grad_logits": watched.gradient, **watched.seen},
            "grad_head_weight": cossl.tail.weight.grad.clone(),
            "grad_head_bias": cossl.tail.bias.grad.clone(),
        }
        optimizer.step()
        engine.update_teacher(teacher, cossl, float(given["ema"]))
        rows.append({k: v.detach() for k, v in row.items()} | state_of(cossl, teacher))
    got = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    assert not any(p.grad is not None for p in teacher.parameters())
    got |= {"tfe_prob": cossl.share, "test_logits": teacher(given["x_test"])}
    assert_reproduces(RECORDED, case, got)


@pytest.mark.parametrize("case", ["K10.warmup", "K3.warmup"])
def test_the_warm_up_equals_the_published_code(case: str) -> None:
    given = part(RECORDED, case, "in")
    counts, y = given["counts"], given["y"]
    seen = {name: given[name] @ given["enc_weight"].T for name in ("X", "u_weak", "u_strong")}
    missing = (counts.max() - counts).tolist()
    draws = tail_features.Draws(
        list(given["pick"].split(missing)), list(given["beta"].split(missing))
    )
    features, classes = tail_features.enhanced(
        seen["X"], y, seen["u_weak"], seen["u_strong"], draws
    )
    k = len(counts)
    got = {
        "imprinted_weight": tail_features.imprinted(seen["X"], y, k),
        "features": features,
        "targets": nn.functional.one_hot(classes, k).float(),
    }
    head = linear(given["head_weight"], given["head_bias"])
    made = tail_features.Warmup(head, tail_features.Config.warmup_lr)
    losses, hits = [], []
    for start in given["batch_start"].tolist():
        rows = slice(start, start + int(given["batch"]))
        logits = made.step(features[rows], classes[rows])
        losses.append(nn.functional.cross_entropy(logits, classes[rows]))
        hits.append((logits.argmax(1) == classes[rows]).float().mean())
    for name, layer in (("head", made.head), ("avg_head", made.average)):
        got |= {f"{name}_weight": layer.weight, f"{name}_bias": layer.bias}
    got |= {"mean_loss": torch.stack(losses).mean(), "mean_acc": torch.stack(hits).mean()}
    assert_reproduces(RECORDED, case, got)


# By hand.


def make(**options: Any) -> CoSSL:
    data, _ = subjects.make_data()
    config = CoSSL.Config(steps=10, batch=4, warmup_steps=5, **options)
    return CoSSL(subjects.make_net(data), data.task, config)


def test_features_of_the_warm_up_are_balanced_whatever_classes_there_are() -> None:
    counts = torch.tensor([5, 0, 1])
    labels = torch.tensor([0] * 5 + [2])
    draws = tail_features.Draws.of(counts, 0.75, np.random.default_rng(0))
    features, classes = tail_features.enhanced(
        torch.rand(6, 4), labels, torch.rand(2, 4), torch.rand(2, 4), draws
    )
    assert torch.bincount(classes).tolist() == [5, 0, 5] and features.isfinite().all()
    nothing = torch.rand(0, 4)
    alone = tail_features.enhanced(torch.rand(6, 4), labels, nothing, nothing, draws)
    assert torch.bincount(alone[1]).tolist() == [5, 0, 5]


def test_the_second_stream_begins_with_the_co_learning_wherever_a_run_begins() -> None:
    data, _ = subjects.make_data()
    cossl = make(pretrain=0.5)

    def taken(start: int, num: int) -> list[Batch]:
        stream: Iterator[Batch] = cossl.batches(data, start)
        return [next(stream) for _ in range(num)]

    whole, later = taken(0, 8), taken(7, 1)
    assert [isinstance(batch, TwoBatches) for batch in whole] == [False] * 5 + [True] * 3
    one, other = whole[7], later[0]
    assert isinstance(one, TwoBatches) and isinstance(other, TwoBatches)
    assert one.head is not None and other.head is not None
    assert torch.equal(one.x, other.x) and torch.equal(one.head.x, other.head.x)
    assert torch.equal(one.head.u[0], other.head.u[0])
    assert len(one.head.u) == 1 and len(one.head.index_u) == len(one.head.y) == 4


def test_the_head_takes_over_at_the_start_of_the_co_learning(tmp_path: Path) -> None:
    data, _ = subjects.make_data()
    cossl = make(pretrain=0.5, keep="last", evaluate_every=4)
    before = cossl.tail.weight.detach().clone()
    seen: dict[int, tuple[bool, bool]] = {}
    after_step = cossl.after_step

    def note(ctx: Context) -> None:
        seen[ctx.step] = bool(cossl.begun), torch.equal(cossl.tail.weight, before)
        after_step(ctx)

    cossl.after_step = note  # type: ignore[method-assign]
    fitted = subjects.fit(cossl, data, tmp_path).algorithm
    assert {step: begun for step, (begun, _) in seen.items()} == {s: s > 5 for s in range(1, 11)}
    assert all(same == (step <= 5) for step, (_, same) in seen.items())
    x = next(data.test_batches())
    expected = fitted.tail(fitted.net.eval().features(x))  # type: ignore[operator]
    torch.testing.assert_close(fitted(x), expected)
    assert not torch.equal(fitted.net(x), expected)


@pytest.mark.slow
def test_a_run_that_was_killed_before_the_co_learning_ends_alike(tmp_path: Path) -> None:
    life.check_resume(contract.subject("cossl", pretrain=0.5), tmp_path)


@pytest.mark.slow
def test_selmix_and_offsets_start_from_the_second_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--algo", "fixmatch", "--then", "cossl", "--then", "selmix", "--then", "posthoc"]
    words += ["fixmatch.steps=20", "cossl.steps=40", "cossl.pretrain=0", "cossl.warmup_steps=50"]
    words += ["cossl.ema=0.9", "cossl.evaluate_every=20", "selmix.steps=10", "model.name=cnn-8"]
    assert cli.main([*words, "cossl.keep=last", "pictures=false", "--out", "run"]) == 0
    results = json.loads(Path("run/results.json").read_text())
    assert [stage["head"] for stage in results["stages"]][:2] == ["classifier", "tail"]
    kept = checkpoint.load(Path("run/2-cossl/last.pt"))["teacher"]
    handed_on = checkpoint.load(Path("run/2-cossl/model.pt"))["teacher"]
    assert torch.equal(handed_on["net.classifier.weight"], kept["tail.weight"])
    assert not torch.equal(kept["tail.weight"], kept["net.classifier.weight"])
    first = json.loads(Path("run/3-selmix/metrics.jsonl").read_text().partition("\n")[0])
    assert first["per_class_recall"] == results["stages"][1]["validation"]["per_class_recall"]
