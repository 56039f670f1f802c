"""What a run takes from the machine: device, threads, memory."""

from __future__ import annotations

import functools
import os
import sys

import torch

from ssl_selmix.common import processes
from ssl_selmix.models import Classifier

# FLOP a step: below this much work a second thread costs more than it helps. The measurements
# are in docs/explain/performance.md.
FLOPS_PER_THREAD = 0.8e9


@functools.cache
def machine_threads() -> int:
    """Threads that torch or OMP_NUM_THREADS chose, before `use_threads` chose others."""
    return torch.get_num_threads()


def use_threads(num: int) -> int:
    """Let torch use so many threads, 0: those of the machine; returns how many they are.

    Raises:
        ValueError: they are more than the machine can use.
    """
    processes.check_number("threads", num)
    num = num or machine_threads()
    machine_threads()  # Remember them before they change.
    torch.set_num_threads(num)
    return num


def find_device(name: str) -> torch.device:
    """The device of that name; auto is a GPU if there is one.

    Raises:
        ValueError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and (number := processes.local_rank()) is not None:
        name = f"cuda:{number}"  # a GPU for each process of this machine
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device).item()  # which not every device has
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used ({reason}); try device=cpu") from error
    return device


def use_repeatable_kernels() -> None:
    """Let cuDNN compute the same sums in the same order every time."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def set_up_device(name: str) -> torch.device:
    """The device of that name, see `find_device`, with repeatable kernels."""
    device = find_device(name)
    use_repeatable_kernels()
    return device


def flops_per_step(net: Classifier, image_shape: tuple[int, ...], images: int) -> float:
    """Work of a training step in FLOP: three times that of the forward passes."""
    from ssl_selmix.training.flops import Flops  # whose import takes a while

    device = next(net.parameters()).device
    training = net.training
    with Flops() as counted, torch.no_grad():
        # No exchange with other processes: the work of one image is counted, on any device.
        net.eval().classifier(net.share_features(torch.zeros(1, *image_shape, device=device)))
    net.train(training)
    return 3.0 * images * float(counted.total)


def threads_for(flops: float) -> int:
    """Threads that a step with this much work can use, at most those of the machine."""
    return max(1, min(machine_threads(), int(flops / FLOPS_PER_THREAD)))


def memory(device: torch.device) -> int | None:
    """Bytes of the machine or of its GPU; None: unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system has these
        return None


def peak_memory(device: torch.device) -> dict[str, int]:
    """Most bytes that this process ever held, and those of them on the device if that is a GPU."""
    found = {}
    if sys.platform != "win32":  # which has no such record
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        found["device"] = torch.cuda.max_memory_allocated(device)
    return found
