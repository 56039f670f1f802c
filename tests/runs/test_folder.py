"""What a run records of itself, and that whoever opens its folder gets that run and no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import ssl_selmix
from ssl_selmix.compare import methods, reading
from ssl_selmix.data.files import MEAN, STD
from ssl_selmix.deploy.decoder import Decoder
from ssl_selmix.runs import folder, load, released
from ssl_selmix.runs.folder import RunError, RunFolder, open_run
from ssl_selmix.runs.results import SCHEMA, Results, Row, checked
from ssl_selmix.training import checkpoint
from tests.helpers.results import results, stage
from tests.helpers.runs import photographs, train, train_on, unbound


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests only read it."""
    return train(tmp_path_factory.mktemp("folder") / "first", "supervised.keep=last")


@pytest.fixture(scope="module")
def second(first: Path) -> Path:
    """Another one, which started from the first."""
    return train(first.with_name("second"), "--init", str(first), "supervised.keep=last")


def copy(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


def test_a_run_records_its_identity_its_tail_and_what_it_handed_on(first: Path) -> None:
    opened = open_run(first)
    assert opened.results.version == SCHEMA == opened.manifest["schema"]
    assert opened.run_id == opened.results.run_id == opened.manifest["run_id"]
    assert opened.results.tail == [9] and opened.results.class_names == list("0123456789")
    (finished,) = opened.stages
    assert finished.handed_on_sha256 == checkpoint.digest(load.read(first))
    assert finished.started_from is None
    assert finished.settings and opened.results.model == opened.config["model"]


def test_a_run_that_init_started_records_its_parent(first: Path, second: Path) -> None:
    (finished,), parent = open_run(second).stages, open_run(first)
    assert finished.started_from is not None
    assert finished.started_from.run_id == parent.run_id and finished.started_from.stages == 1
    assert finished.started_from.sha256 == parent.stages[0].handed_on_sha256
    assert finished.started_from.sha256 == open_run(second).results.init_sha256


def test_the_record_joins_runs_wherever_they_lie_and_whatever_their_configuration_says(
    first: Path, second: Path, tmp_path: Path
) -> None:
    for name, run in (("b", first), ("a", second)):
        (tmp_path / name).mkdir()
        shutil.copy(run / "results.json", tmp_path / name)  # nothing else is read
    (group,) = methods.group(reading.read([tmp_path])[0])[0]
    assert [row.name.replace(" [steps=12]", "") for row in group.rows] == [
        "supervised",
        "supervised + supervised",
    ]
    # A run that was trained anew has another identity, but the same weights are the same start.
    results = json.loads((unbound(tmp_path / "b") / "results.json").read_text())
    (tmp_path / "b" / "results.json").write_text(json.dumps(results | {"run_id": "other"}))
    (group,) = methods.group(reading.read([tmp_path])[0])[0]
    assert len(group.rows) == 2
    results["stages"][0]["handed_on_sha256"] = "0" * 64
    (tmp_path / "b" / "results.json").write_text(json.dumps(results | {"run_id": "other"}))
    joined, notes = reading.with_parents(reading.read([tmp_path])[0])
    assert joined[0].chain[0] == "given weights" and "of no run that is given" in notes[0]


def test_weights_or_results_of_another_run_are_refused(
    first: Path, second: Path, tmp_path: Path
) -> None:
    swapped = copy(first, tmp_path / "weights")
    shutil.copy(second / "1-supervised" / "model.pt", swapped / "1-supervised" / "model.pt")
    with pytest.raises(RunError, match=r"model\.pt has not the weights that .*results\.json"):
        ssl_selmix.load(swapped)
    other = copy(first, tmp_path / "results")
    shutil.copy(second / "results.json", other / "results.json")
    with pytest.raises(RunError, match=r"results\.json is of another run than manifest\.json"):
        ssl_selmix.load(other)
    for name in ("model.pt", "last.pt"):
        (other / "1-supervised" / name).unlink()
    shutil.copy(first / "results.json", other / "results.json")
    with pytest.raises(RunError, match=r"1-supervised has no model\.pt"):
        ssl_selmix.load(other)


def test_a_run_owns_its_files_and_no_others(first: Path) -> None:
    run = RunFolder(first)
    owned = [run.owns(first / name) for name in ("config.yaml", "1-supervised/last.pt")]
    strange = [run.owns(first / name) for name in ("mine.csv", "1-supervised/mine.pt", "../a")]
    assert owned == [True, True] and strange == [False, False, False]
    with pytest.raises(ValueError, match="belongs to the run"):
        folder.check_free(first / "results.json", force=True)
    assert folder.run_around(first / "1-supervised" / "model.pt") is not None
    assert folder.run_around(first.parent) is None


def test_manifests_say_how_files_become_images(first: Path, tmp_path: Path) -> None:
    whole = open_run(first).manifest["preprocessing"]
    assert (whole["kind"], whole["size"], whole["resize"]) == ("whole", [8, 8], None)
    images = photographs(tmp_path / "images")
    run = train_on(images, tmp_path / "run", "data.size=72")
    streamed = open_run(run).manifest
    assert streamed["preprocessing"] == {
        **{"kind": "central_square", "size": [72, 72], "resize": 82, "interpolation": "bilinear"},
        **{"mean": list(MEAN), "std": list(STD)},
    }
    assert Decoder(streamed).crops
    # Images in memory may have been normalised by the same constants, and were never cropped.
    kept = streamed | {"preprocessing": streamed["preprocessing"] | {"kind": "whole"}}
    assert not Decoder(kept).crops


def test_a_manifest_of_version_0_1_is_decoded_as_it_was() -> None:
    square = {"image_shape": [3, 64, 64], "mean": list(MEAN), "std": list(STD)}
    assert released.preprocessing(square)["kind"] == "central_square"
    assert released.preprocessing(square)["resize"] == 73
    assert released.preprocessing(square | {"std": [1.0] * 3})["kind"] == "whole"
    assert released.preprocessing(square | {"image_shape": [3, 64, 32]})["kind"] == "whole"


def tail_of(recalls: list[float], value: float, labeled: list[int] | None) -> list[int] | None:
    content = released.numbered(results([stage("a", recalls)]))
    content["stages"][0]["test"]["min_ht_recall"] = value
    found = checked(Results, content)
    found.counts = {"labeled": labeled} if labeled else {}
    released.add_tail(found)
    return found.tail


def test_the_tail_of_version_0_1_is_the_one_that_explains_its_figure() -> None:
    assert tail_of([0.9, 0.4, 0.8], 0.65, None) == [2]
    assert tail_of([0.4, 0.9, 0.8], 0.4, [1, 9, 5]) == [0]
    assert tail_of([0.9, 0.4, 0.8], 0.11, None) is None


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("schema", "2", "schema is '2', no integer of at least 0"),
        ("run_id", "", "run_id is '', no name"),
        ("tail", [0, -1], "tail is -1, no integer"),
        ("class_names", ["a"], "class_names has 1 values instead of 2"),
        ("stages", [stage("a", [0.5, 0.5], started_from={})], "stages[1].started_from.sha256"),
    ],
)
def test_a_wrong_value_is_told_by_place_value_and_rule(key: str, value: object, told: str) -> None:
    content = released.numbered(results([stage("a", [0.9, 0.4])])) | {key: value}
    with pytest.raises(ValueError) as caught:
        checked(Results, content)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_number_that_python_does_not_write_out_is_told() -> None:
    content = released.numbered(results([stage("a", [0.9, 0.4])])) | {"run_id": 10**5000}
    with pytest.raises(ValueError, match="run_id is too large, no name"):
        checked(Results, content)


def test_what_a_later_version_adds_is_kept_and_what_nobody_told_is_not_written() -> None:
    content = released.numbered(results([stage("a", [0.9, 0.4], news={"x": 1})]))
    assert checked(Results, content).plain() == content
    assert checked(Row, {"step": 3, "loss": 1.5}).plain() == {"step": 3, "loss": 1.5}
