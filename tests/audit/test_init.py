"""`ssl-selmix init`: five answers become a file that trains, and nothing else is ever written."""

from __future__ import annotations

import builtins
import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ssl_selmix import cli
from ssl_selmix.audit import begin, questions
from ssl_selmix.runs.plan import Plan, Request

FILE = Path("selmix.yaml")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tree(root: Path, counts: dict[str, int], side: int = 8, test: bool = True) -> Path:
    rng = np.random.default_rng(0)
    for name, num in counts.items():
        folders = {f"train/{name}" if name else "unlabeled": num}
        folders |= {f"test/{name}": 2} if test and name else {}
        for folder, many in folders.items():
            (root / folder).mkdir(parents=True)
            for i in range(many):
                pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / folder / f"{i}.png")
    return root


def init(*words: str) -> int:
    return cli.main(["init", *words])


def plan() -> Plan:
    return Plan(Request([], config=FILE))


def test_defaults_fit_the_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path / 'it\'s "here" # now', {"a": 9, "b #1": 4, "": 6})
    assert init("--images", str(root), "--yes") == 0
    out = capsys.readouterr().out
    assert "13 labeled images in 2 classes, from 9 (a) to 4 (b #1)" in out
    assert "6 without a label" in out and "next:\n  ssl-selmix train --config selmix.yaml" in out
    made = plan()
    assert [name for name, _ in made.algorithms] == ["fixmatch", "selmix"]
    assert (made.request.dataset, made.config["data"].root) == ("image_folder", str(root))
    assert made.config["data"].validation == 0.2 and made.config["data"].test is None
    assert made.config["selmix"].objective == "h_mean" and made.config["model"].name == "cnn-32"
    written = yaml.safe_load(FILE.read_text())
    assert written["data"]["unlabeled"] == {"shape": "unknown", "largest": 0}
    assert "#   ssl-selmix init --images " in FILE.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("pool", [True, False])
