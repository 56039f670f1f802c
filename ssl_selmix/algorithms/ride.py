"""RIDE: several experts on labeled images, which are pushed apart where classes are rare."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix.algorithm import Context, keeps_rows
from ssl_selmix.algorithms.supervised import Supervised
from ssl_selmix.common.rules import at_least, one_of, positive, within
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods.labeled import with_classifier
from ssl_selmix.methods.reference import Reference
from ssl_selmix.models import Classifier
from ssl_selmix.models.branches import num_branches


def class_temperatures(counts: Tensor, alpha: float, eta: float) -> Tensor:
    """T_k = alpha (beta_k + 1 - max beta), beta_k = eta n_k / mean n + 1 - eta (section 3.2).

    Rare classes have a smaller T, so that experts differ more where they speak of these.

    Shape: counts (K,) -> (K,) float64.

    Raises:
        ValueError: a class would have none that is positive.
    """
    beta = eta * counts.double() / counts.double().mean() + 1 - eta
    found = alpha * (beta + 1 - beta.max())
    if float(found.min()) <= 0:
        largest = 1 / float((counts.max() - counts.min()) / counts.double().mean())
        raise ValueError(
            f"skew={eta} leaves the rarest class no temperature above 0, for these counts; set "
            f"skew below {largest:.3g}"
        )
    return found


def diversity(logits: Tensor, temperature: Tensor, kind: str = "mean") -> Tensor:
    """How far the experts are apart, summed over them, mean over the images.

    p_i is the softmax of the logits of expert i over the temperatures of the classes. mean: of
    KL(p | p_i), p being the softmax of the mean logits, without gradient. pairwise: of the mean of
    KL(p_i | p_j) over j != i, as in the paper's formula.

    Shape: logits E×B×K, temperature (K,) -> scalar.
    """
    log_p = (logits / temperature).log_softmax(2)
    if kind == "mean":
        middle = (logits.mean(0) / temperature).log_softmax(1).detach().expand_as(log_p)
        return F.kl_div(log_p, middle, reduction="none", log_target=True).sum(2).mean(1).sum()
    p = log_p.exp()
    # sum over j of KL(p_i | p_j), in which j = i adds 0.
    own = (p * log_p).sum(2)
    crossed = torch.einsum("ibk,jbk->ijb", p, log_p).sum(1)
    each = len(logits) * own - crossed
    return each.mean(1).sum() / max(1, len(logits) - 1)


class RIDE(Supervised):
    """Wang et al., ICLR 2021: experts with losses of their own, whose mean predicts.

    Each expert is a linear layer on a branch of the network (`model.branches`), or, of a network
    without branches, on the features that all share. Their mean is one linear layer on the
    features. The router, which spares experts at deployment, is left out.
    """

    head_name = "mean of the experts"

    @dataclass
    class Config(Supervised.Config):
        """Hyper-parameters."""

        # tau of the labeled losses; the paper has none, and puts its weights and margins on
        logit_adjustment: float | None = at_least(0, 0.0)
        experts: int = at_least(2, 3)  # E, of a network without branches; else its branches count
        lambda_d: float = at_least(0, 0.2)  # lambda, weight of the diversity that is subtracted
        # what keeps experts apart. mean: divergence of each from their mean, as in the published
        # code; pairwise: from each other, the paper's formula, whose gradient has no bound
        diversity: str = one_of("mean", "pairwise")
        diversity_temperature: float = positive(1.0)  # alpha, temperature of the commonest class
        # eta, how much smaller the temperature of a rare class is
        skew: float = within("[0, 1]", 0.05)

        def __post_init__(self) -> None:
            """Refuse what speaks of one classifier."""
            super().__post_init__()
            for name, plain in (("loss", "ldam"), ("sam", "sam"), ("sam", "asam")):
                if getattr(self, name) == plain:
                    raise ValueError(
                        f"{name}={plain} is made for one classifier, and ride has several; leave "
                        "it out, or use --algo supervised"
                    )

    config: Config
    temperature: Tensor  # (K,)

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        Reference.prepare(net)
        self.branches = num_branches(net.backbone)
        if self.branches > 1 and config.experts != type(config).experts:
            raise ValueError(
                f"experts={config.experts} does nothing here, for each of the {self.branches} "
                "branches of the network has one; leave it out, or set model.branches"
            )
        if type(net.classifier) is not nn.Linear or not net.classifier.weight.requires_grad:
            raise ValueError(
                "ride trains several linear classifiers, and that of this network is another one "
                "or fixed; take model.head=linear or mlp-WIDTH"
            )
        self.others = nn.ModuleList()
        if self.branches > 1:
            # The classifier holds the experts side by side while they train, not their mean: so
            # each takes the steps that it would take alone.
            with torch.no_grad():
                net.classifier.weight.mul_(self.branches)
        else:
            self.others.extend(self._apart(net.classifier, config.experts))
        temperature = class_temperatures(
            task.labeled_counts, config.diversity_temperature, config.skew
        )
        self.register_buffer("temperature", temperature.float())

    @staticmethod
    @torch.no_grad()
    def _apart(first: nn.Linear, num: int) -> list[nn.Linear]:
        """Further experts, random ones around the first; the mean of all is what the first was."""
        found = [nn.Linear(first.in_features, first.out_features) for _ in range(num)]
        weight, bias = first.weight.clone(), first.bias.clone()
        middle = torch.stack([each.weight for each in found]).mean(0)
        for each in found:
            each.weight.add_(weight - middle)
            each.bias.copy_(bias)
        first.weight.copy_(found[0].weight)
        return found[1:]

    @keeps_rows
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The labeled losses of all experts, less their diversity."""
        logits = self.experts(self.net.features(batch.x)).float()
        losses = [self.loss(each, batch.y, ctx.progress) for each in logits]
        apart = diversity(logits, self.temperature, self.config.diversity)
        found = {
            "labeled": torch.stack(losses).sum(),
            "diversity": -self.config.lambda_d * apart,
        }
        return found, {"kl": apart.detach()}

    def experts(self, features: Tensor) -> Tensor:
        """Logits of each expert: N×D -> E×N×K."""
        head, num = self.net.classifier, self.branches
        if num == 1:
            return torch.stack([expert(features) for expert in (head, *self.others)])
        parts = zip(features.chunk(num, 1), head.weight.chunk(num, 1), strict=True)
        return torch.stack([F.linear(x, weight, head.bias) for x, weight in parts])

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the mean of the experts, one layer on all features."""
        if self.branches > 1:
            return self.net.classifier.weight / self.branches, self.net.classifier.bias
        layers = (self.net.classifier, *self.others)
        weight, bias = (
            torch.stack([getattr(layer, name) for layer in layers]).mean(0)
            for name in ("weight", "bias")
        )
        return weight, bias

    def head(self, features: Tensor) -> Tensor:
        """The mean of the experts."""
        return F.linear(features, *self.folded())

    def export(self) -> Classifier:
        """The network with the mean of the experts as its classifier."""
        return with_classifier(super().export(), *self.folded())
