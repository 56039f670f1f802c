"""Tables and picture of SelMix and its controls: plain words, kinds of rows, who dominates whom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ssl_selmix.compare import against, figures, pareto, plain
from ssl_selmix.compare.methods import Group
from ssl_selmix.compare.tables import Choice, Sheet, of_group
from tests.helpers.results import groups, mistake, results, run, stage, two
from tests.helpers.results import write as write_results

Stages = Sequence[tuple[str, list[float], dict[str, Any]]]
FIRST = ("fixmatch", [0.9, 0.3], {"lr": 1})
SELMIX = {"policy": "selective", "mix": "feature", "objective": "min_recall"}
OFFSETS = {"rule": "offsets", "objective": "min_recall"}
ARMS: dict[str, Stages] = {
    "SelMix": [("selmix", [0.9, 0.6], SELMIX)],
    "SelMix, then post-hoc offsets": [
        ("selmix", [0.9, 0.6], SELMIX),
        ("posthoc", [0.8, 0.75], OFFSETS),
    ],
    "post-hoc offsets, then SelMix": [
        ("posthoc", [0.9, 0.5], OFFSETS),
        ("selmix", [0.9, 0.7], SELMIX),
    ],
    "SelMix, then WiSE-FT": [
        ("selmix", [0.9, 0.6], SELMIX),
        ("wise_ft", [1.0, 0.6], {"points": 21}),
    ],
    "post-hoc offsets": [("posthoc", [0.9, 0.5], OFFSETS)],
    "thresholds by class shares": [("posthoc", [0.9, 0.4], OFFSETS | {"rule": "labeled_prior"})],
    "balanced sub-sampling": [("balanced_subsampling", [0.6, 0.4], {"body_lr": 0.0})],
    "the same classes without mixing": [("selmix", [0.8, 0.6], SELMIX | {"mix": "none"})],
    "plain fine-tuning": [("selmix", [0.9, 0.3], SELMIX | {"mix": "none", "policy": "natural"})],
    "cRT": [("crt", [0.7, 0.5], {"lr": 0.025})],
}
WITH = list(ARMS)[:4]


def write_arm(
    folder: Path, arm: str, seed: int, more: float = 0.0, first: str = "fixmatch"
) -> None:
    stages = []
    for name, recalls, settings in [FIRST, *ARMS[arm]]:
        steps = 0 if name in ("posthoc", "wise_ft") else 100
        moved = [r - more for r in recalls]
        name = first if name == "fixmatch" else name
        stages.append(stage(name, moved, steps=steps, settings=settings))
    rules = {s["algorithm"]: "best" if s["steps"] else "last" for s in stages}
    protocol = {"steps": [s["steps"] for s in stages], "checkpoint_rule": rules}
    place = folder / f"{first}-{list(ARMS).index(arm)}-{seed}"
    write_results(place, results(stages, seed, protocol))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Five seeds of all arms."""
    for seed in range(5):
        for arm in ARMS:
            write_arm(tmp_path / "study", arm, seed, seed / 100)
    return tmp_path / "study"


def sheet(group: Group, slug: str, choice: Choice | None = None) -> Sheet:
    found = {one.slug: one for one in against.of_group(group, choice or Choice())}
    return found[slug]


def lines(made: Sheet, figure: str = "worst class") -> dict[str, list[str]]:
    """Cells behind the name of every row with this figure."""
    rows = [[c.text for c in row] for row in made.rows]
    return {row[0]: row[2:] for row in rows if row[1] == figure}


def test_stages_without_steps_compare_and_are_named_in_plain_words(study: Path) -> None:
    (group,) = groups(study)
    assert set(plain.names(group).values()) == {"start", *ARMS}
    slugs = [one.slug for one in against.of_group(group, Choice())]
    assert slugs == ["methods", "controls", "offsets", "changes", "differences", "weights"]


def test_every_row_is_held_against_the_start_that_all_share(study: Path) -> None:
    (group,) = groups(study)
    made = sheet(group, "controls")
    kinds = [(i, row[0].text) for i, row in enumerate(made.rows) if not row[1].text]
    assert [kind for _, kind in kinds] == ["with SelMix", "controls"]
    assert all(made.rows[i][0].bold for i, _ in kinds)
    found = lines(made)
    assert list(found) == list(ARMS)
    assert list(found).index("post-hoc offsets") == len(WITH)
    assert kinds[1][0] == 1 + 2 * len(WITH)  # two figures of each, below the first heading
    # The third stage too: not over the stage before it.
    assert found["SelMix, then post-hoc offsets"][:4] == [
        "5",
        "28.0 ± 1.6",
        "73.0 ± 1.6",
        "+45.0 ± 0.0",
    ]
    assert found["plain fine-tuning"][3:] == ["+0.0 ± 0.0", "[+0.0, +0.0]"]
    assert found["SelMix"][4].endswith("]*")


