"""Every algorithm keeps the contract; a new file in `algorithms/` is covered by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssl_selmix import contract
from ssl_selmix.common import plugins
from ssl_selmix.contract import life, limits, reporting, step, subjects

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
# With its second head, DASO is another method.
OF_DASO = [life.check_teacher, life.check_evaluation, life.check_state]
OF_DASO += [limits.check_missing_in_labeled, limits.check_no_pseudo_labels]
CASES = [(name, check) for name in AWAKE for check in LONG]
CASES += [("daso", check) for check in OF_DASO]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "check"), CASES, ids=lambda v: getattr(v, "__name__", v))
def test_contract_with_all_parts_awake(name: str, check: reporting.Check, tmp_path: Path) -> None:
    check(contract.subject(name, **AWAKE[name]), tmp_path)


def test_parts_that_are_awake_take_part(tmp_path: Path) -> None:
    """`check_resume` cuts runs of 24 steps; tables were refined and prototypes followed by then."""
    data, _ = subjects.make_data()
    for name, part, least in (("darp", "refinery.refinements", 5), ("daso", "semantic.counts", 1)):
        algorithm = contract.subject(name, **AWAKE[name]).make(data, steps=24, keep="last")
        fitted = subjects.fit(algorithm, data, tmp_path / name).algorithm
        assert int(fitted.get_buffer(part).sum()) >= least
