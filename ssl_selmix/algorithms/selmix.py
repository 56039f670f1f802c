"""SelMix: fine-tune for an objective by mixing features of the class pairs that raise it most."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix import losses, objectives
from ssl_selmix.algorithm import Context, Evaluation, keeps_rows
from ssl_selmix.common.rules import at_least, one_of
from ssl_selmix.data import Data
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.decision.choose import FEW_IMAGES
from ssl_selmix.models import Classifier
from ssl_selmix.selmix.fine_tuning import FineTuning
from ssl_selmix.selmix.offsets import FittedStart
from ssl_selmix.selmix.pairing import Pairing, centroid_logits, class_means
from ssl_selmix.selmix.relative import REFERENCE, RelativeHead
from ssl_selmix.selmix.stopping import Stopping
from ssl_selmix.selmix.trust import TrustRegion, standard_error


class SelMix(FineTuning):
    """Ramasubramanian et al., ICLR 2024; gains by the theorem, partners by pseudo-labels."""

    views = ("weak",)
    figures = ("objective",)

    @dataclass
    class Config(FineTuning.Config, Pairing.Config, objectives.Config):
        """Hyper-parameters."""

        train_bias: bool = True  # train the classifier's bias, and count it in the gain
        schedule: str = "auto"  # auto: constant while step=trust finds the rate, else cosine
        select: str = "objective"
        # trust: rate and interval follow the kept promises; fixed: the paper
        step: str = one_of("trust", "fixed")
        # relative: the first rate follows the gains, and the scale of features and logits changes
        # nothing; absolute: lr as it is, and the loss of the logits as they are; auto: relative
        # where step=trust has 50 validation images a class to judge by
        rate: str = one_of("auto", "relative", "absolute")
        # fitted: before the first step offsets are fitted, and images judged by those of others
        offsets: str = one_of("none", "fitted")
        # early end; gain: the paper's rule; auto: patience with a relative rate, else none
        stop: str = one_of("auto", "none", "gain", "patience")
        patience: int = at_least(1, 10)  # re-estimations without a better objective
        mix: str = one_of("feature", "none")  # none: train on the first image of each pair alone

        def __post_init__(self) -> None:
            """Resolve the schedule; refuse values without meaning."""
            trust = self.step == "trust"
            if self.schedule == "auto":
                self.schedule = "constant" if trust else "cosine"
            super().__post_init__()
            if trust and (self.ema or self.momentum):
                raise ValueError("step=trust takes single steps back; set ema=0 momentum=0")
            if self.rate == "relative" and not trust:
                raise ValueError("rate=relative is found by step=trust; leave it out, or set that")
            if self.offsets == "fitted" and not self.train_bias:
                raise ValueError(
                    "offsets=fitted moves the classifier's bias, which train_bias=false forbids; "
                    "leave out one of them"
                )
            if self.stop not in ("auto", "patience") and self.patience != type(self).patience:
                raise ValueError(f"patience={self.patience} needs stop=patience; add it")
            never = self.stop == "auto" and (self.rate == "absolute" or not trust)
            if never and self.patience != type(self).patience:
                raise ValueError(
                    f"patience={self.patience} does nothing with stop=auto where the rate is "
                    "absolute; add stop=patience"
                )

        def relative(self, task: Task) -> bool:
            """Whether the rate is relative, for these validation images."""
            enough = task.num_validation >= FEW_IMAGES * task.num_classes
            return self.rate == "relative" or (
                self.rate == "auto" and self.step == "trust" and enough
            )

    config: Config

    def __init__(
        self,
        net: Classifier,
        task: Task,
        config: Config,
        objective: objectives.Objective | None = None,
    ) -> None:
        super().__init__(net, task, config)
        self.objective = objective or config.build_objective(task.num_classes, task.tail)
        self.pairing = Pairing(task, config, bias_trained=config.train_bias)
        relative = config.relative(task)
        self.relative = RelativeHead() if relative else None
        self.trust = TrustRegion(net, task, config.evaluate_every, config.batch, relative)
        fitted = config.offsets == "fitted"
        self.start = FittedStart(task.num_classes, task.num_validation) if fitted else None
        automatic = "patience" if relative else "none"
        stop = automatic if config.stop == "auto" else config.stop
        if stop == "none" and config.patience != type(config).patience:
            raise ValueError(
                f"patience={config.patience} does nothing here: with fewer than {FEW_IMAGES} "
                "validation images a class, stop=auto never ends early; add stop=patience"
            )
        self.stopping = Stopping(stop, config.patience)
        net.classifier.bias.requires_grad_(config.train_bias)

    @keeps_rows
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Cross-entropy of the mixed features against the labeled image's class.

        The partner lends features and no label (section 4 of the paper).
        """
        features = self.net.features(batch.x)
        if self.config.mix == "feature":
            low = self.config.beta_min
            beta = low + (1 - low) * torch.rand(len(features), device=features.device)
            features = losses.mix_features(features, self.net.features(batch.u[0]), beta)
        head = self.net.classifier
        logits = self.relative.logits(head, features) if self.relative else head(features)
        return {"mixed": F.cross_entropy(logits, batch.y)}, {}

    def decide(self, evaluation: Evaluation, ctx: Context) -> Evaluation:
        """Before the first step, fit the offsets and add them to the bias."""
        if self.start is None or ctx.step:
            return evaluation
        # By its name the worst class has a floor under mean recall.
        protect = self.config.objective == "min_recall" and not self.config.constraints
        move = self.start.fit(self.objective, evaluation, protect)
        with torch.no_grad():
            self.net.classifier.bias.add_(move.to(self.net.classifier.bias))
        pool, moved = evaluation.pool_logits, move.to(evaluation.logits)
        return dataclasses.replace(
            evaluation,
            logits=evaluation.logits + moved,
            pool_logits=None if pool is None else pool + moved,
        )

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """Compare the last promise with what happened; re-estimate gains, P and pseudo-labels."""
        judged = self.start.judged(evaluation) if self.start else evaluation
        confusion = judged.confusion
        updated = copy.deepcopy(self.objective)
        updated.update(confusion)
        logs = objectives.report(updated, confusion, ranked=self.config.select == "objective")
        prototypes = class_means(evaluation.features, evaluation.labels, self.task.num_classes)
        logits = centroid_logits(prototypes, ctx.teacher.net.classifier)  # of what was evaluated
        if self.relative is not None:
            # Movements count in the units of the step: those of the temperature before it.
            logits = logits / self.relative.temperature
        broken = False
        if ctx.step:
            verdict = self.trust.judge(self.objective, logits, judged, self.config.smoothing)
            broken = verdict.broken and self.config.step == "trust"
            logs |= verdict.logs()
        if broken:
            self.trust.take_back(self.net)
            if self.relative is not None:
                self.stopping.missed()
        else:
            self.objective.load_state_dict(updated.state_dict())
            logs |= self._estimate(judged, prototypes, ctx)
            # Any gain in feasibility is worth more than any change of a figure in [0, 1].
            worth = float(logs["objective"]) + 1e3 * updated.feasibility(confusion)
            self.stopping.record(float(logs["gain_max"]), worth)
            if self.objective.multipliers is not None:
                logs["multipliers"] = self.objective.multipliers.clone()
        self.trust.start_interval(ctx.step)
        trust = {"taken_back": float(broken), "trust_factor": self.lr_factor()}
        return logs | {name: torch.tensor(value) for name, value in trust.items()}

    def _estimate(
        self, evaluation: Evaluation, prototypes: Tensor, ctx: Context
    ) -> dict[str, Tensor]:
        """Accept the weights, with new gains and P; what to log. Shape: prototypes K×D."""
        head, units, logs = ctx.teacher.net.classifier, self.relative, {}
        logits = centroid_logits(prototypes, head)
        if units is not None:
            units.measure(evaluation)
            logits = logits / units.temperature
            logs = {"temperature": units.temperature.clone()}
        mixed = self.config.mix == "feature"
        gradient, found = self.pairing.estimate(
            self.objective, evaluation, prototypes, head, mixed, units
        )
        self.trust.accept(self.net, evaluation, logits, gradient, found["gain_expected"])
        if units is not None and not ctx.step:
            error = standard_error(
                self.objective, evaluation.confusion, evaluation.labels, self.config.smoothing
            )
            self.trust.begin(error, REFERENCE)
        return logs | found

    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        """Weak views of image pairs drawn by the current P; without a pool, labeled pairs."""
        return self.pairing.batches(data, self.views, self.config.batch, start)

    def lr_factor(self) -> float:
        """The trusted share of the configured rate."""
        return self.trust.factor if self.config.step == "trust" else 1.0

    def evaluation_due(self, step: int) -> bool:
        """Every `evaluate_every` steps, or when the trusted interval is over."""
        trusted = self.config.step == "trust"
        return step >= self.trust.due if trusted else super().evaluation_due(step)

    def after_step(self, ctx: Context) -> None:
        """Add up the rate, which the promised change is proportional to."""
        self.trust.rate_sum += ctx.lr

    def needs_pool(self, step: int) -> bool:
        """For pseudo-labels, unless partners are labeled images."""
        return self.config.partners == "pool"

    def recover(self, ctx: Context) -> bool:
        """Take the last good weights back, if the step is trusted and can still shrink."""
        return self.config.step == "trust" and self.trust.recover(self.net, ctx.step)

    def finished(self) -> bool:
        """Whether the early-stopping rule says so."""
        return self.stopping.finished

    @property
    def images_per_step(self) -> int:
        """Both images of every pair."""
        return self.config.batch * (2 if self.config.mix == "feature" else 1)
