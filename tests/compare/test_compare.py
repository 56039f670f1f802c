"""`ssl-selmix compare`: what it reads, what it refuses, what it says, the same bytes every time."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ssl_selmix import cli
from ssl_selmix.compare import curves, figures, methods, reading, style, write
from ssl_selmix.compare.tables import Choice, of_group
from tests.helpers.results import (
    END,
    START,
    cells,
    groups,
    measure,
    mistake,
    names,
    results,
    run,
    stage,
    two,
)
from tests.helpers.results import write as write_results

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_rows_are_chains_and_their_beginnings_with_spread_over_seeds(tmp_path: Path) -> None:
    for seed, worst in enumerate((0.4, 0.5, 0.6)):
        write_results(tmp_path / f"r{seed}", two(seed, [0.9, worst], [0.9, worst + 0.1]))
    (group,) = groups(tmp_path)
    assert names(group) == ["fixmatch", "fixmatch + selmix"]
    found = cells(group, "methods")
    assert found[0][:4] == ["fixmatch", "3", "70.0 ± 5.0", "50.0 ± 10.0"]
    change = cells(group, "changes")[1]
    assert change[:6] == [
        "fixmatch + selmix",
        "worst class",
        "3",
        "50.0 ± 10.0",
        "60.0 ± 10.0",
        "+10.0 ± 0.0",
    ]


def test_one_run_has_no_spread_and_no_mark(tmp_path: Path) -> None:
    (group,) = groups(write_results(tmp_path / "r", two()))
    assert cells(group, "methods")[0][1:4] == ["1", "65.0", "40.0"]
    assert all("±" not in c and "*" not in c for row in cells(group, "changes") for c in row)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"network": "cnn-32"}, "network: cnn-16 (run {a}) vs cnn-32 (run {b})"),
        ({"parameters": 7}, "parameters: 14458"),
        ({"precision": "bf16"}, "precision: fp32"),
        ({"largest": "M1 counts labeled images too"}, "largest: "),
        ({"validation": "the test images"}, "validation: held out"),
        ({"checkpoint_rule": {"fixmatch": "last", "selmix": "last"}}, "checkpoint_rule: best"),
        ({"steps": [200, 100]}, "steps: 100 (run {a}) vs 200 (run {b})"),
        ({"step": "lazy"}, "step: joint (run {a}) vs lazy (run {b})"),
        ({"news": 3}, "news: not recorded (run {a}) vs 3 (run {b})"),
    ],
)
def test_runs_of_another_protocol_are_refused_by_name_unless_allowed(
    change: Mapping[str, Any], key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write_results(tmp_path / "a", two(0))
    b = write_results(tmp_path / "b", two(1, protocol=change))
    assert key.format(a=a, b=b) in mistake([tmp_path], capsys)
    (name,) = change
    assert len(groups(tmp_path, by=(name,))) == 2
    code, out, _ = run([tmp_path, "--allow", name], capsys)
    assert code == 0 and f"allowed to differ: {name}" in out
    (group,) = groups(tmp_path, name)
    assert len(group.rows) == 4 or name == "steps"  # never one row over both
    assert all(len(row.cells) == 1 for row in group.rows)


@pytest.mark.parametrize(("key", "value"), [("dataset", "cifar10"), ("manifest_sha256", "f" * 64)])
def test_other_data_are_refused(
    key: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(tmp_path / "a", two())
    write_results(tmp_path / "b", two(end=[0.8, 0.5]) | {key: value})
    told = {"dataset": "dataset: digits", "manifest_sha256": "images: 0000"}[key]
    assert told in mistake([tmp_path], capsys)


def test_two_folders_of_images_are_no_seeds_of_one_experiment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("cats", "cars")):
        content = two(seed) | {"dataset": "image_folder", "images_sha256": f"{name:x<64}"}
        write_results(tmp_path / name, content)
    assert "dataset_sha256: carsxxxxxxxx" in mistake([tmp_path], capsys)
    titles = [group.title for group in groups(tmp_path, by=("dataset",))]
    assert titles == ["dataset_sha256=carsxxxxxxxx", "dataset_sha256=catsxxxxxxxx"]
    write_results(tmp_path / "old", two(2) | {"dataset": "image_folder"})  # which does not say
    told = mistake([tmp_path / "old", tmp_path / "cats", tmp_path / "cars"], capsys)
    assert "not recorded" not in told
    assert len(groups(tmp_path / "old")) == 1
    code, out, _ = run([tmp_path / "old", tmp_path / "cats"], capsys)
    assert code == 0 and "dataset_sha256 catsxxxxxxxx" not in out


def test_another_pool_or_size_of_one_data_set_has_another_digest(tmp_path: Path) -> None:
    """Images without labels are among those that are loaded, and pixels depend on their size."""
    split = results([])["protocol"]["split"]
    for name, changed in (
        ("drawn", {}),
        ("unknown", {"unlabeled": {"shape": "unknown"}}),
        ("larger", {"size": 64}),
    ):
        content = two(protocol={"split": split | changed}) | {"images_sha256": f"{name:x<64}"}
        content["manifest_sha256"] = f"{name:x<64}"
        for place in ("pools", "sizes"):
            if name == "drawn" or (name == "larger") == (place == "sizes"):
                write_results(tmp_path / place / name, content)
    assert len(groups(tmp_path / "pools")) == 2
    assert len(groups(tmp_path / "sizes", by=("data.size",))) == 2


def test_words_of_chains_that_begin_with_given_weights_stand_at_their_stages(
    tmp_path: Path,
) -> None:
    for i, last in enumerate(("best", "last")):
        content = results([stage("crt", END), stage("selmix", END)], seed=i)
        content["start"] = stage("start", START)
        content["protocol"]["checkpoint_rule"]["selmix"] = last
        write_results(tmp_path / f"r{i}", content)
    (group,) = groups(tmp_path, "checkpoint_rule")
    assert [name for name in names(group) if name.endswith("[checkpoint_rule=last]")] != []
    assert len({name for name in names(group) if "selmix" in name}) == 2


def test_a_later_stage_of_another_rule_leaves_the_first_one_its_row(tmp_path: Path) -> None:
    write_results(tmp_path / "a", results([stage("fixmatch", START)]))
    content = results([stage("fixmatch", START), stage("selmix", END)])
    content["protocol"]["checkpoint_rule"]["selmix"] = "last"
    write_results(tmp_path / "b", content)
    (group,) = groups(tmp_path, "checkpoint_rule")
    assert names(group) == [
        "fixmatch [checkpoint_rule=best]",
        "fixmatch [checkpoint_rule=best] + selmix [checkpoint_rule=last]",
    ]


def test_a_figure_that_some_seeds_lack_says_of_how_many_it_is(tmp_path: Path) -> None:
    for seed in range(3):
        content = two(seed)
        if seed == 2:
            del content["stages"][0]["test"]["ece"]
        write_results(tmp_path / f"r{seed}", content)
    (group,) = groups(tmp_path)
    found = cells(group, "methods")
    assert found[0][1] == "3" and found[0][-2] == "5.0 ± 0.0 (n=2)"
    assert found[1][-2] == "5.0 ± 0.0"


def test_names_that_look_like_markup_and_break_lines_stay_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("x[/b]y", "z[bold]|"):
        start = stage("fixmatch", START, settings={"tag": f"a|b\nc{name}"})
        write_results(tmp_path / name.replace("/", "-"), results([start]) | {"dataset": name})
    code, out, _ = run([tmp_path, "--by", "dataset"], capsys)
    assert code == 0 and "dataset=x[/b]y" in out and "z[bold]" in out
    _, out, _ = run([tmp_path, "--by", "dataset", "--markdown", "-"], capsys)
    rows = [line for line in out.splitlines() if line.startswith("| fixmatch")]
    assert rows and all(line.endswith("|") for line in rows)
    assert r"## Runs with dataset=x\[/b\]y" in out


def test_other_numbers_of_classes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(tmp_path / "a", two(0))
    write_results(tmp_path / "b", two(1, [0.9, 0.8, 0.7], [0.9, 0.8, 0.7]))
    assert "classes: 2" in mistake([tmp_path], capsys)


def test_every_split_has_its_own_table_and_none_is_averaged_over(tmp_path: Path) -> None:
    other = {"labeled": {"largest": 30}, "unlabeled": {"shape": "inverted"}}
    write_results(tmp_path / "a", two(0))
    write_results(
        tmp_path / "b", two(1, protocol={"split": other | {"test": 50, "validation": 20}})
    )
    found, notes = methods.group(reading.read([tmp_path])[0])
    assert [g.title for g in found] == ["unlabeled.shape=long_tail", "unlabeled.shape=inverted"]
    assert [len(row.cells) for g in found for row in g.rows] == [1, 1, 1, 1]
    assert any("never averaged" in note for note in notes)


def test_files_without_settings_are_one_method_and_the_output_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        content = two(seed, [0.9, 0.4], [0.9, 0.5 + seed / 10])
        (tmp_path / f"same-{seed}.json").write_text(json.dumps(content))
    (group,) = groups(tmp_path)
    assert {row.name: len(row.cells) for row in group.rows} == {
        "fixmatch": 2,
        "fixmatch + selmix": 2,
    }
    assert any("settings unknown of 2 of 2 runs" in note for note in group.notes)
    # A file's name is no setting.
    (tmp_path / "plain-0.json").write_text(json.dumps(two(0, [0.9, 0.3], [0.9, 0.4])))
    assert "their figures differ" in mistake([tmp_path], capsys)


def test_arms_that_share_a_start_share_its_row(tmp_path: Path) -> None:
    for name, worst in (("a", 0.6), ("greedy", 0.5), ("uniform", 0.4)):
        second = stage("selmix", [0.9, worst], settings={"pairs": name})
        content = results([stage("fixmatch", START, settings={"lr": 1}), second])
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (group,) = groups(tmp_path)
    assert names(group)[0] == "fixmatch" and len(group.rows) == 4


def test_the_same_run_twice_counts_once_and_contradictions_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"fixmatch": {"lr": 1}, "selmix": {"lr": 1}}
    folder = write_results(tmp_path / "r", two(), config)
    copy = tmp_path / "copy.json"
    copy.write_text((folder / "results.json").read_text())
    code, out, _ = run([folder, copy], capsys)
    assert code == 0 and f"{copy} and {folder} are the same run, counted once" in out
    again = write_results(tmp_path / "again", two(end=[0.8, 0.5]), config)
    told = mistake([folder, again], capsys)
    assert "are both fixmatch + selmix with seed 0" in told and str(again) in told
    nameless = tmp_path / "0.json"
    nameless.write_text(json.dumps(two(end=[0.7, 0.7])))
    other = tmp_path / "1.json"
    other.write_text(json.dumps(two(end=[0.7, 0.6])))
    assert "their figures differ" in mistake([nameless, other], capsys)


def test_a_first_stage_trained_twice_is_told_and_changes_keep_their_own_start(
    tmp_path: Path,
) -> None:
    write_results(tmp_path / "alone", results([stage("fixmatch", [0.9, 0.3])]))
    write_results(tmp_path / "then", two())
    (group,) = groups(tmp_path)
    assert cells(group, "methods")[0][3] == "30.0"
    assert cells(group, "changes")[1][3:6] == ["40.0", "60.0", "+20.0"]
    assert any("trained more than once" in note for note in group.notes)


def test_a_third_stage_starts_from_the_second(tmp_path: Path) -> None:
    stages = [stage("fixmatch", [0.9, 0.3]), stage("selmix", [0.9, 0.5]), stage("crt", [0.9, 0.6])]
    (group,) = groups(write_results(tmp_path / "r", results(stages)))
    found = {row[0]: row[3:6] for row in cells(group, "changes") if row[1] == "worst class"}
    assert found == {
        "fixmatch + selmix": ["30.0", "50.0", "+20.0"],
        "fixmatch + selmix + crt": ["50.0", "60.0", "+10.0"],
    }


def test_pairs_are_over_common_seeds_only(tmp_path: Path) -> None:
    for seed in range(3):
        write_results(tmp_path / f"a{seed}", results([stage("abc", [0.9, 0.5 + seed / 10])], seed))
    for seed in range(1, 3):
        write_results(tmp_path / f"d{seed}", results([stage("daso", [0.9, 0.4])], seed))
    (group,) = groups(tmp_path)
    found = cells(group, "differences", Choice(against="abc"))
    assert found[1][:6] == ["daso", "worst class", "2", "65.0 ± 7.1", "40.0 ± 0.0", "-25.0 ± 7.1"]
    assert any(note.startswith("daso lacks seed 0; ") for note in group.notes)


def test_a_leader_of_five_seeds_is_bold_and_marked_and_one_of_four_is_not(tmp_path: Path) -> None:
    for seed in range(5):
        jitter = seed / 100
        good = [stage("abc", [0.98, 0.9 + jitter])]
        write_results(tmp_path / f"a{seed}", results(good, seed))
        write_results(tmp_path / f"d{seed}", results([stage("daso", [0.5, 0.2 + jitter])], seed))
    (group,) = groups(tmp_path)
    made = of_group(group, Choice())
    assert [row[3].bold for row in made[0].rows] == [True, False]
    differences = cells(group, "differences")
    assert all(row[6].endswith("]*") for row in differences)
    assert "bold: best on validation" in " ".join(made[0].notes)
    assert all(
        "*" not in c for row in cells(group, "differences", Choice("validation")) for c in row
    )
    on_validation = of_group(group, Choice("validation"))[0]
    assert not any(cell.bold for row in on_validation.rows for cell in row)
    for row in group.rows:
        row.cells.pop(sorted(row.cells)[0])
    made = of_group(group, Choice())
    assert not any(cell.bold for row in made[0].rows for cell in row)
    assert not any("*" in row[6].text for row in made[1].rows)


def test_of_small_errors_the_smallest_leads(tmp_path: Path) -> None:
    for name, ece in (("abc", 0.2), ("daso", 0.1)):
        measured = measure(START, ece=ece)
        write_results(
            tmp_path / name, results([stage(name, START, validation=measured, test=measured)])
        )
    (group,) = groups(tmp_path)
    (row,) = cells(group, "differences", Choice(metrics=("ece",)))
    assert row[:2] == ["abc", "ECE"] and row[5] == "+10.0"


def test_weights_kept_last_and_median_of_twenty(tmp_path: Path) -> None:
    rows = [
        {"kind": "validation", "step": i, "mean_recall": i / 100, "min_recall": i / 100}
        for i in range(31)
    ]
    rows.append({"kind": "train", "step": 30, "loss": 1.0})  # type: ignore[dict-item]
    told = {part: measure([0.5, 0.3]) for part in ("validation", "test")}
    content = results([stage("fixmatch", START, last=told)])
    write_results(tmp_path / "a", content, logs=[rows])
    (group,) = groups(tmp_path)
    notes = of_group(group, Choice())[-1].notes
    worst = cells(group, "weights")[1]
    assert worst == ["fixmatch", "worst class", "40.0", "30.0", "20.5", "40.0", "30.0"]
    assert "of the last 20 evaluations" in notes[1]


def test_last_weights_come_from_the_log_or_from_the_last_step_or_not_at_all(tmp_path: Path) -> None:
    row = {"kind": "validation", "step": 100, "mean_recall": 0.7, "min_recall": 0.2}
    write_results(tmp_path / "logged", results([stage("a", START)]), logs=[[row]])
    write_results(tmp_path / "end", results([stage("b", START, kept_step=100)]))
    write_results(tmp_path / "bare", results([stage("c", START)]))
    (group,) = groups(tmp_path)
    found = {row[0]: row[2:] for row in cells(group, "weights") if row[1] == "worst class"}
    assert found["a"] == ["40.0", "20.0", "20.0", "40.0", "–"]
    assert found["b"] == ["40.0", "40.0", "–", "40.0", "40.0"]
    assert found["c"] == ["40.0", "–", "–", "40.0", "–"]


def test_a_half_run_is_compared_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = {"fixmatch": "best", "selmix": "best"}
    protocol = {"steps": [100, 100], "checkpoint_rule": rules}
    folder = write_results(tmp_path / "r", results([stage("fixmatch", START)], protocol=protocol))
    _, out, _ = run([folder], capsys)
    assert f"{folder} is unfinished: 1 stage(s) of 2, fixmatch; --resume continues it" in out


def test_who_leads_by_a_tie_is_told_and_so_is_a_figure_without_validation(tmp_path: Path) -> None:
    for name, recalls in (("abc", [0.8, 0.4]), ("crest", [0.9, 0.4]), ("daso", [0.9, 0.4])):
        measured = {"test": measure(recalls), "validation": measure(recalls)}
        del measured["validation"]["ece"]
        write_results(tmp_path / name, results([stage(name, recalls, **measured)]))
    (group,) = groups(tmp_path)
    made = of_group(group, Choice(metrics=("min_recall", "ece")))
    (notes,) = [sheet.notes for sheet in made if sheet.slug == "differences"]
    # The mean recall decides against abc, and nothing does between the other two.
    assert "worst class: against crest (first of 2 that tie on validation)" in notes
    assert any(n.startswith("ECE: no differences, for") and "--against" in n for n in notes)


def test_a_network_that_differs_is_named_once(tmp_path: Path) -> None:
    for seed, (name, number) in enumerate((("cnn-16", 1), ("cnn-32", 2))):
        config = {"model": {"name": name}, "fixmatch": {"lr": 1}}
        protocol = {"network": name, "parameters": number}
        content = results([stage("fixmatch", START)], seed, protocol=protocol)
        write_results(tmp_path / name, content, config)
    (group,) = groups(tmp_path, "network")
    assert names(group) == ["fixmatch [network=cnn-16]", "fixmatch [network=cnn-32]"]
    titles = [g.title for g in groups(tmp_path, by=("network",))]
    assert titles == ["network=cnn-16", "network=cnn-32"]


def test_file_names_of_tables_are_short_and_their_own() -> None:
    titles = ["a=1", "a=-1", "a=漢", "a=字", "b=" + "x" * 300, "b=" + "x" * 299]
    titles += ["d=A", "d=a", "n=a_b", "n=a-b"]
    slugs = [methods.Group(title, [], [], [], []).slug for title in titles]
    assert slugs[0] == "a-1" and len(set(slugs)) == len(slugs)
    assert all(len(slug) <= 60 and slug.isascii() for slug in slugs)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_names_of_any_kind_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_results(tmp_path / "r", results([stage("_a$\\frac$", START), stage("b_$", END)]))
    manifest = {"counts": {}, "class_names": ["$\\x$", "漢"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert run([folder, "--figures", tmp_path / "f"], capsys)[0] == 0
    (group,) = groups(folder)
    legend = figures.plane(group, "test")[0].figure.legends[0]
    assert [t.get_text().strip() for t in legend.get_texts()] == names(group)


def test_the_plane_of_many_methods_numbers_them_and_has_no_intervals(tmp_path: Path) -> None:
    for i in range(13):
        write_results(tmp_path / f"{i}", results([stage(f"m{i:02}", [0.9, 0.3 + i / 50])]))
    (group,) = groups(tmp_path)
    (picture,) = figures.plane(group, "test")
    texts = [t.get_text() for t in picture.figure.legends[0].get_texts()]
    assert texts[0] == "1 m00" and texts[12] == "13 m12"
    axis = picture.figure.axes[0]
    assert [t.get_text() for t in axis.texts] == [str(i) for i in range(1, 14)]
    assert not axis.containers and "without intervals" in picture.caption
    group.rows[:] = group.rows[:10]
    (picture,) = figures.plane(group, "test")
    assert len(picture.figure.axes[0].containers) == 10 and "with 95 %" in picture.caption


def test_what_is_not_finished_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(tmp_path / "good", two())
    (tmp_path / "going").mkdir()
    (tmp_path / "going" / "config.yaml").write_text("seed: 1")
    code, out, _ = run([tmp_path], capsys)
    assert code == 0 and f"{tmp_path / 'going'} has no finished stage yet" in out
    assert "does not exist" in mistake([tmp_path / "nowhere"], capsys)
    assert "no finished run" in mistake([tmp_path / "going"], capsys)


def test_mistakes_in_options_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_results(tmp_path / "r", two())
    assert "unknown key 'netwok'; did you mean" in mistake([folder, "--allow", "netwok"], capsys)
    assert "(--by)" in mistake([folder, "--by", "x"], capsys)
    assert "unknown key 'images'" in mistake([folder, "--by", "images"], capsys)
    twice = run([folder, "--metrics", "g_mean", "g_mean"], capsys)
    assert twice == run([folder, "--metrics", "g_mean"], capsys)
    assert "unknown figure 'x'" in mistake([folder, "--metrics", "x"], capsys)
    assert "unknown row 'abc'" in mistake([folder, "--against", "abc"], capsys)
    split = results([])["protocol"]["split"]
    inverted = {"split": split | {"unlabeled": {"shape": "inverted"}}}
    write_results(tmp_path / "s", two(protocol=inverted))
    write_results(tmp_path / "t", results([stage("abc", START)]))
    code, out, _ = run([tmp_path, "--against", "abc"], capsys)  # one of the tables has it
    assert code == 0 and "worst class: against abc" in out
    assert "no differences with unlabeled.shape=inverted, which has no row abc" in out
    file = folder / "results.json"
    before = file.read_bytes()
    for taken in (file, folder / "new.csv", folder / "deep" / "er" / "new.csv"):
        for force in ([], ["--force"]):
            assert "in the folder of a run" in mistake([folder, "--csv", taken, *force], capsys)
    assert "in the folder of a run" in mistake([folder, "--figures", folder, "--force"], capsys)
    named = tmp_path / "named.json"
    named.write_bytes(before)
    assert "one of the results" in mistake([named, "--csv", named, "--force"], capsys)
    assert file.read_bytes() == before
    assert "takes one of" in mistake([folder, "--csv", "-", "--latex", "-"], capsys)


def test_a_dash_is_the_standard_output_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_results(tmp_path / "r", two())
    _, out, _ = run([folder, "--markdown", "-"], capsys)
    assert out.startswith("# Comparison\n")
    _, out, _ = run([folder], capsys)
    assert "worst class" in out and "# Comparison" not in out


@pytest.mark.slow
def test_nothing_that_exists_is_written_over_and_that_is_found_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = tmp_path / "no such run"  # would be refused, were it looked at first
    mine = tmp_path / "mine.md"
    mine.write_text("mine")
    full = tmp_path / "full"
    full.mkdir()
    (full / "a.png").write_text("mine")
    told: dict[str, list[str | Path]] = {
        "mine.md exists and is not overwritten; add --force": ["--markdown", mine],
        "full is a folder; name a file in it": ["--html", full, "--force"],
        "mine.md is a file; --figures takes a folder": ["--figures", mine, "--force"],
        "full is a folder with files; add --force": ["--figures", full],
        "cannot be written, for": ["--csv", mine / "x.csv"],
        "two outputs have the same path": ["--csv", "new", "--latex", "./new"],
        "an empty path names no file": ["--csv", ""],
    }
    for message, words in told.items():
        assert message in mistake([nothing, *words], capsys)
    folder = write_results(tmp_path / "r", two())
    assert run([folder, "--markdown", mine], capsys)[0] == 2 and mine.read_text() == "mine"
    assert run([folder, "--markdown", mine, "--figures", full, "--force"], capsys)[0] == 0
    assert mine.read_text().startswith("# Comparison") and (full / "plane-all.png").exists()
    assert "add --force" in mistake([folder, "--markdown", mine], capsys)


def test_csv_has_a_row_per_observation_and_the_change_of_it(tmp_path: Path) -> None:
    (group,) = groups(write_results(tmp_path / "r", two()))
    found = list(csv.DictReader(write.table_of_values([group]).splitlines()))
    key = {
        "method": "fixmatch + selmix",
        "part": "test",
        "figure": "per_class_recall",
        "class": "1",
    }
    (row,) = [r for r in found if key.items() <= r.items()]
    assert float(row["value"]) == 0.6 and float(row["change"]) == pytest.approx(0.2)
    assert {(r["stage"], r["steps"]) for r in found} == {("fixmatch", "100"), ("selmix", "100")}
    assert {r["seed"] for r in found} == {"0"} and {r["weights"] for r in found} == {"kept"}


def test_markdown_and_latex_escape_names_and_are_well_formed(tmp_path: Path) -> None:
    write_results(tmp_path / "r", results([stage("my_algo|#&%", START)]))
    (group,) = groups(tmp_path)
    made = [(group, of_group(group, Choice()))]
    text = write.markdown(made, [])
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert r"my\_algo\|#&%" in text
    assert all(len(re.findall(r"(?<!\\)\|", line)) >= 8 for line in tables)
    tex = write.latex(made, [])
    assert r"my\_algo|\#\&\%" in tex
    for name in ("table", "tabular"):
        assert tex.count(rf"\begin{{{name}}}") == tex.count(rf"\end{{{name}}}") > 0
    body = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert all(len(re.findall(r"(?<!\\)&", line)) in (6, 8) for line in body)
    assert r"\totalheight>0.8\textheight" in tex  # long tables are shrunk to a page
    bare = re.sub(r"%.*", "", tex.replace(r"\%", ""))
    assert bare.count("{") - bare.count(r"\{") == bare.count("}") - bare.count(r"\}")
    assert bare.count("$") % 2 == 0


def test_names_are_escaped_for_html_and_latex(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = r"""<i>&amp;"'$x_1$\b{}"""
    write_results(tmp_path / "r", results([stage(name, START)]))
    page, paper = tmp_path / "p.html", tmp_path / "p.tex"
    assert run([tmp_path / "r", "--html", page, "--latex", paper], capsys)[0] == 0
    cell = r"&lt;i&gt;&amp;amp;&#34;&#39;$x_1$\b{}"
    assert f'<td class="word">{cell}</td>' in page.read_text()
    assert "<i>" not in page.read_text()
    escaped = r"""$<$i$>$\&amp;"'\$x\_1\$\textbackslash{}b\{\}"""
    assert f"\n{escaped} & $1$ & $65.0$ & " in paper.read_text()


