"""Offsets in the classifier's bias, or a gain matrix behind it, chosen on validation images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ssl_selmix import decision
from ssl_selmix.algorithm import Algorithm, Context, Evaluation
from ssl_selmix.common.rules import at_least, one_of
from ssl_selmix.data.batch import Task
from ssl_selmix.decision.choose import CALIBRATIONS
from ssl_selmix.methods import aim
from ssl_selmix.methods.pool_prior import PoolPrior
from ssl_selmix.models import Classifier
from ssl_selmix.models.classifier import Decided


class Posthoc(Algorithm):
    """`ssl_selmix.posthoc` on the validation logits, or thresholds by the labeled class shares.

    Adding b to the logits is adding b to the bias, so what follows needs to know nothing of it. A
    gain matrix becomes part of the classifier, `models.classifier.Decided`, and ends the run.
    """

    trains = False
    views: Sequence[str] = ()

    @dataclass
    class Config(aim.Config):
        """What the offsets are chosen for, and how."""

        # offsets: fitted; gains: a matrix, for what offsets miss; labeled_prior: offsets that are
        # -log of the labeled class shares (Buda et al., 2018)
        rule: str = one_of("offsets", "gains", "labeled_prior")
        folds: int = at_least(2, 5)  # number of folds of the cross-fitting
        calibrate: str = one_of(*CALIBRATIONS)  # what is taken for posteriors
        # class shares at deployment; pool: estimated from the unlabeled images
        prior: str = one_of("validation", "pool", "given")
        # K shares or counts of the classes at deployment
        prior_given: list[float] = field(default_factory=list)

        def __post_init__(self) -> None:
            """Refuse a rule that no network can hold, and a prior without meaning."""
            if self.rule == "mixture":
                raise ValueError(
                    "rule=mixture draws a rule for each image, which no network holds; use "
                    "rule=gains, or ssl_selmix.posthoc(..., rule='mixture') on the logits"
                )
            super().__post_init__()
            if bool(self.prior_given) != (self.prior == "given"):
                raise ValueError(
                    f"prior={self.prior} and prior_given={self.prior_given} contradict each other; "
                    "prior=given takes K numbers, and no other does"
                )

    config: Config
    offsets: Tensor  # b, (K,) float64, mean 0
    seed: Tensor  # of the folds

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        if net.classifier.bias is None:
            net.classifier.bias = nn.Parameter(torch.zeros_like(net.classifier.weight[:, 0]))
        if config.rule == "gains":
            net.classifier = Decided(net.classifier)
        net.requires_grad_(False)
        self.objective = aim.objective_of(config, task)
        # Asks for what cannot be had before anything is trained.
        kind = {"pool": "estimated", "given": "given"}.get(config.prior, "none")
        self.pool_prior = PoolPrior(task, PoolPrior.Config(kind, config.prior_given))
        if config.prior == "pool" and not task.num_unlabeled:
            raise ValueError("prior=pool needs unlabeled images, and there are none; leave it out")
        self.register_buffer("offsets", torch.zeros(task.num_classes, dtype=torch.float64))
        # Follows from the run's seed, from which the generator was set.
        self.register_buffer("seed", torch.randint(2**31 - 1, ()))
        self._remarks: tuple[str, ...] = ()

    def needs_pool(self, step: int) -> bool:
        """To estimate its class distribution."""
        return self.config.prior == "pool"

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """Choose the rule and make it part of the classifier; the figures before and after."""
        if self.config.rule == "labeled_prior":
            logs = self._threshold(evaluation)
        else:
            logs = self._fit(evaluation)
        head = self.net.classifier
        if isinstance(head, Decided):
            return logs | {"gain": head.gain.clone()}
        with torch.no_grad():
            head.bias.add_(self.offsets.to(head.bias))
        return logs | {"offsets": self.offsets.clone()}

    @property
    def hands_on_linear(self) -> bool:
        """Unless it ends in a gain matrix."""
        return self.config.rule != "gains"

    def _fit(self, evaluation: Evaluation) -> dict[str, Tensor]:
        config, logs = self.config, {}
        if config.prior == "pool":
            logs = self.pool_prior.estimate(evaluation)
        used = self.pool_prior.used and bool(self.pool_prior.known)
        # By its name the worst class has a floor under mean recall.
        alone = config.objective == "min_recall" and not config.constraints
        rule = decision.posthoc(
            evaluation.logits,
            evaluation.labels,
            objective="min_recall" if alone else self.objective,
            rule=config.rule,
            folds=config.folds,
            calibrate=config.calibrate,
            prior=self.pool_prior.q if used else None,
            seed=int(self.seed),
        )
        if rule.gains is None:
            self.offsets.copy_(rule.offsets)
        else:
            head = self.net.classifier
            assert isinstance(head, Decided)
            head.decide(torch.from_numpy(rule.gains[0]).to(head.gain), rule.temperature)
        self._remarks = rule.notes
        if config.prior == "pool" and not used:
            self._remarks += (
                "The pool's class distribution could not be estimated; that of the validation "
                "images is used.",
            )
        before, after, unseen = (
            float(figures["objective"]) for figures in (rule.before, rule.after, rule.cross_fitted)
        )
        found = _scalars(objective=before, after=after, cross_fitted=unseen)
        low, high = rule.interval
        return logs | found | _scalars(optimism=after - unseen, change_low=low, change_high=high)

    def _threshold(self, evaluation: Evaluation) -> dict[str, Tensor]:
        counts = self.task.labeled_counts.double().clamp_min(1)
        self.offsets.copy_(counts.log().mean() - counts.log())
        shifted = Evaluation(
            evaluation.features,
            evaluation.logits + self.offsets.to(evaluation.logits),
            evaluation.labels,
        )
        before = self.objective.metric(evaluation.confusion)
        after = self.objective.metric(shifted.confusion)
        self._remarks = ("Thresholds by the labeled class shares; nothing was fitted.",)
        return _scalars(objective=before, after=after)

    def remarks(self) -> Sequence[str]:
        """How the offsets were found, and what to be careful about."""
        return self._remarks


def _scalars(**values: float) -> dict[str, Tensor]:
    """Figures to log: the objective as it is, and `objective_` before the names of others."""
    return {
        name if name == "objective" else f"objective_{name}": torch.tensor(value)
        for name, value in values.items()
    }
