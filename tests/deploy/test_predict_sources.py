"""`predict` reads what training reads, and each kind gives what the run was measured by."""

import csv
import importlib.util
import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ssl_selmix
from ssl_selmix import cli
from ssl_selmix.deploy.decoder import Decoder
from ssl_selmix.deploy.listings import Asked
from ssl_selmix.deploy.sources import of_dataset, of_words
from ssl_selmix.runs.folder import open_run
from ssl_selmix.runs.inputs import reload
from ssl_selmix.runs.plan import reopen
from tests.helpers.images import photo, write
from tests.helpers.runs import FOLDER, train

CLASSES = ("ant", "bee", "cat")
COUNTS = {"train": 12, "test": 4}
SIDE = (80, 76)


def hf_installed() -> bool:
    """Whether there is the library, and not the folder of that name alone."""
    found = importlib.util.find_spec("datasets")
    return found is not None and found.origin is not None


def parquet_installed() -> bool:
    return importlib.util.find_spec("pyarrow") is not None


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of PNG files of one size, and the same images as every other kind of source."""
    root = tmp_path_factory.mktemp("sources")
    for part, count in COUNTS.items():
        for label, name in enumerate(CLASSES):
            for i in range(count):
                seed = 1000 * label + 10 * i + len(part)
                image = photo(*SIDE, seed=seed, shade=30 * label)
                write(root / "photos" / part / name / f"{i:02}.png", np.asarray(image))
    _write_tables(root)
    _write_arrays(root)
    _write_shards(root)
    if hf_installed():
        _write_set(root)
    return root


def files_of(root: Path, part: str) -> list[Path]:
    return sorted((root / "photos" / part).rglob("*.png"))


def _write_tables(root: Path) -> None:
    rows = [
        {"path": file.relative_to(root).as_posix(), "label": file.parent.name, "split": part}
        for part in COUNTS
        for file in files_of(root, part)
    ]
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (root / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if parquet_installed():
        pa, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
        parquet.write_table(pa.Table.from_pylist(rows), root / "labels.parquet")
    paths = "\n".join(row["path"] for row in rows if row["split"] == "test")
    (root / "test.txt").write_text(paths)


def _write_arrays(root: Path) -> None:
    arrays: dict[str, Any] = {}
    for part in COUNTS:
        files = files_of(root, part)
        arrays[f"{part}_images"] = np.stack([np.asarray(Image.open(file)) for file in files])
        arrays[f"{part}_labels"] = np.array([CLASSES.index(file.parent.name) for file in files])
    np.savez(root / "photos.npz", **arrays)
    np.save(root / "test.npy", arrays["test_images"])


def _write_shards(root: Path) -> None:
    with tarfile.open(root / "test-000.tar", "w") as shard:
        for file in files_of(root, "test"):
            key, label = f"{file.parent.name}/{file.stem}", file.parent.name.encode()
            member = tarfile.TarInfo(f"{key}.cls")
            member.size = len(label)
            shard.add(file, f"{key}.png")
            shard.addfile(member, io.BytesIO(label))


def _write_set(root: Path) -> None:
    datasets: Any = importlib.import_module("datasets")
    datasets.disable_progress_bars()
    kinds = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    made = {
        part: datasets.Dataset.from_dict(
            {
                "image": [{"bytes": f.read_bytes(), "path": None} for f in files_of(root, part)],
                "label": [file.parent.name for file in files_of(root, part)],
            },
            features=kinds,
        )
        for part in COUNTS
    }
    datasets.DatasetDict(made).save_to_disk(str(root / "saved"))
    made["test"].to_parquet(str(root / "bytes.parquet"))


@pytest.fixture(scope="module", params=["data.size=16", "data.size=72"], ids=["small", "streamed"])
def run(request: pytest.FixtureRequest, root: Path, tmp_path_factory: Any) -> Path:
    """A run whose images are in memory, and one that reads them while it trains."""
    out = tmp_path_factory.mktemp("run") / "run"
    words = ["--dataset", "image_folder", f"data.root={root / 'photos'}", *FOLDER, request.param]
    return train(out, *words, "data.labeled.largest=4")


@pytest.fixture(scope="module")
def measured(run: Path) -> torch.Tensor:
    """The probabilities that the run was measured by: those of its own test images."""
    data = reload(reopen(run)).data
    found = ssl_selmix.predict(run, data.test_pool.take(data.test), device="cpu")
    assert len(found.unique(dim=0)) == 12  # else any order would do
    return found


# What stands behind `predict RUN` in the folder of the sources.
KINDS: dict[str, Sequence[str]] = {
    "folder": ["photos/test"],
    "folder by part": ["photos", "--part", "test"],
    "image_folder": ["--dataset", "image_folder", "data.root=photos", "--part", "test"],
    "pattern": ["photos/test/**/*.png"],
    "list": ["test.txt"],
    "csv": ["labels.csv", "--part", "test"],
    "table": ["--dataset", "table", "data.file=labels.csv", "--part", "test"],
    "jsonl": ["labels.jsonl", "--part", "test"],
    "npz": ["photos.npz", "--part", "test"],
    "arrays": ["--dataset", "arrays", "data.file=photos.npz", "--part", "test"],
    "tar": ["test-000.tar"],
    "tars": ["test-{000..000}.tar"],
    "webdataset": ["--dataset", "webdataset", "data.test_shards=test-*.tar", "--part", "test"],
    "parquet": ["labels.parquet", "--part", "test"],
    "parquet of bytes": ["bytes.parquet"],
    "saved": ["saved", "--part", "test"],
    "hf": ["--dataset", "hf", "data.root=saved", "--part", "test"],
    "own": ["--part", "test"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_what_the_run_was_measured_by(
    run: Path,
    measured: torch.Tensor,
    root: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if kind in ("saved", "hf", "parquet of bytes") and not hf_installed():
        pytest.skip("the library datasets is not installed")
    if kind == "parquet" and not parquet_installed():
        pytest.skip("pyarrow is not installed")
    monkeypatch.chdir(root)
    assert cli.main(["predict", str(run), *KINDS[kind], "--evaluate", "device=cpu"]) == 0
    out, err = capfd.readouterr()
    rows = list(csv.DictReader(out.splitlines()))
    assert [float(row["probability"]) for row in rows] == pytest.approx(
        measured.max(1).values.tolist(), abs=2e-6
    )
    assert [row["class"] for row in rows] == [CLASSES[k] for k in measured.argmax(1).tolist()]
    assert [row["label"] for row in rows] == [name for name in CLASSES for _ in range(4)]
    assert len({row["path"] for row in rows}) == len(rows)
    stage = json.loads((run / "results.json").read_text())["stages"][-1]
    recalls = [f"{100 * value:.1f}" for value in stage["test"]["per_class_recall"]]
    for name, recall in zip(CLASSES, recalls, strict=True):
        (line,) = [text for text in err.splitlines() if text.startswith(f"│ {name}")]
        assert line.split("│")[3].strip() == recall


def test_pixels_are_those_of_training_bit_by_bit(run: Path, root: Path) -> None:
    data = reload(reopen(run)).data
    own, decoder = data.test_pool.take(data.test), Decoder(open_run(run).manifest)
    for place in ("photos", "labels.csv", "photos.npz"):
        files = of_words([str(root / place)], (), Asked(CLASSES, "test")).files
        assert torch.equal(torch.stack([decoder(file)[0] for file in files]), own)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("digits") / "run")


Predict = Callable[..., tuple[int, list[dict[str, str]], list[str]]]


@pytest.fixture
def predict(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Predict:
    """Exit code, rows, and lines for the user, of the run on digits in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def of(*words: str) -> tuple[int, list[dict[str, str]], list[str]]:
        capfd.readouterr()
        code = cli.main(["predict", str(digits), *words])
        out, err = capfd.readouterr()
        return code, list(csv.DictReader(out.splitlines())), err.splitlines()

    return of


