"""Recorded vectors of published decision rules, whose keys are written with slashes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.helpers import golden
from tests.helpers.golden import Recording, Vectors

Array = NDArray[Any]


def read(name: str) -> Recording:
    """All arrays of a file, keyed by `case.in.name` and `case.out.name` as in `recorded`."""
    found = Recording()
    for key, value in np.load(golden.GOLDEN / name).items():
        if value.dtype.kind != "U":
            key = key.replace("/in/", ".in.").replace("/out/", ".out.")
            found[key] = torch.from_numpy(np.asarray(value))
    found.name = name
    golden.OUTPUTS[name] = sum(".out." in key for key in found)
    golden.COMPARED.setdefault(name, set())
    return found


def arrays(vectors: Vectors, case: str, side: str = "in") -> dict[str, Array]:
    """What went into a case or came out of it, for numpy."""
    return {name: v.numpy() for name, v in golden.part(vectors, case, side).items()}


def reproduces(
    vectors: Vectors, case: str, got: Mapping[str, Any], without: tuple[str, ...] = ()
) -> None:
    """`golden.assert_reproduces` for arrays."""
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in got.items()}
    golden.assert_reproduces(vectors, case, tensors, without)
