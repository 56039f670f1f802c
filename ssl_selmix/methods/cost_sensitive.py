"""Cost-sensitive losses of a gain matrix G, and G of any objective (CSST, NeurIPS 2022).

G_ij is what an image of class i that is predicted as class j adds to the objective. A rule that
predicts argmax_j sum_i P(i | x) G_ij is best for it; the losses are those whose minimiser is
softmax(z)_j ~ sum_i P(i | x) G_ij. Neither knows the scale of G.

Shapes: B images, M unlabeled images, K classes.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix import objectives
from ssl_selmix.objectives import Objective, confusion_gradient

DIAGONAL_FLOOR = 1e-6  # of G, as a share of its largest diagonal entry: log G_ii stays finite
SMALL = 1e-7  # inside the logarithms of the divergence


def cross_entropy(logits: Tensor, classes: Tensor, gain: Tensor) -> Tensor:
    """Every image's - sum_j M_yj log softmax(z - log d)_j, with d_j = G_jj and M_ij = G_ij / G_jj.

    M has a unit diagonal and rows of any sum, as published. For a diagonal G this is plain
    cross-entropy on z - log d: logit adjustment with d in the place of 1 / pi.

    Shape: logits B×K, classes (B,) or masses B×K, gain K×K -> (B,).
    """
    d = gain.diagonal()
    rows = gain / d
    targets = rows[classes] if classes.ndim == 1 else classes.to(rows) @ rows
    targets = targets.to(logits.dtype)
    return F.cross_entropy(logits - d.log().to(logits.dtype), targets, reduction="none")


def divergence(p: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Pseudo-labels argmax p, and how far p is from what the losses want of an image so labeled.

    That is KL(Gn_y || p), where Gn is G with rows of sum 1. For a diagonal G it is -log max p.

    Shape: p M×K, gain K×K -> (M,), (M,).
    """
    classes = p.argmax(1)
    wanted = (gain / gain.sum(1, keepdim=True))[classes].to(p.dtype)
    return classes, (wanted * ((wanted + SMALL) / (p + SMALL)).log()).sum(1)


def gain_matrix(
    objective: Objective,
    confusion: Tensor,
    prior: Tensor,
    population: Tensor,
    smoothing: float = 0.0,
) -> Tensor:
    """G = dpsi/dC at the measured C, for images that are drawn with class frequencies `prior`.

    psi is read at the C whose rows have the measured shape and the masses t of `population`. An
    image of class i stands for t_i / pi_i of that population, so its row is multiplied by this;
    for t = pi, as in the paper, G is dpsi/dC itself. Objectives of class recalls do not depend on
    t: sum_i lambda_i recall_i gives G = diag(lambda / pi). A column sum of C does: with
    sum_j lambda_j coverage_j, t = pi adds lambda_j to G_ij, and uniform t adds lambda_j / (K pi_i).

    What is added to a row of dpsi/dC changes no best decision, for the mass of a row of C is given,
    but it does change the losses, which need G >= 0. The formulas of the paper hold the row sums
    of C in recalls constant; autograd does not, and is lower by a number in each row. So rows with
    negative entries are lifted until the smallest one is 0, for the objective and for its
    constraints separately: this restores the formulas of the paper.

    Shape: confusion K×K (rows of any mass), prior (K,), population (K,) -> K×K float64.
    """
    rows = objectives.normalise_rows(confusion.double(), smoothing) * len(confusion)
    gain = _lifted_gradient(objective, population[:, None] * rows)
    gain = gain * (population / prior)[:, None]
    diagonal = gain.diagonal()
    # The smallest number, if nothing at all depends on C: then this is the identity, scaled.
    floor = (DIAGONAL_FLOOR * diagonal.max()).clamp_min(torch.finfo(gain.dtype).tiny)
    return gain.diagonal_scatter(diagonal.maximum(floor))


def _lifted_gradient(objective: Objective, confusion: Tensor) -> Tensor:
    if isinstance(objective, objectives.Constrained):  # psi but for the factor that it divides by
        lam, terms = objective.lam.to(confusion), objective.terms
        constraints = confusion_gradient(lambda c: (lam * terms(c)).sum(), confusion)
        return _lift(constraints) + _lifted_gradient(objective.base, confusion)
    return _lift(confusion_gradient(objective, confusion))


def _lift(gradient: Tensor) -> Tensor:
    return gradient - gradient.amin(1, keepdim=True).clamp_max(0)


class DualAscent(objectives.Constrained):
    """Base + sum_j lam_j g_j, with lam <- max(0, lam - w g) from 1/K on.

    `objectives.Constrained` sets its multipliers from the last C alone; these have a memory. Like
    there, the g are measured on classes of equal mass, and groups share a multiplier evenly.
    """

    def __init__(
        self, of: objectives.Constrained, base: Objective, terms: objectives.Function, step: float
    ) -> None:
        super().__init__(
            base,
            terms,
            of.groups,
            of.labels,
            tau=of.tau,
            lambda_max=of.lambda_max,
            by_class=of.by_class,
        )
        self.step = step
        start = torch.full((len(of.groups.size),), 1 / of.num_classes, dtype=torch.float64)
        self.lam.copy_(of.groups.spread(start))

    def _update(self, confusion: Tensor) -> None:
        self.base._update(confusion)
        lam = self.groups.sum(self.lam) - self.step * self._group_slack(confusion)
        self.lam.copy_(self.groups.spread(lam.clamp_min(0)))


def persistent(objective: Objective, step: float, alpha: float) -> Objective:
    """The objective with multipliers that remember all validations, as CSST updates them.

    Recalls: lam_k <- lam_k exp(-w recall_k), normalised, which `objectives.WorstRecall` does with
    beta = 1. Constraints: `DualAscent`. Coverage is that of C as it is, not of C with equal rows:
    the paper's G_ij contains lam_j and not lam_j / (K pi_i).
    """
    if isinstance(objective, objectives.WorstRecall):
        return objectives.WorstRecall(objective.num_classes, objective.groups, step, beta=1.0)
    if isinstance(objective, objectives.Constrained):
        coverage = functools.partial(_coverage_terms, alpha=alpha)
        terms = coverage if objective.by_class else objective.terms
        return DualAscent(objective, persistent(objective.base, step, alpha), terms, step)
    return objective


def _coverage_terms(confusion: Tensor, alpha: float) -> Tensor:
    return confusion.sum(0) - alpha / len(confusion)
