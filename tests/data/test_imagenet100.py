"""ImageNet-100 from a small copy of its layout: classes, split, whole runs, and the preset."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_selmix import cli
from ssl_selmix.common import config, plugins
from ssl_selmix.datasets import imagenet100
from ssl_selmix.runs.plan import Plan, Request
from ssl_selmix.splits import Counts
from ssl_selmix.training import checkpoint
from tests.helpers.images import photo_tree

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "dataset_counts.json").read_text()
)["imagenet100_N1-433_M1-866_rl-10_ru-10"]
SYNSETS = ("n01440764", "n02106662", "n03000684")
COUNTS = {"train": 20, "val": 6}
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that are wanted and one that is not; 20 training and 6 validation images."""
    made = tmp_path_factory.mktemp("imagenet")
    photo_tree(made, COUNTS, (*SYNSETS, "n09999999"), name="{kind}_{i}.JPEG")
    (made / "classes.txt").write_text("# mine\n" + "\n".join(reversed(SYNSETS)) + "\n\n")
    return made


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of digests of this test alone."""
    monkeypatch.setenv("SSL_SELMIX_CACHE", str(tmp_path / "cache"))


def small(root: Path, **changed: Any) -> imagenet100.Config:
    settings: dict[str, Any] = {"root": str(root), "classes": str(root / "classes.txt"), "size": 16}
    counts = {"labeled": Counts(6, 3.0), "unlabeled": Counts(12, 3.0), "validation": 3, "test": 3}
    return imagenet100.Config(**(settings | counts | changed))


# Classes and files.


def test_the_published_list_is_in_the_package() -> None:
    text = (files("ssl_selmix") / "datasets" / "imagenet100_synsets.txt").read_text()
    assert "CMC" in text.splitlines()[0]
    names = imagenet100.listed("")
    assert len(names) == 100 and names == tuple(sorted(names))
    assert (names[0], names[-1]) == ("n01558993", "n13040303")


def test_the_wheel_has_the_list() -> None:
    """What matches these patterns is packed."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    patterns = text.partition("[tool.setuptools.package-data]\n")[2].partition("\n\n")[0]
    assert '"*_synsets.txt"' in patterns


def test_a_list_chooses_and_sorted_order_numbers(root: Path) -> None:
    found = imagenet100.load(small(root))
    assert found.class_names == SYNSETS
    assert len(found.train) == 78 and found.image_shape == (3, 16, 16)
    assert found.apart == 18
    names = found.train.names
    assert names[:2] == tuple(f"train/{SYNSETS[0]}/{SYNSETS[0]}_{i}.JPEG" for i in (0, 1))
    assert all(name.startswith("val/") for name in names[60:])
    assert [SYNSETS[label] for label in found.train_labels] == [n.split("/")[1] for n in names]