def logged_run(folder: Path, seed: int) -> None:
    """A run with everything that a figure can show."""
    bins = {"confidence": [0.5, None, 0.9], "accuracy": [0.4, None, 0.8], "count": [10, 0, 90]}
    measured = measure(END, reliability=bins)
    second = stage("selmix", END, validation=measured, test=measured)
    common = {"kind": "validation", "mean_recall": 0.6, "min_recall": 0.3}
    prior = {"estimated_prior": [0.6, 0.4], "true_prior": [0.7, 0.3]}
    limits = {"estimated_prior_low": [0.5, 0.3], "estimated_prior_high": [0.7, 0.5]}
    square = {"gain_matrix": [[0, 1], [2, 3]], "pair_distribution": [[0.1, 0.2], [0.3, 0.4]]}
    first_rows = [{**common, "step": s, **prior, **limits} for s in (0, 50, 100)]
    second_rows = [{**common, "step": s, **square} for s in (0, 40 + seed, 100)]
    content = results([stage("fixmatch", START), second], seed)
    write_results(folder, content, logs=[first_rows, second_rows])


@pytest.mark.slow
def test_all_figures_are_drawn_and_every_output_has_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        logged_run(tmp_path / "runs" / str(seed), seed)
    (group,) = groups(tmp_path / "runs")
    written = []
    for name in ("one", "two"):
        out = tmp_path / name
        kinds = ("markdown", "latex", "csv", "html")
        files = [x for k in kinds for x in (f"--{k}", out / f"r.{k}")]
        code, told, err = run([tmp_path / "runs", *files], capsys)
        assert code == 0 and "no figure" not in told, err
        made = figures.of_group(group)
        stems = [picture.slug for picture in made.made]
        style.save(style.Pictures(made.made[:1]), out / "figures")
        written.append({p.relative_to(out): p.read_bytes() for p in out.rglob("*.*")})
    assert written[0] == written[1]
    assert stems == [f"{k}-all" for k in ("plane", "recalls", "reliability", "curves")] + [
        "pairs-2-all",
        "priors-all",
    ]
    assert {p.name for p in written[0]} >= {"plane-all.png", "plane-all.pdf", "r.html", "r.csv"}


