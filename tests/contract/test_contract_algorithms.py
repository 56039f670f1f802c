"""Every algorithm keeps the contract; a new file in `algorithms/` is covered by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssl_selmix import contract
from ssl_selmix.common import plugins
from ssl_selmix.contract import life, reporting, step, subjects

NAMES = sorted(plugins.available("algorithm"))


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "name",
    # A first and a second stage; whoever edits another method runs its cases by name.
    [n if n in ("fixmatch", "selmix") else pytest.param(n, marks=pytest.mark.slow) for n in NAMES],
)
def test_contract(name: str, check: reporting.Check, tmp_path: Path) -> None:
    try:
        check(contract.subject(name), tmp_path)
    except subjects.Skipped as reason:
        pytest.skip(str(reason))


# Runs of the contract are too short for these parts of a method to take part by themselves.
AWAKE: dict[str, dict[str, Any]] = {
    "csst": {"kl_threshold": 1e9},
    "darp": {"prior": "labeled", "refine_warmup": 0.2, "refine_every": 2},
    "daso": {"count_every": 2, "warmup": 0.0, "balanced_head": True},
    "remixmatch_darp": {"prior": "labeled", "refine_warmup": 0.2, "refine_every": 2},
}
LONG = (step.check_gradients, life.check_resume, life.check_export)


@pytest.mark.slow
@pytest.mark.parametrize("check", LONG, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", AWAKE)
def test_contract_with_all_parts_awake(name: str, check: reporting.Check, tmp_path: Path) -> None:
    check(contract.subject(name, **AWAKE[name]), tmp_path)
