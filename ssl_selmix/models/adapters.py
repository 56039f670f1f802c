"""Small layers beside those of a transformer, which learn while the rest of its body is frozen.

Shapes: N images, T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION = ("attn", "attention", "self_attention")
ADAPTER = "adapter"  # name of the small layers beside those of a block


class Adapter(nn.Module):
    """A small bottleneck beside the MLP of a transformer's block (Chen et al., NeurIPS 2022).

    It begins by adding zeros, so that the network begins as it was.
    """

    def __init__(
        self, width_in: int, width_out: int, rank: int, scale: float | None, dropout: float
    ) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width_in, rank), nn.Linear(rank, width_out)
        self.scale = 0.1 if scale is None else scale  # s of the paper
        self.dropout = dropout
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """What is added. Shape: N×T×D -> N×T×D."""
        h = F.dropout(F.relu(self.down(x)), self.dropout, self.training)
        return self.scale * self.up(h)  # type: ignore[no-any-return]


def _beside(mlp: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    added: Tensor = getattr(mlp, ADAPTER)(args[0])
    return out + added


def add_adapters(
    body: nn.Module, name: str, rank: int, scale: float | None, dropout: float
) -> None:
    """Put an adapter beside the MLP of every transformer block; the names of all else stay.

    Raises:
        ValueError: the body has no such blocks.
    """
    found = list(_mlps(body))
    if not found:
        raise ValueError(
            f"model.tune=adapter is for transformers, whose blocks have attention and an MLP, and "
            f"{name} has none; use model.tune=lora, norm or bias"
        )
    for mlp in found:
        linears = [m for m in mlp.modules() if isinstance(m, nn.Linear)]
        widths = linears[0].in_features, linears[-1].out_features
        setattr(mlp, ADAPTER, Adapter(*widths, rank, scale, dropout))
        mlp.register_forward_hook(_beside)


def _mlps(body: nn.Module) -> Iterator[nn.Module]:
    for module in body.modules():
        children = dict(module.named_children())
        mlp = children.get("mlp")
        if mlp is not None and any(name in children for name in ATTENTION):
            if any(isinstance(m, nn.Linear) for m in mlp.modules()):
                yield mlp
