"""What a method is given and may call: the teacher of a step, and its mistakes in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_selmix import algorithm, losses
from ssl_selmix.algorithm import Algorithm, Context
from ssl_selmix.contract import life, step, subjects
from ssl_selmix.methods.views import joint_logits


class Taught(Algorithm):
    """Pseudo-labels come from the teacher, called as any network is."""

    def forward(self, batch: Any, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        x, weak, strong = joint_logits(self.net, batch)
        labels = ctx.teacher(batch.u[0]).argmax(1)
        labeled = torch.nn.functional.cross_entropy(x, batch.y)
        unlabeled = losses.masked_cross_entropy(strong, labels, torch.ones(len(strong)))
        return {"labeled": labeled, "unlabeled": unlabeled}, {"weak": weak.mean().detach()}


@pytest.mark.parametrize("check", [life.check_teacher, step.check_gradients])
def test_a_method_may_call_its_teacher(check: Any, tmp_path: Path) -> None:
    check(subjects.Subject("taught", Taught), tmp_path)


@pytest.mark.parametrize("name", ["supervised", "abc", "selmix"])
def test_a_teacher_predicts_in_evaluation_mode_and_stays_as_it_is(name: str) -> None:
    data, _ = subjects.make_data()
    made = subjects.subject(name).make(data).train()
    before, modes = subjects.digest(made), [layer.training for layer in made.modules()]
    x = next(data.plain(data.validation))
    found = made(x)
    assert not found.requires_grad and subjects.digest(made) == before
    assert [layer.training for layer in made.modules()] == modes
    assert torch.equal(found, made.eval().predict(x).detach())
    assert torch.equal(made(x=x), found)


def test_what_else_a_method_is_called_with_says_what_to_call() -> None:
    data, _ = subjects.make_data()
    made, ctx = subjects.subject("supervised").started(data)
    batch = next(made.batches(data, 0))
    for given in (batch, ctx, [batch.x]):
        with pytest.raises(
            TypeError, match=r"as in ctx\.teacher\(batch\.x\), or with \(batch, ctx"
        ):
            made(given)
    assert made(batch, ctx)[0].keys() == {"labeled"}
    with pytest.raises(AttributeError, match=r"ctx has no epoch; it has step, total, progress"):
        _ = ctx.epoch
    with pytest.raises(TypeError):
        made()


def test_a_config_of_a_method_needs_no_decorator(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from ssl_selmix.algorithm import Algorithm\n\n\nclass Mine(Algorithm):\n"
        "    class Config(Algorithm.PoolConfig):\n"
        "        threshold: float = 0.5\n        ema = 0.9\n"
    )
    kind = algorithm.load(str(file))[1]
    assert (kind.Config().ema, kind.Config(threshold=0.3).threshold) == (0.9, 0.3)  # type: ignore[call-arg,attr-defined]
    assert kind.Config().mu == 2  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"ema must be in \[0, 1\)"):
        kind.Config(ema=2.0)
