"""The class distribution of the unlabeled pool as the state of a training algorithm.

Shapes: K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ssl_selmix import label_shift
from ssl_selmix.algorithm import Algorithm, Context, Evaluation, Task
from ssl_selmix.common.rules import Checked, at_least, one_of

SOURCES = ("none", "uniform", "labeled", "estimated", "given")
FLOOR = 0.01  # of an estimate, in units of 1/K: a class that seems to be absent may yet turn up


class PoolPrior(nn.Module):
    """q, the class frequencies of the pool: known, assumed, or re-estimated as training goes on.

    An estimate comes from held-out posteriors (`label_shift`). One that had to fall back to
    counting is logged and not used: the pseudo-labels would confirm themselves.
    """

    @dataclass
    class Config(Checked):
        """Where q comes from."""

        # the class distribution q that the pool is taken to have; none: the method uses none
        prior: str = one_of(*SOURCES)
        prior_given: list[float] = field(
            default_factory=list
        )  # K shares or counts, for prior=given
        # how prior=estimated estimates q (docs/howto/label-shift.md)
        prior_method: str = one_of(*label_shift.METHODS, default="em")
        prior_every: int = at_least(1, 500)  # steps before the first estimate, and between two

    q: Tensor  # (K,) float64
    estimates: Tensor  # how many estimates q has taken up

    def __init__(self, task: Task, config: Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("q", _start(task, config))
        self.register_buffer("estimates", torch.zeros((), dtype=torch.int64))

    @property
    def used(self) -> bool:
        """Whether there is a q at all."""
        return self.config.prior != "none"

    @property
    def known(self) -> Tensor:
        """Whether q says something about the pool: an estimate must have been made. Bool scalar."""
        estimated = self.config.prior == "estimated"
        return (
            self.estimates > 0 if estimated else torch.ones_like(self.estimates, dtype=torch.bool)
        )

    def due(self, step: int) -> bool:
        """Whether q is to be estimated at the validation before this step."""
        estimated = self.config.prior == "estimated"
        return estimated and step > 0 and step % self.config.prior_every == 0

    def estimate(self, evaluation: Evaluation) -> dict[str, Tensor]:
        """Estimate q from held-out and pool logits; what to log.

        Shape: `estimated_prior` and its bounds (K,) in shares, the other figures scalars.
        """
        assert evaluation.pool_logits is not None
        found = label_shift.estimate(
            self.config.prior_method,
            val_probs=evaluation.logits.double().softmax(1),
            val_labels=evaluation.labels,
            unlabeled_probs=evaluation.pool_logits.double().softmax(1),
        )
        trusted = found.method == self.config.prior_method
        if trusted:
            floor = found.prior.clamp_min(FLOOR / len(found.prior))
            self.q.copy_(floor / floor.sum())
            self.estimates += 1
        return {
            "estimated_prior": found.prior,
            "estimated_prior_low": found.interval[0],
            "estimated_prior_high": found.interval[1],
            "prior_trusted": torch.tensor(float(trusted)),
            "prior_condition": torch.tensor(min(found.condition_number, 1e12)),
        }


class FollowsPool(Algorithm):
    """An algorithm with a `pool_prior`, which it estimates anew whenever that is due."""

    pool_prior: PoolPrior

    def needs_pool(self, step: int) -> bool:
        """To estimate the pool's class prior."""
        return self.pool_prior.due(step)

    def evaluation_due(self, step: int) -> bool:
        """Also when the prior is to be estimated."""
        return self.pool_prior.due(step) or super().evaluation_due(step)

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """Estimate the pool's class prior anew."""
        return self.pool_prior.estimate(evaluation) if self.pool_prior.due(ctx.step) else {}


def _start(task: Task, config: PoolPrior.Config) -> Tensor:
    k = task.num_classes
    if config.prior_given and config.prior != "given":
        raise ValueError(f"prior_given has no meaning with prior={config.prior}; set prior=given")
    if config.prior == "given":
        return given_shares(config.prior_given, k)
    if config.prior == "labeled":
        return task.labeled_prior.double()
    return torch.full((k,), 1 / k, dtype=torch.float64)


def given_shares(given: list[float], k: int) -> Tensor:
    """Class frequencies (K,) that the user states, as shares or counts; float64, sum 1.

    Raises:
        ValueError: they are not K positive numbers.
    """
    q = torch.tensor(given, dtype=torch.float64)
    if len(q) != k or not bool((q > 0).all()) or not bool(q.isfinite().all()):
        raise ValueError(
            f"the pool's prior needs {k} positive numbers in prior_given, not {given}; give a "
            "small one to a class that is absent"
        )
    return q / q.sum()
