"""The picture of the README: bars from the runs of a study."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies import worst_class
from tests.helpers.results import results, stage, write


def test_bars_have_the_means_of_the_runs(tmp_path: Path) -> None:
    for place, (name, *_) in enumerate(worst_class.BARS):
        for seed in range(2):
            content = results([stage("fixmatch", [0.9, 0.1 * place + 0.02 * seed])])
            content["seed"] = seed
            write(tmp_path / name / f"seed-{seed}", content)
    axes = worst_class.drawn(tmp_path).axes[0]
    widths = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    assert widths == pytest.approx([10 * place + 1 for place in range(len(worst_class.BARS))])
    assert "61.0 ± 1.4" in {text.get_text() for text in axes.texts}


def test_a_study_without_a_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no runs of fixmatch, "):
        worst_class.drawn(tmp_path)
