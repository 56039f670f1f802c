"""Runs in one compressed file: what goes in comes out, and comparisons read it like folders."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ssl_selmix.compare import methods, reading
from ssl_selmix.runs import archive
from ssl_selmix.runs.folder import RunError, RunFolder
from studies import archives
from tests.helpers.results import END, START, mistake, names, results, run, stage, write

ROWS = [{"kind": "validation", "step": 100, "mean_recall": 0.7, "min_recall": 0.2}]
CONFIG = {"fixmatch": {"lr": 0.03, "name": "ä"}, "seed": 0}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs of version 0.1, of which the second started from the first, and one unfinished."""
    root = tmp_path / "runs"
    first = write(root / "same" / "f", results([stage("fixmatch", START)]), CONFIG, [ROWS])
    content = results([stage("selmix", END)]) | {"init_sha256": "ab"}
    content["start"] = stage("start", START, steps=0, kept_step=0)
    init = {"path": str(first), "sha256": "ab"}
    write(root / "same" / "f+s", content, {"selmix": {"lr": 1}, "init": init})
    (root / "going").mkdir()
    (root / "going" / "config.yaml").write_text("seed: 1")
    return root


def test_an_archive_gives_the_tables_of_its_folders(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study" / "runs.jsonl.gz"
    file.parent.mkdir()
    archives.main(["pack", str(runs), str(file)])
    assert "2 runs" in capsys.readouterr().out
    for place in (file, file.parent, file.parent / "same"):
        found, notes = reading.read([place])
        assert notes == [] and len(found) == 2
        (group,) = methods.group(found)[0]
        assert names(group) == ["fixmatch", "fixmatch + selmix"]
        assert reading.validations(group.rows[0].cells[0, "0" * 64].stage) == ROWS
    assert len(reading.read([file.parent / "same" / "f"])[0]) == 1
    assert "does not exist" in mistake([file.parent / "other"], capsys)
    assert "one of the results" in mistake([file, "--csv", file, "--force"], capsys)
    folders, packed = (run([place, "--latex", "-"], capsys)[1] for place in (runs, file.parent))
    # The unfinished run was not packed, and folders are named as they lie.
    kept = [line for line in folders.splitlines() if "no finished stage" not in line]
    assert packed.replace(str(file.parent), str(runs)).splitlines() == kept


def test_what_is_unpacked_is_what_was_packed_and_packs_to_the_same_bytes(
    runs: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one.jsonl.gz", tmp_path / "two.jsonl.gz"
    archive.pack(runs, one)
    made = archive.unpack(one, tmp_path / "again")
    assert made == [tmp_path / "again" / "same" / name for name in ("f", "f+s")]
    for folder in made:
        before = RunFolder(runs / folder.relative_to(tmp_path / "again"))
        assert RunFolder(folder).config == before.config
    log = "same/f/1-fixmatch/metrics.jsonl"
    assert (tmp_path / "again" / log).read_bytes() == (runs / log).read_bytes()
    archive.pack(tmp_path / "again", two)
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(ValueError, match="f exists and is not overwritten"):
        archive.unpack(one, tmp_path / "again")


def test_packing_records_what_version_0_1_did_not(runs: Path, tmp_path: Path) -> None:
    archive.pack(runs, tmp_path / "a.jsonl.gz")
    first, second = archive.read(tmp_path / "a.jsonl.gz")
    origin = second.results.stages[0].started_from
    assert origin is not None and (origin.run_id, origin.stages) == (first.results.run_id, 1)
    assert first.results.stages[0].handed_on_sha256 == origin.sha256 == "ab"
    assert first.results.stages[0].settings == CONFIG["fixmatch"]
    assert first.results.tail == [1] and first.results.version == 2


@pytest.mark.parametrize("text", [None, b"{", b"{}\n"])
def test_a_damaged_archive_is_named(
    text: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(b"no gzip" if text is None else gzip.compress(text))
    with pytest.raises(RunError, match=r"a\.jsonl\.gz is damaged"):
        list(archive.read(file))
    assert f"{file} is damaged" in mistake([file], capsys)


def test_an_archive_writes_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    for place in ("../out", "/tmp/out"):
        line = f'{{"folder": "{place}", "files": {{"results.json": {{}}}}}}\n'
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line.encode()))
        with pytest.raises(RunError, match="leads out of"):
            archive.unpack(tmp_path / "a.jsonl.gz", tmp_path / "to")
    line = '{"folder": "in", "files": {"../../out.txt": "x"}}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    with pytest.raises(RunError, match="leads out of"):
        archive.unpack(tmp_path / "a.jsonl.gz", tmp_path / "to")
