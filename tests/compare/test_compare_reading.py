"""What cannot be so in a file is told, by file and place, and never a traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ssl_selmix.compare import reading
from tests.helpers.results import START, cells, groups, mistake, results, run, stage, two, write


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is damaged"),
        ("\x80", "is damaged"),
        ("[1]", "lacks stages or protocol"),
        ('{"stages": [], "protocol": {}}', "has no finished stage"),
        (json.dumps(two() | {"seed": None}), "is damaged (seed is None, no integer"),
        (json.dumps({k: v for k, v in two().items() if k != "seed"}), "lacks 'seed'"),
        (json.dumps(two(end=[0.5, 1.5])), "outside 0..1"),
        (json.dumps(two(end=[0.5, 0.6, 0.7])), "different numbers of classes"),
        (json.dumps(two(protocol={"steps": [100]})), "2 stages"),
    ],
)
def test_a_damaged_or_foreign_file_is_an_error_alone_and_a_note_in_a_folder(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write(tmp_path / "bad", two()) / "results.json"
    bad.write_bytes(text.encode("latin-1"))
    line = mistake([bad], capsys)
    assert told in line and str(bad) in line
    write(tmp_path / "good", two(1))
    code, out, _ = run([tmp_path], capsys)
    assert code == 0 and "left out" in out


NAN = float("nan")


def edited(*path: Any, to: Any) -> str:
    """Results in which one value is another."""
    content = two() | {"counts": {"test": [50, 50], "validation": [20, 20]}}
    content["stages"][0]["test"]["reliability"] = {
        **{"confidence": [0.5, None], "accuracy": [0.4, None]},
        "count": [100, 0],
    }
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return json.dumps(content)


TEST = ("stages", 0, "test")


@pytest.mark.parametrize("wrong", [NAN, float("inf"), 95, -0.1, "0.5", [1], {}, True, 10**400])
@pytest.mark.parametrize("key", ["mean_recall", "g_mean"])
def test_a_figure_is_a_share_or_the_file_is_refused(
    key: str, wrong: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "r", two()) / "results.json"
    file.write_text(edited(*TEST, key, to=wrong))
    line = mistake([file], capsys)
    assert str(file) in line and (f"stages[1].test.{key}" in line or "too large" in line)


@pytest.mark.parametrize(
    ("path", "wrong", "told"),
    [
        ((*TEST, "per_class_recall"), [NAN, 0.5], "per_class_recall is nan"),
        ((*TEST, "per_class_recall"), [None, None], "has no recall"),
        ((*TEST, "per_class_coverage"), [0.5], "has 1 values instead of 2"),
        ((*TEST, "per_class_coverage"), None, "per_class_coverage is None, no list"),
        ((*TEST, "reliability"), "abc", "reliability is 'abc', no section"),
        ((*TEST, "reliability", "count"), [1], "confidence has 2 values instead of 1"),
        ((*TEST, "reliability", "count"), [1.5, 0], "count is 1.5, no integer"),
        (("counts",), [1], "counts is [1], no section"),
        (("counts", "test"), [50], "counts.test has 1 values instead of 2"),
        (("counts", "test"), [-50, 50], "counts.test is -50"),
        (("seed",), 1.7, "seed is 1.7, no integer"),
        (("seed",), "0", "seed is '0', no integer"),
        (("protocol",), [], "protocol is [], no section"),
        (("protocol", "steps"), ["a", 1], "protocol.steps is 'a'"),
        (("protocol", "split", "test"), -5, "protocol.split.test is -5"),
        (("stages",), {"a": 1}, "stages is {'a': 1}, no list"),
        (("stages", 1), 3, "stages[2] is 3, no section"),
        (("stages", 0, "last"), "ab", "stages[1].last is 'ab'"),
        (("stages", 0, "settings"), [1], "stages[1].settings is [1]"),
        (("stages", 0, "seconds"), "x", "stages[1].seconds is 'x'"),
        (("start",), [], "start is [], no section"),
    ],
)
def test_edited_results_are_refused_by_the_name_of_what_is_wrong(
    path: tuple[Any, ...],
    wrong: Any,
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write(tmp_path / "r", two()) / "results.json"
    file.write_text(edited(*path, to=wrong))
    line = mistake([file], capsys)
    assert told in line and str(file) in line


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("manifest.json", t) for t in ("[]", "{", '{"counts": 3, "class_names": []}')),
        ("manifest.json", '{"counts": {"test": ["a", 1]}, "class_names": ["a", "b"]}'),
        ("manifest.json", '{"counts": {}, "class_names": ["a"]}'),
        *(("config.yaml", t) for t in ("- a", "a: [", "fixmatch: abc", "\x80")),
    ],
)
def test_damaged_files_beside_the_results_are_named(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "r", two())
    (folder / name).write_bytes(text.encode("latin-1"))
    assert str(folder / name) in mistake([folder / "results.json"], capsys)


def test_what_is_no_file_or_no_results_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path / "good", two(), {"fixmatch": {}, "selmix": {}})
    (tmp_path / "folder" / "results.json").mkdir(parents=True)
    (tmp_path / "link.json").symlink_to(tmp_path / "nothing")
    _, out, _ = run([tmp_path], capsys)
    assert f"left out: {tmp_path / 'folder' / 'results.json'} is a folder" in out
    assert f"left out: {tmp_path / 'link.json'} is a link to nothing" in out
    assert "config.yaml is no results.json" in mistake([good / "config.yaml"], capsys)


def test_rows_of_a_log_that_cannot_be_are_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [
        {"kind": "validation", "step": 0, "mean_recall": 0.0, "min_recall": 0.0},
        {"kind": "validation", "step": NAN, "mean_recall": 0.5, "min_recall": 0.5},
        {"kind": "validation", "step": "a"},
        {"kind": "validation"},
        {"kind": "validation", "step": 1, "mean_recall": "x", "min_recall": 0.3},
        {"kind": "validation", "step": 2, "mean_recall": 0.7, "min_recall": [1]},
        {"kind": "validation", "step": 3, "gain_matrix": 3, "pair_distribution": [[1, 2]]},
        {"kind": "validation", "step": 4, "estimated_prior": [1]},
        {"kind": "validation", "step": 5, "estimated_prior": [0.5, 0.5], "true_prior": None},
    ]
    folder = write(tmp_path / "r", results([stage("fixmatch", START)]), logs=[rows])
    log = folder / "1-fixmatch" / "metrics.jsonl"
    log.write_bytes(b"\xff\xfe\n" + log.read_bytes())
    code, out, _ = run([folder, "--html", tmp_path / "o.html"], capsys)
    assert code == 0 and f"{log}: left out 10 value(s) or row(s), such as line 1" in out
    (group,) = groups(folder)
    # Step 0 is what the stage was given, and no part of the median.
    assert [row[4] for row in cells(group, "weights")] == ["70.0", "30.0"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (two(protocol={"checkpoint_rule": {}}), "lacks 'protocol.checkpoint_rule.fixmatch'"),
        (
            results([{k: v for k, v in stage("fixmatch", START).items() if k != "test"}]),
            "lacks 'stages[1].test'",
        ),
        (two() | {"counts": {"test": [10**30, 1]}}, "no number of images"),
        (two() | {"images_sha256": 3}, "images_sha256 is 3, no name"),
    ],
)
def test_what_is_missing_or_cannot_be_is_named_with_its_place(
    content: dict[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in mistake([write(tmp_path / "r", content)], capsys)


def test_results_in_linked_folders_count_once(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write(runs / "a", two(0))
    write(tmp_path / "scratch" / "b", two(1))
    (runs / "b").symlink_to(tmp_path / "scratch" / "b")
    (runs / "again").symlink_to(runs / "a")
    (runs / "round").symlink_to(runs)
    found, notes = reading.read([runs])
    assert [run.seed for run in found] == [0, 1] and notes == []


def test_a_folder_whose_name_is_no_utf8_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / os.fsdecode(b"a\xff"), two())
    code, _, _ = run([folder, "--csv", tmp_path / "values.csv"], capsys)
    assert code == 0 and "a\\xff" in (tmp_path / "values.csv").read_text("utf-8")