def test_a_part_of_the_digits_is_that_of_the_run(predict: Predict, digits: Path) -> None:
    code, rows, _ = predict("--dataset", "digits", "--part", "test", "--evaluate")
    assert code == 0 and rows == predict("--part", "test", "--evaluate")[1]
    manifest = json.loads((digits / "manifest.json").read_text())
    assert [row["path"] for row in rows] == [f"train[{i}]" for i in manifest["indices"]["test"]]
    right = sum(row["class"] == row["label"] for row in rows)
    test = json.loads((digits / "results.json").read_text())["stages"][-1]["test"]
    assert right / len(rows) == pytest.approx(test["accuracy"])
    whole = of_dataset("digits", (), Asked(list("0123456789"), judged=True), open_run(digits))
    assert len(whole.files) == 1797 and whole.labels[:3] == [0, 1, 2]


def test_tables_need_no_labels_and_keep_their_order(predict: Predict, tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.png", np.full((8, 8), 80 * i, dtype=np.uint8))
    Path("t.csv").write_text("image\n2.png\n0.png\n1.png\n")
    code, rows, _ = predict("t.csv")
    assert code == 0 and [row["path"] for row in rows] == ["2.png", "0.png", "1.png"]
    Path("u.csv").write_text("where,what\n2.png,5\n0.png,\n")
    words = ["data.path_column=where", "data.label_column=what", "data.validation=0.3"]
    code, rows, err = predict("u.csv", *words, "--evaluate")
    assert code == 0 and [row["label"] for row in rows] == ["5", ""]
    assert "note: data.validation: of training, and without effect here" in err
    assert "1 images have no label and are not judged" in err


def test_grey_arrays_and_a_lone_npy(predict: Predict) -> None:
    grey = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8)
    np.save("x.npy", grey)
    np.savez("y.npz", test_images=grey[..., None], test_labels=np.array([1, 2, 9]))
    code, rows, _ = predict("x.npy", "y.npz")
    assert code == 0 and [row["path"] for row in rows][2:4] == ["train[2]", "test[0]"]
    assert [row["class"] for row in rows[:3]] == [row["class"] for row in rows[3:]]
    assert predict("y.npz", "--evaluate")[1][2]["label"] == "9"


