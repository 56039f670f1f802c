"""A start with offsets, which the images that they were fitted to cannot judge.

Offsets are the best for the validation images that chose them, so that any step away looks like a
fall. Here every validation image is judged by offsets that other images chose, from the first step
to the last: what is compared is free of that, and the network itself gets the offsets of all.

Shapes: N validation images, K classes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ssl_selmix.algorithm import Evaluation
from ssl_selmix.decision.crossfit import cross_fit
from ssl_selmix.decision.fit import settings_of
from ssl_selmix.decision.goal import Goal
from ssl_selmix.objectives import Objective

FOLDS = 5


class FittedStart(nn.Module):
    """Offsets for an objective, and the ones that judge each validation image, as state."""

    fold: Tensor  # of every validation image, (N,)
    shifts: Tensor  # from the offsets of all to those of a fold; the last row is 0, FOLDS + 1×K

    def __init__(self, num_classes: int, num_validation: int) -> None:
        super().__init__()
        self.register_buffer("fold", torch.full((num_validation,), -1))
        zeros = torch.zeros(FOLDS + 1, num_classes, dtype=torch.float64)
        self.register_buffer("shifts", zeros)

    def fit(self, objective: Objective, evaluation: Evaluation, protect_mean: bool) -> Tensor:
        """The offsets (K,) of all images, float64."""
        scores = evaluation.logits.double().cpu().numpy()
        labels = evaluation.labels.cpu().numpy()
        counts = np.bincount(labels, minlength=scores.shape[1])
        goal = Goal(objective, counts / counts.sum(), least_recall=0.5 / float(counts.max()))
        goal = goal.with_margin(len(labels))
        how = settings_of(goal, "offsets", True, protect_mean)
        found = cross_fit(scores, labels, how, FOLDS, seed=0)
        assert found.rule.vector is not None and found.of_fold is not None
        self.fold.copy_(torch.from_numpy(found.part))
        for fold, vector in found.of_fold.items():
            if fold >= 0:
                self.shifts[fold] = torch.from_numpy(vector - found.rule.vector)
        return torch.from_numpy(found.rule.vector).to(self.shifts)

    def judged(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation with every image's logits as offsets of the other folds make them."""
        shifts = self.shifts[self.fold].to(evaluation.logits)
        return replace(evaluation, logits=evaluation.logits + shifts)