def test_a_folder_of_exactly_the_wanted_classes(root: Path) -> None:
    assert imagenet100.load(small(root, classes="all")).class_names == (*SYNSETS, "n09999999")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("n01440764\n", "lists 1 classes"),
        ("n01440764\nn01440764\n", "lists 2 classes, 1 of them different"),
        ("n01440764\nn00000001\nn00000002\n", r"train has no folder n00000001 and 1 more; unpack"),
    ],
)
def test_lists_that_are_none(root: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        imagenet100.load(small(root, classes=str(tmp_path / "list.txt")))


def test_a_missing_list_and_missing_folders(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"classes=nowhere\.txt cannot be read .*one synset per"):
        imagenet100.load(small(root, classes="nowhere.txt"))
    with pytest.raises(ValueError, match=r"needs data\.root=PATH; unpack ILSVRC2012_img_train"):
        imagenet100.load(imagenet100.Config())
    with pytest.raises(ValueError, match=r"no folder .*/train; unpack .* into val/<synset>/"):
        imagenet100.load(small(tmp_path))
    with pytest.raises(ValueError, match=r"train has no folder n01558993 and 99 more"):
        imagenet100.load(small(root, classes=""))


# The split.


def test_counts_are_the_published_ones() -> None:
    counts = imagenet100.Config().counts(100)
    assert counts["labeled"] == GOLDEN["labeled"] and sum(counts["labeled"]) == 16_945
    assert counts["unlabeled"] == GOLDEN["unlabeled"] and sum(counts["unlabeled"]) == 33_939
    assert sum(counts["validation"]) == GOLDEN["n_val"]
    assert sum(counts["test"]) == GOLDEN["n_test"]


def test_the_split_fits_the_official_files() -> None:
    """1,300 training images of the largest class leave none to validate on; 50 others are there."""
    labels = np.concatenate([np.arange(100).repeat(1300), np.arange(100).repeat(50)])
    split = imagenet100.Config().draw(labels, 100, seed=0, apart=5000)
    assert max(split.labeled.max(), split.unlabeled.max()) < 130_000
    held = np.concatenate([split.validation, split.test])
    assert len(np.unique(held)) == 5000 and held.min() >= 130_000
    assert not np.intersect1d(split.labeled, split.unlabeled).size
    assert np.bincount(labels[split.validation]).tolist() == [25] * 100


def test_a_class_that_is_too_small_is_named(root: Path) -> None:
    for changed, message in (
        ({"unlabeled": Counts(16, 3.0)}, r"n01440764\) has 20 images.*22 \(6 labeled \+ 16 unl"),
        ({"validation": 4}, r"has 6 images, the split needs 7 \(3 test \+ 4 validation\)"),
    ):
        settings = small(root, **changed)
        labels, apart = imagenet100.load(settings).train_labels, 18
        with pytest.raises(ValueError, match=message):
            settings.draw(labels, 3, 0, class_names=SYNSETS, apart=apart)


# Whole runs.

RUN = (
    *("--algo", "fixmatch", "--then", "selmix", "--dataset", "imagenet100", "--preset", "none"),
    *("model.name=cnn-8", "data.size=16", "data.validation=3", "data.test=3"),
    *("data.labeled.largest=6", "data.labeled.rho=3", "data.unlabeled.largest=12"),
    *("data.unlabeled.rho=3", "fixmatch.steps=4", "fixmatch.batch=6", "fixmatch.evaluate_every=2"),
    *("selmix.steps=4", "selmix.batch=6", "selmix.evaluate_every=2", "threads=1", "device=cpu"),
)


def train(root: Path, out: Path, *more: str) -> int:
    where = (f"data.root={root}", f"data.classes={root / 'classes.txt'}")
    return cli.main([*RUN, *where, "--out", str(out), *more])


def final(out: Path) -> list[Any]:
    """What the stages ended with, without the time that they took."""
    states = [checkpoint.load(path) for path in sorted(out.glob("*/last.pt"))]
    return [{k: v for k, v in state.items() if k != "seconds"} for state in states]


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


@pytest.fixture(scope="module")
def undisturbed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that reads its images in the training process."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert train(root, out, "data.workers=0", "data.cache=none") == 0
    return out


def test_fixmatch_then_selmix(undisturbed: Path) -> None:
    results = json.loads((undisturbed / "results.json").read_text())
    assert [stage["algorithm"] for stage in results["stages"]] == ["fixmatch", "selmix"]
    assert all(0 <= stage["test"]["mean_recall"] <= 1 for stage in results["stages"])
    assert results["protocol"]["validation"].startswith("held out of the data set's validation")
    assert "workers" not in results["protocol"]["split"]
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    assert manifest["apart"] == 18 and manifest["image_shape"] == [3, 16, 16]
    assert manifest["counts"]["validation"] == [3, 3, 3]


@pytest.mark.slow
@pytest.mark.parametrize(("first_workers", "killed_at"), [(0, 7), (2, 3)])
def test_killed_and_resumed_with_other_workers(
    root: Path,
    undisturbed: Path,
    tmp_path: Path,
    first_workers: int,
    killed_at: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = checkpoint.save
    saved: list[Path] = []

    def save(path: Path, *args: Any, **kwargs: Any) -> Any:
        if len(saved) == killed_at:
            raise KeyboardInterrupt
        saved.append(path)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", save)
    assert train(root, tmp_path / "run", f"data.workers={first_workers}") == 130
    monkeypatch.setattr(checkpoint, "save", original)
    assert train(root, tmp_path / "run", f"data.workers={2 - first_workers}", "--resume") == 0
    assert alike(final(tmp_path / "run"), final(undisturbed)) and len(final(undisturbed)) == 2
    capsys.readouterr()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    own = tmp_path / "own"
    photo_tree(own, COUNTS, SYNSETS[:2], name="{i}.JPEG")
    broken = own / "train" / SYNSETS[1] / "3.JPEG"
    broken.write_bytes(broken.read_bytes()[:-40])
    settings = (f"data.root={own}", "data.classes=all", f"data.workers={workers}")
    assert cli.main([*RUN, *settings, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {broken} is no readable image (") and error.count("\n") == 1


def test_a_manifest_of_other_files_is_refused(
    root: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (f"data.root={root}", "data.classes=all", "data.workers=0")
    manifest = f"data.manifest={undisturbed / 'manifest.json'}"
    assert cli.main([*RUN[:8], *settings, manifest, "--out", str(tmp_path / "run")]) == 2
    assert "drawn on other images" in capsys.readouterr().err


# The preset.


def test_the_preset_is_the_published_configuration() -> None:
    request = Request(["fixmatch", "selmix"], "imagenet100", "imagenet100-lt")
    plan = Plan(request)
    fixmatch, data = plan.config["fixmatch"], plan.config["data"]
    assert (fixmatch.steps, fixmatch.batch, fixmatch.mu, fixmatch.lr) == (2**20, 256, 2, 0.4)
    assert (fixmatch.weight_decay, fixmatch.threshold, fixmatch.lambda_u) == (3e-4, 0.7, 10.0)
    assert plan.config["model"].name == "torchvision:resnet50"
    assert data.counts(100)["labeled"] == GOLDEN["labeled"] and data.size == 224


def test_every_line_of_the_preset_cites_its_source() -> None:
    for line in plugins.preset_text("imagenet100-lt").splitlines():
        key, _, value = line.partition(": ")
        if not line.startswith("#") and value and not value.startswith("#"):
            assert "  # " in line, key.strip()


def test_the_selmix_section_is_that_of_cifar100() -> None:
    sections = [
        {
            k: v
            for k, v in config.parse_yaml(plugins.preset_text(p), p).items()
            if k[:7] == "selmix."
        }
        for p in ("imagenet100-lt", "cifar100-lt")
    ]
    assert sections[0] == sections[1]
