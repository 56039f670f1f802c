"""Which pseudo-labels count, and how much: thresholds and weights as small modules with state.

Every rule is called once per step with the probabilities from which a FixMatch-like method takes
its pseudo-labels, and follows them while the model trains; the label is always their arg-max.

Shapes: M unlabeled images of a batch, N images of the pool, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix import losses
from ssl_selmix.algorithm import Task
from ssl_selmix.common.rules import Checked, at_least, one_of, within

# Of methods with a `threshold`, for the contract: from all to few pseudo-labels that count.
CONTRACT_CASES = tuple({"threshold": threshold} for threshold in (0.0, 0.38, 0.6, 0.9))
TINY = 1e-12  # against division by zero, where what is divided is zero as well


@dataclass
class Config(Checked):
    """Which pseudo-labels count; fields that begin with a rule's name belong to that rule."""

    confidence: str = one_of("fixed", "flex", "free", "soft")  # rule of FixMatch, FlexMatch, ...
    threshold: float = within("[0, 1]", 0.95)  # tau of fixed and flex, from which a label counts
    confidence_ema: float = within("[0, 1)", 0.999)  # lambda (free) and m (soft), of running means
    flex_warmup: bool = True  # images that were never sure of a class hold all thresholds down
    free_fairness: float = at_least(0, 0.01)  # w_f, weight of the self-adaptive fairness loss
    soft_width: float = at_least(0, 2.0)  # n_sigma: below mu_t, weights fall with sigma_t / n_sigma
    soft_alignment: bool = True  # weigh predictions that were aligned to equal classes (UA)


