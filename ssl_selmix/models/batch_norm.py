"""Batch normalisation layers, and statistics over the images of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_selmix.common.processes import world


class _Sum(torch.autograd.Function):
    """Adds up over the processes, values and gradients alike."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _Sum.forward(ctx, grads[0])


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the images of all processes, on any device.

    Takes the place of torch's SyncBatchNorm, which runs on GPUs only.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> SharedBatchNorm2d:
        """A layer with the tensors of this one, which the two share."""
        made = cls(norm.num_features, norm.eps, norm.momentum, norm.affine)
        made.track_running_stats = norm.track_running_stats
        made.weight, made.bias = norm.weight, norm.bias
        made.running_mean, made.running_var = norm.running_mean, norm.running_var
        made.num_batches_tracked = norm.num_batches_tracked
        return made.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise N×C×H×W by the statistics of all processes; as torch in evaluation mode."""
        if not self.training or world() is None:
            return super().forward(x)
        values = x.float()
        num = values.numel() // values.shape[1] * dist.get_world_size()
        mean = _Sum.apply(values.sum((0, 2, 3))) / num
        centred = values - mean[:, None, None]
        variance = _Sum.apply((centred**2).sum((0, 2, 3))) / num
        self._remember(mean.detach(), variance.detach(), num)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        out: Tensor = centred * scale[:, None, None]
        return (out + self.bias[:, None, None] if self.affine else out).to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, num: int) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        step = self.momentum
        if step is None:
            step = 1 / float(self.num_batches_tracked or 1)
        self.running_mean.lerp_(mean, step)
        self.running_var.lerp_(variance * (num / max(1, num - 1)), step)


def share_batch_norms(net: nn.Module, device: torch.device) -> None:
    """Let batch normalisation see the images of all processes, in place.

    Layers that are synchronised already are left alone.

    Raises:
        ValueError: the network has layers that do more than normalise, as some of timm's.
    """
    kinds: tuple[type[nn.Module], ...] = (nn.BatchNorm2d, SharedBatchNorm2d, nn.SyncBatchNorm)
    if device.type == "cuda":
        kinds += (nn.BatchNorm1d, nn.BatchNorm3d)
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if odd := sorted({type(m).__name__ for m in norms if type(m) not in kinds}):
        raise ValueError(
            f"sync_batch_norm=true cannot share the {', '.join(odd)} of this network; leave it "
            "out, or choose another network"
        )
    if device.type == "cuda":
        for name, child in net.named_children():
            setattr(net, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        return
    made: dict[nn.Module, SharedBatchNorm2d] = {}
    for place, module in list(net.named_modules(remove_duplicate=False)):
        if type(module) is nn.BatchNorm2d:
            parent, _, name = place.rpartition(".")
            shared = made.setdefault(module, SharedBatchNorm2d.of(module))
            setattr(net.get_submodule(parent), name, shared)


def batch_norms(net: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch normalisation layers of a network."""
    kind = nn.modules.batchnorm._BatchNorm
    return [module for module in net.modules() if isinstance(module, kind)]
