"""Several processes that train one model, and how many workers read for one.

Every process runs the same program on the same batches. It passes its share of the images through
the body; features are gathered, so that losses, queues and priors see the whole batch everywhere.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.nn.modules.batchnorm import _BatchNorm


T = TypeVar("T")


class ProcessesApart(RuntimeError):
    """Another process of this run ended, whose message says why."""


PATIENCE = timedelta(hours=2)  # for a process that reads its images later than the others
PEER_ENDED = ("by peer", "Connection refused")  # gloo has no exception class of its own for it


@dataclass(frozen=True)
class World:
    """The processes of a run, and which of them this one is."""

    rank: int
    size: int

    def rows(self, num: int, device: torch.device | None = None) -> Tensor:
        """Positions (⌈num/size⌉,) of the images that are this process's share: every size-th.

        Neighbours go to different processes, so that each sees labeled, weak and strong views.
        """
        rows = torch.arange(-(-num // self.size), device=device) * self.size + self.rank
        return rows % max(1, num)  # where the images do not divide evenly, some are seen twice

    def own(self, x: Tensor) -> Tensor:
        """This process's share of a batch: N×... -> ⌈N/size⌉×..."""
        return x.index_select(0, self.rows(len(x), x.device))

    def gather(self, share: Tensor, num: int) -> Tensor:
        """All `num` rows in order, from each process's share; differentiable.

        Shape: share ⌈num/size⌉×D -> num×D.

        The loss that follows must be the same in every process, computed from all rows.
        """
        return _Gather.apply(share, num, self)  # type: ignore[no-any-return,no-untyped-call]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, num: int, world: World) -> Tensor:  # type: ignore[override]
        ctx.world = world
        parts = [torch.empty_like(share) for _ in range(world.size)]
        dist.all_gather(parts, share.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)[:num]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        world, grad = ctx.world, grads[0]
        rows = torch.arange(world.rank, len(grad), world.size, device=grad.device)
        own = grad.new_zeros(-(-len(grad) // world.size), *grad.shape[1:])
        own[: len(rows)] = grad[rows]
        # DistributedDataParallel takes the mean over processes of what is to be added up.
        return own * world.size, None, None


def world() -> World | None:
    """The processes of this run; None if there is one only."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return World(dist.get_rank(), dist.get_world_size())


def local_rank() -> int | None:
    """Which process of this machine this is, if torchrun started it."""
    return int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else None


@contextmanager
def joined(device: torch.device) -> Iterator[World | None]:
    """Meet the other processes that torchrun started, if it did.

    Raises:
        ProcessesApart: one of them ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield world()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        if device.type == "cuda":
            _beside[:] = [dist.new_group(backend="gloo", timeout=PATIENCE)]
        yield world()
    except RuntimeError as error:
        if any(words in str(error) for words in PEER_ENDED):
            text = "another process of this run ended; see its message"
            raise ProcessesApart(text) from error
        raise
    finally:
        _beside.clear()
        if dist.is_initialized():
            dist.destroy_process_group()


def from_first(make: Callable[[], T], among: World | None) -> T:
    """What the first process makes, in all of them; its mistakes too.

    For what depends on files: the others may run on machines that do not see them.
    """
    if among is None:
        return make()
    result: list[Any] = [None, None]
    if among.rank == 0:
        try:
            result[0] = make()
        except (ValueError, OSError) as error:
            result[1] = error
    dist.broadcast_object_list(result)
    if result[1] is not None:
        raise result[1]
    return result[0]  # type: ignore[no-any-return]


def same_everywhere(value: str, among: World | None) -> bool:
    """Whether all processes have this value."""
    if among is None:
        return True
    found: list[Any] = [None] * among.size
    dist.all_gather_object(found, value)
    return len(set(found)) == 1


_beside: list[Any] = []  # for tensors on the CPU, where the others' are on a GPU


def largest(value: int, among: World | None) -> int:
    """The largest of these numbers of all processes; does not wait for a GPU."""
    if among is None:
        return value
    found = torch.tensor([value])
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_beside[0] if _beside else None)
    return int(found)


def wrapped(body: nn.Module) -> nn.Module:
    """The network's body with gradients that are added up over the processes."""
    if not any(p.requires_grad for p in body.parameters()):
        return body
    device = next(body.parameters()).device
    ids = [device.index] if device.type == "cuda" else None
    kind = nn.parallel.DistributedDataParallel
    new = "forward_sync_buffers" in inspect.signature(kind).parameters  # its name since torch 2.13
    options: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    return kind(body, device_ids=ids, **options)


@torch.no_grad()
def average_statistics(norms: Sequence[_BatchNorm]) -> None:
    """The mean over the processes of the running batch statistics, in one exchange."""
    kept = [t for m in norms for t in (m.running_mean, m.running_var) if t is not None]
    if not kept:
        return
    flat = torch.cat([t.flatten() for t in kept])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, mean in zip(kept, flat.split([t.numel() for t in kept]), strict=True):
        tensor.copy_(mean.view_as(tensor))


@torch.no_grad()
def reconcile(modules: Sequence[nn.Module]) -> None:
    """Give all processes the first one's parameters and buffers, which must nearly be theirs.

    On machines of one kind this changes nothing. On others their arithmetic rounds differently, and
    what is computed by every process for itself drifts apart.

    Raises:
        ValueError: they are further apart than rounding explains.
    """
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    sums = torch.stack([t.double().abs().sum().nan_to_num() for t in tensors])
    low, high = sums.clone(), sums.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN)
    dist.all_reduce(high, dist.ReduceOp.MAX)
    if not torch.allclose(low, high, rtol=1e-2, atol=1e-3):
        raise ValueError(
            "the models of the processes are not the same any more: the method draws random "
            "numbers, or keeps state, that depend on more than the batch; run it with one process"
        )
    for tensor in tensors:
        # Backends take contiguous tensors, and not all of them take booleans.
        kind = torch.uint8 if tensor.dtype is torch.bool else tensor.dtype
        first = tensor.to(kind, memory_format=torch.contiguous_format, copy=True)
        dist.broadcast(first, 0)
        tensor.copy_(first)


MOST_PER_CORE = 8  # threads or processes that somebody may ask for; thousands end in a crash


def check_number(name: str, value: int) -> None:
    """Refuse more threads or processes than a machine of this size can do anything with.

    Raises:
        ValueError: names the setting.
    """
    cores = os.cpu_count() or 1
    most = max(64, MOST_PER_CORE * cores)
    if value > most:
        raise ValueError(
            f"{name} must be at most {most} on this machine of {cores} cores, not {value}; lower it"
        )


MOST_WORKERS = 16  # of the default; more are taken if asked for


def default_workers() -> int:
    """One for each core that this process may use, up to a number that feeds any one device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(MOST_WORKERS, cores or 1)
