"""The benchmark of decision rules runs in a tiny setting; no time is asserted."""

from __future__ import annotations

import pytest

from benchmarks import posthoc


@pytest.mark.slow
def test_it_prints_times_and_gains(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posthoc, "SIZES", (posthoc.Size(3, 90, 0.8, 0.3),))
    monkeypatch.setattr(posthoc, "OBJECTIVES", ("h_mean",))
    posthoc.main(["--rounds", "1", "--new", "300"])
    out = capsys.readouterr().out
    assert out.count("| 3 | 90 | h_mean |") == 2
    assert "peak memory" in out and "cross-fitted" in out and "medians of 1" in out
