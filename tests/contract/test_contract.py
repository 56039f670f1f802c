"""Every check of the contract finds the method that breaks it, and says what to do."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix import cli, contract
from ssl_selmix.algorithm import Algorithm, Batch, Context, Evaluation, Task, weighs_labels
from ssl_selmix.algorithms.fixmatch import FixMatch
from ssl_selmix.common import plugins
from ssl_selmix.contract import life, limits, reporting, settings, subjects
from ssl_selmix.contract.step import (
    check_batches,
    check_curriculum,
    check_forwards,
    check_frozen,
    check_gradients,
    check_logs,
    check_optimizer_groups,
    check_pseudo_labels,
    check_views,
)
from ssl_selmix.contract.weights import check_weights
from ssl_selmix.data import Data
from ssl_selmix.methods.views import Look, joint_logits
from ssl_selmix.models import Classifier
from ssl_selmix.models.batch_norm import batch_norms

Step = tuple[dict[str, Tensor], dict[str, Tensor]]


class Good(Algorithm):
    """Keeps the contract."""

    def forward(self, batch: Batch, ctx: Context) -> Step:
        x, weak, strong = joint_logits(self.net, batch)
        unlabeled = F.cross_entropy(strong, weak.detach().argmax(1))
        return {"labeled": F.cross_entropy(x, batch.y), "unlabeled": unlabeled}, {}


class NoNumber(Good):
    def forward(self, batch: Batch, ctx: Context) -> Step:
        losses, logs = super().forward(batch, ctx)
        return losses | {"mine": torch.tensor(0.0) / 0}, logs


class NoScalar(Good):
    def forward(self, batch: Batch, ctx: Context) -> Step:
        return {"labeled": F.cross_entropy(self.net(batch.x), batch.y, reduction="none")}, {}


class NoPair(Good):
    def forward(self, batch: Batch, ctx: Context) -> Any:
        return super().forward(batch, ctx)[0]


class SameEveryStep(Good):
    @dataclass
    class Config(Algorithm.PoolConfig):
        pass

    config: Config

    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        return data.batches(self.views, self.config.batch, self.config.mu, start)


class Unwilling(SameEveryStep):
    @dataclass
    class Config(Algorithm.PoolConfig):
        def __post_init__(self) -> None:
            super().__post_init__()
            if self.mu > 2:
                raise ValueError("mu is at most 2")


class Unused(Good):
    def __init__(self, net: Classifier, task: Task, config: Good.Config) -> None:
        super().__init__(net, task, config)
        self.spare = nn.Linear(2, 2)


class Nothing(Good):
    def forward(self, batch: Batch, ctx: Context) -> Step:
        return {"labeled": 0 * super().forward(batch, ctx)[0]["labeled"]}, {}


class Attached(Good):
    def forward(self, batch: Batch, ctx: Context) -> Step:
        losses, _ = super().forward(batch, ctx)
        return losses, {"mine": losses["labeled"]}


class TakenName(Good):
    def forward(self, batch: Batch, ctx: Context) -> Step:
        losses, _ = super().forward(batch, ctx)
        return losses, {"loss_labeled": losses["labeled"].detach()}


class Twice(Good):
    def param_groups(self) -> list[dict[str, Any]]:
        return [*super().param_groups(), {"params": [self.net.classifier.bias], "lr_scale": 2.0}]


class Forgotten(Good):
    def param_groups(self) -> list[dict[str, Any]]:
        return super().param_groups()[:1]


class Foreign(Good):
    def param_groups(self) -> list[dict[str, Any]]:
        return [*super().param_groups(), {"params": [torch.zeros(2)], "lr_scale": 1.0}]


class NoScale(Good):
    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters())}]


class Thawed(Good):
    def __init__(self, net: Classifier, task: Task, config: Good.Config) -> None:
        super().__init__(net, task, config)
        net.classifier.bias.requires_grad_(False)

    def after_step(self, ctx: Context) -> None:
        self.net.classifier.bias.add_(0.1)


class Still(Nothing):
    def param_groups(self) -> list[dict[str, Any]]:
        return [group | {"weight_decay": 0.0} for group in super().param_groups()]


class WrongShape(Good):
    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        return {"mine": torch.zeros(2) if ctx.step else torch.zeros(3)}


class Remeasured(Good):
    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        return {"min_recall": torch.tensor(1.0)}


class Undeclared(Good):
    views = ("weak", "medium")


class FewerViews(Good):
    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        return data.batches(("weak",), self.config.batch, 2, start)


class Backwards(Good):
    def forward(self, batch: Batch, ctx: Context) -> Step:
        return {"labeled": F.cross_entropy(self.net(batch.u[-1]), batch.y.repeat(2))}, {}


class InPlace(Good):
    def forward(self, batch: Batch, ctx: Context) -> Step:
        batch.u[1].mul_(0.5)
        return super().forward(batch, ctx)


class OtherRows(subjects.Recorder):
    def select(self, view: int, rows: Tensor) -> Tensor:
        return super().select(view, rows if len(rows) > 2 else rows.flip(0))


class MixedUp(Good):
    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        for batch in super().batches(data, start):
            yield replace(batch, u=OtherRows(batch.u))


class GlobalDraw(Good):
    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        for batch in super().batches(data, start):
            yield Batch(batch.x + torch.rand(()), batch.y, batch.u, batch.index_u)


class FromTheStart(Good):
    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        return super().batches(data, 0)


class OneBatch(Good):
    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        while True:
            yield next(super().batches(data, 0))


class Unseeded(Good):
    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        return super().batches(data.at_stage("mine"), start)


class Collects(Good):
    def forward(self, batch: Batch, ctx: Context) -> Step:
        with torch.no_grad():
            ctx.teacher.net.train()(batch.x)
        return super().forward(batch, ctx)


class Counts(Good):
    calls: Tensor

    def __init__(self, net: Classifier, task: Task, config: Good.Config) -> None:
        super().__init__(net, task, config)
        self.register_buffer("calls", torch.zeros(()))

    def head(self, features: Tensor) -> Tensor:
        self.calls += 1
        return super().head(features)


class OtherHead(Good):
    def predict(self, x: Tensor) -> Tensor:
        return -super().predict(x)


class WrongWidth(Good):
    def head(self, features: Tensor) -> Tensor:
        return super().head(features).repeat(1, 2)


class Hidden(Good):
    def head(self, features: Tensor) -> Tensor:
        return super().head(features) * 2


class Shared(Good):
    def export(self) -> Classifier:
        return self.net


class OtherMomentum(Good):
    def export(self) -> Classifier:
        net = super().export()
        for module in batch_norms(net):
            module.momentum = 0.5
        return net


class Bare(Good):
    def export(self) -> Classifier:
        return Classifier(copy.deepcopy(self.net.backbone), copy.deepcopy(self.net.classifier))


class Exhausted(Good):
    def export(self) -> Classifier:
        net = super().export()
        nn.init.constant_(net.classifier.weight, torch.nan)
        return net


class Attribute(Good):
    steps = 0

    def forward(self, batch: Batch, ctx: Context) -> Step:
        losses, logs = super().forward(batch, ctx)
        return {"labeled": losses["labeled"] * (1 + self.steps)}, logs

    def after_step(self, ctx: Context) -> None:
        self.steps += 1


class OtherRandom(Good):
    def forward(self, batch: Batch, ctx: Context) -> Step:
        losses, logs = super().forward(batch, ctx)
        return {"labeled": losses["labeled"] * np.random.default_rng().random()}, logs


class Rounds(Good):
    """Forgets in a new process that a round has begun, and nothing else."""

    share = 1.0

    def clock(self, step: int) -> tuple[int, int]:
        return step % 6, 6

    def restart(self, ctx: Context) -> None:
        self.share = 0.5

    def forward(self, batch: Batch, ctx: Context) -> Step:
        losses, logs = super().forward(batch, ctx)
        return {"labeled": losses["labeled"] * (self.share if 6 < ctx.step < 12 else 1.0)}, logs


class Moody(Good):
    """Predictions depend on how often the object was asked, which no checkpoint knows."""

    def __init__(self, net: Classifier, task: Task, config: Good.Config) -> None:
        super().__init__(net, task, config)
        self.calls = 0

    def head(self, features: Tensor) -> Tensor:
        self.calls += 1
        return super().head(features) * self.calls


class Spy(Good):
    """Takes the pool's labels from the engine's hands."""

    found: Tensor

    def __init__(self, net: Classifier, task: Task, config: Good.Config) -> None:
        super().__init__(net, task, config)
        self.register_buffer("found", torch.ones(()))

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        frame = inspect.currentframe()
        assert frame is not None and frame.f_back is not None
        diagnostics = frame.f_back.f_locals.get("diagnostics")
        if diagnostics is not None:
            self.found.copy_(diagnostics.labels.double().mean())
        return {}


class Between(Good):
    """Looks at the network that the stage before began with, and makes nothing of it."""

    needs_origin = True


class Overwrites(Between):
    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        assert ctx.origin is not None
        with torch.no_grad():
            ctx.origin.classifier.bias.add_(1)
        return {}


class MeanOfNone(Good):
    def forward(self, batch: Batch, ctx: Context) -> Step:
        losses, logs = super().forward(batch, ctx)
        logits = self.net(batch.x)
        ones = (batch.y == 1).float()
        return losses | {"mine": (logits.logsumexp(1) * ones).sum() / ones.sum()}, logs


class RareIsDear(Good):
    weights: Tensor

    def __init__(self, net: Classifier, task: Task, config: Good.Config) -> None:
        super().__init__(net, task, config)
        self.register_buffer("weights", 1 / task.labeled_counts)


class Shares(Good):
    accuracy: Tensor

    def __init__(self, net: Classifier, task: Task, config: Good.Config) -> None:
        super().__init__(net, task, config)
        self.register_buffer("accuracy", torch.zeros(task.num_classes))

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        predicted = evaluation.logits.argmax(1)
        counts = torch.bincount(predicted, minlength=self.task.num_classes)
        self.accuracy.copy_(1 / counts)
        return {}


class Lenient(Good):
    @dataclass
    class Config(Algorithm.Config):
        def __post_init__(self) -> None:
            pass


class Unruled(Good):
    @dataclass
    class Config(Algorithm.Config):
        strength: float = 1.0


class Sets(Good):
    @dataclass
    class Config(Algorithm.Config):
        sizes: set[int] = field(default_factory=set)


class Leaves(Good):
    """Asks for too few images, and uses what it got of the others."""

    forwards = ("joint", "split", "lazy")

    def forward(self, batch: Batch, ctx: Context) -> Step:
        look = Look(self.net, batch)
        classes = look.weak_logits().argmax(1)
        x, strong = look.rest_logits(torch.arange(len(classes)) > 2)
        return {"labeled": F.cross_entropy(x, batch.y), "all": F.cross_entropy(strong, classes)}, {}


class AsksForAll(Good):
    """Says that it can leave images out, and never does."""

    forwards = ("joint", "split", "lazy")


class ThroughWeak(Good):
    """Looks at its views as the configuration says, and does not say so."""

    def forward(self, batch: Batch, ctx: Context) -> Step:
        x, strong = Look(self.net, batch).rest_logits(torch.arange(len(batch.index_u)) > 2)
        return {"labeled": F.cross_entropy(x, batch.y), "all": strong.square().mean()}, {}


class Unguided(FixMatch):
    """Has the setting, and looks at its views as if it had not."""

    def forward(self, batch: Batch, ctx: Context) -> Step:
        x, strong = Look(self.net, batch).rest_logits()
        return {"labeled": F.cross_entropy(x, batch.y), "all": strong.square().mean()}, {}


class Deaf(FixMatch):
    """Promises to weigh its images, and does not look at their weights."""

    @weighs_labels
    def forward(self, batch: Batch, ctx: Context) -> Step:
        return {"labeled": F.cross_entropy(self.net(batch.x), batch.y)}, {}


class Relative(FixMatch):
    """Divides by the weights of the batch."""

    @weighs_labels
    def forward(self, batch: Batch, ctx: Context) -> Step:
        masses = F.one_hot(batch.y, 3).float() if batch.masses is None else batch.masses
        each = F.cross_entropy(self.net(batch.x), masses, reduction="none")
        return {"labeled": each.sum() / masses.sum().clamp_min(1e-6)}, {}


class OtherLoss(FixMatch):
    """Has another loss where images have weights."""

    @weighs_labels
    def forward(self, batch: Batch, ctx: Context) -> Step:
        loss = F.cross_entropy(self.net(batch.x), batch.target)
        return {"labeled": loss if batch.masses is None else 2 * loss}, {}


BROKEN: list[tuple[reporting.Check, type[Algorithm], str]] = [
    (check_gradients, NoNumber, "the loss 'mine' must be a finite scalar"),
    (check_gradients, NoScalar, r"the loss 'labeled' must be a finite scalar, not \(4,\)"),
    (check_gradients, NoPair, "forward must return"),
    (check_gradients, Unused, r"spare\.weight gets no gradient; use it .* or freeze it"),
    (check_gradients, Nothing, "every gradient is zero"),
    (check_logs, Attached, r"the log 'mine' must be a detached .* with gradient"),
    (check_logs, TakenName, "the engine logs loss_labeled itself; choose another name"),
    (check_optimizer_groups, Twice, r"net\.classifier\.bias 2 times instead of 1"),
    (check_optimizer_groups, Forgotten, r"bias 0 times instead of 1|weight 0 times instead"),
    (check_optimizer_groups, Foreign, "no parameters of the algorithm"),
    (check_optimizer_groups, NoScale, "needs an lr_scale"),
    (check_frozen, Thawed, r"net\.classifier\.bias moved although"),
    (check_frozen, Still, "no parameter moved"),
    (life.check_on_validation, WrongShape, r"'mine' must be .* not \(2,\)"),
    (life.check_on_validation, Remeasured, "min_recall is measured already"),
    (check_views, Undeclared, "a view is weak or strong"),
    (check_views, FewerViews, "makes 1 views and `views` declares 2"),
    (check_views, Backwards, r"asks for view \{-1\}"),
    (check_views, InPlace, "changes its batch"),
    (check_views, MixedUp, r"u\.select\(0, rows\) must be u\[0\]\[rows\]"),
    (check_forwards, Leaves, "views.lazy=true changes .* every image that counts"),
    (check_forwards, AsksForAll, "no step asked Look.rest for some"),
    (check_forwards, ThroughWeak, "views.lazy=true changes .* declare it in `forwards`"),
    (check_pseudo_labels, Unguided, r"changes nothing .* Look\(self\.net, batch, guide\(self, ctx"),
    (check_weights, Deaf, "weights of labeled images change no loss"),
    (check_weights, Relative, "divide by nothing that depends on weights"),
    (check_weights, OtherLoss, "take the labeled loss of batch.target"),
    (check_batches, GlobalDraw, "batch 3 differs"),
    (check_batches, FromTheStart, "batch 3 differs"),
    (check_batches, OneBatch, "batches 3 and 4 are the same"),
    (check_batches, Unseeded, "another stage gives the same batch"),
    (check_curriculum, SameEveryStep, "has 28 unlabeled images and mu_from=1 asks for 4; call"),
    (check_curriculum, Unwilling, r"refused, but not for what it is \(mu is at most 2\)"),
    (life.check_teacher, Collects, r"changes ctx\.teacher"),
    (life.check_evaluation, Counts, "evaluation changes the state"),
    (life.check_evaluation, OtherHead, "`predict` and `head` disagree"),
    (life.check_evaluation, WrongWidth, r"logits must be \[\(9, 3\)"),
    (life.check_export, Hidden, r"predicts something else; .* super\(\)\.export\(\)"),
    (life.check_export, Shared, "shares tensors"),
    (life.check_export, OtherMomentum, "another momentum"),
    (life.check_export, Bare, "lacks `rebuild` or `execution`"),
    (life.check_origin, Overwrites, r"ctx\.origin was changed; work on a copy"),
    (life.check_origin, Between, r"the same network is handed on; leave out needs_origin"),
    (life.check_state, Attribute, r"other losses; .* register_buffer"),
    (life.check_resume, Attribute, "killed after step 6 of .* keep all state in buffers"),
    (life.check_resume, OtherRandom, "killed after step 1 of 12 .* torch's global generator"),
    (life.check_resume, Rounds, "killed after step 7 of 12"),
    (life.check_best, Moody, "the best weights, those of step 10, predict something else"),
    (limits.check_pool_labels, Spy, "with poisoned labels of the pool"),
    (limits.check_missing_in_batch, MeanOfNone, "the loss 'mine' is not finite if all are class 0"),
    (
        limits.check_missing_in_labeled,
        RareIsDear,
        "weights is not finite if class 0 has no labeled",
    ),
    (limits.check_no_pseudo_labels, Shares, "accuracy is not finite if every image is taken"),
    (settings.check_config_refuses, Lenient, r"Config\(steps=0\) must be refused"),
    (settings.check_config_nan, Unruled, "strength may be NaN; write a rule at the field"),
    (settings.check_config_yaml, Sets, "cannot be written to config.yaml .* numbers, words, lists"),
]


@pytest.mark.parametrize(
    ("check", "kind", "message"), BROKEN, ids=lambda v: getattr(v, "__name__", "")
)
def test_a_broken_promise_is_found_and_explained(
    check: reporting.Check, kind: type[Algorithm], message: str, tmp_path: Path
) -> None:
    with pytest.raises(contract.Broken, match=message):
        check(subjects.Subject("mine", kind), tmp_path)


def test_what_the_next_stage_cannot_start_from_is_found(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="not finite"):
        life.check_starts(subjects.Subject("mine", Exhausted), tmp_path)


def test_a_listed_line_is_a_short_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixmatch = contract.subject("fixmatch")
    for line in ("no sentence", "Far too long" * 10 + "."):
        monkeypatch.setattr(plugins, "available", lambda kind, line=line: {"fixmatch": line})
        with pytest.raises(contract.Broken, match=f"not '{line}'"):
            settings.check_listing(fixmatch, tmp_path)
    with pytest.raises(subjects.Skipped, match="shipped"):
        settings.check_listing(subjects.Subject("fixmatch", Good), tmp_path)


def test_every_check_is_shown_to_find_something() -> None:
    shown = {check for check, _, _ in BROKEN} | {life.check_starts, settings.check_listing}
    assert shown == set(contract.CHECKS)
    titles = [inspect.getdoc(check) for check in contract.CHECKS]
    assert all(titles) and len(set(titles)) == len(titles)


@pytest.mark.slow
def test_the_checks_pass_a_good_method_with_rounds(tmp_path: Path) -> None:
    class GoodRounds(Good):
        def clock(self, step: int) -> tuple[int, int]:
            return step % 6, 6

        def restart(self, ctx: Context) -> None:
            self.net.begin_anew()

    life.check_resume(subjects.Subject("rounds", GoodRounds), tmp_path)
    assert {path.name for path in (tmp_path / "averaged").iterdir()} == {
        "whole",
        *"1 6 7 10 11 12".split(),
    }


# The command.

MINE = '''"""A method."""

import torch.nn.functional as F

from ssl_selmix.algorithm import Algorithm
from ssl_selmix.methods.views import joint_logits


class Mine(Algorithm):
    def forward(self, batch, ctx):
        x, weak, strong = joint_logits(self.net, batch)
        losses = {"labeled": F.cross_entropy(x, batch.y)}
        LINE
        return losses, {}
'''


@pytest.fixture
def check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str], str]]:
    """`ssl-selmix check ./mine.py` on a file with this line, with some checks only."""
    monkeypatch.chdir(tmp_path)
    checks = (check_gradients, check_logs, life.check_teacher, settings.check_listing)
    monkeypatch.setattr(reporting, "CHECKS", checks)

    def run(line: str, *words: str) -> tuple[int, list[str], str]:
        Path("mine.py").write_text(MINE.replace("LINE", line))
        code = cli.main(["check", "./mine.py", *words])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return run


def test_the_command_prints_a_line_for_each_check(check: Any) -> None:
    code, lines, err = check("pass")
    assert code == 0 and not err and len(lines) == 5
    assert lines[0].startswith("passed   Losses are finite scalars, and every trained")
    assert lines[3].startswith("skipped  The listing has a line for it: the listing shows")
    assert lines[4].startswith("mine (Mine): 3 passed, 1 skipped, ")


def test_the_command_explains_a_failure_and_goes_on(check: Any) -> None:
    code, lines, err = check("losses['labeled'] = losses['labeled'] / 0")
    assert code == 1 and not err and len(lines) == 5
    assert lines[0].startswith("failed   Losses are finite scalars, and every trained parameter")
    assert "the loss 'labeled' must be a finite scalar, not () not finite" in lines[0]
    assert lines[1].startswith("passed ")
    assert lines[4].startswith("mine (Mine): 2 passed, 1 failed, 1 skipped, ")


def test_an_error_of_the_method_is_a_line_with_its_place(check: Any) -> None:
    code, lines, err = check("losses['more'] = weak @ strong")
    assert code == 1 and not err and len(lines) == 5
    assert "mat1 and mat2 shapes" in lines[0] and lines[0].endswith("(mine.py, line 13)")
    code, lines, _ = check("losses['more'] = weak @ strong", "--debug")
    assert code == 1 and "Traceback (most recent call last):" in lines
    assert any("losses['more'] = weak @ strong" in line for line in lines)


def test_a_file_that_cannot_be_imported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for text, message in (
        ("import math\n\nmath.sqrt(-1)\n", "mine.py cannot be imported: ValueError: math domain"),
        ("import math\n\n{}[3]\n", "mine.py cannot be imported: KeyError: 3 (mine.py, line 3)"),
        ("x = = 1\n", "mine.py, line 1: invalid syntax; correct the file"),
        ("x = 1\n", "./mine.py must define one Algorithm, it defines 0"),
    ):
        Path("mine.py").write_text(text)
        assert cli.main(["check", "./mine.py"]) == 2
        out, err = capsys.readouterr()
        assert not out and err.startswith(f"error: {message}") and len(err.splitlines()) == 1
    Path("mine.py").write_text("{}[3]")
    with pytest.raises(ValueError, match="cannot be imported") as told:
        cli.main(["check", "./mine.py", "--debug"])
    assert isinstance(told.value.__cause__, KeyError)


def test_a_class_in_a_module_is_checked_by_its_name(check: Any, monkeypatch: Any) -> None:
    check("pass")
    Path("mylab_contract").mkdir()
    Path("mine.py").rename("mylab_contract/methods.py")
    monkeypatch.syspath_prepend(".")
    assert cli.main(["check", "mylab_contract.methods:Mine"]) == 0
