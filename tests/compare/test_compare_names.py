"""Names of methods: what they say, and that one name means one method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl_selmix.compare import methods, reading
from tests.helpers.results import END, START, groups, names, results, stage, two, write


def test_settings_that_differ_are_part_of_the_name(tmp_path: Path) -> None:
    for i, (goal, tau) in enumerate((("min_recall", 1.0), ("g_mean", 1.0), ("g_mean", 0.0))):
        config = {"fixmatch": {"logit_adjustment": tau, "lr": 0.03}, "selmix": {"objective": goal}}
        write(tmp_path / f"r{i}", two(0, [0.9, 0.4 + tau / 10], [0.8, 0.5 + i / 100]), config)
    (group,) = groups(tmp_path)
    assert names(group) == [
        "fixmatch [logit_adjustment=0]",
        "fixmatch [logit_adjustment=0] + selmix [objective=g_mean]",
        "fixmatch [logit_adjustment=1]",
        "fixmatch [logit_adjustment=1] + selmix [objective=g_mean]",
        "fixmatch [logit_adjustment=1] + selmix [objective=min_recall]",
    ]


def test_what_most_methods_share_goes_without_saying(tmp_path: Path) -> None:
    kinds = [("feature", 1), ("feature", 2), ("feature", 3), ("none", 1)]
    for i, (mix, t) in enumerate(kinds):
        for seed in range(1 + 5 * (mix == "none")):  # methods count, not their seeds
            content = two(seed, [0.9, 0.4], [0.8, 0.5 + i / 100])
            write(tmp_path / f"r{i}-{seed}", content, {"selmix": {"mix": mix, "temperature": t}})
    (group,) = groups(tmp_path)
    found = [name.removeprefix("fixmatch + selmix ") for name in names(group)[1:]]
    one = "[mix=none, temperature=1]"
    assert found == [one, "[temperature=1]", "[temperature=2]", "[temperature=3]"]
    assert "selmix: mix=feature, where its name says nothing else" in group.notes


def test_settings_in_the_results_are_enough_and_a_new_key_makes_no_new_method(
    tmp_path: Path,
) -> None:
    first = [stage("fixmatch", START, settings={"lr": 0.03})]
    second = [stage("fixmatch", END, settings={"lr": 0.03, "new": 1})]
    third = [stage("fixmatch", END, settings={"lr": 0.3, "new": 1})]
    for seed, stages in enumerate((first, second, third)):
        write(tmp_path / f"r{seed}", results(stages, seed))
    (group,) = groups(tmp_path)
    assert {row.name: len(row.cells) for row in group.rows} == {
        "fixmatch [lr=0.03]": 2,
        "fixmatch [lr=0.3]": 1,
    }


def test_steps_of_a_second_stage_are_part_of_its_name(tmp_path: Path) -> None:
    write(tmp_path / "a", two())
    longer = two(end=[0.8, 0.7], protocol={"steps": [100, 400]})
    write(tmp_path / "b", longer)
    (group,) = groups(tmp_path)
    assert names(group) == [
        "fixmatch",
        "fixmatch + selmix [steps=100]",
        "fixmatch + selmix [steps=400]",
    ]


def put(folder: Path, seed: int, spread: float | None, worst: float, **more: Any) -> None:
    """A run with SelMix, from before or after selmix.spread, whose default is 1."""
    selmix = {"objective": "min_recall"} | ({} if spread is None else {"spread": spread})
    write(folder, two(seed, [0.9, 0.4], [0.8, worst], **more), {"selmix": selmix})


def test_a_key_that_older_runs_lack_has_its_default_in_them(tmp_path: Path) -> None:
    for seed, (spread, worst) in enumerate([(None, 0.4), (1.0, 0.4), (16.0, 0.8)]):
        put(tmp_path / f"r{seed}", seed, spread, worst)
    put(tmp_path / "again", 0, 1.0, 0.4)
    (group,) = groups(tmp_path)
    assert {row.name: len(row.cells) for row in group.rows[1:]} == {
        "fixmatch + selmix [spread=1]": 2,
        "fixmatch + selmix [spread=16]": 1,
    }
    assert any("are the same run, counted once" in note for note in group.notes)


def test_a_run_from_before_relative_rates_had_an_absolute_one(tmp_path: Path) -> None:
    for seed, rate in enumerate(({}, {"rate": "absolute"}, {"rate": "auto"})):
        selmix = {"selmix": {"objective": "min_recall"} | rate}
        write(tmp_path / f"r{seed}", two(seed, [0.9, 0.4], [0.8, 0.4 + seed / 10]), selmix)
    (group,) = groups(tmp_path)
    assert {row.name: len(row.cells) for row in group.rows[1:]} == {
        "fixmatch + selmix [rate=absolute]": 2,
        "fixmatch + selmix [rate=auto]": 1,
    }


def test_a_name_means_one_method_in_all_tables(tmp_path: Path) -> None:
    for i, spread in enumerate((4.0, 4.0, 4.0, 4.0, 1.0)):
        put(tmp_path / f"a{i}", 0, spread + 1e-3 * i * (spread > 1), 0.5 + i / 100)
    inverted = {"labeled": {"largest": 30}, "unlabeled": {"shape": "inverted"}}
    split = inverted | {"test": 50, "validation": 20}
    put(tmp_path / "b", 0, 1.0, 0.6, protocol={"split": split})
    found, _ = methods.group(reading.read([tmp_path])[0])
    assert [names(group)[-1] for group in found] == [
        "fixmatch + selmix [spread=4]",
        "fixmatch + selmix [spread=1]",
    ]


def test_the_note_on_usual_values_says_which_stage(tmp_path: Path) -> None:
    for i, spread in enumerate((1, 1, 1, 1, 2)):
        stages = [
            stage("selmix", START, settings={"lr": 1 + i % 4, "spread": 1}),
            stage("selmix", END, settings={"lr": 1, "spread": spread}),
        ]
        write(tmp_path / f"r{i}", results(stages, i))
    (group,) = groups(tmp_path)
    assert "selmix as stage 2: spread=1, where its name says nothing else" in group.notes


def test_a_joined_run_has_the_network_that_its_parent_trained(tmp_path: Path) -> None:
    first = {"fixmatch": {"lr": 1}, "model": {"bn_momentum": 0.001}}
    write(tmp_path / "f" / "s-0", results([stage("fixmatch", START)]), first)
    given = stage("start", START, steps=0, kept_step=0, seconds=0.0)
    content = results([stage("selmix", END)], protocol={"step": "joint"}) | {"start": given}
    init = {"path": str(tmp_path / "f" / "s-0"), "sha256": "0"}
    second = {"selmix": {"lr": 1}, "model": {"bn_momentum": 0.1}, "init": init}
    write(tmp_path / "f+s" / "s-0", content | {"init_sha256": "0"}, second)
    (group,) = groups(tmp_path)
    assert names(group) == ["fixmatch", "fixmatch + selmix"]


def test_settings_that_confound_a_table_are_named(tmp_path: Path) -> None:
    kinds = {"fixmatch": (1.0, 2), "flexmatch": (0.0, 2), "softmatch": (0.0, 2)}
    for name, (tau, mu) in kinds.items():
        told = {"logit_adjustment": tau, "mu": mu, "steps": 100}
        stages = [stage(name, START, settings=told)]
        if name == "fixmatch":
            stages += [stage("selmix", END, settings={"lr": 0.1, "logit_adjustment": 3})]
        write(tmp_path / name, results(stages))
    (group,) = groups(tmp_path)
    (note,) = [note for note in group.notes if "not the same" in note]
    assert note == (
        "settings of first stages that are not the same: "
        "logit_adjustment 1 (fixmatch), 0 (flexmatch, softmatch)"
    )


def test_settings_of_one_algorithm_stand_in_its_names_alone(tmp_path: Path) -> None:
    for i, tau in enumerate((0.0, 1.0)):
        content = results([stage("fixmatch", START, settings={"logit_adjustment": tau})], i)
        write(tmp_path / f"r{i}", content)
    (group,) = groups(tmp_path)
    assert not any("not the same" in note for note in group.notes)
