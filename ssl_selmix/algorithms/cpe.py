"""CPE: three experts for pools of three shapes, each with its own adjustment and pseudo-labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix import losses
from ssl_selmix.algorithm import Algorithm, Context, keeps_rows, weighs_labels
from ssl_selmix.common.rules import at_least, one_of, within
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods import pseudo_labels
from ssl_selmix.methods.class_norms import ClassNorms, forget_map, observe_map, positions
from ssl_selmix.methods.labeled import with_classifier
from ssl_selmix.methods.reference import Reference
from ssl_selmix.methods.views import joint_features
from ssl_selmix.models import Classifier

GROUPS = 3  # of classes, from head to tail: all, all but the head, the tail
TINY = 1e-12  # against a division by no pseudo-label at all


@dataclass(frozen=True)
class Guesses:
    """Pseudo-labels of one expert.

    Shape: confidence and classes (M,), weights G×M of the losses of each norm.
    """

    confidence: Tensor
    classes: Tensor
    weights: Tensor


class CPE(Algorithm):
    """Ma et al., AAAI 2024: one expert each for a pool that is long-tailed, uniform or inverted.

    Three batch norms lie between the body and the experts. All images pass all of them; a strong
    view of the pool teaches those alone whose classes its pseudo-label belongs to. The second
    expert, behind the mean of the three, predicts. The experts start as copies of the classifier,
    so that a later stage begins with the predictions of the one before.
    """

    # Statistics of the norms are those of all views of a step.
    forwards: Sequence[str] = ("joint",)
    head_name = "uniform"
    contract_cases = pseudo_labels.CONTRACT_CASES

    @dataclass
    class Config(Algorithm.PoolConfig):
        """Hyper-parameters."""

        threshold: float = within("[0, 1]", 0.95)  # the confidence from which a pseudo-label counts
        lambda_u: float = at_least(0, 1.0)  # lambda_u, weight of the unlabeled losses
        tau_same: float = at_least(0, 0.0)  # tau_1, adjustment of the first expert's labeled loss
        tau_uniform: float = at_least(0, 2.0)  # tau_2, of the one that predicts
        tau_inverted: float = at_least(0, 4.0)  # tau_3, adjustment of the third expert
        # share of the classes, from the most frequent one on, that come before those of the second
        # norm; 0.35 for 100 classes
        medium_from: float = within("[0, 1]", 0.2)
        # the same share for the third norm; 0.7 for 100 classes
        tail_from: float = within("[0, 1]", 0.4)
        # weight of the newest batch in the statistics of the three norms
        norm_momentum: float = within("(0, 1]", 0.1)
        # whose images give the statistics of the three norms. shared: all images those of all
        # three, as in the published code; group: those of the norm's own classes alone
        statistics: str = one_of("shared", "group")

        def __post_init__(self) -> None:
            """Refuse groups that are not within each other."""
            super().__post_init__()
            if self.tail_from < self.medium_from:
                raise ValueError(
                    f"tail_from must be at least medium_from={self.medium_from}, not "
                    f"{self.tail_from}; the tail is a part of what is no head"
                )

    config: Config
    log_pi: Tensor  # (K,)
    member: Tensor  # G×K, 1 for the classes of each norm

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        # What the three fold into has a bias.
        self.uniform = copy.deepcopy(Reference.prepare(net).classifier)
        self.inverted = copy.deepcopy(net.classifier)
        self.norms = ClassNorms(
            net.classifier.in_features,
            GROUPS,
            config.norm_momentum,
            apart=config.statistics == "group",
        )
        observe_map(net)
        self.register_buffer("log_pi", losses.log_prior(task.labeled_prior).float())
        # A share that was written as a quotient of classes means a whole number of them.
        first = [0, *(ceil(s * task.num_classes - 1e-6) for s in self._shares)]
        order = task.labeled_counts.argsort(descending=True, stable=True)
        member = torch.zeros(GROUPS, task.num_classes)
        for row, start in zip(member, first, strict=True):
            row[order[start:]] = 1
        self.register_buffer("member", member)
        if self.norms.apart:
            self._check_groups()

    def _check_groups(self) -> None:
        """Refuse groups whose statistics would be those of all images, or of none."""
        if self.member.all():
            raise ValueError(
                "statistics=group does nothing here, for all groups have all classes; set "
                "tail_from above 0, or leave it out"
            )
        if not self.member.any(1).all():
            num = self.member.shape[1]
            raise ValueError(
                f"statistics=group needs a class in every group, and tail_from="
                f"{self.config.tail_from} leaves the tail none of {num}; set it to at most "
                f"{floor(1000 * (num - 1) / num) / 1000}"
            )

    @property
    def _shares(self) -> tuple[float, float]:
        return self.config.medium_from, self.config.tail_from

    @keeps_rows
    @weighs_labels
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Labeled and unlabeled losses of the three experts."""
        parts = joint_features(self.net, batch)
        members = self.members(parts[1], batch.y) if self.norms.apart else None
        logits = self.logits(torch.cat(parts), members)
        x, weak, strong = logits.split([len(part) for part in parts], dim=2)
        return self.objective(x, weak, strong, batch.target)

    @torch.no_grad()
    def members(self, weak: Tensor, y: Tensor) -> Tensor:
        """Whose statistics each image of the step takes part in: G×(B+2M), 1 or 0.

        A labeled image belongs to the groups of its label. Both views of a pool image belong to
        those of its pseudo-label, if it is confident, and else to those alone that have all
        classes. The pseudo-labels are those of the network as it predicts, by the statistics that
        are remembered: the ones of the batch are not known before the groups are.

        Shape: weak M×D or M×2D, y (B,).
        """
        p = self.head(self.norms.means(weak)).float().softmax(1)
        classes, mask = losses.pseudo_label(p, self.config.threshold)
        all_classes = self.member.amin(1, keepdim=True)
        pool = torch.where(mask > 0, self.member[:, classes], all_classes)
        return torch.cat([self.member[:, y], pool, pool], 1)

    def logits(self, features: Tensor, members: Tensor | None = None) -> Tensor:
        """What each expert makes of each norm's features: 3×G×N×K."""
        normalised = self.norms(features, positions(self.net), members)
        experts = (self.net.classifier, self.uniform, self.inverted)
        return torch.stack([expert(normalised) for expert in experts])

    def objective(
        self, x: Tensor, weak: Tensor, strong: Tensor, y: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses of all experts; and the logs.

        Shape: x 3×G×B×K, weak and strong 3×G×M×K, y (B,) or masses B×K.
        """
        found, logs = {}, {}
        for expert, (name, tau) in enumerate(self._experts().items()):
            guesses = self.guess(weak[expert].detach().mean(0).float())
            adjusted = x[expert].mean(0) + tau * self.log_pi
            found[f"labeled_{name}"] = F.cross_entropy(adjusted, y)
            unlabeled = kept_mean(strong[expert], guesses)
            found[f"unlabeled_{name}"] = self.config.lambda_u * unlabeled
            logs[f"mask_rate_{name}"] = guesses.weights[0].mean()
        return found, {"mask_rate": logs["mask_rate_uniform"], **logs}

    def _experts(self) -> dict[str, float]:
        """The adjustment tau of each expert's labeled loss."""
        cfg = self.config
        return {"same": cfg.tau_same, "uniform": cfg.tau_uniform, "inverted": cfg.tau_inverted}

    def guess(self, logits_w: Tensor) -> Guesses:
        """Pseudo-labels of an expert's mean logits M×K for the weak views."""
        p = logits_w.softmax(1)
        classes, mask = losses.pseudo_label(p, self.config.threshold)
        return Guesses(p.amax(1), classes, mask * self.member[:, classes].to(mask.dtype))

    def head(self, features: Tensor) -> Tensor:
        """The second expert behind the mean of the norms, as one linear layer."""
        return F.linear(features, *self.norms.folded(self.uniform))

    def export(self) -> Classifier:
        """The network with that layer as its classifier."""
        net = super().export()
        forget_map(net)
        return with_classifier(net, *self.norms.folded(self.uniform))


def kept_mean(logits: Tensor, guesses: Guesses) -> Tensor:
    """Mean cross-entropy over all pairs of an image and a norm that count.

    It does not get smaller if few images are confident, as a mean over all images does.

    Shape: logits G×M×K -> scalar.
    """
    num = len(logits)
    each = F.cross_entropy(logits.flatten(0, 1), guesses.classes.repeat(num), reduction="none")
    weights = guesses.weights.flatten()
    return (weights * each).sum() / (weights.sum() + TINY)