def test_python_takes_the_same_places(run: Path, measured: torch.Tensor, root: Path) -> None:
    found = ssl_selmix.predict(run, root / "test-000.tar", device="cpu")
    assert torch.allclose(found, measured, atol=1e-6)


def _wrong(name: str) -> None:
    """Write the sources of the cases below into the working folder."""
    grey = np.zeros((2, 8, 8), dtype=np.uint8)
    if name.endswith(".csv"):
        write(Path("0.png"), grey[0])
        Path("wolf.csv").write_text("path,label,split\n0.png,wolf,test\n")
        Path("columns.csv").write_text("a,b\n0.png,1\n")
        Path("empty.csv").write_text("path,label\n")
        Path("plain.csv").write_text("path,label\n0.png,1\n")
        Path("twice.csv").write_text("path,label\n0.png,1\n0.png,1\n")
        Path("url.csv").write_text("path,label\nhttps://x.org/0.png,1\n")
        Path("out.csv").write_text("path,label\n../0.png,1\n")
        Path("parts.csv").write_text("path,label,split\n0.png,1,tset\n")
    ragged = np.empty(2, dtype=object)
    ragged[:] = [grey[0], grey[0, :4]]
    made: dict[str, dict[str, Any]] = {
        "ragged.npz": {"test_images": ragged},
        "four.npz": {"test_images": np.zeros((2, 8, 8, 4), dtype=np.uint8)},
        "float.npz": {"test_images": np.zeros((2, 8, 8))},
        "other.npz": {"numbers": np.zeros(3)},
        "labels.npz": {"test_images": grey, "test_labels": np.array([1])},
        "high.npz": {"test_images": grey, "test_labels": np.array([1, 12])},
        "names.npz": {"test_images": grey, "test_labels": np.array(["x", "1"])},
        "test.npz": {"test_images": grey},
    }
    if name in made:
        np.savez(name, allow_pickle=True, **made[name])
    if name in ("zipped.tar.gz", "cut.tar"):
        Path(name).write_bytes(b"\x1f\x8b" + bytes(50) if name.endswith("gz") else b"no tar")
    if name == "list.txt":
        Path(name).write_text("nowhere.png\n")
    if name == "tool.json":
        Path(name).write_text('{"a": 1, "b": 2}')
    if name == "folder":
        write(Path("folder") / "x" / "0.png", grey[0])


