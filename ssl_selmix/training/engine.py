"""Fit and evaluate: the one training loop, which knows no algorithm by name."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ssl_selmix import metrics
from ssl_selmix.algorithm import Algorithm, Batch, Context, Evaluation
from ssl_selmix.common import processes
from ssl_selmix.common.seeds import seed_of
from ssl_selmix.common.stopping import Stop, Stopped
from ssl_selmix.data import Data, Diagnostics
from ssl_selmix.models import Classifier, execution
from ssl_selmix.models.batch_norm import batch_norms
from ssl_selmix.models.execution import in_mode
from ssl_selmix.training import checkpoint
from ssl_selmix.training.log import StageLog
from ssl_selmix.training.optimizer import SGD

RANKS = ("feasibility", "value", "tie")  # what makes weights better, most important first
READ_EVERY = 25  # steps between two readings of the losses, each of which waits for the device


class NonFiniteLoss(RuntimeError):
    """Training produced a loss that is no number."""


class OutOfMemory(ValueError):
    """A step needs more memory than there is; says which settings take less."""


@dataclass(frozen=True)
class Pauses:
    """When to save between two validations.

    Attributes:
        stop: asked after every step; the stage ends once its state is saved.
        minutes: between two checkpoints; 0: no more of them than validations.
    """

    stop: Stop = field(default_factory=Stop)
    minutes: float = 0.0


@dataclass(frozen=True)
class Fitted:
    """A finished stage: the algorithm with the kept weights, their step, and the last step.

    last: figures of the last weights, if others are kept.
    """

    algorithm: Algorithm
    step: int
    last_step: int
    seconds: float
    last: dict[str, Any] | None = None


def schedule(name: str, step: int, total: int) -> float:
    """Share of the base learning rate at a step.

    cosine_7_16: cos(7 pi t / 16 T), as in FixMatch; cosine: (1 + cos(pi t / T)) / 2; constant.
    """
    t = step / total
    if name == "cosine_7_16":
        return math.cos(7 * math.pi * t / 16)
    return 0.5 * (1 + math.cos(math.pi * t)) if name == "cosine" else 1.0


def ema_decay(decay: float, step: int, warmup: str) -> float:
    """Decay of the teacher at a 0-based step, small at first so that the random start is forgotten.

    mean: 1 - 1/(t+1), the mean of all weights so far (DASO); tenth: (1+t)/(10+t), about the last
    tenth of them; none: `decay` from the start (FixMatch). Never more than `decay`.
    """
    rising = {"none": 1.0, "mean": 1 - 1 / (step + 1), "tenth": (1 + step) / (10 + step)}
    return min(decay, rising[warmup])


@torch.no_grad()
def update_teacher(
    teacher: nn.Module, student: nn.Module, decay: float, buffers: str = "copy"
) -> None:
    """Move the teacher's parameters by 1 - decay towards the student.

    Batch statistics and other buffers are copied, or, if floating-point, averaged alike.
    """
    average = get_ema_multi_avg_fn(decay)
    average(list(teacher.parameters()), list(student.parameters()), 0)
    for target, source in zip(teacher.buffers(), student.buffers(), strict=True):
        if buffers == "average" and target.is_floating_point():
            target.lerp_(source, 1 - decay)
        else:
            target.copy_(source)


def predict(
    model: Algorithm, batches: Iterable[Tensor], num: int, *, keep_features: bool = True
) -> tuple[Tensor, Tensor]:
    """Features N×D, or N×0 if they are not kept, and logits N×K in evaluation mode, in one pass.

    Of several processes each passes its share of the `num` images, and gets what is found of all.
    """
    world = model.net.execution.world
    share = num if world is None else len(world.rows(num))
    found = (_Rows(share), _Rows(share))
    with in_mode(model, training=False), torch.inference_mode():
        for x in batches:
            h = model.net.share_features(x)
            found[1].add(model.head(h).float())
            found[0].add(h if keep_features else h[:, :0])
    features, logits = (rows.kept for rows in found)
    if world is not None:
        features, logits = world.gather(features, num), world.gather(logits, num)
    return features, logits


class _Rows:
    """Rows of batches in one place: apart, small results between large ones scatter the heap."""

    def __init__(self, num: int) -> None:
        self._num, self._filled = num, 0
        self.kept = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        if not self._filled:
            # Allocated outside inference mode, so that autograd may use it later.
            with torch.inference_mode(False):
                self.kept = rows.new_empty(self._num, *rows.shape[1:])
        self.kept[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)


def evaluate(
    model: Algorithm, data: Data, *, pool: bool = False, features: Collection[str] = ()
) -> Evaluation:
    """The model on the validation images and, if asked, on the un-augmented unlabeled pool.

    `features` names of which images features are kept beside those held out: labeled, pool.
    """
    seen = Evaluation(*_predict_at(model, data, data.validation), data.validation_labels)
    kept = "pool" in features
    if (pool or kept) and len(data.unlabeled):
        h, logits = _predict_at(model, data, data.unlabeled, keep_features=kept)
        seen = replace(seen, pool_logits=logits, pool_features=h if kept else None)
    if "labeled" in features:
        h, _ = _predict_at(model, data, data.labeled)
        labels = data.labels.to(data.device)
        seen = replace(seen, labeled_features=h, labeled_classes=labels)
    return seen


def evaluate_for(algorithm: Algorithm, model: Algorithm, data: Data, step: int) -> Evaluation:
    """The model on what the algorithm needs at the validation before this step."""
    pool, features = algorithm.needs_pool(step), algorithm.needs_features(step)
    return evaluate(model, data, pool=pool, features=features)


def _predict_at(
    model: Algorithm, data: Data, index: Tensor, *, keep_features: bool = True
) -> tuple[Tensor, Tensor]:
    world = model.net.execution.world
    own = index if world is None else world.own(index)
    return predict(model, data.plain(own), len(index), keep_features=keep_features)


def measure(evaluation: Evaluation, tail: list[int]) -> dict[str, Any]:
    """The figures of results.json for one evaluation."""
    logits = evaluation.logits
    return metrics.evaluate(logits, evaluation.labels, logits.shape[1], tail=tail)


def measure_test(model: Algorithm, data: Data) -> dict[str, Any]:
    """The figures of results.json on the test images; called when the best weights are chosen."""
    world, num = model.net.execution.world, len(data.test_labels)
    own = None if world is None else world.rows(num)
    logits = predict(model, data.test_batches(own), num, keep_features=False)[1]
    return metrics.evaluate(logits, data.test_labels, logits.shape[1], tail=data.task.tail)


def measure_all(model: Algorithm, data: Data) -> dict[str, Any]:
    """The figures of results.json by part: validation and test."""
    validation = measure(evaluate(model, data), data.task.tail)
    return {"validation": validation, "test": measure_test(model, data)}


class _Readings:
    """Sums losses and logs on the device; reading them is the only time the loop waits."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}  # a method may log a value in some steps only

    @property
    def finite(self) -> bool:
        """Whether the losses since the last reading are; waits for the device."""
        return not self._sums or bool(self._sums["loss"].isfinite())

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """Means over the steps that had each value, since the last reading."""
        if not self._sums:
            return {}
        sums = torch.stack([v.double() for v in self._sums.values()]).tolist()
        means = {k: v / self._counts[k] for k, v in zip(self._sums, sums, strict=True)}
        self._sums, self._counts = {}, {}
        return means

    def state(self) -> dict[str, Any]:
        """What is not read yet."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on adding up from a saved state."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])


@contextmanager
def _explained(algorithm: Algorithm) -> Iterator[None]:
    """Name the settings that decide whether a step is possible, if it is not.

    Raises:
        OutOfMemory: in the place of what torch or Python raises.
        ValueError: a batch is too small for a batch norm.
    """
    try:
        yield
    except (MemoryError, RuntimeError, ValueError) as error:
        text, cfg = str(error), algorithm.config  # torch has no classes for these
        mu = f" or mu={cfg.mu}" if isinstance(cfg, Algorithm.PoolConfig) else ""
        if "Expected more than 1 value per channel" in text:
            raise ValueError(
                f"batch={cfg.batch} gives a batch norm a single value of each channel, and its "
                "statistics need two; set batch=2 or more"
            ) from error
        words = ("can't allocate memory", "out of memory")
        if not (isinstance(error, MemoryError) or any(word in text for word in words)):
            raise
        raise OutOfMemory(
            f"there is not enough memory for steps of {algorithm.images_per_step} images; lower "
            f"batch={cfg.batch}{mu}, or choose a smaller network"
        ) from error


def fuses(device: torch.device, half: bool) -> bool:
    """Whether the optimizer's steps are one kernel each.

    On a CPU that saves nothing that can be measured. With scaled losses it would be wrong: the
    kernel is called for a step that overflows as well, and its momenta go astray.
    """
    return device.type == "cuda" and not half


def optimizer_of(algorithm: Algorithm, *, fused: bool) -> torch.optim.Optimizer:
    """The optimizer that the configuration names, on the algorithm's groups of parameters."""
    cfg, groups = algorithm.config, algorithm.param_groups()
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=cfg.lr, weight_decay=cfg.weight_decay, fused=fused)
    return SGD(
        groups,
        lr=cfg.lr,
        momentum=cfg.momentum,
        nesterov=cfg.nesterov and cfg.momentum > 0,
        weight_decay=cfg.weight_decay,
        fused=fused,
    )


