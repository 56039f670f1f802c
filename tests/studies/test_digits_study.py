"""The page of first stages and pools: its tables come from an archive of results."""

from pathlib import Path

import pytest

from ssl_selmix.runs import archive
from studies import digits
from tests.helpers.results import results, stage, write


def test_tables_land_in_their_places(tmp_path: Path) -> None:
    for row, recalls in {"supervised": [0.9, 0.3], "acr": [0.8, 0.6]}.items():
        for seed in range(2):
            told = {"seed": seed, "manifest_sha256": f"{seed:064d}"}
            runs, start = tmp_path / "runs" / "table" / "same", stage(row, recalls)
            write(runs / row / f"seed-{seed}", results([start]) | told)
            offsets = stage("posthoc", [recalls[0] - 0.1, recalls[1] + 0.1], steps=0)
            write(runs / f"{row}+posthoc" / f"seed-{seed}", results([start, offsets]) | told)
    archive.pack(tmp_path / "runs", tmp_path / "runs.jsonl.gz")
    page = tmp_path / "page.md"
    places = ("same", "differences-same")
    page.write_text("".join(f"<!-- table {p} -->\nold\n<!-- end of table -->\n" for p in places))
    (tmp_path / "runs").rename(tmp_path.parent / f"{tmp_path.name}-away")
    digits.main([str(tmp_path), str(page)])
    text = page.read_text()
    first = "| acr | 70.0 ± 0.0 / 60.0 ± 0.0 | 70.0 ± 0.0 / 70.0 ± 0.0 | – | 2 |"
    second = "| supervised | 60.0 ± 0.0 / 30.0 ± 0.0 | 60.0 ± 0.0 / 40.0 ± 0.0 | – | 2 |"
    assert "old" not in text and 0 < text.index(first) < text.index(second)
    assert "| acr | worst class | 2 | 40.0 ± 0.0 | 70.0 ± 0.0 | +30.0 ± 0.0 |" in text
    page.write_text("<!-- table other -->\n<!-- end of table -->\n")
    with pytest.raises(ValueError, match="no pool 'other'; there are same"):
        digits.main([str(tmp_path), str(page)])