def test_every_row_is_held_against_offsets_alone(study: Path) -> None:
    (group,) = groups(study)
    found = lines(sheet(group, "offsets"))
    assert list(found) == [arm for arm in ARMS if arm != "post-hoc offsets"]
    assert found["SelMix"][1:4] == ["48.0 ± 1.6", "58.0 ± 1.6", "+10.0 ± 0.0"]
    assert found["post-hoc offsets, then SelMix"][3] == "+20.0 ± 0.0"


def test_offsets_of_the_same_objective_are_taken(tmp_path: Path) -> None:
    other = {"objective": "h_mean"}
    for name, settings, worst in (("a", OFFSETS, 0.5), ("b", OFFSETS | other, 0.45)):
        ends = [stage("posthoc", [0.9, worst], steps=0, settings=settings)]
        write_results(tmp_path / name, results([stage("fixmatch", FIRST[1]), *ends]))
    for name, settings in (
        ("c", SELMIX),
        ("d", SELMIX | other),
        ("e", SELMIX | {"objective": "g_mean"}),
    ):
        ends = [stage("selmix", [0.9, 0.6], settings=settings)]
        write_results(tmp_path / name, results([stage("fixmatch", FIRST[1]), *ends]))
    (group,) = groups(tmp_path)
    found = {name: row[1] for name, row in lines(sheet(group, "offsets")).items()}
    assert found == {"SelMix (objective=min_recall)": "50.0", "SelMix (objective=h_mean)": "45.0"}


def test_old_tables_stay_as_they_were(tmp_path: Path) -> None:
    (group,) = groups(write_results(tmp_path / "r", two()))
    choice = Choice()
    assert against.of_group(group, choice) == of_group(group, choice)
    assert not pareto.pareto(group, "test")
    assert not any("pareto" in note for note in figures.of_group(group).notes)


def test_differences_are_against_a_row_in_plain_words(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told, err = run([study, "--against", "post-hoc offsets"], capsys)
    assert code == 0 and "against fixmatch + posthoc [rule=offsets]" in told, err
    told = mistake([study, "--against", "post-hoc"], capsys)
    assert "unknown row 'post-hoc'" in told


def test_two_starts_are_told_apart(study: Path) -> None:
    for arm in ("SelMix", "post-hoc offsets"):
        write_arm(study, arm, 0, first="abc")
    (group,) = groups(study)
    kinds = [row[0].text for row in sheet(group, "controls").rows if not row[1].text]
    assert kinds == [f"{s}: {k}" for s in ("abc", "fixmatch") for k in ("with SelMix", "controls")]
    assert "abc: post-hoc offsets" in plain.names(group).values()
    assert [p.slug for p in pareto.pareto(group, "test")] == ["pareto-1-all", "pareto-2-all"]


def test_the_picture_joins_what_nothing_dominates(study: Path) -> None:
    (group,) = groups(study)
    (picture,) = pareto.pareto(group, "test")
    assert picture.slug == "pareto-all" and picture.caption.startswith("Worst class against mean")
    (axis,) = picture.figure.axes
    assert axis.get_ylabel() == "worst class, percent (test)"
    numbers = {t.get_text(): t.get_fontweight() for t in axis.texts}
    bold = [int(n) for words in numbers if numbers[words] == "bold" for n in words.split(",")]
    # 77.5 / 75 and 80 / 70; WiSE-FT has 80 / 60.
    assert [list(ARMS)[i - 2] for i in sorted(bold)] == WITH[1:3]
    (legend,) = picture.figure.legends
    told = [text.get_text() for text in legend.get_texts()]
    assert told == [f"{i} {name}" for i, name in enumerate(("start", *ARMS), 1)]
    markers = {line.get_marker() for line in axis.lines if line.get_linestyle() == "None"}
    assert len(markers) >= 10  # greys and fills are not all that tells rows apart


def test_rows_that_lack_a_seed_keep_their_place(study: Path) -> None:
    (group,) = groups(study)
    rows = {plain.after_start(row): row for row in group.rows}
    row, start = rows["SelMix"], rows["start"]
    whole = pareto._point(row, start, "min_recall", "test")
    row.cells.pop(sorted(row.cells)[0])
    less = pareto._point(row, start, "min_recall", "test")
    assert whole is not None and less is not None
    assert less[0] == pytest.approx(whole[0])


@pytest.mark.parametrize(
    ("objective", "figure"),
    [
        *(("min_recall", "min_recall"), ("g_mean", "g_mean"), ("mean_recall", "min_recall")),
        *(("mean_recall_min_coverage", "min_coverage"), ("./mine.py:f", "min_recall")),
    ],
)
def test_the_axis_is_the_objective(tmp_path: Path, objective: str, figure: str) -> None:
    ends = [stage("selmix", [0.9, 0.6], settings={"objective": objective})]
    write_results(tmp_path / "r", results([stage("fixmatch", FIRST[1]), *ends]))
    (group,) = groups(tmp_path)
    assert pareto.figure_of(group.rows) == figure
