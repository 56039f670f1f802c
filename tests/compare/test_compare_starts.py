"""Runs that --init started become further stages of the runs they started from."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_selmix.compare import methods, reading, tables
from ssl_selmix.compare.tables import Choice
from tests.helpers.results import END, START, cells, groups, mistake, names, results, stage, write


def test_a_run_that_init_started_is_the_second_stage_of_the_run_it_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "first", results([stage("fixmatch", START)]))
    alone = results([stage("selmix", END)], protocol={"steps": [40]})
    # The bits of a calibration error depend on the machine, recalls do not.
    start = stage("start", START, steps=0, kept_step=0, seconds=0.0)
    start["test"] = start["test"] | {"ece": 0.05 + 1e-12}
    second = write(tmp_path / "second", alone | {"start": start})
    (group,) = groups(tmp_path)
    assert names(group) == ["fixmatch", "fixmatch + selmix"]
    assert cells(group, "changes")[1][5] == "+20.0"
    (own,) = groups(second)
    assert names(own) == ["given weights", "given weights + selmix"]
    write(tmp_path / "foreign", results([stage("abc", [0.3, 0.2])]))
    told = mistake([second, tmp_path / "foreign"], capsys)
    assert "steps: unknown" in told and "checkpoint_rule" not in told


def chained(folder: Path, origin: Path, name: str, start: list[float], end: list[float]) -> Path:
    """A run of one stage that --init started, as the configuration records."""
    given = stage("start", start, steps=0, kept_step=0, seconds=0.0)
    content = results([stage(name, end)]) | {"start": given, "init_sha256": "0" * 64}
    return write(folder, content, {name: {"lr": 1}, "init": {"path": str(origin), "sha256": "0"}})


def sweep_of_three(root: Path) -> Path:
    """fixmatch, crt from it, mixup that kept what it was given, and selmix from each of them."""
    write(root / "f" / "s-0", results([stage("fixmatch", START)]), {"fixmatch": {"lr": 1}})
    chained(root / "f+c" / "s-0", root / "f" / "s-0", "crt", START, [0.8, 0.5])
    chained(root / "f+m" / "s-0", root / "f" / "s-0", "mixup", START, START)
    chained(root / "a" / "s-0", root / "f+c" / "s-0", "selmix", [0.8, 0.5], END)
    chained(root / "b" / "s-0", root / "f+m" / "s-0", "selmix", START, [0.7, 0.7])
    chained(root / "c" / "s-0", root / "f" / "s-0", "selmix", START, [0.6, 0.6])
    return root


OF_THREE = [
    *("fixmatch", "fixmatch + crt", "fixmatch + crt + selmix", "fixmatch + mixup"),
    *("fixmatch + mixup + selmix", "fixmatch + selmix"),
]


def test_chains_of_three_runs_are_joined_by_what_their_configurations_record(
    tmp_path: Path,
) -> None:
    (group,) = groups(sweep_of_three(tmp_path / "here"))
    assert names(group) == OF_THREE
    found = {row[0]: row[5] for row in cells(group, "changes") if row[1] == "worst class"}
    assert found["fixmatch + crt + selmix"] == "+10.0"
    assert found["fixmatch + mixup + selmix"] == "+30.0"
    assert "steps of further stages: crt 100, mixup 100, selmix 100" in group.protocol
    notes = next(s for s in tables.of_group(group, Choice()) if s.slug == "differences").notes
    assert any("300: fixmatch + crt + selmix, fixmatch + mixup + selmix" in n for n in notes)


def test_runs_that_moved_together_are_still_joined(tmp_path: Path) -> None:
    sweep_of_three(tmp_path / "here").rename(tmp_path / "there")
    (group,) = groups(tmp_path / "there")
    assert names(group) == OF_THREE


def test_without_configurations_an_ambiguous_start_is_told(tmp_path: Path) -> None:
    for file in sweep_of_three(tmp_path).rglob("config.yaml"):
        file.unlink()
    read = reading.read([tmp_path])[0]
    found, notes = methods.group([r for r in read if "/c/" not in str(r.path)])
    # fixmatch + mixup + selmix cannot be told from fixmatch + selmix.
    assert names(found[0]) == [name for name in OF_THREE if name != "fixmatch + mixup + selmix"]
    (told,) = [n for n in notes if str(Path("b") / "s-0") in n and "with the figures of" in n]
    assert "fixmatch is taken" in told and "mixup" in told


def test_a_parent_that_was_trained_anew_is_no_origin(tmp_path: Path) -> None:
    parent = write(tmp_path / "f", results([stage("fixmatch", [0.8, 0.3])]))
    child = chained(tmp_path / "s", parent, "selmix", START, END)
    found, notes = methods.group(reading.read([parent, child])[0], ["steps"])
    assert "given weights + selmix" in [row.name for row in found[0].rows]
    assert any("which has other figures now" in note for note in notes)
