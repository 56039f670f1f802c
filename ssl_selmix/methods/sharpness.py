"""Sharpness-aware minimisation: the labeled loss where nearby weights make it largest.

Rare classes end at saddle points of their loss, which a step from there leaves (Rangwani et al.,
NeurIPS 2022).

Shapes: B labeled images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_selmix.common.rules import Checked, at_least, one_of, positive
from ssl_selmix.models import Classifier

RADIUS = {"sam": 0.05, "asam": 0.5}  # rho, as in the two papers
ADAPTED = 0.01  # eta of ASAM, added to the sizes of the weights
TINY = 1e-12  # against division by zero, where no gradient is


@dataclass
class Config(Checked):
    """Whether the labeled loss is taken at moved weights, how far away, and for which classes."""

    # sam: the weights move by rho g / |g|; asam: large weights move further (Kwon et al., 2021)
    sam: str = one_of("none", *RADIUS)
    sam_radius: float | None = positive(None)  # rho; None: 0.05 for sam, 0.5 for asam
    # eta of ImbSAM: only classes with fewer labeled images see moved weights; 0: all do
    sam_below: int = at_least(0, 0)

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing without a move."""
        super().__post_init__()
        for name in ("sam_radius", "sam_below"):
            if self.sam == "none" and getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)} moves no weights with sam=none; set sam=sam, too"
                )

    @property
    def radius(self) -> float:
        """How far the weights move: rho."""
        return self.sam_radius if self.sam_radius is not None else RADIUS[self.sam]


def check(net: Classifier) -> None:
    """Refuse a network that cannot be computed at other weights than its own.

    Raises:
        ValueError: it is compiled, shared by several processes, or computes in fp16.
    """
    how = net.execution
    for found, told, remedy in (
        (how.world is not None, "several processes", "train in one process"),
        (how.compiled, "compile=true", "set compile=false"),
        (how.precision == "fp16", "precision=fp16", "set precision=bf16 or fp32"),
    ):
        if found:
            raise ValueError(f"sam does not go with {told}; {remedy}, or leave sam out")


def rare(counts: Tensor, config: Config) -> Tensor:
    """Which classes see moved weights, (K,) bool.

    Raises:
        ValueError: none does.
    """
    if not config.sam_below:
        return torch.ones_like(counts, dtype=torch.bool)
    found: Tensor = counts < config.sam_below
    if not bool(found[counts > 0].any()):
        raise ValueError(
            f"sam_below={config.sam_below} moves weights for no class, for each has "
            f"{int(counts[counts > 0].min())} labeled images or more; raise it, or leave it out"
        )
    return found


def moves(
    loss: Tensor, parameters: Mapping[str, Tensor], config: Config, *, keep_graph: bool
) -> dict[str, Tensor]:
    """How far each parameter moves towards a larger loss.

    sam: rho g / |g| (Foret et al., ICLR 2021). asam: rho T^2 g / |T g| with T = |w| + 0.01 for
    weights and 1 for biases (Kwon et al., ICML 2021). |.| is over all parameters together. Nothing
    moves where the loss has no gradient.

    Args:
        loss: a scalar with a graph.
        parameters: by name, those that are trained.
        config: kind and radius.
        keep_graph: whether the loss, or a part of it, is differentiated again.
    """
    names, values = list(parameters), list(parameters.values())
    found = torch.autograd.grad(loss, values, retain_graph=keep_graph, allow_unused=True)
    gradients = [
        torch.zeros_like(p) if g is None else g for p, g in zip(values, found, strict=True)
    ]
    with torch.no_grad():
        scaled = list(gradients)
        if config.sam == "asam":
            sizes = [
                p.abs() + ADAPTED if name.endswith("weight") else torch.ones_like(p)
                for name, p in parameters.items()
            ]
            scaled = [t * g for t, g in zip(sizes, gradients, strict=True)]
        norm = torch.stack([g.double().square().sum() for g in scaled]).sum().sqrt()
        step = (config.radius / (norm + TINY)).to(values[0].dtype)
        if config.sam == "asam":
            scaled = [t * g for t, g in zip(sizes, scaled, strict=True)]
        return {name: step * g for name, g in zip(names, scaled, strict=True)}


def loss_nearby(
    model: nn.Module,
    logits_of: Callable[[Tensor], Tensor],
    shares_of: Callable[[Tensor], Tensor],
    x: Tensor,
    moved: Tensor,
    config: Config,
) -> tuple[Tensor, Tensor]:
    """The loss, of which the part of some images is taken at moved weights; and what that adds.

    The gradient of that part is the one at the moved weights, applied to the weights as they are.
    Running statistics and other buffers are those of the first pass.

    Args:
        model: whose parameters move.
        logits_of: its logits B×K of images, by its parameters as they are at the call.
        shares_of: what each image adds to the loss (B,), of the logits.
        x: B images.
        moved: (B,) bool, which images see moved weights.
        config: how far.
    """
    shares, steady = shares_of(logits_of(x)), config.sam_below > 0
    here = (shares * moved).sum()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    away = moves(here, trained, config, keep_graph=steady)
    there = (shares_of(_at(model, logits_of, trained, away, x)) * moved).sum()
    loss = (shares * ~moved).sum() + there if steady else there
    return loss, (there - here).detach()


class _Logits(nn.Module):
    """A module that computes what a function computes with the parameters of another module."""

    def __init__(self, model: nn.Module, logits_of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self._logits_of = model, logits_of

    def forward(self, x: Tensor) -> Tensor:
        return self._logits_of(x)


def _at(
    model: nn.Module,
    logits_of: Callable[[Tensor], Tensor],
    trained: Mapping[str, Tensor],
    away: Mapping[str, Tensor],
    x: Tensor,
) -> Tensor:
    from torch.func import functional_call

    values = {f"model.{name}": p + away[name] for name, p in trained.items()}
    # Copies, which the second pass may write to.
    values |= {f"model.{name}": b.clone() for name, b in model.named_buffers()}
    found: Tensor = functional_call(_Logits(model, logits_of), values, (x,))
    return found
