"""ADELLO against recorded steps of the published code, and what its prior follows."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_selmix import cli
from ssl_selmix.algorithm import Context
from ssl_selmix.algorithms.adello import ADELLO, skew
from ssl_selmix.contract import subjects
from ssl_selmix.splits import Counts
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

RECORDED = read("adello.npz")
ALL = ("flexda", "flexda_fast", "adello_shipped", "adello_paper")
TEN = ("from_epoch", "true_prior", "labeled_rows_left_out", "k1_amin0.5_lambda2")
STEPS = [*(f"K{k}.{name}" for k in (3, 10) for name in ALL), *(f"K10.{name}" for name in TEN)]


def test_every_recorded_case_is_compared() -> None:
    assert cases(RECORDED) == {*STEPS, "temperature", "alpha"}


def replaying(given: Vectors, net: Recorded) -> ADELLO:
    """The method with the settings of a recorded run."""
    total = int(given["total"])
    config = ADELLO.Config(
        steps=total,
        threshold=float(given["threshold"]),
        lambda_u=float(given["lambda_u"]),
        memory=float(given["ema"]),
        alpha_min=float(given["alpha_min"]),
        power=float(given["k"]),
        alpha_periods=int(given["alpha_from_epoch"]) * total // int(given["iters_per_epoch"]),
        distill=bool(given["distill"]),
        distill_from=int(given["distill_start"]) / total,
        lambda_c=float(given["lambda_distill"]),
        distill_temperature="adaptive" if given["adaptive_temperature"] else "shipped",
        prior_given=given["unlabeled_counts"].tolist() if given["target_is_true_prior"] else [],
    )
    return ADELLO(net, task_of(given["labeled_counts"]), config)


def step_of(adello: ADELLO, given: Vectors, place: int) -> Vectors:
    """One step on recorded logits: all that was recorded of it."""
    cfg, step, total = adello.config, int(given["iters"][place]), int(given["total"])
    blocks = [given[f"logits_{name}"][place] for name in ("x", "u_w", "u_s")]
    sizes = [len(block) for block in blocks]
    assert isinstance(adello.net, Recorded)
    adello.net.rows = torch.nn.Parameter(torch.cat(blocks))
    if "is_labeled" in given:
        adello.labeled_too.copy_(given["is_labeled"][place].bool())
    shift_x, shift_s = adello.shifts(step, total)
    found, logs = adello(batch_of(sizes, given["y"][place]), Context(step, total, adello))
    loss = torch.stack(list(found.values())).sum()
    loss.backward()
    grad = adello.net.rows.grad
    assert isinstance(grad, Tensor)
    confidence, pseudo = blocks[1].softmax(1).max(1)
    mask = (confidence >= cfg.threshold).float()
    distilled = found.get("distillation", torch.zeros(())) / cfg.lambda_c
    began = "distillation" in found
    torch.testing.assert_close(logs["mask_rate"], mask.mean())
    names = ("grad_logits_x", "grad_logits_u_w", "grad_logits_u_s")
    return {
        **{"adjust_labeled": shift_x, "adjust_pool": shift_s, "alpha": logs["alpha"]},
        **{"sup_loss": found["labeled"], "unsup_loss": found["unlabeled"] / cfg.lambda_u},
        **{"distill_loss": distilled, "total": loss, "p_hat": adello.pool.clone()},
        **{"mask": mask, "distill_mask": (1 - mask) * began, "pseudo": pseudo},
        "temperature": adello.temperature.clone() if began else torch.ones(()),
        "util_ratio": logs["mask_rate"],
        **dict(zip(names, grad.split(sizes), strict=True)),
    }


@pytest.mark.parametrize("case", STEPS)
def test_steps_equal_the_published_code(case: str) -> None:
    given = part(RECORDED, case, "in")
    adello = replaying(given, Recorded(torch.zeros(1, len(given["labeled_counts"]))))
    got = [step_of(adello, given, place) for place in range(len(given["iters"]))]
    stacked = {name: torch.stack([row[name].detach() for row in got]) for name in got[0]}
    assert_reproduces(RECORDED, case, stacked)


def test_the_schedule_and_the_temperature() -> None:
    given = part(RECORDED, "alpha", "in")
    adello = make(alpha_min=float(given["alpha_min"]), power=float(given["k"]))
    alphas = [adello.alpha(int(t), int(given["total"])) for t in given["t"]]
    assert_reproduces(RECORDED, "alpha", {"alpha": torch.tensor(alphas).double()})
    rows = part(RECORDED, "temperature", "in")["p_hat"]
    assert_reproduces(RECORDED, "temperature", {"T": torch.stack([skew(p) for p in rows])})


# By hand.


def make(**options: Any) -> ADELLO:
    data, _ = subjects.make_data()
    return ADELLO(subjects.make_net(data), data.task, ADELLO.Config(steps=100, **options))


def test_the_raw_logits_are_drawn_to_the_pool_at_first_and_to_equal_classes_at_last() -> None:
    adello = make(alpha_min=0.0)
    pool = torch.tensor([0.1, 0.2, 0.7]).double()
    adello.pool.copy_(pool)
    prior = adello.task.labeled_prior
    for step, target in ((0, pool), (100, torch.full((3,), 1 / 3).double())):
        shift_x, shift_s = adello.shifts(step, 100)
        torch.testing.assert_close(shift_x, (prior / target).log())
        torch.testing.assert_close(shift_s, (pool / target).log())


def test_the_temperature_is_that_of_the_step_in_which_distillation_begins() -> None:
    found: dict[str, list[float]] = {}
    for kind in ("adaptive", "shipped"):
        adello = make(distill_temperature=kind, threshold=1.0, memory=0.0, distill_from=0.5)
        data, _ = subjects.make_data()
        batch = next(adello.batches(data, 0))
        found[kind] = []
        for step, bias in ((49, 3.0), (50, 3.0), (51, 6.0)):
            with torch.no_grad():
                adello.net.classifier.bias.copy_(torch.tensor([bias, 0.0, 0.0]))
            losses, _ = adello(batch, Context(step, 100, adello))
            assert ("distillation" in losses) == (step >= 50)
            found[kind].append(float(adello.temperature))
    assert found["shipped"] == [0, 1, 1]
    before, begun, after = found["adaptive"]
    assert before == 0 and begun > 1.5 and after == begun
    assert math.isfinite(float(skew(torch.tensor([1.0, 0.0, 0.0]))))


def test_labeled_images_of_the_pool_are_left_out_unless_they_are_to_count() -> None:
    data, _ = subjects.make_data()
    data = dataclasses.replace(data, unlabeled=torch.cat([data.unlabeled, data.labeled[:2]]))
    index = torch.tensor([len(data.unlabeled) - 1, 0])
    q = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    for count, expected in ((False, [1.0, 0.0, 0.0]), (True, [0.5, 0.0, 0.5])):
        config = ADELLO.Config(memory=0.0, count_labeled=count)
        adello = ADELLO(subjects.make_net(data), data.task, config)
        next(adello.batches(data, 0))
        adello.remember(q, index)
        assert adello.pool.tolist() == expected
        adello.remember(q[:1], index[:1])  # of labeled images alone nothing is learnt
        assert adello.pool.tolist() == ([0.0, 0.0, 1.0] if count else expected)


def test_a_known_prior_must_be_one() -> None:
    with pytest.raises(ValueError, match=r"needs 3 positive numbers in prior_given, not \[1.0\]"):
        make(prior_given=[1.0])


@pytest.mark.slow
def test_selmix_and_offsets_follow_and_calibration_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--algo", "adello", "--then", "selmix", "--then", "posthoc", "adello.steps=60"]
    words += ["adello.ema=0.9", "adello.evaluate_every=30", "selmix.steps=10", "model.name=cnn-8"]
    assert cli.main([*words, "adello.memory=0.9", "pictures=false", "--out", "run"]) == 0
    rows = [json.loads(r) for r in Path("run/1-adello/metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "validation"][-1]
    counts = Counts(60, 15).counts(10)  # the default pool, which only the log knows
    assert last["true_prior"] == pytest.approx([n / sum(counts) for n in counts])
    assert sum(last["estimated_prior"]) == pytest.approx(1) and last["temperature"] > 1
    results = json.loads(Path("run/results.json").read_text())
    assert 0 <= results["stages"][0]["test"]["ece"] <= 1
    first = json.loads(Path("run/2-selmix/metrics.jsonl").read_text().partition("\n")[0])
    assert first["per_class_recall"] == results["stages"][0]["validation"]["per_class_recall"]
