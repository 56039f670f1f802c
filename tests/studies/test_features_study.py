"""The study on features: its page is filled from an archive of results."""

from pathlib import Path

import pytest

from ssl_selmix.runs import archive
from studies import features
from tests.helpers.results import results, stage, write


def test_tables_land_in_their_places(tmp_path: Path) -> None:
    runs = tmp_path / "runs" / "features" / "same"
    start = stage("supervised", [0.9, 0.3])
    for seed in range(2):
        told = {"seed": seed, "manifest_sha256": f"{seed:064d}"}
        write(runs / "supervised" / f"seed-{seed}", results([start]) | told)
        offsets = stage("posthoc", [0.8, 0.5], steps=0)
        write(runs / "supervised+posthoc" / f"seed-{seed}", results([start, offsets]) | told)
    archive.pack(tmp_path / "runs", tmp_path / "runs.jsonl.gz")
    page = tmp_path / "page.md"
    page.write_text("words\n<!-- table stages -->\nold\n<!-- end of table -->\n")
    (tmp_path / "runs").rename(tmp_path.parent / f"{tmp_path.name}-away")
    features.main([str(tmp_path), str(page)])
    text = page.read_text()
    assert "old" not in text and text.startswith("words\n")
    assert "| supervised | 60.0 ± 0.0 / 30.0 ± 0.0 | 65.0 ± 0.0 / 50.0 ± 0.0 | – | – | 2 |" in text
    page.write_text("<!-- table nothing -->\n<!-- end of table -->\n")
    with pytest.raises(ValueError, match="no table 'nothing'; there are stages"):
        features.main([str(tmp_path), str(page)])