class Confidence(nn.Module):
    """The fixed threshold of FixMatch (Sohn et al., NeurIPS 2020, eq. 4); others derive from it."""

    def __init__(self, task: Task, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, p: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo-labels (M,) and the weights (M,) of their losses.

        Shape: p M×K probabilities without gradient, index (M,) positions in the pool.
        """
        return losses.pseudo_label(p, self.config.threshold)

    def penalty(self, logits_strong: Tensor, classes: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Losses that belong to the rule, by name; none here.

        Shape: logits_strong M×K, classes (M,), weight (M,).
        """
        return {}


class Flex(Confidence):
    """Zhang et al. (FlexMatch), NeurIPS 2021: a class that is chosen seldom needs less confidence.

    With n_k the pool images whose latest prediction above tau was class k, and n_0 those that
    never had one: beta_k = n_k / max(max_j n_j, n_0), and an image taken for class k needs
    tau * M(beta_k), M(b) = b / (2 - b). A batch is judged by the counts of those before it.
    """

    selected: Tensor  # (N,) latest sure prediction of every image, -1: none yet
    beta: Tensor  # (K,)

    def __init__(self, task: Task, config: Config) -> None:
        super().__init__(task, config)
        self.register_buffer("selected", torch.full((task.num_unlabeled,), -1))
        self.register_buffer("beta", torch.zeros(task.num_classes))

    @torch.no_grad()
    def forward(self, p: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo-labels, and 1 where they are as sure as their class demands."""
        confidence, classes = p.max(1)
        beta = self.beta[classes]
        kept = confidence >= self.config.threshold * beta / (2 - beta)
        if self.training:
            self._select(classes, confidence >= self.config.threshold, index)
        return classes, kept.to(p.dtype)

    def _select(self, classes: Tensor, sure: Tensor, index: Tensor) -> None:
        """Take up the sure predictions; an image drawn twice keeps the later one of the batch.

        All rows of an image write the same value, so that the order of writing does not matter.
        """
        last = last_rows(index, sure)
        found = torch.where(last >= 0, classes[last.clamp_min(0)], self.selected[index])
        self.selected.scatter_(0, index, found)
        counts = torch.zeros(len(self.beta) + 1, dtype=torch.int64, device=index.device)
        counts.index_add_(0, self.selected + 1, torch.ones_like(self.selected))
        largest = (counts if self.config.flex_warmup else counts[1:]).max().clamp_min(1)
        self.beta.copy_(counts[1:] / largest)


def last_rows(index: Tensor, counts: Tensor | None = None) -> Tensor:
    """For every row of a batch, the last row that shows the same image and counts; -1: none does.

    Shape: index (M,) positions in the pool, counts (M,) bool -> (M,).
    """
    rows = torch.arange(len(index), device=index.device)
    same = index[:, None] == index[None, :]
    return torch.where(same if counts is None else same & counts[None, :], rows, -1).amax(1)


class Free(Confidence):
    """Wang et al. (FreeMatch), ICLR 2023: thresholds that follow the model's own confidence.

    With moving averages tau_t of max p and p~_t of p, which start at 1/K and have the batch in
    them, an image taken for class k needs tau_t * p~_t(k) / max_j p~_t(j).
    """

    tau: Tensor  # tau_t
    mean: Tensor  # p~_t, (K,)
    histogram: Tensor  # h~_t, (K,) average of the shares of the pseudo-labels

    def __init__(self, task: Task, config: Config) -> None:
        super().__init__(task, config)
        k = task.num_classes
        self.register_buffer("tau", torch.tensor(1 / k))
        self.register_buffer("mean", torch.full((k,), 1 / k))
        self.register_buffer("histogram", torch.full((k,), 1 / k))

    @torch.no_grad()
    def forward(self, p: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo-labels, and 1 where they are as sure as their class demands."""
        confidence, classes = p.max(1)
        if self.training:
            step = 1 - self.config.confidence_ema
            self.tau.lerp_(confidence.mean(), step)
            self.mean.lerp_(p.mean(0), step)
            self.histogram.lerp_(F.one_hot(classes, p.shape[1]).to(p.dtype).mean(0), step)
        threshold = self.tau * self.mean / self.mean.max()
        return classes, (confidence >= threshold[classes]).to(p.dtype)

    def penalty(self, logits_strong: Tensor, classes: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Self-adaptive fairness: w_f * sum_k Norm(p~ / h~)_k log Norm(pbar / hbar)_k.

        pbar and hbar are mean and histogram of the kept images' strong views. It is meant to
        spread the predictions over the classes; being minus a cross-entropy that is minimised, it
        takes from the classes whose share is larger on average than in the batch. A class that
        hbar lacks has no gradient; the published code adds log 1e-12, a constant, for it.
        """
        kept = (weight > 0).to(logits_strong.dtype)[:, None]
        p = logits_strong.softmax(1)
        num_kept = kept.sum().clamp_min(1)
        pbar = (kept * p).sum(0) / num_kept
        hbar = (kept * F.one_hot(p.argmax(1), p.shape[1])).sum(0) / num_kept
        log_ratio = _ratio(pbar, hbar).clamp_min(TINY).log()
        spread = torch.where(hbar > 0, _ratio(self.mean, self.histogram) * log_ratio, 0.0)
        return {"fairness": self.config.free_fairness * spread.sum()}


def _ratio(p: Tensor, h: Tensor) -> Tensor:
    """Norm(p / h), where classes without an h have no share."""
    ratio = torch.where(h > 0, p / h.clamp_min(TINY), 0.0)
    return ratio / ratio.sum().clamp_min(TINY)


class Soft(Confidence):
    """Chen et al. (SoftMatch), ICLR 2023: every pseudo-label counts, unsure ones less.

    weight = exp(-n_sigma^2 min(max p' - mu_t, 0)^2 / (2 sigma_t^2)), with moving averages mu_t and
    sigma_t^2 of mean and unbiased variance of max p', which start at 1/K and 1 and have the batch
    in them. p' is p aligned to equal classes, for the weight alone: the label is that of p.
    """

    mu: Tensor
    variance: Tensor

    def __init__(self, task: Task, config: Config) -> None:
        super().__init__(task, config)
        k = task.num_classes
        self.align = DistributionAlignment(torch.ones(k), momentum=config.confidence_ema)
        self.register_buffer("mu", torch.tensor(1 / k))
        self.register_buffer("variance", torch.tensor(1.0))

    @torch.no_grad()
    def forward(self, p: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo-labels, and weights between 0 and 1."""
        aligned = self.align(p) if self.config.soft_alignment else p
        confidence = aligned.amax(1)
        if self.training:
            step = 1 - self.config.confidence_ema
            self.mu.lerp_(confidence.mean(), step)
            if len(p) > 1:  # one image has no variance: the average stays
                self.variance.lerp_(confidence.var(), step)
        below = (confidence - self.mu).clamp_max(0) * self.config.soft_width
        return p.argmax(1), (-(below**2) / (2 * self.variance).clamp_min(TINY)).exp()


def build(task: Task, config: Config) -> Confidence:
    """The rule that the configuration names."""
    kinds: dict[str, type[Confidence]] = {
        "fixed": Confidence,
        "flex": Flex,
        "free": Free,
        "soft": Soft,
    }
    return kinds[config.confidence](task, config)


EPSILON = 1e-6  # added to both distributions, as published


class DistributionAlignment(nn.Module):
    """p~ = Norm(p * (target^t / sum(target^t) + 1e-6) / (pbar + 1e-6)), Norm per image.

    Berthelot et al. (ReMixMatch), ICLR 2020; with a temperature t by Wei et al. (CReST), CVPR 2021.
    pbar is the mean prediction over the last `window` batches, the current one included, or, with
    a `momentum` (0.999 in USB), their moving average that starts at the first batch's mean.
    Batches of equal size, so that the mean of batch means is the mean over all images.

    Shape: target (K,) frequencies or counts.
    """

    target: Tensor
    means: Tensor  # of the last batches, `window` × K; with a momentum 1×K, the moving average
    seen: Tensor  # batches so far

    def __init__(self, target: Tensor, window: int = 128, momentum: float | None = None) -> None:
        super().__init__()
        self.momentum = momentum
        rows = window if momentum is None else 1
        self.register_buffer("target", target.float() / target.sum())
        self.register_buffer("means", torch.zeros(rows, len(target)))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, p: Tensor, temperature: float = 1.0) -> Tensor:
        """Take up the batch p M×K, while training, and return it aligned, without gradient."""
        pbar = self._update(p.float().mean(0, keepdim=True))
        target = self.target**temperature
        aligned = p * (target / target.sum() + EPSILON) / (pbar + EPSILON)
        return aligned / aligned.sum(1, keepdim=True)

    def reset(self) -> None:
        """Forget all batches: another network's predictions say nothing about the next one's."""
        self.means.zero_()
        self.seen.zero_()

    def _update(self, mean: Tensor) -> Tensor:
        """The mean prediction 1×K, with this batch's in it while training."""
        if self.training:
            if self.momentum is not None:
                old = torch.where(self.seen == 0, mean, self.means)
                mean = torch.lerp(mean, old, self.momentum)
            place = (self.seen % len(self.means)).view(1)
            self.means.index_copy_(0, place, mean)
            self.seen += 1
        return self.means.sum(0, keepdim=True) / self.seen.clamp(1, len(self.means))
