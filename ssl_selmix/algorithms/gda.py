"""Gaussian discriminant analysis of the features, in closed form; the pool can refine its means."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ssl_selmix.algorithm import Algorithm, Context, Evaluation
from ssl_selmix.common.rules import at_least, one_of, within
from ssl_selmix.data.batch import Task
from ssl_selmix.methods import discriminant
from ssl_selmix.methods.discriminant import Linear, Shape, Sums
from ssl_selmix.methods.pool_prior import PoolPrior
from ssl_selmix.models import Classifier, heads

# Shrinkages and weights of the pool to choose from, if none is told.
SHRINKAGES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
EM_WEIGHTS = (0.03, 0.1, 0.3, 1.0)


class GDA(Algorithm):
    """Class means and one shared covariance of the labeled features (Wang et al., ICLR 2024).

    The classifier that follows from them takes the place of the network's own; the body stays.
    """

    trains = False
    needs_classifier = False
    views: Sequence[str] = ()
    contract_cases = ({"em": 2, "em_weight": 1.0},)  # which has all parts in it

    @dataclass
    class Config(Algorithm.FixedConfig):
        """How the covariance is regularised, and what the pool is used for."""

        shrinkage: float | None = within("(0, 1]", None)  # a; None: see shrinkage_by
        # validation: largest mean recall there; formula: D / (N - 1 + D), as in the paper
        shrinkage_by: str = one_of("validation", "formula")
        # take out of the bias what the error of the means of rare classes adds to it; paper: no
        corrected: bool = True
        # how the logits are calibrated on validation images
        calibrate: str = one_of("temperature", "none")
        # class distribution that the logits are adjusted to; pool: estimated
        prior: str = one_of("uniform", "labeled", "pool")
        em: int = at_least(0, 0)  # rounds of expectation maximisation over the pool
        # weight of an unlabeled image beside a labeled one; None: chosen on validation, or no EM
        em_weight: float | None = within("(0, 1]", None)
        # which images the covariance of EM is made of
        em_covariance: str = one_of("labeled", "both")
        em_prior: str = one_of("estimated", "labeled", "uniform")  # q, class frequencies there

    config: Config

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(heads.ended(net), task, config)
        if net.classifier.bias is None:
            net.classifier.bias = nn.Parameter(torch.zeros_like(net.classifier.weight[:, 0]))
        net.requires_grad_(False)
        asked = f"em={config.em}" if config.em else "prior=pool" if config.prior == "pool" else ""
        if asked and not task.num_unlabeled:
            raise ValueError(f"{asked} needs unlabeled images, and there are none; leave it out")
        self._remarks: tuple[str, ...] = ()

    def needs_features(self, step: int) -> Collection[str]:
        """Of the labeled images, and of the pool if it counts."""
        pool = self.config.em or self.config.prior == "pool"
        return ("labeled", "pool") if pool else ("labeled",)

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """Write the discriminant into the classifier; how it was chosen."""
        fit = _Fit(self.config, self.task, evaluation)
        found = fit.best()
        linear = found.linear.calibrated(found.temperature, fit.prior(found))
        head = self.net.classifier
        with torch.no_grad():
            head.weight.copy_(linear.weight)
            head.bias.copy_(linear.bias)
        self._remarks = fit.remarks(found)
        figures = {
            "shrinkage": found.shrinkage,
            "temperature": found.temperature,
            "em_weight": found.em_weight,
            "found_mean_recall": found.score,
        }
        return fit.logs | {name: torch.tensor(value) for name, value in figures.items()}

    def remarks(self) -> Sequence[str]:
        """What was chosen."""
        return self._remarks


@dataclass(frozen=True)
class _Found:
    """A discriminant, how it was made, its mean recall and temperature on validation."""

    linear: Linear
    shrinkage: float
    em_weight: float
    score: float
    temperature: float = 1.0


class _Fit:
    """The discriminants of one evaluation, and the best of them."""

    def __init__(self, config: GDA.Config, task: Task, evaluation: Evaluation) -> None:
        assert evaluation.labeled_features is not None
        assert evaluation.labeled_classes is not None
        self.config, self.task, self.evaluation = config, task, evaluation
        features, labels = evaluation.labeled_features, evaluation.labeled_classes
        self.num, self.num_features = features.shape
        self.centre = features.mean(0, dtype=torch.float64)
        self.labeled = discriminant.sums(features, labels, task.num_classes, self.centre)
        self.shape = Shape(self.labeled.covariance(), self.centre)
        present = (self.labeled.counts > 0).double()
        self.uniform = present / present.sum()  # no class without labeled images can be found
        self.trusted = True  # whether the estimate of the pool's class distribution was
        self.logs: dict[str, Tensor] = {}

    def best(self) -> _Found:
        """By the labeled images; with EM, the best of several weights of the pool, 0 as well."""
        cfg = self.config
        shrinkages: Sequence[float] = SHRINKAGES
        if cfg.shrinkage is not None:
            shrinkages = [cfg.shrinkage]
        elif cfg.shrinkage_by == "formula":
            shrinkages = [discriminant.formula_shrinkage(self.num, self.num_features)]
        found = max((self._made(self.labeled, a) for a in shrinkages), key=lambda f: f.score)
        found = self._calibrated(found)
        if not cfg.em:
            return found
        q = self.pool_prior(found)
        if cfg.em_weight is not None:
            return self._em(found, q, cfg.em_weight)
        return max([found, *(self._em(found, q, w) for w in EM_WEIGHTS)], key=lambda f: f.score)

    def _made(self, of: Sums, shrinkage: float, em_weight: float = 0.0) -> _Found:
        shape, seen = self.shape, self.evaluation
        if em_weight and self.config.em_covariance == "both":
            shape = Shape(of.covariance(), self.centre)
        how = {"corrected": self.config.corrected}
        linear = shape.classifier(of.means(), of.counts, shrinkage, **how)
        decided = linear(seen.features).masked_fill(self.uniform == 0, -math.inf).argmax(1)
        weights = discriminant.class_weights(seen.labels, self.task.num_classes)
        recall = float((weights * (decided == seen.labels)).sum())
        return _Found(linear, shrinkage, em_weight, recall)

    def _calibrated(self, found: _Found) -> _Found:
        """With its temperature, which decides about no class and takes longer than the rest."""
        if self.config.calibrate == "none":
            return found
        logits = found.linear(self.evaluation.features)
        return replace(found, temperature=discriminant.temperature(logits, self.evaluation.labels))

    def _em(self, start: _Found, q: Tensor, weight: float) -> _Found:
        """Rounds of E steps, shares of the pool's images, and M steps, means and covariance."""
        found, pool = start, self.evaluation.pool_features
        assert pool is not None
        both = self.config.em_covariance == "both"
        for _ in range(self.config.em):
            posterior = found.linear.calibrated(found.temperature, q)

            def shares(rows: Tensor, posterior: Linear = posterior) -> Tensor:
                return weight * posterior(rows).softmax(1)

            k = self.task.num_classes
            unlabeled = discriminant.sums(pool, shares, k, self.centre, shape=both)
            found = self._made(self.labeled + unlabeled, start.shrinkage, weight)
            found = self._calibrated(found)
        return found

    def prior(self, found: _Found) -> Tensor:
        """The class distribution that the classifier is adjusted to, (K,)."""
        if self.config.prior == "pool":
            return self.pool_prior(found)
        labeled = self.config.prior == "labeled"
        return self.task.labeled_prior.to(self.uniform) if labeled else self.uniform

    def pool_prior(self, found: _Found) -> Tensor:
        """q, (K,), 0 for classes without labeled images."""
        labeled = self.task.labeled_prior.to(self.uniform)
        if self.config.em_prior != "estimated":
            return labeled if self.config.em_prior == "labeled" else self.uniform
        pool, seen = self.evaluation.pool_features, self.evaluation
        assert pool is not None
        linear = found.linear.calibrated(found.temperature, self.uniform)
        estimate = PoolPrior(self.task, PoolPrior.Config("estimated")).to(pool.device)
        pair = replace(seen, logits=linear(seen.features), pool_logits=linear(pool))
        self.logs = estimate.estimate(pair)
        self.trusted = bool(estimate.known)
        q = (estimate.q if self.trusted else labeled) * (self.uniform > 0)
        return q / q.sum()

    def remarks(self, found: _Found) -> tuple[str, ...]:
        """What was chosen, and what to be careful about."""
        cfg = self.config
        chosen = cfg.shrinkage is None and cfg.shrinkage_by == "validation"
        told = f"shrinkage={found.shrinkage:.3g}{', chosen on validation' if chosen else ''}"
        if cfg.em and cfg.em_weight is None:
            told += f"; em_weight={found.em_weight:g}, chosen on validation"
            if not found.em_weight:
                told += ": the pool does not help there and is not used"
        notes = [f"{told}."]
        if not self.trusted:
            notes.append(
                "The pool's class distribution could not be estimated; the labeled one is used."
            )
        absent = [n for n, p in zip(self.task.class_names, self.uniform, strict=True) if not p]
        if absent:
            notes.append(f"Without labeled images, and never predicted: {', '.join(absent)}.")
        return tuple(notes)
