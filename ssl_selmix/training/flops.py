"""Counts the work of a forward pass, by torch's formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Flops(TorchDispatchMode):
    """Adds up the FLOP of what is computed in its context, which is `total`.

    torch's own FlopCounterMode counts the same, but imports torch's compiler at its first use,
    which takes about as long as torch itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled in here that the compiler would have to be told to skip."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute it, and add its work; of what torch takes apart, that of the parts."""
        given = dict(kwargs or {})
        formula: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:
                parts = func.decompose(*args, **given)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **given)
        if formula is not None:
            self.total += formula(*args, **given, out_val=out)
        return out
