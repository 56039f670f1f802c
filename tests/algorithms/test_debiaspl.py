"""DebiasPL against recorded steps of the published code, and its running mean by hand."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_selmix import cli
from ssl_selmix.algorithm import Context
from ssl_selmix.algorithms.debiaspl import DebiasPL
from ssl_selmix.contract import subjects
from ssl_selmix.models.execution import Execution
from ssl_selmix.training import checkpoint, engine
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

RECORDED = read("debiaspl.npz")
SINGLE = ("K10.single", "K10.single_m0.999", "K10.tau1_thr0.95", "K3.single", "K3.single_m0.999")
SEVERAL = ("K10.multiviews", "K3.multiviews")
# The optional CLD loss keys its clusters by the least likely class, in both published scripts, and
# is left out here. All else of these cases is compared: what it does not enter, and the total less
# what was recorded of it.
CLD = ("K10.single_cld", "K10.multiviews_cld", "K3.multiviews_cld")
OF_CLD = ("loss_cld", "loss", "grad_logits_u_s")
# --masked-qhat gives every row a distribution of its own, which shrinks to 0; it is not offered.
EXCUSED = {"K10.masked_qhat_as_shipped"}


def test_every_recorded_case_is_compared_or_excused() -> None:
    assert cases(RECORDED) == {*SINGLE, *SEVERAL, *CLD, *EXCUSED, "eman"}


def replaying(given: Vectors) -> DebiasPL:
    """The method with the settings of a recorded run."""
    k = given["logits_x"].shape[-1]
    config = DebiasPL.Config(
        adjustment=float(given["tau"]),
        threshold=float(given["threshold"]),
        memory=float(given["qhat_m"]),
        lambda_u=float(given["lambda_u"]),
        multiviews=bool(given["multiviews"]),
    )
    return DebiasPL(Recorded(torch.zeros(1, k)), task_of(torch.ones(k)), config).train()


def step_of(algorithm: DebiasPL, given: Vectors, step: int) -> Mapping[str, Tensor]:
    """All that was recorded of a step."""
    names = ("logits_x", "logits_u_w", "logits_u_s")
    blocks = [given[name][step] for name in names]
    num, views = 16, len(algorithm.views)
    algorithm.net.rows = nn.Parameter(torch.cat(blocks))
    batch = batch_of([len(blocks[0]), *[num] * views], given["y"][step])
    before = algorithm.q_hat.clone()
    ctx = Context(step, 10, algorithm)
    p = algorithm.eval().guess(blocks[1], batch, ctx)
    assert torch.equal(algorithm.q_hat, before)  # of the steps before, and of training alone
    classes, mask = algorithm.train().keep(p, batch)
    found, logs = algorithm(batch, ctx)
    loss = torch.stack(list(found.values())).sum()
    loss.backward()
    torch.testing.assert_close(logs["mask_rate"], mask.mean())
    grad = algorithm.net.rows.grad
    assert isinstance(grad, Tensor)
    got = {
        **dict(
            zip((f"grad_{n}" for n in names), grad.split([len(b) for b in blocks]), strict=True)
        ),
        **{"qhat": algorithm.q_hat[None].clone(), "loss_x": found["labeled"], "loss": loss},
        "loss_u": found["unlabeled"] / algorithm.config.lambda_u,
    }
    for name, rows in (("debiased_prob", p), ("pseudo", classes), ("mask", mask)):
        for label, opinion in zip(("", "1", "2"), rows.split(num), strict=False):
            got[f"{name}{label}"] = opinion
    return got


@pytest.mark.parametrize("case", [*SINGLE, *SEVERAL, *CLD])
def test_a_run_equals_the_published_code(case: str) -> None:
    given, out = (part(RECORDED, case, side) for side in ("in", "out"))
    algorithm = replaying(given)
    steps = [step_of(algorithm, given, step) for step in range(len(given["y"]))]
    got = {name: torch.stack([step[name].detach() for step in steps]) for name in steps[0]}
    if case in CLD:
        rest = out["loss"] - float(given["lambda_cld"]) * out["loss_cld"]
        torch.testing.assert_close(got["loss"], rest, rtol=1e-5, atol=1e-5)
    assert_reproduces(RECORDED, case, got, without=OF_CLD if case in CLD else ())


def test_its_teacher_is_ours_with_averaged_buffers() -> None:
    given = part(RECORDED, "eman", "in")

    def holder(w: Tensor, mean: Tensor, num: int) -> nn.Module:
        norm = nn.BatchNorm1d(len(mean))
        norm.running_mean, norm.num_batches_tracked = mean.clone(), torch.tensor(num)
        found = nn.Module()
        found.norm, found.w = norm, nn.Parameter(w.clone())
        return found

    teacher = holder(given["w0"], given["running_mean0"], 0)
    rows: list[Vectors] = []
    recorded = part(RECORDED, "eman", "out")["batches_tracked"].tolist()
    for w, mean, num in zip(given["w"], given["running_mean"], recorded, strict=True):
        student = holder(w, mean, num)
        engine.update_teacher(teacher, student, float(given["momentum"]), "average")
        state = {k: v.detach().clone() for k, v in teacher.state_dict().items()}
        rows.append(
            {
                "avg_w": state["w"],
                "avg_running_mean": state["norm.running_mean"],
                "batches_tracked": state["norm.num_batches_tracked"],
            }
        )
    got = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    assert_reproduces(RECORDED, "eman", got)


# By hand.


def make(**options: Any) -> tuple[DebiasPL, Any]:
    data, _ = subjects.make_data()
    config = DebiasPL.Config(steps=10, batch=4, **options)
    return DebiasPL(subjects.make_net(data), data.task, config), data


def test_a_class_that_is_predicted_often_is_debiased_and_has_a_margin() -> None:
    algorithm, _ = make(memory=0.5, adjustment=1.0)
    algorithm.train()
    z = torch.tensor([[3.0, 2.5, 0.0]])
    batch = batch_of([2, 1], torch.tensor([0, 1]))
    ctx = Context(0, 10, algorithm)
    for _ in range(20):
        p = algorithm.guess(z, batch, ctx)
    torch.testing.assert_close(algorithm.q_hat, z.softmax(1)[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(p[0], torch.full((3,), 1 / 3), rtol=1e-4, atol=0)
    kept = torch.tensor([0]), torch.ones(1)
    found, _ = algorithm.objective(z, torch.tensor([0]), kept, torch.zeros(1, 3))
    torch.testing.assert_close(found["unlabeled"], -algorithm.q_hat.log()[0])


@pytest.mark.parametrize("how", ["joint", "split", "lazy"])
def test_two_weak_views_pass_without_gradient_however_they_are_seen(how: str) -> None:
    algorithm, data = make(multiviews=True, threshold=0.6, lambda_u=2.0)
    algorithm.eval().net.prepared(Execution(views=how))
    algorithm.net.classifier.weight.data.mul_(20)  # sure of some images
    batch = next(algorithm.batches(data, 0))
    found, _ = algorithm(batch, Context(0, 10, algorithm))
    with torch.no_grad():
        u = [algorithm.net(batch.u[view]) for view in range(4)]
    p = algorithm.guess(torch.cat(u[:2]), batch, Context(0, 10, algorithm))
    seen = [algorithm.confidence(rows, batch.index_u) for rows in p.split(len(u[0]))]
    shifted = [view + algorithm.shift(view) for view in u[2:]]
    each = [
        (nn.functional.cross_entropy(s, classes, reduction="none") * mask).mean()
        for classes, mask in seen
        for s in shifted
    ]
    torch.testing.assert_close(found["unlabeled"].detach(), 2 * torch.stack(each).mean())
    assert 0 < sum(float(mask.sum()) for _, mask in seen) < 3 * len(u[0])
    assert algorithm.images_per_step == 4 * (1 + 2 * 4)


def test_a_rule_with_a_memory_of_images_follows_all_opinions() -> None:
    algorithm, data = make(multiviews=True, confidence="flex", threshold=0.0)
    algorithm.train()
    batch = next(algorithm.batches(data, 0))
    batch = replace(batch, index_u=torch.arange(len(batch.index_u)))
    losses, _ = algorithm(batch, Context(0, 10, algorithm))
    assert losses["unlabeled"].isfinite()
    assert int((algorithm.get_buffer("confidence.selected") >= 0).sum()) == len(batch.index_u)


@pytest.mark.slow
def test_selmix_and_offsets_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--algo", "debiaspl", "debiaspl.steps=20", "debiaspl.ema=0.9", "debiaspl.lr=0.1"]
    words += ["debiaspl.batch=16", "debiaspl.multiviews=true", "--then", "selmix"]
    words += ["selmix.steps=4", "--then", "posthoc", "model.name=cnn-8", "pictures=false"]
    assert cli.main([*words, "--out", "run"]) == 0
    state = checkpoint.load(Path("run/1-debiaspl/last.pt"))["algorithm"]
    assert float(state["q_hat"].sum()) == pytest.approx(1, abs=1e-5)
    assert float(state["q_hat"].max()) > 0.101
