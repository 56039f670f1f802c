"""What a run takes from the machine: device, number format, threads, memory, compiled network."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from ssl_selmix import distributed
from ssl_selmix.models import Classifier

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Below this much work a step, a second thread costs more than it helps (docs/performance.md).
FLOPS_PER_THREAD = 0.8e9
MACHINE_THREADS = torch.get_num_threads()  # as torch or OMP_NUM_THREADS chose


def set_up_device(name: str) -> torch.device:
    """The device of that name, with repeatable kernels; auto is a GPU if there is one.

    Raises:
        ValueError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and (number := distributed.local_rank()) is not None:
        name = f"cuda:{number}"  # a GPU for each process of this machine
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device).item()  # which not every device has
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used ({reason}); try device=cpu") from error
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return device


def precision_of(name: str, device: torch.device) -> str:
    """The number format of the network's body; auto is bf16 where the hardware computes in it."""
    if name != "auto":
        return name
    return "bf16" if _has_bf16(device) else "fp32"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # older ones emulate it
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def flops_per_step(net: Classifier, image_shape: tuple[int, ...], images: int) -> float:
    """Floating-point operations of a training step: three times those of the forward passes."""
    from torch.utils.flop_counter import FlopCounterMode  # whose import takes a while

    device = next(net.parameters()).device
    training = net.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(1, *image_shape, device=device))
    net.train(training)
    return 3.0 * images * float(counter.get_total_flops())


def threads_for(flops: float) -> int:
    """Threads that a step with this much work can use, at most those of the machine."""
    return max(1, min(MACHINE_THREADS, int(flops / FLOPS_PER_THREAD)))


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


def _forked_rng(x: Tensor) -> AbstractContextManager[None]:
    """The generators of the CPU and of the device of x; torch warns if left to take all."""
    found: AbstractContextManager[None] = torch.random.fork_rng([x.device] if x.is_cuda else [])
    return found


class Compiled:
    """A module, compiled at its first call; itself, after one line saying why, if that fails."""

    def __init__(self, module: nn.Module, body: nn.Module, warn: Callable[[str], None]) -> None:
        """The module is the body, or what passes images to it in one of several processes."""
        self._module, self._body, self._warn = module, body, warn
        self._on_cuda = next(module.parameters()).is_cuda
        self._run: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """What the module makes of x."""
        if self._run is None:
            self._run = self._compile(x)
        # CUDA graphs write every output to the same place; split and lazy steps need two of them.
        return self._run(x).clone() if self._on_cuda else self._run(x)

    def _compile(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        # CUDA graphs spare the launches, which cost a small network more than its work does.
        mode = "reduce-overhead" if self._on_cuda else "default"
        # A copy learns whether forward and backward pass compile: torch says so only when they run.
        trial = copy.deepcopy(self._body)
        learns = any(p.requires_grad for p in trial.parameters())
        torch.compiler.reset()  # what earlier stages compiled must not decide kernels here
        try:
            # The step's random numbers are the step's, also in a network that draws some.
            with torch.set_grad_enabled(learns), _forked_rng(x):
                out = torch.compile(trial, mode=mode)(x.detach())
                if learns:
                    out.sum().backward()
            return torch.compile(self._module, mode=mode)
        except Exception as error:  # torch and the compilers behind it raise what they like
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            reason = reason.partition(" Set TORCHDYNAMO")[0][:160]
            self._warn(f"compile=true has no effect here, the network stays as it is: {reason}")
            return self._module
