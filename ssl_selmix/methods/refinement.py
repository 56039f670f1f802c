"""Refining pseudo-labels of the whole pool towards given class counts (DARP, NeurIPS 2020).

Shapes: N images of the pool, M of them in a batch, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_selmix.algorithm import Context, Evaluation, Task
from ssl_selmix.common.rules import Checked, at_least, positive, within
from ssl_selmix.data.pool import any_order
from ssl_selmix.methods.pool_prior import FollowsPool
from ssl_selmix.methods.pseudo_labels import last_rows

SMALL = 1e-6  # added to entries of tables and counts, and inside the logarithm of entropies
TOLERANCE = 1e-6  # of the last Newton step, relative; what it leaves is about its square
MOST_STEPS = 100  # of Newton's method for one root; about 4 are usual
LOOK_EVERY = 8  # steps on an accelerator, which has to be waited for to see where they are


def kept_entries(table: Tensor, counts: Tensor, alpha: float) -> Tensor:
    """The floor(alpha c_k) largest entries of every column; of equal ones the first.

    Shape: table N×K, counts (K,) -> N×K bool.
    """
    order = table.argsort(dim=0, descending=True, stable=True)
    quota = (alpha * counts + SMALL).floor()  # a count of 59.9999999 is meant to be 60
    ranks = torch.arange(len(table), device=table.device)[:, None]
    return torch.zeros_like(table, dtype=torch.bool).scatter(0, order, ranks < quota)


def prune(table: Tensor, counts: Tensor, alpha: float) -> Tensor:
    """The table without noisy entries: kept ones are scaled to the counts, others become small.

    A row of which no class keeps anything becomes uniform.

    Shape: table N×K with rows of sum 1, counts (K,) -> N×K with rows of sum 1.
    """
    kept = table * kept_entries(table, counts, alpha)
    scaled = kept * ((counts + SMALL) / (kept.sum(0) + SMALL)) + SMALL
    return scaled / scaled.sum(1, keepdim=True)


def project(table: Tensor, counts: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """The table X closest to A whose rows sum to 1 and whose columns sum to the counts c.

    X minimises sum_n 1/H_n sum_k X_nk log(X_nk / A_nk), where H_n is the entropy of row n of A, so
    X_nk = A_nk/e x_n exp(-nu_k H_n). From nu = 1 on, x and then nu are solved for, `rounds` times;
    rows sum to 1 in the end and columns nearly to c. Also returns nu.

    Shape: table N×K, counts (K,) -> N×K and (K,), float64.
    """
    a = table.double()
    entropy = (-a * (a + SMALL).log()).sum(1).clamp_min(SMALL)  # SMALL: of a one-hot row
    log_a = a.clamp_min(torch.finfo(a.dtype).tiny).log() - 1
    log_c = counts.double().clamp_min(SMALL).log()
    nu = torch.ones_like(log_c)
    for _ in range(rounds):
        log_x = -torch.addr(log_a, entropy, nu, alpha=-1).logsumexp(1, keepdim=True)
        nu = _roots(log_a + log_x, entropy, log_c, nu)
    return torch.addr(log_a, entropy, nu, alpha=-1).softmax(1), nu


def _roots(log_b: Tensor, h: Tensor, log_c: Tensor, start: Tensor) -> Tensor:
    """For every class k the nu with sum_n b_nk exp(-nu h_n) = c_k, all of them at once.

    The logarithm of the left side falls and is convex in nu. Newton's method on it therefore comes
    to the left of the root in its first step, stays there and climbs; the bracket that the visited
    points make only holds back its rounding. (The published code takes secant steps on the sum
    itself until they are shorter than 0.1, and raises an error when 30 are too few.)
    """
    nu, low, high = start, torch.full_like(start, -torch.inf), torch.full_like(start, torch.inf)
    every = LOOK_EVERY if log_b.is_cuda else 1
    for step in range(1, MOST_STEPS + 1):
        terms = torch.addr(log_b, h, nu, alpha=-1)  # log b_nk - h_n nu_k
        largest = terms.amax(0)
        weights = terms.sub_(largest).exp_()
        total = weights.sum(0)
        excess = largest + total.log() - log_c
        low, high = torch.where(excess >= 0, nu, low), torch.where(excess <= 0, nu, high)
        last, nu = nu, (nu + excess * total / (h @ weights)).clamp(low, high)
        if step % every == 0 and bool(((nu - last).abs() <= TOLERANCE * (1 + nu.abs())).all()):
            break
    return nu


@dataclass
class Config(Checked):
    """When and how much pseudo-labels are refined."""

    refine_warmup: float = within("[0, 1]", 0.4)  # share of the steps before the first refinement
    refine_every: int = at_least(1, 10)  # steps between refinements
    refine_alpha: float = positive(2.0)  # alpha, a class keeps its alpha c_k largest entries
    refine_rounds: int = at_least(1, 10)  # alternations of the solver


class RefinedLabels(nn.Module):
    """The latest predictions for every image of the pool, and the refined ones, as state."""

    original: Tensor  # P_orig, N×K; uniform rows for images that were not seen yet
    refined: Tensor  # P_ref, N×K
    refinements: Tensor  # how many there were

    def __init__(self, task: Task, config: Config) -> None:
        super().__init__()
        self.config = config
        uniform = torch.full((task.num_unlabeled, task.num_classes), 1 / task.num_classes)
        self.register_buffer("original", uniform)
        self.register_buffer("refined", uniform.clone())
        self.register_buffer("refinements", torch.zeros((), dtype=torch.int64))

    def forward(self, p: Tensor, index: Tensor) -> Tensor:
        """Note the predictions of a batch; its refined rows, or p until there are any.

        Shape: p M×K without gradient, index (M,) positions in the pool -> M×K.
        """
        self.note(p, index)
        return torch.where(self.refinements > 0, self.refined[index], p)

    def note(self, p: Tensor, index: Tensor) -> None:
        """Take up the predictions of a batch; of an image that was drawn twice, the last one.

        All rows of an image write the same values, so that the order of writing does not matter.

        Shape: p M×K, index (M,) positions in the pool.
        """
        self.original[index] = p[last_rows(index)].to(self.original.dtype)

    def due(self, ctx: Context) -> bool:
        """Whether to refine after this step: at the end of the warm-up and regularly from then on.

        The published code waits for the next multiple of 10 and has uniform rows until then.
        """
        warmup = int(self.config.refine_warmup * ctx.total)
        regular = ctx.step % self.config.refine_every == 0
        return ctx.step == warmup or (regular and ctx.step > warmup)

    def refine(self, counts: Tensor) -> None:
        """Replace the refined table by one whose columns sum to the counts (K,).

        A pool is stored class by class, so that its order must not decide what equal entries keep:
        images that were not seen yet keep nothing, and others are told apart by chance.
        """
        cfg = self.config
        table = self.original.double()
        table *= (table != table[:, :1]).any(1, keepdim=True)
        order = any_order(len(table), table.device)
        pruned = torch.empty_like(table)
        pruned[order] = prune(table[order], counts.double(), cfg.refine_alpha)
        self.refined.copy_(project(pruned, counts, cfg.refine_rounds)[0])
        self.refinements += 1


class Refines(FollowsPool):
    """A method whose `refinery`, so called in checkpoints, is refined towards the pool's prior.

    Nothing is refined before there is an estimate of that prior: a wrong one does more harm than
    none.
    """

    refinery: RefinedLabels

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """Also log how often pseudo-labels were refined: 0 without an estimate that is trusted."""
        found = super().on_validation(evaluation, ctx)
        return found | {"refinements": self.refinery.refinements.double()}

    def after_step(self, ctx: Context) -> None:
        """Refine every few steps after the warm-up, as soon as the counts c = N q are known."""
        if self.refinery.due(ctx) and bool(self.pool_prior.known):
            self.refinery.refine(self.pool_prior.q * self.task.num_unlabeled)