WRONG: list[tuple[Sequence[str], str]] = [
    (["wolf.csv", "--evaluate"], "wolf.csv, row 2: unknown class 'wolf'"),
    (["columns.csv"], "none of them is path or file or filename; name it with data.path_column"),
    (["plain.csv", "data.path_column=file"], "data.path_column: unknown column 'file'"),
    (["empty.csv"], "has no row; give one row for each image"),
    (["twice.csv"], "row 3: '0.png' is in row 2 as well; keep one"),
    (["url.csv"], "row 2: 'https://x.org/0.png' is a URL, and nothing is fetched"),
    (["out.csv"], "'../0.png' lies outside"),
    (["parts.csv"], "row 2: unknown split 'tset'; did you mean test"),
    (["plain.csv", "--part", "test"], "no column that says which rows are test"),
    (["wolf.csv", "--part", "validation"], "has no part 'validation' but test"),
    (["plain.csv", "--part", "tset"], "unknown part 'tset'; did you mean test"),
    (["plain.csv", "--dataset", "digits"], "both say what to predict; leave out one"),
    (["plain.csv", "data.fiel=x"], "unknown"),
    (["ragged.npz"], "it holds Python objects, which might be code"),
    (["four.npz"], "with transparency it seems; images are N×H×W"),
    (["float.npz"], "images are whole numbers from 0 to 255"),
    (["other.npz"], "has no images (it holds numbers)"),
    (["labels.npz"], "give a label for each image"),
    (["high.npz", "--evaluate"], "labels run from 1 to 12 and there are 10 classes"),
    (["names.npz", "--evaluate"], "has the class 'x'"),
    (["test.npz", "--part", "train"], "has no part 'train' but test"),
    (["test.npz", "--evaluate"], "--evaluate needs labels, and no image has one"),
    (["nothing.npz"], "no file nothing.npz"),
    (["zipped.tar.gz"], "is compressed (gzip)"),
    (["cut.tar"], "is no whole tar file"),
    (["cut.tar", "--part", "test"], "shards named by path have no part 'test'"),
    (["none-{0..3}.tar"], "no file none-0.tar"),
    (["list.txt"], "list.txt, line 1: no file nowhere.png"),
    (["tool.json"], "holds no list; give a list of objects"),
    (["s3://bucket/x.csv"], "is a URL, and nothing is fetched"),
    (["hf:owner/name"], "is a set of the Hub; write --dataset hf:owner/name"),
    (["folder", "--part", "test"], "has no part 'test'; name a folder that holds test/*"),
    (["folder", "data.size=8"], "is a setting of a data set, and no path here is one"),
    (["--dataset", "table"], "--dataset table needs data.file=FILE"),
    (["--dataset", "image_folder", "data.root=no"], "no folder no/train"),
    (["--dataset", "digist"], "did you mean digits"),
    (["--dataset", "webdataset"], "--dataset webdataset needs data.shards="),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(w) for w, _ in WRONG])
def test_wrong_inputs_are_told_in_a_line(
    predict: Predict, words: Sequence[str], message: str
) -> None:
    _wrong(words[0])
    before = sorted(os.listdir())
    code, rows, err = predict(*words)
    assert code == 2 and rows == []
    assert len(err) == 1 and err[0].startswith("error: ") and message in err[0]
    assert sorted(os.listdir()) == before


def test_a_run_on_features_predicts_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {}
    for part, num in (("train", 40), ("test", 12)):
        made[f"{part}_labels"] = labels = np.arange(num) % 2
        made[part] = (rng.normal(size=(num, 5)) + 0.5 * labels[:, None]).astype(np.float32)
    np.savez("f.npz", **made)
    np.savez("g.npz", test=made["test"], test_labels=made["test_labels"])
    np.savez("wide.npz", test=rng.normal(size=(3, 6)))
    words = ["--dataset", "features", "data.root=f.npz", "model.name=features", "data.validation=4"]
    drawn = ["labeled.largest=8", "labeled.rho=1", "unlabeled.largest=4", "unlabeled.rho=1"]
    run = str(train(tmp_path / "run", *words, *(f"data.{word}" for word in drawn)))
    found = []
    for more in (["g.npz"], ["f.npz", "--part", "test"], ["--part", "test"]):
        capfd.readouterr()
        assert cli.main(["predict", run, *more, "--evaluate"]) == 0
        found.append(list(csv.DictReader(capfd.readouterr().out.splitlines())))
    assert found[0] == found[1] == found[2] and [row["path"] for row in found[0]][-1] == "test[11]"
    right = sum(row["class"] == row["label"] for row in found[0])
    stages = json.loads(Path(run, "results.json").read_text())["stages"]
    assert right / 12 == pytest.approx(stages[-1]["test"]["accuracy"]) and 0 < right < 12
    for more, message in (
        (["wide.npz"], "test has 6 features and the run takes 5; compute them with the network"),
        (["run/config.yaml"], "is none of .npz, .npy, .safetensors"),
        (["--dataset", "digits"], "the run was trained on 5 features and takes no images"),
    ):
        assert cli.main(["predict", run, *more]) == 2
        assert message in capfd.readouterr().err


def test_other_images_have_no_part_of_the_run(run: Path, capfd: Any) -> None:
    capfd.readouterr()
    assert cli.main(["predict", str(run), "--dataset", "digits", "--part", "test"]) == 2
    assert "digits has no part 'test' of its own, and" in capfd.readouterr().err


def test_a_set_of_the_hub_without_a_network_is_a_line(
    predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets: Any = pytest.importorskip("datasets")
    if not hasattr(datasets, "load_dataset"):
        pytest.skip("the library datasets is not installed")

    def offline(*words: Any, **named: Any) -> Any:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    code, _, err = predict("--dataset", "hf:owner/name")
    assert code == 2 and len(err) == 1 and "hf:owner/name cannot be loaded (no network" in err[0]
