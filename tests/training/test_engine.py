"""The loop: schedule, teacher, divergence, which weights are kept, and resuming."""

import copy
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_selmix import models
from ssl_selmix.algorithm import Algorithm, Batch, Context, Evaluation
from ssl_selmix.data import Data, Diagnostics
from ssl_selmix.training import checkpoint, engine
from ssl_selmix.training.log import SilentLog, StageLog

GOLDEN = Path(__file__).parents[1] / "golden"
FIXMATCH = {k: torch.from_numpy(np.asarray(v)) for k, v in np.load(GOLDEN / "fixmatch.npz").items()}
SCHEDULES = json.loads((GOLDEN / "schedules.json").read_text())


# Schedule and teacher, against recorded runs.


@pytest.mark.parametrize(("name", "part"), [("cosine_7_16", "pretrain"), ("cosine", "finetune")])
def test_selmix_schedules(name: str, part: str) -> None:
    base, total = SCHEDULES[f"{part}_lr0"], SCHEDULES[f"{part}_T"]
    for step, lr in SCHEDULES[part]:
        assert base * engine.schedule(name, step, total) == pytest.approx(lr, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize(("case", "total"), [("kek.lr", "total_steps"), ("daso_lr", "max_iter")])
def test_fixmatch_schedules(case: str, total: str) -> None:
    base, steps = float(FIXMATCH[f"{case}.in.base_lr"]), int(FIXMATCH[f"{case}.in.{total}"])
    got = [
        base * engine.schedule("cosine_7_16", int(step), steps)
        for step in FIXMATCH[f"{case}.in.steps"]
    ]
    assert got == pytest.approx(FIXMATCH[f"{case}.out.lr"].tolist(), rel=1e-5, abs=1e-7)


def test_constant_schedule() -> None:
    assert [engine.schedule("constant", step, 9) for step in (0, 5, 9)] == [1, 1, 1]


class Weights(nn.Module):
    """A matrix that is trained and a running mean that is measured."""

    steps: Tensor
    mean: Tensor

    def __init__(self, weight: Tensor, mean: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.register_buffer("mean", mean.clone())
        self.register_buffer("steps", torch.tensor(0))


@pytest.mark.parametrize(
    ("case", "buffers", "warmup"), [("kek.ema", "copy", "none"), ("daso_ema", "average", "mean")]
)
def test_teacher_follows_published_averages(case: str, buffers: str, warmup: str) -> None:
    given = {k: FIXMATCH[f"{case}.in.{k}"] for k in ("w0", "rm0", "w_t", "rm_t", "decay")}
    steps = FIXMATCH.get(f"{case}.in.steps", torch.arange(len(given["w_t"]))).tolist()
    teacher = Weights(given["w0"], given["rm0"])
    decays = []
    for i, step in enumerate(steps):
        decays.append(engine.ema_decay(float(given["decay"]), step, warmup))
        student = Weights(given["w_t"][i], given["rm_t"][i])
        engine.update_teacher(teacher, student, decays[-1], buffers)
        for name, value in (("w", teacher.weight.detach()), ("rm", teacher.mean)):
            expected = FIXMATCH[f"{case}.out.ema_{name}_t"][i]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    if warmup == "mean":
        recorded = FIXMATCH[f"{case}.out.decay_t"].tolist()
        assert decays == pytest.approx(recorded, rel=1e-5)
    else:
        assert set(decays) == {0.999}


@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_counters_of_the_teacher_stay_whole_numbers(buffers: str) -> None:
    teacher, student = (Weights(torch.zeros(2), torch.zeros(2)) for _ in range(2))
    student.steps.fill_(7)
    student.mean.fill_(1)
    engine.update_teacher(teacher, student, 0.9, buffers)
    assert teacher.steps.dtype == torch.int64 and int(teacher.steps) == 7
    assert teacher.mean.tolist() == pytest.approx([1, 1] if buffers == "copy" else [0.1, 0.1])


def test_warm_up_starts_at_the_student() -> None:
    assert [engine.ema_decay(0.999, t, "mean") for t in (0, 1, 3)] == [0, 0.5, 0.75]
    assert [engine.ema_decay(0.999, t, "tenth") for t in (0, 10, 90)] == [0.1, 0.55, 0.91]
    assert engine.ema_decay(0.999, 0, "none") == 0.999
    assert engine.ema_decay(0.9, 999, "mean") == 0.9


# The loop, on a data set of three patterns.


class Plain(Algorithm):
    """Cross-entropy of the labeled view; tests hang their own behaviour on it."""

    views = ()

    @dataclass
    class Config(Algorithm.Config):
        steps: int = 20
        batch: int = 4
        ema: float = 0.9
        evaluate_every: int = 5

    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"labeled": nn.functional.cross_entropy(self.net(batch.x), batch.y)}, {}


def make(data: Data, kind: type[Algorithm] = Plain, **settings: Any) -> Algorithm:
    torch.manual_seed(0)
    return kind(models.build(models.Config("cnn-2"), 3, 1), data.task, kind.Config(**settings))


def train(
    data: Data,
    folder: Path,
    kind: type[Algorithm] = Plain,
    *,
    log: StageLog | None = None,
    resume: bool = False,
    **settings: Any,
) -> engine.Fitted:
    algorithm = make(data, kind, **settings)
    return engine.fit(algorithm, data, folder, log or SilentLog(keep=True), "print", resume=resume)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def test_training_learns_the_patterns(tiny_data: Data, tmp_path: Path) -> None:
    log = SilentLog(keep=True)
    torch.manual_seed(0)
    net = models.build(models.Config("cnn-8"), 3, 1)
    config = Plain.Config(steps=60, batch=16, lr=0.1, evaluate_every=20)
    fitted = engine.fit(Plain(net, tiny_data.task, config), tiny_data, tmp_path, log, "print")
    assert [step for step, _ in log.validated] == [0, 20, 40, 60]
    assert log.validated[-1][1]["mean_recall"] > 0.9
    assert engine.measure_test(fitted.algorithm, tiny_data)["mean_recall"] > 0.9
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "last.pt", "previous.pt"]
    assert (checkpoint.load(tmp_path / "last.pt")["step"], fitted.seconds > 0) == (60, True)


