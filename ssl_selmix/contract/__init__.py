"""What every algorithm promises, as checks that take any class: `ssl-selmix check ./my_method.py`.

`data_sets` and `goals` have what data sets and objectives promise.

A check is a function of a `Subject` and an empty folder. Its docstring is its name in plain words;
it returns if the promise is kept and raises otherwise. All of them train on twenty noisy copies of
one 8×8 pattern per class, for a few steps, on the CPU.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_selmix.contract.data_sets import DATA_CHECKS
    from ssl_selmix.contract.goals import GOAL_CHECKS
    from ssl_selmix.contract.reporting import CHECKS, Outcome, outcomes, report
    from ssl_selmix.contract.subjects import Broken, subject

__all__ = [
    "CHECKS",
    "DATA_CHECKS",
    "GOAL_CHECKS",
    "Broken",
    "Outcome",
    "outcomes",
    "report",
    "subject",
]

_PLACES = {"Broken": "subjects", "subject": "subjects"}
_PLACES |= {"DATA_CHECKS": "data_sets", "GOAL_CHECKS": "goals"}


def __getattr__(name: str) -> Any:
    # Imported when asked for: `ssl-selmix check --help` does without torch.
    if name not in __all__:
        raise AttributeError(f"module 'ssl_selmix.contract' has no attribute {name!r}")
    return getattr(import_module(f"ssl_selmix.contract.{_PLACES.get(name, 'reporting')}"), name)
