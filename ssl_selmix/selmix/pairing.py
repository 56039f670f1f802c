"""Which class pairs SelMix mixes: gains, the distribution P, pseudo-labels, and batches of pairs.

Shapes: N validation images, M pool images, K classes, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn

from ssl_selmix import gains, label_shift, objectives
from ssl_selmix.algorithm import Batch, Evaluation, Task
from ssl_selmix.common.rules import Checked, check, one_of, positive, within
from ssl_selmix.data import Data
from ssl_selmix.data.batch import Draw
from ssl_selmix.selmix.pairs import ClassPairSampler
from ssl_selmix.selmix.relative import RelativeHead

POLICIES = ("selective", "greedy", "uniform", "natural")


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Class centroids K×D in float64 of features N×D with labels (N,)."""
    one_hot = torch.nn.functional.one_hot(labels, num_classes).double()
    return (one_hot.T @ features.double()) / one_hot.sum(0)[:, None]


def centroid_logits(prototypes: Tensor, head: nn.Linear) -> Tensor:
    """Logits K×K in float64 of the class centroids K×D."""
    return prototypes @ head.weight.detach().double().T + head.bias.detach().double()


class Pairing(nn.Module):
    """P and the pseudo-labels as state; re-estimated from an evaluation, drawn from in batches."""

    @dataclass
    class Config(Checked):
        """How pairs are chosen."""

        # T of P = softmax(G / T); auto: by the largest gain
        temperature: int | float | str = "auto"
        # spreads P over more pairs: multiplies the automatic temperature
        spread: float = positive(1.0)
        # share of a uniform row in C, so that zero recall has a gradient
        smoothing: float = within("[0, 1)", 0.01)
        beta_min: float = within("[0, 1]", 0.6)  # mixing weight beta ~ U[beta_min, 1]
        # how labels enter the gain; mixed: as in the theorem
        label_term: str = one_of("mixed", "published")
        policy: str = one_of(*POLICIES)  # which pairs are drawn; natural: by class frequencies
        # share of uniform pairs in P; the released sampler has 1 / (K + 1)
        uniform_share: float = within("[0, 1]", 0.0)
        partners: str = one_of("pool", "labeled")  # where second images come from
        # how partners within a class are weighted by their pseudo-label
        pseudo_weight: str = one_of("none", "confidence")
        pseudo_prior: str = one_of("none", "estimated")  # prior that corrects pseudo-labels

        def __post_init__(self) -> None:
            """Refuse a temperature that is neither positive nor auto, and what has no effect."""
            super().__post_init__()
            absolute = isinstance(self.temperature, int | float)
            check("temperature", self.temperature, "> 0" if absolute else ("auto",))
            if absolute and self.spread != 1:
                raise ValueError("spread multiplies temperature=auto; set spread=1 beside a number")
            if self.partners == "labeled":
                for key in ("pseudo_weight", "pseudo_prior"):
                    if (value := getattr(self, key)) != "none":
                        raise ValueError(
                            f"{key}={value} is for partners of the pool; leave it out beside "
                            "partners=labeled"
                        )
            if self.policy == "natural" and self.uniform_share:
                raise ValueError(
                    f"uniform_share={self.uniform_share} is no part of policy=natural; set it to 0"
                )

    pairs: Tensor  # P, K×K, rows: class of the labeled image
    pseudo_labels: Tensor  # of the pool, (M,)
    weights: Tensor  # of the pool's images within their class, (M,)

    def __init__(self, task: Task, config: Config, bias_trained: bool) -> None:
        super().__init__()
        self.task, self.config, self.bias_trained = task, config, bias_trained
        k, m = task.num_classes, task.num_unlabeled
        self.register_buffer("pairs", torch.full((k, k), 1 / k**2, dtype=torch.float64))
        self.register_buffer("pseudo_labels", torch.zeros(m, dtype=torch.int64))
        self.register_buffer("weights", torch.ones(m, dtype=torch.float64))
        self._num_estimates = 0

    def estimate(
        self,
        objective: objectives.Objective,
        evaluation: Evaluation,
        prototypes: Tensor,
        head: nn.Linear,
        mixed: bool = True,
        units: RelativeHead | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """dψ/d logits K×K at these weights, and what to log; P and pseudo-labels follow.

        Without mixing P is the same, and what its pairs promise is the gain of their first images.
        With `units` both are by logits over the temperature.

        Shape: prototypes K×D.
        """
        cfg = self.config
        weight, bias = head.weight.detach(), head.bias.detach()
        if units is not None:
            prototypes, weight, bias = units.in_units(prototypes, head)
        gradient = gains.logit_gradient(objective, evaluation.confusion, smoothing=cfg.smoothing)

        def gains_at(mix: float) -> Tensor:
            return gains.gain_matrix(
                gradient,
                prototypes,
                weight,
                bias,
                mix=mix,
                bias_trained=self.bias_trained,
                label_term=cfg.label_term,
            )

        gain = gains_at((1 + cfg.beta_min) / 2)
        logs = self._pseudo_label(evaluation)
        self.pairs.copy_(self._distribution(gain))
        self._num_estimates += 1
        return gradient, logs | {
            "gain_max": gain.max(),
            "gain_expected": (self.pairs * (gain if mixed else gains_at(1.0))).sum(),
            "gain_matrix": gain,
            "pair_distribution": self.pairs.clone(),
        }

    def _pseudo_label(self, evaluation: Evaluation) -> dict[str, Tensor]:
        """Classes and weights of the pool's images by the current model."""
        if evaluation.pool_logits is None:
            return {}
        logits, logs = evaluation.pool_logits.double(), {}
        if self.config.pseudo_prior == "estimated":
            found = label_shift.estimate(
                "em",
                val_probs=evaluation.logits.double().softmax(1),
                val_labels=evaluation.labels,
                unlabeled_probs=logits.softmax(1),
                bootstrap=1,
            )
            logs = {"estimated_prior": found.prior}
            # None: em fell back to counting, whose prior is biased; do not shift by it.
            if found.calibration is not None:
                seen = torch.bincount(evaluation.labels, minlength=logits.shape[1]).double()
                shift = found.prior.clamp_min(1e-6).log() - (seen / seen.sum()).log()
                logits = label_shift.calibrated(logits.softmax(1), found.calibration).log() + shift
        confidence, classes = logits.softmax(1).max(1)
        self.pseudo_labels.copy_(classes)
        if self.config.pseudo_weight == "confidence":
            self.weights.copy_(confidence)
        return logs

    def _distribution(self, gain: Tensor) -> Tensor:
        cfg = self.config
        if cfg.policy == "natural":
            pool = torch.bincount(self.pseudo_labels, minlength=len(gain)).double()
            prior = self.task.labeled_prior.to(gain.device)
            return torch.outer(prior, (pool + prior) / (pool + prior).sum())
        temperature = cfg.temperature
        if isinstance(temperature, str):
            temperature = cfg.spread * gains.auto_temperature(gain.double())
        pairs = gains.pair_distribution(gain, temperature, policy=cfg.policy)
        return (1 - cfg.uniform_share) * pairs + cfg.uniform_share / gain.numel()

    def batches(self, data: Data, views: Sequence[str], size: int, start: int) -> Iterator[Batch]:
        """Endless batches of image pairs by the current P, from step `start` on."""
        step = start
        while True:
            drawn_by = self._num_estimates
            for batch in data.stream(self._draws(data, size, step), views):
                yield batch
                step += 1
                if self._num_estimates > drawn_by:
                    break  # and drop what the stream has drawn ahead by the old P

    def _draws(self, data: Data, size: int, start: int) -> Iterator[Draw]:
        """Endless pairs by P and the pseudo-labels as they are now."""
        candidates = torch.cat([data.labeled, data.unlabeled])
        used = len(data.unlabeled) if self.config.partners == "pool" else 0
        pseudo_labels, weights = self.pseudo_labels[:used].cpu(), self.weights[:used].cpu()
        sampler = ClassPairSampler(data.labels, pseudo_labels, len(self.pairs), weights)
        sampler.refresh(self.pairs)
        for step in count(start):
            first, second = sampler.draw(size, data.generator("pairs", step))
            yield Draw(
                step,
                labeled=data.labeled[first],
                y=data.labels[first],
                unlabeled=candidates[second],
                index_u=second - len(data.labeled),
            )