class Trainer:
    """One stage: the algorithm, its teacher, its optimizer, and where it stands."""

    def __init__(
        self,
        algorithm: Algorithm,
        data: Data,
        folder: Path,
        log: StageLog,
        fingerprint: str,
        pauses: Pauses | None = None,
        origin: Classifier | None = None,
    ) -> None:
        cfg = algorithm.config
        self._origin = origin
        self._pauses, self._saved = pauses or Pauses(), time.monotonic()
        self.algorithm, self.data, self.folder, self.log = algorithm, data, folder, log
        self.fingerprint = fingerprint
        self.teacher = copy.deepcopy(algorithm).requires_grad_(False) if cfg.ema else algorithm
        device = next(algorithm.parameters()).device
        # Half precision has a short range: losses are scaled so that small gradients stay in it.
        half = algorithm.net.execution.dtype is torch.float16
        self._fused = fuses(device, half)
        self.optimizer = optimizer_of(algorithm, fused=self._fused)
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        self.step = 0
        self._validated = False  # at this step, and saved
        self._lr = 0.0
        self.best: dict[str, Any] = {"step": 0, **dict.fromkeys(RANKS, -math.inf)}
        self._seconds = 0.0  # of earlier processes
        self._since = time.perf_counter()
        self._readings = _Readings()
        # A teacher may see images in train mode, too (DASO's published code).
        self._models = list({id(m): m for m in (algorithm, self.teacher)}.values())
        self._norms = [norm for model in self._models for norm in batch_norms(model.net)]

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "best": dict(self.best),
            "seconds": self.seconds,
            "algorithm": self.algorithm.state_dict(),
            "teacher": self.teacher.state_dict() if self.teacher is not self.algorithm else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def between(self) -> dict[str, Any]:
        """All that a run needs that is resumed right after a step, before any validation there."""
        return self.state() | {"between": {"lr": self._lr, **self._readings.state()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.step, self.best = state["step"], dict(state["best"])
        self._validated = "between" not in state
        if not self._validated:
            self._lr = state["between"]["lr"]
            device = next(self.algorithm.parameters()).device
            self._readings.restore(state["between"], device)
        self._seconds = state["seconds"]
        self.algorithm.load_state_dict(state["algorithm"])
        if self.teacher is not self.algorithm:
            self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["fused"] = self._fused  # this machine's choice, not that of the one that saved
        self.scaler.load_state_dict(state["scaler"])

    @property
    def seconds(self) -> float:
        """Wall time spent in this stage, over all processes that worked on it."""
        return self._seconds + time.perf_counter() - self._since

    def context(self) -> Context:
        """What algorithms are told about the state of training."""
        where = (self.step, self.algorithm.config.steps, self.teacher, self._lr)
        return Context(*where, lambda model: evaluate(model, self.data), self._origin)

    @property
    def ended(self) -> bool:
        """Whether the last step is taken and validated."""
        return self._validated and (
            self.step == self.algorithm.config.steps or self.algorithm.finished()
        )

    def fit(self, diagnostics: Diagnostics | None) -> None:
        """Train to the last step, validating and saving on the way.

        Raises:
            Stopped: the run was asked to end; its state is saved.
        """
        cfg = self.algorithm.config
        self.algorithm.train()
        batches = self.algorithm.batches(self.data, self.step)
        while True:
            ends = self.step in (0, cfg.steps)
            anew = not ends and self.algorithm.clock(self.step)[0] == 0
            due = ends or anew or self.algorithm.evaluation_due(self.step)
            if due and not self._validated:
                self._read()
                self._validate(diagnostics)
                if anew:
                    self._begin_anew()
                    batches = self.algorithm.batches(self.data, self.step)
                self._save("last.pt", self.state(), keep_previous=True)
                self._validated = True
                self._drop_between()
            if self.ended:
                return
            with _explained(self.algorithm):
                self.step_once(batches)
            self._validated = False
            if self.step % READ_EVERY == 0:
                self._read()
            self._pause()

    def _pause(self) -> None:
        """Save between two validations, if it is time to, or if the run is asked to end.

        Raises:
            Stopped: it is.
        """
        world, minutes = self.algorithm.net.execution.world, self._pauses.minutes
        # All of several processes end after the same step, whichever of them was asked.
        asked = processes.largest(self._pauses.stop.asked, world)
        if not asked and not (minutes and time.monotonic() - self._saved >= 60 * minutes):
            return
        # What has become infinite is no state to go on from; the last validation left a good one.
        if self._readings.finite:
            self._save(checkpoint.BETWEEN, self.between())
        if asked:
            processes.largest(0, world)  # the others wait until the first one has saved
            raise Stopped(asked, f" after step {self.step} of {self.folder.name}")

    @property
    def writes(self) -> bool:
        """Whether this process, of several, is the one that saves."""
        world = self.algorithm.net.execution.world
        return world is None or world.rank == 0

    def _save(self, name: str, state: dict[str, Any], *, keep_previous: bool = False) -> None:
        if self.writes:
            checkpoint.save(self.folder / name, state, keep_previous=keep_previous)
        self._saved = time.monotonic()

    def _drop_between(self) -> None:
        if self.writes:
            (self.folder / checkpoint.BETWEEN).unlink(missing_ok=True)

    def _begin_anew(self) -> None:
        self._seed("restart")
        self.algorithm.restart(self.context())
        self.optimizer.state.clear()
        if self.teacher is not self.algorithm:
            self.teacher.load_state_dict(self.algorithm.state_dict())

    def _seed(self, purpose: str) -> None:
        seed = seed_of(self.data.seed, self.data.stage, purpose, self.step)
        if self.data.device.type == "cpu":
            # `torch.manual_seed` writes a trace for each kind of GPU that is not there, which takes
            # a tenth of a step on features.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def step_once(self, batches: Iterator[Batch]) -> None:
        """Take the next step; its random numbers follow from seed, stage and step alone."""
        self._seed("step")
        batch, cfg = next(batches), self.algorithm.config
        step, length = self.algorithm.clock(self.step)
        self._lr = cfg.lr * schedule(cfg.schedule, step, length)
        self._lr *= self.algorithm.lr_factor()
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr * group["lr_scale"]
        losses, logs = self.algorithm(batch, self.context())
        loss = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.algorithm.net.execution.world is not None:
            processes.average_statistics(self._norms)
        if self.teacher is not self.algorithm:
            decay = ema_decay(cfg.ema, step, cfg.ema_warmup)
            update_teacher(self.teacher, self.algorithm, decay, cfg.ema_buffers)
        self.step += 1
        self.algorithm.after_step(self.context())
        self._readings.add({"loss": loss} | {f"loss_{k}": v for k, v in losses.items()} | logs)

    def _read(self) -> None:
        values = self._readings.read()
        if not values:
            return
        if not math.isfinite(values["loss"]):
            if self._recovered("the loss"):
                return
            raise NonFiniteLoss(
                f"the loss became {values['loss']} within the {READ_EVERY} steps before step "
                f"{self.step}; {self._good()}a smaller lr usually helps"
            )
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        self.log.training(self.step, values | {"lr": lr})

    def _good(self) -> str:
        """Where the last good weights are, if there are any."""
        path = self.folder / "last.pt"
        return f"{path} holds the last good weights; " if path.exists() else ""

    def _recovered(self, what: str) -> bool:
        if not self.algorithm.recover(self.context()):
            return False
        self.log.warn(
            f"{what} was not finite before step {self.step}; the last good weights are back"
        )
        return True

    def _validate(self, diagnostics: Diagnostics | None) -> None:
        algorithm, cfg = self.algorithm, self.algorithm.config
        if algorithm.net.execution.world is not None:
            processes.reconcile(self._models)
        evaluation = evaluate_for(algorithm, self.teacher, self.data, self.step)
        if not torch.isfinite(evaluation.logits).all() and self._recovered("a prediction"):
            evaluation = evaluate_for(algorithm, self.teacher, self.data, self.step)
        if not torch.isfinite(evaluation.logits).all():
            raise NonFiniteLoss(
                f"the model's predictions at step {self.step} are not finite; {self._good()}"
                "a smaller lr usually helps"
            )
        evaluation = algorithm.decide(evaluation, self.context())
        figures = measure(evaluation, self.data.task.tail)
        # A copy, for on_validation may move the weights, and best.pt must hold the measured ones.
        measured = copy.deepcopy(self.teacher.state_dict())
        extra = algorithm.on_validation(evaluation, self.context())
        if cfg.select not in extra and cfg.select not in figures:
            raise ValueError(
                f"select={cfg.select} names a figure that on_validation did not return at step "
                f"{self.step}; it returned {', '.join(extra) or 'none'}"
            )
        value = float(extra[cfg.select] if cfg.select in extra else figures[cfg.select])
        # The worst class takes few values on a small validation set: mean recall breaks ties.
        found = {"feasibility": 0.0, "value": value, "tie": figures["mean_recall"]}
        if "feasibility" in extra:
            found["feasibility"] = float(extra["feasibility"])
        if math.isfinite(value) and [found[k] for k in RANKS] > [self.best[k] for k in RANKS]:
            self.best = {"step": self.step, **found}
            best = {"fingerprint": self.fingerprint, "teacher": measured}
            self._save("best.pt", best | self.best)
        # Only now: what the pool's true labels say is shown, and decides about no weights.
        if diagnostics is not None and evaluation.pool_logits is not None:
            extra |= diagnostics.of(evaluation.pool_logits)
        elif diagnostics is not None and "estimated_prior" in extra:
            extra |= diagnostics.prior(len(extra["estimated_prior"]))
        self.log.validation(self.step, figures, extra, evaluation.confusion)
        for text in algorithm.remarks():
            self.log.remark(self.step, text)


def fit(
    algorithm: Algorithm,
    data: Data,
    folder: Path,
    log: StageLog,
    fingerprint: str,
    *,
    resume: bool = False,
    diagnostics: Diagnostics | None = None,
    measure_last: bool = False,
    pauses: Pauses | None = None,
    origin: Classifier | None = None,
) -> Fitted:
    """Train one stage to its end and return it with the weights that its rule keeps.

    How, and with how many processes, is what the network's `execution` says. `origin` is what the
    stage before began with, for a method that `needs_origin`.

    Raises:
        NonFiniteLoss: training diverged; the checkpoints of the last good step stay.
        Stopped: `pauses.stop` asked for it, and the state is saved.
        OSError: a checkpoint could not be written.
    """
    world = algorithm.net.execution.world
    if reads_shares(algorithm):
        data = data.shared(world)
    pauses = pauses or Pauses()
    trainer = Trainer(algorithm, data, folder, log, fingerprint, pauses, origin)
    if trainer.writes:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.tidy(folder)
    resumed = resume and _restored(trainer, log)
    if not trainer.ended:  # a finished stage stays as it is
        net = algorithm.net
        with (
            pauses.stop.deferred(),
            net.trained_by(runner_of(net, log.warn)),
            log.stage(trainer.step, algorithm.config.steps, resumed=resumed),
        ):
            trainer.fit(diagnostics)
    seconds, kept, last = trainer.seconds, trainer.step, None
    if algorithm.config.keep == "best":
        try:
            path = folder / "best.pt"
            best = processes.from_first(lambda: checkpoint.load(path, fingerprint), world)
            if best["step"] != trainer.step and measure_last:
                last = measure_all(trainer.teacher, data)
            trainer.teacher.load_state_dict(best["teacher"])
            kept = best["step"]
        except checkpoint.Refused as error:
            log.warn(f"{error}; the last weights are kept instead")
    return Fitted(trainer.teacher, kept, trainer.step, seconds, last)


def _restored(trainer: Trainer, log: StageLog) -> bool:
    """Whether a usable checkpoint was found, which is restored."""
    folder, world = trainer.folder, trainer.algorithm.net.execution.world
    newest = processes.from_first(lambda: checkpoint.newest(folder, trainer.fingerprint), world)
    for reason in newest.refused:
        log.warn(f"refused: {reason}; using {newest.name or 'the start'} instead")
    if newest.state is not None:
        trainer.restore(newest.state)
    return newest.state is not None


def reads_shares(algorithm: Algorithm) -> bool:
    """Whether each of several processes decodes its rows of a batch of files only.

    In a lazy step every process needs all files: which images count is known too late.
    """
    kept = getattr(type(algorithm).forward, "keeps_rows", False)
    return bool(kept) and algorithm.net.execution.views != "lazy"


def runner_of(net: Classifier, warn: Callable[[str], None]) -> Callable[[Tensor], Tensor] | None:
    """What trains in the place of the network's body: compiled, shared, or None for the body."""
    body = net.body
    shared = body if net.execution.world is None else processes.wrapped(body)
    if net.execution.compiled and any(True for _ in body.parameters()):
        return execution.Compiled(shared, body, warn)
    return None if shared is body else shared.__call__
