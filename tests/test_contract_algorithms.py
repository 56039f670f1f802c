"""Every algorithm keeps the contract; a new file in `algorithms/` is covered by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_selmix import contract, plugins

NAMES = sorted(plugins.available("algorithm"))


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, check: contract.Check, tmp_path: Path) -> None:
    try:
        check(contract.subject(name), tmp_path)
    except contract.Skipped as reason:
        pytest.skip(str(reason))
