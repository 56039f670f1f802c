"""Numbers as text."""

from __future__ import annotations

import pytest

from ssl_selmix.common.figures import fixed, limits, percent, plain


@pytest.mark.parametrize("value", [-0.0, 0.0, -1e-12, 1e-12, -0.0004, 0.0004])
def test_no_figure_is_a_negative_zero(value: float) -> None:
    assert percent(value) == "0.0" and percent(value, signed=True) == "+0.0"
    assert fixed(value, 2, signed=True) == "+0.00"


def test_other_figures_keep_their_sign() -> None:
    assert percent(-0.0006) == "-0.1" and percent(-0.5, signed=True) == "-50.0"
    assert plain(-0.0) == "0" and plain(-0.25) == "-0.25" and plain("a\n b") == "a b"


def test_an_interval_without_width_is_a_dash() -> None:
    assert limits(0.1, 0.1) == "–" == limits(-0.0, 0.0) == limits(float("nan"), float("nan"))
    assert limits(-0.0001, 0.2, between=" to ") == "+0.0 to +20.0"
    assert limits(0.25, 0.5, signed=False) == "25.0, 50.0"
