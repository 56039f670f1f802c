"""The study of controls: its tables land in the marked places of a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies import controls
from tests.helpers.results import results, stage, write

PAGE = """# Title

<!-- table controls same min_recall -->
old
<!-- end of table -->

words

<!-- table offsets same -->
<!-- end of table -->
"""
ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    chains = {
        "a": [stage("selmix", [0.9, 0.6], settings={"objective": "min_recall"})],
        "b": [stage("posthoc", [0.9, 0.5], steps=0, settings={"objective": "min_recall"})],
    }
    for name, stages in chains.items():
        content = results([stage("fixmatch", [0.9, 0.3]), *stages])
        write(tmp_path / "runs" / "same" / name, content)
    return tmp_path / "runs"


def test_tables_land_in_their_places(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    controls.main(["--runs", str(runs), "--jobs", "0", "--fill", str(page)])
    text = page.read_text()
    assert "old" not in text and "\n\nwords\n\n" in text
    assert "| SelMix | worst class | 1 | 30.0 | 60.0 | +30.0 |" in text
    assert text.count("mean recall") == 1 and "| SelMix | mean recall | 1 | 70.0 | 75.0" in text
    assert "same: offsets" in capsys.readouterr().out
    controls.main(["--runs", str(runs), "--jobs", "0", "--fill", str(page)])
    assert page.read_text() == text


def test_a_page_without_a_place_is_refused(runs: Path) -> None:
    with pytest.raises(ValueError, match="no marked place"):
        controls.filled("words", runs)
    with pytest.raises(ValueError, match="has no table 'pareto'"):
        controls.table(runs / "same", "pareto", ("min_recall",))


@pytest.mark.parametrize("file", ["docs/results/controls.md"])
def test_the_shipped_pages_have_places_for_pools_of_the_sweep(file: str) -> None:
    found = controls.PLACE.findall((ROOT / file).read_text("utf-8"))
    assert {pool for _, _, pool, _, _ in found} <= {"same", "reversed"} and found
    assert {slug for _, slug, *_ in found} <= set(controls.TABLES)