def test_figures_are_written_as_png_and_pdf(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(tmp_path / "r", two())
    assert run([tmp_path / "r", "--figures", tmp_path / "f"], capsys)[0] == 0
    found = sorted(p.name for p in (tmp_path / "f").iterdir())
    assert found == ["plane-all.pdf", "plane-all.png", "recalls-all.pdf", "recalls-all.png"]


class Page(HTMLParser):
    """Collects what a report must and must not have."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.viewport = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag == "table":
            assert self.open[-1] == "div"  # the box that scrolls
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]
        self.viewport += str(told.get("content")) if told.get("name") == "viewport" else ""
        self.images += [told] if tag == "img" else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.slow
def test_the_report_is_one_file_without_network_for_small_screens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logged_run(tmp_path / "<b>runs" / "r", 0)
    (tmp_path / "<b>runs" / "going").mkdir()  # which a note names
    (tmp_path / "<b>runs" / "going" / "config.yaml").write_text("seed: 1")
    out = tmp_path / "report.html"
    assert run([tmp_path / "<b>runs", "--html", out], capsys)[0] == 0
    page, text = Page(), out.read_text()
    page.feed(text)
    assert page.open == []
    assert "width=device-width" in page.viewport and "overflow-x: auto" in text
    assert len(page.images) == 6 and all(image["alt"] for image in page.images)
    assert all(link.startswith(("data:image/svg+xml;base64,", "#")) for link in page.links)
    assert not re.search(r"url\(|@import|<script[^>]", text) and text.count("<script>") == 1
    assert "default-src 'none'" in text  # the browser itself refuses whatever else is asked for
    assert (
        "<b>runs" not in text and "&lt;b&gt;runs" in text and "prefers-color-scheme: dark" in text
    )


@pytest.mark.slow
def test_figures_without_data_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(tmp_path / "r", results([stage("fixmatch", START)]))
    _, out, _ = run([tmp_path / "r", "--html", tmp_path / "o.html"], capsys)
    for name in ("recalls", "reliability", "curves", "pairs", "priors"):
        assert f"no figure {name}: " in out


def test_the_number_of_test_images_comes_from_the_split_the_results_or_the_manifest(
    tmp_path: Path,
) -> None:
    split = {"labeled": {"largest": 30}, "unlabeled": {"shape": "long_tail"}, "validation": 20}
    own: Any = {"protocol": {"split": split | {"test": None}}}  # the data set's own test part
    bare = write_results(tmp_path / "bare", two(**own))
    (group,) = groups(bare)
    assert cells(group, "changes")[1][6] == "–"
    counted = write_results(tmp_path / "counted", two(**own) | {"counts": {"test": [10, 10]}})
    noted = write_results(tmp_path / "noted", two(**own))
    manifest = {"counts": {"test": [10, 10]}, "class_names": ["cat", "dog"]}
    (noted / "manifest.json").write_text(json.dumps(manifest))
    found = [cells(groups(path)[0], "changes")[1][6] for path in (counted, noted)]
    assert found[0] == found[1] != "–"
    assert reading.read([noted])[0][0].class_names == ("cat", "dog")


def test_a_class_without_test_images_has_no_recall_and_breaks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = measure([0.9, 0.4]) | {
        "per_class_recall": [0.9, 0.4, None],
        "per_class_coverage": [0.5, 0.5, 0.0],
    }
    parts = {"validation": measured, "test": measured}
    stages = [stage("fixmatch", START, **parts), stage("selmix", START, **parts)]
    write_results(tmp_path / "r", results(stages))
    assert run([tmp_path / "r", "--html", tmp_path / "o.html"], capsys)[0] == 0


def test_recalls_are_drawn_where_seeds_agree_and_over_those_that_have_the_class(
    tmp_path: Path,
) -> None:
    """The mean of 0.28 five times is not 0.28, and its bar would have been negative."""
    for seed in range(5):
        recalls = [0.9, 0.28, 0.7 + 0.01 * seed if seed else None]
        told = measure([0.9, 0.28]) | {"per_class_recall": recalls}
        told["per_class_coverage"] = [0.4, 0.3, 0.3]
        stages = [stage(name, START, validation=told, test=told) for name in ("fixmatch", "selmix")]
        write_results(tmp_path / str(seed), results(stages, seed))
    (group,) = groups(tmp_path)
    (drawn,) = [p for p in figures.of_group(group).made if p.slug.startswith("recalls")]
    (after,) = [c for c in drawn.figure.axes[0].containers if c.get_label() == "after"]
    assert after[0].get_ydata()[1:] == pytest.approx([28, 72.5])
    lows, highs = zip(*(s[:, 1] for s in after[2][0].get_segments()[1:]), strict=True)
    assert lows == pytest.approx([28, 71]) and highs == pytest.approx([28, 74])


def test_a_seed_without_a_figure_in_its_log_does_not_hide_the_others(tmp_path: Path) -> None:
    for seed, value in enumerate((0.5, None)):
        rows = [{"kind": "validation", "step": s, "min_recall": value} for s in (0, 100)]
        write_results(tmp_path / f"r{seed}", results([stage("fixmatch", START)], seed), logs=[rows])
    (group,) = groups(tmp_path)
    with style.drawing():
        (drawn,) = curves.curves(group, "test")
    assert [len(axis.lines) for axis in drawn.figure.axes[:2]] == [0, 1]


def test_seeds_with_other_bins_of_reliability_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        full = [0.5] * (seed + 2)
        bins = {"confidence": full, "accuracy": full, "count": [5] * len(full)}
        one = stage("fixmatch", START, test=measure(START, reliability=bins))
        write_results(tmp_path / f"r{seed}", results([one], seed))
    told = mistake([tmp_path, "--html", tmp_path / "report.html"], capsys)
    assert f"{tmp_path / 'r1'} has 3 bins of reliability" in told


def test_units_of_one_seed_have_a_curve_each(tmp_path: Path) -> None:
    rows = [
        {"kind": "validation", "step": s, "mean_recall": 0.5, "min_recall": 0.4} for s in (0, 9)
    ]
    for images in ("a", "b"):
        content = results([stage("fixmatch", START)]) | {"manifest_sha256": images * 64}
        write_results(tmp_path / images, content, logs=[rows])
    (group,) = groups(tmp_path, "images")
    assert len(curves._logged(group.rows[0])) == 2


def test_tables_that_only_an_implied_key_tells_apart_have_titles_of_their_own(
    tmp_path: Path,
) -> None:
    kinds = [("cnn-16", 1), ("cnn-16", 2), ("cnn-32", 3)]
    for i, (network, parameters) in enumerate(kinds):
        write_results(
            tmp_path / str(i), two(protocol={"network": network, "parameters": parameters})
        )
    titles = [group.title for group in groups(tmp_path, by=("network",))]
    assert titles == [f"network={n}, parameters={p}" for n, p in kinds]


def test_keys_are_those_of_the_configuration(tmp_path: Path) -> None:
    (found,) = reading.read([write_results(tmp_path / "r", two())])[0]
    assert found.keys["data.unlabeled.shape"] == "long_tail"
    assert found.keys["steps"] == 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "most"), [("cifar10-jpeg", 60), ("cifar10-jpeg-long", 6), ("digits", 70)]
)
def test_the_tables_of_the_study_are_those_of_its_files(study: str, most: int) -> None:
    """Without the intervals, whose last digit may be another one with another numpy."""
    made = groups(RESULTS / study)
    page = (RESULTS / study / "tables.md").read_text("utf-8")
    tables = [(g, [s for s in of_group(g, Choice()) if s.slug == "methods"]) for g in made]
    lines = write.markdown(tables, []).splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) > most and [row for row in rows if row not in page] == []


@pytest.mark.parametrize("option", ["--csv", "--markdown", "--latex", "--html", "--figures"])
def test_a_full_disk_leaves_no_half_table(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_results(tmp_path / "a", two(0))
    monkeypatch.setattr(os, "fsync", full)
    place = tmp_path / "made" / "table"
    assert cli.main(["compare", str(tmp_path / "a"), option, str(place)]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"error: No space left on device ({place}") and "free some" in told
    assert [path for path in place.parent.rglob("*") if path.is_file()] == []
