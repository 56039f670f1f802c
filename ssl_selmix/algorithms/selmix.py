"""SelMix: fine-tune for an objective by mixing features of the class pairs that raise it most."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ssl_selmix import losses, objectives
from ssl_selmix.algorithm import Algorithm, Batch, Context, Evaluation, Rules, Task
from ssl_selmix.data import Data
from ssl_selmix.models import Classifier, batch_norms
from ssl_selmix.pairing import Pairing, centroid_logits, class_means
from ssl_selmix.stopping import Stopping
from ssl_selmix.trust import TrustRegion


class SelMix(Algorithm):
    """Ramasubramanian et al., ICLR 2024; gains by the theorem, partners by pseudo-labels."""

    views = ("weak",)
    figures = ("objective",)

    @dataclass
    class Config(Algorithm.Config, Pairing.Config, objectives.Config):
        """Hyper-parameters."""

        steps: int = 500
        lr: float = 3e-4  # of the classifier
        body_lr: float = 0.1  # rate of the features, as a share of lr
        train_bias: bool = True  # train the classifier's bias, and count it in the gain
        momentum: float = 0.0
        nesterov: bool = False
        schedule: str = "auto"  # auto: constant while step=trust finds the rate, else cosine
        ema: float = 0.0
        evaluate_every: int = 50  # re-estimation of gains, pseudo-labels and multipliers
        select: str = "objective"
        step: str = "trust"  # trust: rate and interval follow the kept promises; fixed: the paper
        stop: str = "none"  # early end: none, gain (the paper's rule) or patience
        patience: int = 10  # re-estimations without a better objective
        mix: str = "feature"  # feature, or none: train on the first image of each pair alone
        batch_norm: str = "batch"  # statistics: of the batch, as published; frozen: stored ones

        RULES: ClassVar[Rules] = {
            "body_lr": ">= 0",
            "step": ("trust", "fixed"),
            "stop": ("none", "gain", "patience"),
            "patience": ">= 1",
            "mix": ("feature", "none"),
            "batch_norm": ("frozen", "batch"),
        }

        def __post_init__(self) -> None:
            """Resolve the schedule; refuse values without meaning."""
            if self.schedule == "auto":
                self.schedule = "constant" if self.step == "trust" else "cosine"
            Algorithm.Config.__post_init__(self)
            Pairing.Config.__post_init__(self)
            if self.step == "trust" and (self.ema or self.momentum):
                raise ValueError("step=trust takes single steps back; set ema=0 momentum=0")

    config: Config

    def __init__(
        self,
        net: Classifier,
        task: Task,
        config: Config,
        objective: objectives.Objective | None = None,
    ) -> None:
        super().__init__(net, task, config)
        self.objective = objective or config.build_objective(task)
        self.pairing = Pairing(task, config, bias_trained=config.train_bias)
        self.trust = TrustRegion(net, task, config.evaluate_every, config.batch)
        self.stopping = Stopping(config.stop, config.patience)
        self._momenta = [module.momentum for module in batch_norms(net)]
        for module in batch_norms(net):
            module.requires_grad_(False)
        net.classifier.bias.requires_grad_(config.train_bias)

    def train(self, mode: bool = True) -> SelMix:
        """Train mode that leaves the stored batch statistics as they are."""
        super().train(mode)
        for module in batch_norms(self.net):
            module.momentum = 0.0
            module.train(mode and self.config.batch_norm == "batch")
        return self

    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Cross-entropy of the mixed features against the labeled image's class."""
        features = self.net.features(batch.x)
        if self.config.mix == "feature":
            low = self.config.beta_min
            beta = low + (1 - low) * torch.rand(len(features), device=features.device)
            features = losses.mix_features(features, self.net.features(batch.u[0]), beta)
        return {"mixed": losses.mixed_cross_entropy(self.net.classifier(features), batch.y)}, {}

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """Compare the last promise with what happened; re-estimate gains, P and pseudo-labels."""
        confusion = evaluation.confusion
        updated = copy.deepcopy(self.objective)
        updated.update(confusion)
        logs = {"objective": torch.tensor(updated.metric(confusion))}
        slacks = updated.constraints(confusion)  # negative: violated
        logs |= {f"slack_{name}": torch.tensor(slack) for name, slack in slacks.items()}
        feasibility = min([0.0, *slacks.values()])
        if self.config.select == "objective":
            logs["feasibility"] = torch.tensor(feasibility, dtype=torch.float64)
        prototypes = class_means(evaluation.features, evaluation.labels, self.task.num_classes)
        head = ctx.teacher.net.classifier  # the one that was evaluated
        logits = centroid_logits(prototypes, head)
        broken = False
        if ctx.step:
            verdict = self.trust.judge(self.objective, logits, evaluation, self.config.smoothing)
            broken = verdict.broken and self.config.step == "trust"
            logs |= verdict.logs()
        if broken:
            self.trust.take_back(self.net)
        else:
            self.objective.load_state_dict(updated.state_dict())
            gradient, found = self.pairing.estimate(self.objective, evaluation, prototypes, head)
            self.trust.accept(self.net, evaluation, logits, gradient, found["gain_expected"])
            logs |= found
            # Any gain in feasibility is worth more than any change of a figure in [0, 1].
            self.stopping.record(
                float(found["gain_max"]), float(logs["objective"]) + feasibility * 1e3
            )
            if self.objective.multipliers is not None:
                logs["multipliers"] = self.objective.multipliers.clone()
        self.trust.start_interval(ctx.step)
        return logs | {
            "taken_back": torch.tensor(float(broken)),
            "trust_factor": torch.tensor(self.lr_factor()),
        }

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

    def param_groups(self) -> list[dict[str, Any]]:
        """A slow body, a fast classifier; the classifier's bias is not decayed."""
        head = self.net.classifier
        body = [p for p in self.net.backbone.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": body, "lr_scale": self.config.body_lr},
            {"params": [head.weight], "lr_scale": 1.0},
        ]
        if self.config.train_bias:
            groups.append({"params": [head.bias], "lr_scale": 1.0, "weight_decay": 0.0})
        return groups

    def export(self) -> Classifier:
        """The network as it came: its batch norms keep statistics again."""
        net = super().export()
        for module, momentum in zip(batch_norms(net), self._momenta, strict=True):
            module.momentum = momentum
        return net