def test_what_is_written_trains(
    pool: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path / "images", {"a": 9, "b": 5, **({"": 6} if pool else {})}, test=False)
    assert init("--images", str(root), "--yes", "--time", "try") == 0
    assert cli.main(["train", "--config", str(FILE), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"  unlabeled   {6 if pool else 0:7} of unknown classes" in out
    assert "  labeled           8 (5 3)" in out
    assert "2-selmix: 50 steps" in out and "nothing was written" in out


@pytest.mark.parametrize("network", [*begin.NETWORKS, "wrn-16-2", "torchvision:resnet18"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("time", begin.TIMES)
def test_every_answer_is_a_configuration(network: str, device: str, time: str) -> None:
    counts = {"train": {"a\n: b": 9, "c": 5}, "unlabeled": {"": 3}}
    found = begin.Look("table", "file", "/a/b.csv", counts, 300, "patient", device)
    for use in begin.USES:
        for goal in (*begin.GOALS, "g_mean"):
            answers = begin.Answers(goal, network, time, use)
            text = begin.text(found, answers, str(FILE))
            assert "# group_column: patient" in text
            FILE.write_text(text)
            if (device, goal, time) == ("cpu", "worst", "try"):
                made = plan()
                assert made.config["selmix"].objective == "min_recall"
                assert made.config["data"].test == 0.2
            assert yaml.safe_load(text)["algorithms"][1] == "selmix"


def test_a_table_and_a_data_set_of_the_package(tmp_path: Path) -> None:
    tree(tmp_path / "images", {"a": 6, "b": 6})
    rows = [f"images/train/{c}/{i}.png,{c},p{i}" for c in "ab" for i in range(6)]
    Path("labels.csv").write_text("\n".join(["path,label,patient", *rows]))
    assert begin.look("labels.csv").group == "patient"
    assert init("--images", "labels.csv", "--yes") == 0
    assert plan().config["data"].unlabeled.shape == "none"
    assert init("--images", "digits", "--yes", "--force", "--goal", "g_mean") == 0
    made = plan()
    assert made.config["model"].name == "cnn-32" and made.config["data"].labeled.rho == 15
    assert made.config["selmix"].objective == "g_mean"


ANSWERS = {
    "full": (["images", "worst", "small", "try", "labels"], "min_recall"),
    "defaults": (["images", "", "", "", ""], "h_mean"),
    "mistakes": (["nowhere", "", "images", "wurst", "worst", "big", "", "", "pool", ""], "min_rec"),
}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answers of a person at a terminal; without more of them, Ctrl-D."""
    answers: list[str] = []

    def given(prompt: str) -> str:
        if not answers:
            raise EOFError
        return answers.pop(0)

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(builtins, "input", given)
    return answers


@pytest.mark.parametrize("case", ANSWERS)
def test_a_person_is_asked_until_the_answers_make_sense(
    case: str, terminal: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree(tmp_path / "images", {"a": 9, "b": 4})
    words, objective = ANSWERS[case]
    terminal += words
    assert init() == 0 and not terminal
    assert plan().config["selmix"].objective.startswith(objective)
    out = capsys.readouterr().out
    assert "2. What counts?" in out and "200 steps, then 50" in out
    if case == "mistakes":
        for part in (
            "no folder or file nowhere",
            "'wurst'",
            "unknown network 'big'",
            "no image wit",
        ):
            assert part in out


def test_the_end_of_answers_and_ctrl_c_leave_nothing(
    terminal: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree(tmp_path / "images", {"a": 9, "b": 4})
    for words in ([], ["images"], ["images", "worst"]):
        terminal[:] = words
        assert init() == 2
        err = capsys.readouterr().err
        assert err == "error: there are no more answers (Ctrl-D); nothing was written\n"

    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(builtins, "input", interrupted)
    assert init() == 130
    assert capsys.readouterr().err == "error: interrupted; nothing was written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def _mistakes() -> Iterator[tuple[list[str], list[str]]]:
    yield [], ["no", "terminal", "--images PATH", "--yes"]
    yield ["--images", "good"], ["--goal GOAL --network NETWORK", "--yes"]
    yield ["--images", "nowhere", "--yes"], ["no folder or file nowhere", "digits"]
    yield ["--images", "good/train", "--yes"], ["has no folder train", "train/<class>/"]
    yield ["--images", "odd", "--yes"], ["class 'b' is in one of train and test alone"]
    yield ["--images", "few", "--yes"], ["class 'b' has 2 images to train on, and 2 of them"]
    yield ["--images", "text.txt", "--yes"], ["text.txt is no folder", ".csv"]
    yield ["--images", "good", "--goal", "wors", "--yes"], ["unknown goal 'wors'", "worst"]
    yield ["--images", "good", "--use", "pool", "--yes"], ["without a label", "good/unlabeled"]
    yield ["--images", "good", "--yes", "--out", "no/x.yaml"], ["no folder", "make it first"]
    yield ["--images", "good", "--yes", "--out", "taken.yaml"], ["taken.yaml exists", "--force"]


@pytest.mark.parametrize(("words", "parts"), list(_mistakes()), ids=" ".join)
def test_a_mistake_is_one_line_and_nothing_is_written(
    words: list[str],
    parts: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    tree(tmp_path / "good", {"a": 9, "b": 4})
    tree(tmp_path / "few", {"a": 9, "b": 2}, test=False)
    (tree(tmp_path / "odd", {"a": 9, "b": 4}) / "test" / "b").rename(tmp_path / "odd/test/c")
    Path("text.txt").write_text("")
    Path("taken.yaml").write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert init(*words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and not [part for part in parts if part not in err]
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert Path("taken.yaml").read_text() == "mine"


def test_every_question_is_one_of_the_answers() -> None:
    assert questions.NAMES == list(questions.QUESTIONS)


def shard(name: str, labels: list[str], side: int = 8) -> None:
    """A tar file with an image for each label; "" has none."""
    Path(name).parent.mkdir(exist_ok=True)
    with tarfile.open(name, "w") as made:
        for i, label in enumerate(labels):
            out = io.BytesIO()
            pixels = np.random.default_rng([i, len(name)]).integers(0, 256, (side, side, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(out, "png")
            members = {"png": out.getvalue()} | ({"cls": label.encode()} if label else {})
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{Path(name).stem}-{i:03}.{suffix}")
                member.size = len(content)
                made.addfile(member, io.BytesIO(content))


def test_a_folder_of_shards(capsys: pytest.CaptureFixture[str]) -> None:
    folder = "my [tars], all"
    shard(f"{folder}/train-000.tar", ["a"] * 5 + ["b"] * 4)
    shard(f"{folder}/train-001.tar", ["a"] * 3 + [""])
    shard(f"{folder}/test-000.tar", ["a", "b"])
    shard(f"{folder}/pool-000.tar", [""] * 4)
    assert init("--images", folder, "--yes") == 0
    out = capsys.readouterr().out
    assert "12 labeled images in 2 classes, from 8 (a) to 4 (b); 2 for test, 5 without a" in out
    made = plan()
    data = made.config["data"]
    assert made.request.dataset == "webdataset" and data.test is None
    assert len(data.shards) == 1 and data.shards[0].endswith("train-*.tar")
    source = made.dataset.load(data)
    assert (len(source.train), len(source.test), len(source.extra_unlabeled)) == (12, 2, 5)
    assert f"--images '{Path(folder).absolute()}'" in FILE.read_text()


def test_shards_that_are_no_training_set(capsys: pytest.CaptureFixture[str]) -> None:
    shard("only/test-0.tar", ["a", "b"])
    Path("zipped").mkdir()
    Path("zipped/train.tar.gz").write_bytes(b"\x1f\x8b")
    shard("few.tar", ["a", "a"])
    for place, message in (
        ("only", "has shards of test alone; add those to train on, such as train-000.tar"),
        ("zipped", "has compressed shards alone; uncompress them"),
        ("few.tar", "has fewer than two classes to train on; ssl-selmix data webdataset"),
    ):
        assert init("--images", place, "--yes") == 2
        assert message in capsys.readouterr().err and not FILE.exists()


def test_a_saved_set_and_parquet_files(capsys: pytest.CaptureFixture[str]) -> None:
    datasets = pytest.importorskip("datasets")
    if not hasattr(datasets, "load_from_disk"):
        pytest.skip("the library datasets is not installed")
    datasets.disable_progress_bars()
    root = tree(Path("images"), {"a": 6, "b": 5})
    files = sorted((root / "train").rglob("*.png"))
    made = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
            "label": [file.parent.name for file in files],
        },
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")}),
    )
    datasets.DatasetDict({"train": made}).save_to_disk("saved")
    made.to_parquet("bytes.parquet")
    paths = datasets.Dataset.from_dict(
        {"path": [str(file) for file in files], "label": [file.parent.name for file in files]}
    )
    paths.to_parquet("paths.parquet")
    for place, dataset, key in (
        ("saved", "hf", "root"),
        ("bytes.parquet", "hf", "root"),
        ("paths.parquet", "table", "file"),
    ):
        assert init("--images", place, "--yes", "--force") == 0
        assert "11 labeled images in 2 classes, from 6 (a) to 5 (b)" in capsys.readouterr().out
        found = plan()
        assert found.request.dataset == dataset
        assert getattr(found.config["data"], key) == str(Path(place).absolute())
        assert len(found.dataset.load(found.config["data"]).train) == 11
