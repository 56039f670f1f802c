"""How a network computes: number format, order of the views, compilation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ssl_selmix.common.processes import World

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Execution:
    """How a network computes; `Classifier.prepared` takes it, and whoever asks reads it there.

    precision: number format of the body, a key of DTYPES; features, logits and losses are float32.
    views: how a training step looks at its views: joint, split or lazy (`methods.views`).
    world: the processes that share every batch; None if there is one only.
    compiled: whether the body is compiled for training.
    runner: what trains in the place of the body; there is one only while a stage trains.
    with_labeled: of split and lazy steps, whether the labeled images pass with the weak views too.
    """

    precision: str = "fp32"
    views: str = "joint"
    world: World | None = None
    compiled: bool = False
    runner: Callable[[Tensor], Tensor] | None = None
    with_labeled: bool = False

    @property
    def dtype(self) -> torch.dtype | None:
        """In what the body computes; None: as its weights are."""
        return DTYPES[self.precision]

    def __deepcopy__(self, memo: dict[int, Any]) -> Execution:
        """A runner holds the body of one network, so that the copy of a network has none."""
        return replace(self, runner=None)


def placed(module: Module, device: torch.device | None = None) -> Module:
    """The module itself, channels last, on the device; where it is if that is None."""
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def channels_last(x: Tensor) -> Tensor:
    """Images with their channels last in memory; features, which have none, as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


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


@dataclass
class ViewsConfig:
    """What of a step's images passes the network, and when.

    joint: all views in one forward pass, as published. split: the weak views first, without
    gradient, which is cheaper and has batch statistics of its own. lazy: as split, and of the
    strong views only those whose pseudo-label counts; the others would add exactly zero.
    """

    split: bool = False  # weak views pass first, without gradient and with their own statistics
    lazy: bool = False  # like split, with those strong views alone whose pseudo-label counts
    # the first pass has the labeled images in it, for their batch statistics; they pass twice
    with_labeled: bool = False

    def __post_init__(self) -> None:
        """Refuse what would change nothing."""
        if self.with_labeled and not (self.split or self.lazy):
            raise ValueError(
                "with_labeled=true changes nothing in a joint step, where labeled images and weak "
                "views pass together; add views.split=true or views.lazy=true, or leave it out"
            )

    @property
    def name(self) -> str:
        """joint, split or lazy."""
        return "lazy" if self.lazy else "split" if self.split else "joint"


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode; afterwards every layer is in the mode that it was in."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode
