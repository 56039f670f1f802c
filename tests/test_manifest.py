"""data.manifest=FILE: the split of another run, on the same images or not at all."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssl_selmix import cli
from ssl_selmix.common import config, text
from ssl_selmix.data import manifest as manifests
from ssl_selmix.runs.inputs import Inputs, load_data
from ssl_selmix.runs.plan import Plan, Request
from ssl_selmix.splits import NOT_DRAWN, PARTS, SHAPES, Counts, LongTailSplit

CPU = torch.device("cpu")
DATASET = '''"""Thirty noise images of each of three classes, and seven of none."""
from dataclasses import dataclass, field
import numpy as np
import torch
from ssl_selmix.augment.tensor import Weak
from ssl_selmix.data import ImageSet
from ssl_selmix.splits import Counts, LongTailSplit


@dataclass
class Config(LongTailSplit):
    labeled: Counts = field(default_factory=lambda: Counts(6, rho=2.0))
    unlabeled: Counts = field(default_factory=lambda: Counts(8, rho=4.0))
    validation: int = 3
    test: int | None = 2
    noise: int = 0
    shift: int = 0
    own_pool: bool = True


def load(config: Config) -> ImageSet:
    generator = torch.Generator().manual_seed(config.noise)
    images = torch.randint(256, (97, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return ImageSet(
        train=images[:90],
        train_labels=np.roll(np.arange(3).repeat(30), config.shift),
        class_names=("head", "body", "tail"),
        mean=(127.5,),
        std=(74.0,),
        weak=Weak(pad=1),
        extra_unlabeled=images[90:] if config.own_pool else None,
    )
'''


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """A data set of the user's own, in a file."""
    path = tmp_path / "noise.py"
    path.write_text(DATASET)
    return str(path)


def plan_of(dataset: str, *words: str, seed: int = 0) -> Plan:
    return Plan(Request(["supervised"], dataset, settings=[*words, f"seed={seed}"]))


def inputs_of(dataset: str, *words: str, seed: int = 0) -> Inputs:
    return load_data(plan_of(dataset, *words, seed=seed))


def saved(dataset: str, folder: Path, *words: str) -> Path:
    """The manifest of a split of that data set."""
    inputs = inputs_of(dataset, *words)
    path = folder / "published.json"
    manifests.save(inputs.split, path, inputs.images_sha256, **inputs.extra)
    return path


def refusal(dataset: str, *words: str) -> str:
    with pytest.raises(ValueError) as caught:
        inputs_of(dataset, *words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_indices(path: Path, part: str, indices: list[int]) -> None:
    """Other images, with a digest that says they are the right ones."""

    manifest = json.loads(path.read_text())
    manifest["indices"][part] = indices
    manifest["indices_sha256"] = manifests._sha256_of_indices(manifest["indices"])
    path.write_text(json.dumps(manifest))


def as_words(rule: LongTailSplit) -> list[str]:
    """The command line of a rule."""
    flat = config.flatten({"data": rule.settings()})
    return [f"{k}={'null' if v is None else v}" for k, v in flat.items()]


def parts_of(shapes: tuple[str, ...]) -> st.SearchStrategy[Counts]:
    drawn = st.builds(
        Counts,
        st.integers(4, 8),
        rho=st.sampled_from([1.0, 2.0, 3.5]),
        reverse=st.booleans(),
        shape=st.sampled_from([shape for shape in shapes if shape not in NOT_DRAWN]),
    )
    others = [Counts(0, shape=s) for s in NOT_DRAWN if s in shapes]
    return drawn | st.sampled_from(others) if others else drawn


def rules_of(labeled: tuple[str, ...], unlabeled: tuple[str, ...]) -> st.SearchStrategy[Any]:
    return st.builds(
        LongTailSplit,
        parts_of(labeled),
        parts_of(unlabeled),
        validation=st.integers(1, 4),
        test=st.integers(1, 4),
        labeled_in_pool=st.booleans(),
    )


TAILS = tuple(shape for shape in SHAPES if shape not in NOT_DRAWN)
# What all labeled images leave is nothing, so that `all` and `rest` do not go together.
rules = rules_of((*TAILS, "all"), (*TAILS, "unknown"))
rules |= rules_of(TAILS, (*TAILS, "unknown", "rest"))


@pytest.mark.slow
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rule=rules, seed=st.integers(0, 2**31), other=st.integers(0, 2**31))
def test_a_published_split_comes_back_whole(
    dataset: str, tmp_path: Path, rule: LongTailSplit, seed: int, other: int
) -> None:
    first = inputs_of(dataset, *as_words(rule), seed=seed)
    path = tmp_path / "published.json"
    manifests.save(first.split, path, first.images_sha256, **first.extra)
    plan = plan_of(dataset, f"data.manifest={path}", seed=other)
    again = load_data(plan)
    for part in PARTS:
        np.testing.assert_array_equal(getattr(again.split, part), getattr(first.split, part))
    assert again.sha256 == first.sha256
    assert again.split.rule == rule
    assert torch.equal(again.data.unlabeled, first.data.unlabeled)
    # The configuration says what was used, not the defaults that were not.
    used = plan.plain["data"]
    assert {key: used[key] for key in rule.settings()} == rule.settings()
    assert plan.identity()["data"]["manifest"] == {
        "path": str(path),
        "indices_sha256": manifests.read(path)["indices_sha256"],
    }


@pytest.mark.slow
def test_the_manifest_of_a_run_serves_another_and_belongs_to_its_identity(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["--dataset", dataset, "supervised.steps=2", "model.name=cnn-4", "supervised.batch=4"]
    one, two = tmp_path / "one", tmp_path / "two"
    command = ["--algo", "supervised", *tiny]
    assert cli.main([*command, "--out", str(one), "data.labeled.largest=4"]) == 0
    taken = f"data.manifest={one / 'manifest.json'}"
    second = [*command, "--out", str(two), "--seed", "5", taken]
    assert cli.main(second) == 0
    assert "data.labeled.largest=4" in " ".join(capsys.readouterr().out.split())
    ours, theirs = (manifests.read(folder / "manifest.json") for folder in (one, two))
    assert "data.labeled.largest=4" in ours.pop("command")
    assert "data.manifest=" not in theirs.pop("command")  # it names no folder: it can be published
    assert ours.pop("run_id") != theirs.pop("run_id")  # two runs on one split
    assert ours == theirs
    written = text.load(two / "config.yaml")
    assert isinstance(written, dict)
    assert written["data"]["manifest"]["indices_sha256"] == ours["indices_sha256"]
    assert written["data"]["labeled"]["largest"] == 4
    results = json.loads((two / "results.json").read_text())
    assert results["protocol"]["split"]["labeled"]["largest"] == 4
    assert cli.main([*second, "--resume"]) == 0
    saved(dataset, tmp_path, "data.unlabeled.rho=2", "seed=3").replace(one / "manifest.json")
    capsys.readouterr()
    assert cli.main([*second, "--resume"]) == 2
    message = capsys.readouterr().err
    assert "data.manifest.indices_sha256: " in message and message.count("\n") == 1


def test_other_images_are_refused(dataset: str, tmp_path: Path) -> None:
    path = saved(dataset, tmp_path)
    message = refusal(dataset, f"data.manifest={path}", "data.noise=1")
    assert message.startswith(f"{path}: the split was drawn on other images (SHA-256")
    assert "other images" in refusal(dataset, f"data.manifest={path}", "data.own_pool=false")


def test_other_labels_are_refused(dataset: str, tmp_path: Path) -> None:
    path = saved(dataset, tmp_path)
    message = refusal(dataset, f"data.manifest={path}", "data.shift=11")
    assert str(path) in message and "labels that the split was drawn on" in message


def test_a_split_of_unsaid_images_is_refused(dataset: str, tmp_path: Path) -> None:
    path = saved(dataset, tmp_path)
    edit(path, images_sha256=None)
    assert "records no SHA-256 of its images" in refusal(dataset, f"data.manifest={path}")


@pytest.mark.parametrize("damage", ["cut", "index", "count", "classes", "rule", "list", "empty"])
def test_a_damaged_file_is_refused_before_any_image_is_read(
    dataset: str, tmp_path: Path, damage: str
) -> None:
    path = saved(dataset, tmp_path)
    manifest = manifests.read(path)
    if damage == "cut":
        path.write_text(path.read_text()[:200])
    elif damage == "index":
        manifest["indices"]["labeled"][0] += 1
        edit(path, indices=manifest["indices"])
    elif damage == "count":
        edit(path, counts=manifest["counts"] | {"labeled": [1, 1, 1]})
    elif damage == "classes":
        edit(path, num_classes=4)
    elif damage == "rule":
        edit(path, rule={"labeled": 3})
    else:
        path.write_text({"list": "[1]", "empty": ""}[damage])
    with pytest.raises(ValueError, match=r"published\.json.* (is not a split manifest|indices)"):
        plan_of(dataset, f"data.manifest={path}")


def test_a_missing_file(dataset: str, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.json", tmp_path):
        assert f"data.manifest={path} cannot be read" in refusal(dataset, f"data.manifest={path}")


@pytest.mark.parametrize(
    ("part", "message"),
    [("validation", "both labeled and validation"), ("test", "both labeled and test")],
)
def test_parts_that_overlap_are_refused(
    dataset: str, tmp_path: Path, part: str, message: str
) -> None:
    path = saved(dataset, tmp_path)
    indices = manifests.read(path)["indices"]
    edit_indices(path, part, [indices["labeled"][0], *indices[part][1:]])
    assert message in refusal(dataset, f"data.manifest={path}")


def test_an_image_named_twice_or_not_there_is_refused(dataset: str, tmp_path: Path) -> None:
    path = saved(dataset, tmp_path)
    labeled = manifests.read(path)["indices"]["labeled"]
    edit_indices(path, "labeled", [labeled[1], *labeled[1:]])
    assert "the labeled images of the split repeat" in refusal(dataset, f"data.manifest={path}")
    for place in (90, -1):
        edit_indices(path, "labeled", [place, *labeled[1:]])
        assert "and there are 90" in refusal(dataset, f"data.manifest={path}")


def test_settings_that_the_manifest_decides_cannot_be_given(dataset: str, tmp_path: Path) -> None:
    taken = f"data.manifest={saved(dataset, tmp_path)}"
    message = refusal(dataset, taken, "data.labeled.largest=5")
    assert "is a split with data.labeled.largest=6" in message
    assert "data.labeled_in_pool" in refusal(dataset, taken, "data.labeled_in_pool=true")
    inputs_of(dataset, taken, "data.labeled.largest=6")


def test_unknown_classes_need_images_of_unknown_class(dataset: str) -> None:
    words = ["data.unlabeled.shape=unknown", "data.unlabeled.largest=0"]
    assert inputs_of(dataset, *words).data.task.num_unlabeled == 7
    with pytest.raises(ValueError, match="is for a data set with unlabeled images") as told:
        request = Request(["fixmatch"], dataset=dataset, settings=[*words, "data.own_pool=false"])
        load_data(Plan(request))
    message = str(told.value)
    # What draws no unlabeled image does without.
    assert inputs_of(dataset, *words, "data.own_pool=false").data.task.num_unlabeled == 0
    assert "data.unlabeled.shape=unknown is for a data set with unlabeled images" in message


def test_no_manifest_is_said_by_null(dataset: str) -> None:
    plan = plan_of(dataset, "data.manifest=null")
    assert plan.identity()["data"]["manifest"] is None


def test_a_manifest_says_nothing_of_the_machine(dataset: str, tmp_path: Path) -> None:
    rule = manifests.read(saved(dataset, tmp_path, "data.noise=2"))["rule"]
    fields = {field.name for field in dataclasses.fields(LongTailSplit)}
    assert set(rule) == fields - {"manifest"}


def test_a_manifest_from_before_shapes_is_read(dataset: str, tmp_path: Path) -> None:
    path = saved(dataset, tmp_path)
    rule = manifests.read(path)["rule"]
    del rule["labeled_in_pool"], rule["labeled"]["shape"], rule["unlabeled"]["shape"]
    edit(path, rule=rule)
    assert inputs_of(dataset, f"data.manifest={path}").split.rule.labeled == Counts(6, 2.0)
