"""What a device does in a step, beside the time of it: work, kernels, processor time, limits.

`GPU busy` is the time in which a kernel ran (torch.profiler), as a share of the time of a step
without the profiler. `CPU` is the processor time of all threads for a step that starts with the GPU
idle and is not waited for. FLOP of a step are those of torch's counter (convolutions and matrix
products). Bytes are those that all operations of an eager step read and write, each on its own: a
compiled step moves fewer, so its share of the bandwidth is what an eager one would have to move.
Limits are worked out from the device's properties: multiprocessors × highest clock × operations
per clock, and the memory's clock × width.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

# Dense floating-point operations per clock and multiprocessor, by compute capability: those of the
# tensor cores in half precision, and those of float32 without them (NVIDIA's architecture papers).
HALF = {(7, 0): 1024, (7, 5): 1024, (8, 0): 2048, (8, 6): 512, (8, 9): 512, (9, 0): 4096}
SINGLE = {(7, 0): 128, (7, 5): 128, (8, 0): 128, (8, 6): 256, (8, 9): 256, (9, 0): 256}


class Traffic(TorchDispatchMode):
    """Adds up the bytes of all tensors of one device type that operations read and write."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type, self.bytes = device_type, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation itself; views and empty tensors move nothing."""
        out = func(*args, **(kwargs or {}))
        aliases = [r.alias_info for r in func._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in aliases)
        if not view and "empty" not in func.__name__:
            for leaf in tree_leaves((args, kwargs, out)):
                if isinstance(leaf, Tensor) and leaf.device.type == self.device_type:
                    self.bytes += leaf.numel() * leaf.element_size()
        return out


@dataclass(frozen=True)
class Work:
    """What one step computes and moves."""

    flops: float
    bytes: float


def work_of(step: Callable[[], object], device_type: str) -> Work:
    """FLOP and bytes of a step, counted while it runs eagerly."""
    with FlopCounterMode(display=False) as flops:
        step()
    with Traffic(device_type) as traffic:
        step()
    return Work(float(flops.get_total_flops()), float(traffic.bytes))


@dataclass(frozen=True)
class Limits:
    """What a device can do at most in a second; None if it is not known."""

    flops: float | None
    bytes: float


def limits_of(properties: Any, precision: str) -> Limits:
    """FLOP and bytes per second, from torch.cuda.get_device_properties."""
    per_clock = (SINGLE if precision == "fp32" else HALF).get((properties.major, properties.minor))
    clocks = properties.multi_processor_count * properties.clock_rate * 1e3
    width = properties.memory_bus_width / 8
    # Two transfers per clock; clock rates are in kHz.
    return Limits(per_clock and per_clock * clocks, 2e3 * properties.memory_clock_rate * width)


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals.

    >>> covered([(0, 2), (5, 6), (1, 3)])
    4
    """
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total


def busy_seconds(step: Callable[[], object], steps: int) -> float:
    """Seconds per step in which a kernel ran."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    kernels = [
        (event.time_range.start, event.time_range.end)
        for event in found.events() or ()
        if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False)
    ]
    return covered(kernels) / 1e6 / steps


def cpu_seconds(step: Callable[[], object], steps: int, wait: Callable[[], None]) -> float:
    """Median processor seconds that a step takes to be issued, all threads together."""
    found = []
    for _ in range(steps):
        wait()
        start = time.process_time()
        step()
        found.append(time.process_time() - start)
    wait()
    return statistics.median(found)
