"""The predictions of a finished run for image files are those that it was measured by."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import ssl_selmix
from ssl_selmix import metrics
from ssl_selmix.data import manifest as manifests
from ssl_selmix.runs import folder
from tests.helpers.runs import photographs, train, train_on


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Callable[..., Path]:
    """A run on the photographs with these settings; tests only read it."""
    made: dict[tuple[str, ...], Path] = {}

    def make(*words: str) -> Path:
        if words not in made:
            out = tmp_path_factory.mktemp("runs") / "run"
            made[words] = train_on(root, out, *words)
        return made[words]

    return make


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("digits") / "run", "precision=fp32")


def recorded(run: Path) -> dict[str, Any]:
    test = json.loads((run / "results.json").read_text())["stages"][-1]["test"]
    assert isinstance(test, dict)
    return test


def assert_measured_by(probs: torch.Tensor, labels: torch.Tensor, run: Path, exact: float) -> None:
    """The figures of these predictions are those that the run recorded."""
    expected = recorded(run)
    found = metrics.evaluate(probs.log(), labels, probs.shape[1])
    assert found["per_class_recall"] == pytest.approx(expected["per_class_recall"])
    assert found["per_class_coverage"] == pytest.approx(expected["per_class_coverage"])
    for key in ("ece", "classwise_ece"):
        assert found[key] == pytest.approx(expected[key], abs=exact)
    bins, before = found["reliability"], expected["reliability"]
    assert isinstance(bins, dict) and bins["count"] == before["count"]
    assert bins["confidence"] == pytest.approx(before["confidence"], abs=exact)


@pytest.mark.parametrize(
    "words",
    [("data.size=16",), ("data.size=72",), ("data.size=16", "precision=bf16")],
    ids=["resized", "streamed", "bf16"],
)
def test_a_folder_is_predicted_as_it_was_measured(
    root: Path, run_of: Callable[..., Path], words: tuple[str, ...]
) -> None:
    run = run_of(*words)
    assert min(recorded(run)["per_class_coverage"]) < 1  # else anything would agree
    probs = ssl_selmix.predict(run, root / "test", device="cpu", batch=4)
    assert probs.shape == (27, 3) and probs.dtype == torch.float64
    assert torch.allclose(probs.sum(1), torch.ones(27, dtype=torch.float64))
    assert_measured_by(probs, torch.arange(3).repeat_interleave(9), run, 1e-5)


def test_digits_written_as_files_and_as_tensors(digits: Path, tmp_path: Path) -> None:
    source = load_digits()
    images = torch.from_numpy(source.images * (255 / 16)).round().to(torch.uint8)[:, None]
    rows = torch.from_numpy(manifests.load(digits / "manifest.json").test)
    for i, row in enumerate(rows.tolist()):
        Image.fromarray(images[row, 0].numpy()).save(tmp_path / f"{i:04d}.png")
    of_files = ssl_selmix.predict(digits, tmp_path, workers=2)
    assert_measured_by(of_files, torch.from_numpy(source.target)[rows], digits, 1e-6)
    of_tensors = ssl_selmix.predict(digits, images[rows], batch=64)
    assert torch.allclose(of_files, of_tensors, atol=1e-6)
    of_floats = ssl_selmix.predict(digits, images[rows].float().numpy())
    assert torch.allclose(of_files, of_floats, atol=1e-6)
    model = ssl_selmix.load(digits)
    assert torch.allclose(of_files.float(), model.predict(images[rows]), atol=1e-5)


def test_one_file_a_list_and_a_folder(root: Path, run_of: Callable[..., Path]) -> None:
    run = run_of("data.size=16")
    files = sorted((root / "test").glob("*/*"))
    whole = ssl_selmix.predict(run, root / "test")
    assert torch.allclose(ssl_selmix.predict(run, files[5]), whole[5:6], atol=1e-6)
    some = ssl_selmix.predict(run, [files[9], str(files[2])])
    assert torch.allclose(some, whole[[9, 2]], atol=1e-6)


def test_a_caller_keeps_his_random_numbers_and_threads(
    root: Path, run_of: Callable[..., Path]
) -> None:
    run, before = run_of("data.size=16"), torch.random.get_rng_state()
    threads = torch.get_num_threads()
    ssl_selmix.predict(run, root / "test", batch=5, workers=2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads


def test_mistakes_are_told(digits: Path, tmp_path: Path) -> None:
    images = torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"in 0\.\.255.*multiply them by 255"):
        ssl_selmix.predict(digits, images)
    with pytest.raises(ValueError, match="images must be N×1×8×8"):
        ssl_selmix.predict(digits, 255 * images[:, :, :4])
    with pytest.raises(ValueError, match="images must have the shape N×C×H×W, not"):
        ssl_selmix.predict(digits, 255 * images[0])
    with pytest.raises(ValueError, match="images must be finite"):
        ssl_selmix.predict(digits, float("nan") * images)
    with pytest.raises(ValueError, match="batch must be at least 1"):
        ssl_selmix.predict(digits, 255 * images, batch=0)
    with pytest.raises(ValueError, match="device 'xyz' cannot be used"):
        ssl_selmix.predict(digits, 255 * images, device="xyz")
    with pytest.raises(ValueError, match="workers must be at least 0"):
        ssl_selmix.predict(digits, 255 * images, workers=-1)
    with pytest.raises(ValueError, match="is no run"):
        ssl_selmix.predict(tmp_path, 255 * images)
    (tmp_path / "a.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"a\.png is no readable image"):
        ssl_selmix.predict(digits, tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("config.yaml", text) for text in ("a: [1", "[]", "model: x", "a: 1")),
        *(("manifest.json", text) for text in ("{", "{}", "[]", '{"class_names": 5}')),
        ("manifest.json", '{"image_shape": [1, 8, 8], "class_names": [null, 1]}'),
        ("manifest.json", '{"image_shape": [1, 8], "class_names": ["a", "b"]}'),
        (
            "manifest.json",
            '{"image_shape": [1, 8, 8], "class_names": ["a", "b"], "mean": ["q"], "std": [1]}',
        ),
        *(("results.json", text) for text in ("[]", '{"stages": []}', '{"stages": 5}', "\x80")),
    ],
)
def test_damaged_runs_are_told_in_a_line(
    digits: Path, tmp_path: Path, name: str, content: str
) -> None:
    for file in digits.rglob("*"):
        if file.is_file():
            copy = tmp_path / file.relative_to(digits)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{re.escape(name)} is damaged \("):
        folder.open_run(tmp_path)