def test_last_step_is_validated_even_off_the_grid(tiny_data: Data, tmp_path: Path) -> None:
    log = SilentLog(keep=True)
    train(tiny_data, tmp_path, log=log, steps=7, evaluate_every=5)
    assert [step for step, _ in log.validated] == [0, 5, 7]


def test_losses_are_reported_as_means(tiny_data: Data, tmp_path: Path) -> None:
    class Numbered(Plain):
        def forward(
            self, batch: Batch, ctx: Context
        ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            zero = 0 * self.net(batch.x).sum()
            losses = {"a": zero + ctx.step, "b": zero + 1}
            # A method may have something to log in some steps only.
            return losses, {"late": torch.tensor(ctx.step)} if ctx.step >= 3 else {}

    log = SilentLog(keep=True)
    train(tiny_data, tmp_path, Numbered, log=log, steps=10)
    (first_step, first), (last_step, last) = log.trained
    assert (first_step, last_step) == (5, 10)
    assert (first["loss"], first["loss_a"], first["loss_b"]) == (3, 2, 1)
    assert (first["late"], last["late"]) == (3.5, 7)


def test_rate_follows_the_schedule_in_every_group(tiny_data: Data, tmp_path: Path) -> None:
    class TwoRates(Plain):
        def param_groups(self) -> list[dict[str, Any]]:
            groups = super().param_groups()
            groups[1]["lr_scale"] = 0.1
            return groups

    algorithm = make(tiny_data, TwoRates, steps=10, lr=0.2)
    trainer = engine.Trainer(algorithm, tiny_data, tmp_path, SilentLog(keep=True), "print")
    trainer.fit(None)
    rate = 0.2 * math.cos(7 * math.pi * 9 / 160)
    groups = trainer.optimizer.param_groups
    assert [g["lr"] for g in groups] == pytest.approx([rate, 0.1 * rate])
    assert [g["weight_decay"] for g in groups] == [5e-4, 0]


def test_a_method_may_choose_its_rate_and_its_validations(tiny_data: Data, tmp_path: Path) -> None:
    rates: list[float] = []

    class Chooses(Plain):
        def lr_factor(self) -> float:
            return 0.5

        def evaluation_due(self, step: int) -> bool:
            return step in (2, 3)

        def after_step(self, ctx: Context) -> None:
            rates.append(ctx.lr)

    log = SilentLog(keep=True)
    algorithm = make(tiny_data, Chooses, steps=4, lr=0.2)
    trainer = engine.Trainer(algorithm, tiny_data, tmp_path, log, "print")
    trainer.fit(None)
    assert [step for step, _ in log.validated] == [0, 2, 3, 4]
    expected = [0.1 * math.cos(7 * math.pi * step / 64) for step in range(4)]
    assert rates == pytest.approx(expected)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(expected[-1])


# The teacher.


def test_teacher_is_untouched_by_backward(tiny_data: Data, tmp_path: Path) -> None:
    states: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    class Distilled(Plain):
        def forward(
            self, batch: Batch, ctx: Context
        ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            gap = self.net(batch.x) - ctx.teacher.predict(batch.x)
            return {"gap": gap.square().mean() + self.net(batch.x).mean()}, {}

        def after_step(self, ctx: Context) -> None:
            assert ctx.teacher is not self
            assert all(p.grad is None and not p.requires_grad for p in ctx.teacher.parameters())
            assert all(p.grad is not None for p in self.parameters())
            states.append((state(ctx.teacher), state(self)))

    train(tiny_data, tmp_path, Distilled, steps=3, evaluate_every=3, ema_warmup="none")
    for (before, _), (after, student) in itertools.pairwise(states):
        for name in ("net.classifier.weight", "net.backbone.0.weight"):
            expected = 0.9 * before[name] + 0.1 * student[name]
            torch.testing.assert_close(after[name], expected)
        name = "net.backbone.1.running_mean"
        assert torch.equal(after[name], student[name])


def test_without_averaging_the_teacher_is_the_student(tiny_data: Data, tmp_path: Path) -> None:
    class Checks(Plain):
        def after_step(self, ctx: Context) -> None:
            assert ctx.teacher is self

    algorithm = make(tiny_data, Checks, ema=0.0)
    fitted = engine.fit(algorithm, tiny_data, tmp_path, SilentLog(keep=True), "print")
    assert fitted.algorithm is algorithm
    assert all(p.requires_grad for p in algorithm.parameters())


# Evaluation.


def test_evaluation_leaves_the_model_as_it_was(tiny_data: Data) -> None:
    algorithm = make(tiny_data)
    algorithm.train()
    before = state(algorithm)
    evaluation = engine.evaluate(algorithm, tiny_data, pool=True)
    engine.measure_test(algorithm, tiny_data)
    assert all(module.training for module in algorithm.modules())
    assert same(before, state(algorithm))
    assert evaluation.features.shape == (12, 4) and evaluation.logits.shape == (12, 3)
    assert evaluation.pool_logits is not None and evaluation.pool_logits.shape == (26, 3)
    assert torch.equal(evaluation.labels, torch.arange(3).repeat_interleave(4))


def test_evaluation_uses_stored_statistics(tiny_data: Data) -> None:
    algorithm = make(tiny_data)
    whole = engine.predict(algorithm, tiny_data.plain(tiny_data.validation), 12)[1]
    single = engine.predict(algorithm, tiny_data.plain(tiny_data.validation, size=1), 12)[1]
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-5)
    algorithm.eval()
    engine.evaluate(algorithm, tiny_data)
    assert not algorithm.training


def test_evaluation_restores_the_mode_after_an_error(tiny_data: Data) -> None:
    algorithm = make(tiny_data)
    with pytest.raises(RuntimeError):
        engine.predict(algorithm, [torch.zeros(1, 2, 8, 8)], 1)
    assert algorithm.training


def test_predictions_can_be_used_in_a_graph(tiny_data: Data) -> None:
    features, logits = engine.predict(make(tiny_data), tiny_data.plain(tiny_data.validation), 12)
    assert not features.is_inference() and not logits.is_inference()
    weight = torch.ones(4, requires_grad=True)
    (features * weight).sum().backward()


def test_pool_is_evaluated_only_when_asked(tiny_data: Data) -> None:
    assert engine.evaluate(make(tiny_data), tiny_data).pool_logits is None


def test_features_of_other_images_are_kept_only_when_asked(tiny_data: Data) -> None:
    algorithm = make(tiny_data)
    seen = engine.evaluate(algorithm, tiny_data, features=("labeled", "pool"))
    assert seen.labeled_features is not None and seen.pool_features is not None
    assert seen.labeled_classes is not None and seen.pool_logits is not None
    assert torch.equal(seen.labeled_classes, tiny_data.labels)
    assert len(seen.labeled_features) == len(tiny_data.labeled)
    with torch.no_grad():
        assert torch.allclose(algorithm.head(seen.pool_features), seen.pool_logits)
    without = engine.evaluate(algorithm, tiny_data, pool=True)
    assert without.pool_features is without.labeled_features is without.labeled_classes is None


def test_diagnostics_see_the_pool_and_the_algorithm_does_not(
    tiny_data: Data, tmp_path: Path
) -> None:
    class Curious(Plain):
        def needs_pool(self, step: int) -> bool:
            return True

        def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
            assert len(evaluation.labels) == len(tiny_data.validation)
            return {}

    log, labels = SilentLog(keep=True), torch.zeros(26, dtype=torch.int64)
    algorithm = make(tiny_data, Curious, steps=5)
    engine.fit(algorithm, tiny_data, tmp_path, log, "print", diagnostics=Diagnostics(labels))
    assert all(0 <= float(row["pool_accuracy"]) <= 1 for _, row in log.validated)


def test_no_weights_are_chosen_by_the_true_labels_of_the_pool(
    tiny_data: Data, tmp_path: Path
) -> None:
    class Cheat(Plain):
        figures = ("pool_accuracy",)

        def needs_pool(self, step: int) -> bool:
            return True

    algorithm = make(tiny_data, Cheat, steps=5, select="pool_accuracy")
    diagnostics = Diagnostics(torch.zeros(26, dtype=torch.int64))
    with pytest.raises(ValueError, match="pool_accuracy names a figure that on_validation did not"):
        engine.fit(
            algorithm, tiny_data, tmp_path, SilentLog(keep=True), "print", diagnostics=diagnostics
        )


# Divergence.


def breaks_at(step: int) -> type[Algorithm]:
    class Breaks(Plain):
        def forward(
            self, batch: Batch, ctx: Context
        ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            losses, logs = super().forward(batch, ctx)
            return {k: v * (math.nan if ctx.step == step else 1) for k, v in losses.items()}, logs

    return Breaks


@pytest.mark.parametrize(
    ("settings", "found", "kept"),
    [
        ({"evaluate_every": 5}, 10, 5),
        ({"evaluate_every": 100, "steps": 40}, 25, 0),
        ({"evaluate_every": 8, "steps": 8}, 8, 0),
    ],
)
def test_a_loss_that_is_no_number_stops_the_stage(
    tiny_data: Data, tmp_path: Path, settings: dict[str, Any], found: int, kept: int
) -> None:
    message = rf"loss became nan .*before step {found}; .*last\.pt.*smaller lr"
    with pytest.raises(engine.NonFiniteLoss, match=message):
        train(tiny_data, tmp_path, breaks_at(7), **settings)
    for name in ("last.pt", "best.pt"):
        saved = checkpoint.load(tmp_path / name, "print")
        weights = saved["teacher"].values()
        assert saved["step"] <= kept and all(bool(torch.isfinite(w).all()) for w in weights)
    assert checkpoint.load(tmp_path / "last.pt")["step"] == kept


def test_infinite_weights_are_found_before_they_are_saved(tiny_data: Data, tmp_path: Path) -> None:
    class Overflows(Plain):
        def after_step(self, ctx: Context) -> None:
            if ctx.step == 10:
                with torch.no_grad():
                    self.net.classifier.weight.fill_(math.inf)

    with pytest.raises(engine.NonFiniteLoss, match="predictions at step 10 are not finite"):
        train(tiny_data, tmp_path, Overflows, ema=0.0)
    assert checkpoint.load(tmp_path / "last.pt", "print")["step"] == 5


# Which weights are kept.


def scored(scores: dict[int, float], seen: dict[int, dict[str, Tensor]]) -> type[Algorithm]:
    """An algorithm whose validation scores are given; notes the teacher at each."""

    class Scored(Plain):
        figures = ("score",)

        @dataclass
        class Config(Plain.Config):
            select: str = "score"

        def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
            seen[ctx.step] = state(ctx.teacher)
            return {"score": torch.tensor(scores[ctx.step])}

    return Scored


@pytest.mark.parametrize(
    ("keep", "step"),
    [("best", 10), ("last", 20)],
)
def test_best_is_by_validation_and_last_is_last(
    tiny_data: Data, tmp_path: Path, keep: str, step: int
) -> None:
    seen: dict[int, dict[str, Tensor]] = {}
    kind = scored({0: 0.1, 5: 0.2, 10: 0.9, 15: 0.8, 20: 0.3}, seen)
    fitted = train(tiny_data, tmp_path, kind, keep=keep)
    assert fitted.step == step
    assert same(state(fitted.algorithm), seen[step])
    assert not same(seen[10], seen[20])
    best = checkpoint.load(tmp_path / "best.pt", "print")
    assert (best["step"], best["value"]) == (10, pytest.approx(0.9))


def test_mean_recall_breaks_ties(tiny_data: Data, tmp_path: Path) -> None:
    log = SilentLog(keep=True)
    kind = scored(dict.fromkeys(range(0, 21, 5), 0.5), {})
    fitted = train(tiny_data, tmp_path, kind, log=log, lr=0.1)
    recalls = {step: row["mean_recall"] for step, row in log.validated}
    assert len(set(recalls.values())) > 1
    assert fitted.step == max(recalls, key=recalls.__getitem__)  # the first of the largest


def test_the_first_of_equals_is_kept(
    tiny_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "measure", lambda *_: {"mean_recall": 0.5})
    assert train(tiny_data, tmp_path).step == 0


def test_the_measured_weights_are_kept_when_validation_moves_them(
    tiny_data: Data, tmp_path: Path
) -> None:
    class Moves(Plain):
        figures = ("score",)

        def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
            with torch.no_grad():
                self.net.classifier.weight.zero_()
            return {"score": torch.tensor(-ctx.step)}

    fitted = train(tiny_data, tmp_path, Moves, ema=0.0, select="score")
    assert fitted.step == 0
    expected = make(tiny_data).net.classifier.weight
    assert torch.equal(fitted.algorithm.net.classifier.weight, expected)


def test_scores_that_are_no_numbers_never_win(tiny_data: Data, tmp_path: Path) -> None:
    kind = scored({0: math.nan, 5: 0.2, 10: math.nan, 15: 0.1, 20: math.nan}, {})
    assert train(tiny_data, tmp_path, kind).step == 5


def test_a_lost_best_checkpoint_leaves_the_last_weights(tiny_data: Data, tmp_path: Path) -> None:
    log = SilentLog(keep=True)
    kind = scored(dict.fromkeys((0, 5, 10, 15, 20), math.nan), {})
    assert train(tiny_data, tmp_path, kind, log=log).step == 20
    assert len(log.warnings) == 1 and "best.pt" in log.warnings[0]


def test_selecting_by_test_is_impossible_and_typos_name_the_nearest(
    tiny_data: Data, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"select.*'mean_recal'.*mean_recall"):
        train(tiny_data, tmp_path, select="mean_recal")
    with pytest.raises(ValueError, match=r"select.*'per_class_recall'"):
        train(tiny_data, tmp_path, select="per_class_recall")


def test_training_never_looks_at_test_images(tiny_data: Data, tmp_path: Path) -> None:
    poisoned = copy.copy(tiny_data)
    object.__setattr__(poisoned, "test_images", None)
    object.__setattr__(poisoned, "test_labels", None)
    train(poisoned, tmp_path, steps=5)


# Resuming.


class Noisy(Plain):
    """Draws from the global generator, as mixing and dropout do."""

    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        logits = self.net(batch.x + 0.5 * torch.randn_like(batch.x))
        return {"labeled": nn.functional.cross_entropy(logits, batch.y)}, {}


def killed_at(step: int) -> type[Algorithm]:
    class Killed(Noisy):
        def after_step(self, ctx: Context) -> None:
            if ctx.step == step:
                raise KeyboardInterrupt

    return Killed


@pytest.mark.parametrize(("step", "ema"), [(3, 0.9), (12, 0.0), (15, 0.9)])
def test_resumed_run_ends_bit_identical(
    tiny_data: Data, tmp_path: Path, step: int, ema: float
) -> None:
    whole = train(tiny_data, tmp_path / "whole", Noisy, keep="last", ema=ema)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_data, tmp_path / "parts", killed_at(step), keep="last", ema=ema)
    torch.rand(9)  # the second process has another global generator
    log = SilentLog(keep=True)
    parts = train(tiny_data, tmp_path / "parts", Noisy, log=log, resume=True, keep="last", ema=ema)
    assert same(state(parts.algorithm), state(whole.algorithm))
    assert log.warnings == [] and log.validated[0][0] == step // 5 * 5 + (5 if step % 5 else 0)
    for name in ("best.pt", "last.pt"):
        first, second = (checkpoint.load(tmp_path / run / name) for run in ("whole", "parts"))
        assert same(first["teacher"], second["teacher"]) and first["step"] == second["step"]


def test_finished_stage_is_not_trained_again(tiny_data: Data, tmp_path: Path) -> None:
    first = train(tiny_data, tmp_path)
    again = train(tiny_data, tmp_path, killed_at(1), resume=True)
    assert again.step == first.step
    assert again.seconds >= checkpoint.load(tmp_path / "last.pt")["seconds"] > 0
    assert same(state(again.algorithm), state(first.algorithm))


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", None])
def test_damaged_checkpoint_is_named_and_the_previous_one_used(
    tiny_data: Data, tmp_path: Path, damage: bytes | None
) -> None:
    whole = train(tiny_data, tmp_path, keep="last")
    last = tmp_path / "last.pt"
    if damage is None:  # one bit of a weight
        content = bytearray(last.read_bytes())
        weight = whole.algorithm.net.classifier.weight.detach().numpy().tobytes()
        content[content.index(weight)] ^= 1
        damage = bytes(content)
    last.write_bytes(damage)
    log = SilentLog(keep=True)
    again = train(tiny_data, tmp_path, log=log, resume=True, keep="last")
    assert same(state(again.algorithm), state(whole.algorithm))
    assert len(log.warnings) == 1
    assert "last.pt" in log.warnings[0] and "previous.pt" in log.warnings[0]
    assert [step for step, _ in log.validated] == [20]


@pytest.mark.parametrize("ours", [True, False])
def test_without_resume_and_with_foreign_files_training_starts_anew(
    tiny_data: Data, tmp_path: Path, ours: bool
) -> None:
    train(tiny_data, tmp_path, steps=5)
    log = SilentLog(keep=True)
    algorithm = make(tiny_data, steps=5)
    engine.fit(algorithm, tiny_data, tmp_path, log, "other", resume=not ours)
    assert [step for step, _ in log.validated] == [0, 5]
    assert ours == (log.warnings == [])


def test_progress_and_step_are_told_to_the_algorithm(tiny_data: Data, tmp_path: Path) -> None:
    told: list[tuple[str, int, float]] = []

    def note(name: str) -> Callable[[Context], None]:
        return lambda ctx: told.append((name, ctx.step, ctx.progress))

    class Listens(Plain):
        def forward(
            self, batch: Batch, ctx: Context
        ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            note("forward")(ctx)
            return super().forward(batch, ctx)

        def after_step(self, ctx: Context) -> None:
            note("after")(ctx)

        def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
            note("validation")(ctx)
            return {}

    train(tiny_data, tmp_path, Listens, steps=2, evaluate_every=2)
    assert told == [
        ("validation", 0, 0),
        ("forward", 0, 0),
        ("after", 1, 0.5),
        ("forward", 1, 0.5),
        ("after", 2, 1),
        ("validation", 2, 1),
    ]


def test_what_is_no_number_is_not_saved_between_validations(
    tiny_data: Data, tmp_path: Path
) -> None:
    class Diverges(Plain):
        def forward(
            self, batch: Batch, ctx: Context
        ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            losses, logs = super().forward(batch, ctx)
            return {k: v * (math.inf if ctx.step >= 7 else 1) for k, v in losses.items()}, logs

    algorithm = make(tiny_data, Diverges)
    pauses = engine.Pauses(minutes=1e-9)
    with pytest.raises(engine.NonFiniteLoss, match=r"last\.pt holds the last good weights"):
        engine.fit(algorithm, tiny_data, tmp_path, SilentLog(), "print", pauses=pauses)
    found = checkpoint.newest(tmp_path, "print").state
    assert found is not None and found["step"] == 7
    assert all(v.isfinite().all() for v in found["algorithm"].values())


def test_good_weights_are_named_only_if_there_are_some(tiny_data: Data, tmp_path: Path) -> None:
    algorithm = make(tiny_data)
    with torch.no_grad():
        algorithm.net.classifier.bias.fill_(math.nan)
    with pytest.raises(engine.NonFiniteLoss) as told:
        engine.fit(algorithm, tiny_data, tmp_path, SilentLog(), "print")
    assert "last.pt" not in str(told.value) and "smaller lr" in str(told.value)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_names_the_settings(
    tiny_data: Data, tmp_path: Path, error: Exception
) -> None:
    class Large(Plain):
        def forward(
            self, batch: Batch, ctx: Context
        ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            raise error

    with pytest.raises(engine.OutOfMemory, match=r"not enough memory.*lower batch=4"):
        train(tiny_data, tmp_path, Large)


def test_a_batch_too_small_for_batch_norm_names_the_setting(
    tiny_data: Data, tmp_path: Path
) -> None:
    class Flat(Plain):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.norm = nn.BatchNorm1d(3)

        def forward(
            self, batch: Batch, ctx: Context
        ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            return {"labeled": self.norm(self.net(batch.x)).square().mean()}, {}

    with pytest.raises(ValueError, match=r"batch=1 gives .* set batch=2 or more"):
        train(tiny_data, tmp_path, Flat, batch=1)
