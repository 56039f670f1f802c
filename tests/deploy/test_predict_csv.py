"""`ssl-selmix predict`: rows of CSV on the standard output or in a file, all else beside it."""

import csv
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ssl_selmix
from ssl_selmix import cli
from ssl_selmix.deploy import predictions
from tests.helpers.runs import train, unbound

# A worker is started by fork; Python 3.12 warns of that if there are other threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("digits") / "run")


def write(path: Path | bytes, seed: int, size: int = 8) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size, size), dtype=np.uint8)
    with open(path, "wb") as file:
        Image.fromarray(pixels).save(file, "png")


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Five images of the run's size, two of them in a sub-folder, below the current folder."""
    monkeypatch.chdir(tmp_path)
    os.makedirs("images/sub")
    for seed, name in enumerate(("a.png", "b.png", "sub/c.png", "sub/d.png", "z.png")):
        write(Path("images") / name, seed)
    return "images"


MODEL = "model: stage 1 of 1, supervised"
Predict = Callable[..., tuple[int, list[list[str]], list[str]]]


@pytest.fixture
def predict(digits: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Predict:
    """Exit code, rows of the output, and lines for the user."""

    def run(*words: str) -> tuple[int, list[list[str]], list[str]]:
        capfdbinary.readouterr()
        code = cli.main(["predict", str(digits), *words])
        out, err = capfdbinary.readouterr()
        return code, rows_of(out), err.decode().splitlines()

    return run


def rows_of(content: bytes) -> list[list[str]]:
    text = content.decode("utf-8", "surrogateescape")
    return list(csv.reader(text.splitlines(keepends=True)))


def test_a_row_says_what_the_library_says(digits: Path, images: str, predict: Predict) -> None:
    code, (header, *rows), err = predict(images)
    assert code == 0 and header == ["path", "class", "probability", "entropy"]
    names = ("a.png", "b.png", "sub/c.png", "sub/d.png", "z.png")
    assert [row[0] for row in rows] == [f"images/{name}" for name in names]
    probs = ssl_selmix.predict(digits, images)
    assert [row[1] for row in rows] == [str(k) for k in probs.argmax(1).tolist()]
    best = [float(p) for p in probs.max(1).values]
    assert [float(row[2]) for row in rows] == pytest.approx(best, rel=1e-5)
    nats = [-sum(p * math.log(p) for p in row) for row in probs.tolist()]
    assert [float(row[3]) for row in rows] == pytest.approx(nats, rel=1e-5)
    assert len(err) == 2 and err[0] == MODEL and err[1].startswith("5 images in ")


def test_top(digits: Path, images: str, predict: Predict) -> None:
    _, (header, *rows), _ = predict(images, "--top", "3")
    assert header[4:] == ["class_2", "probability_2", "class_3", "probability_3"]
    order = ssl_selmix.predict(digits, images).sort(1, descending=True)
    for row, values, classes in zip(rows, order.values, order.indices, strict=True):
        assert [row[i] for i in (1, 4, 6)] == [str(int(k)) for k in classes[:3]]
        assert [float(row[i]) for i in (2, 5, 7)] == pytest.approx(values[:3].tolist(), rel=1e-5)


def test_entropy_of_certain_and_of_undecided_predictions() -> None:
    probs = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    rows = list(predictions._rows(["a", "b"], probs, ("x", "y"), 2))
    assert rows[0] == ["a", "x", "1", "0", "y", "0"]
    assert rows[1] == ["b", "x", "0.5", "0.693147", "y", "0.5"]  # ln 2: entropy is in nats


def test_batches_and_workers_change_no_row(images: str, predict: Predict) -> None:
    _, expected, _ = predict(images)
    for words in (["--batch", "2"], ["data.workers=2", "--batch", "2", "device=cpu"]):
        code, found, _ = predict(images, *words)
        assert code == 0
        for row, other in zip(expected[1:], found[1:], strict=True):
            assert row[:2] == other[:2]
            assert [float(x) for x in row[2:]] == pytest.approx([float(x) for x in other[2:]])


NAMES = [b"com,ma.png", b'quo"te.png', b"line\nfeed.png", b"car\rriage.png", b"\xff\xfe.png"]
NAMES += ["grüße.png".encode(), b" space .png", b"eq=ual.png", b"device=cpu.png"]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="refuses such names")
def test_names_of_every_kind(images: str, predict: Predict) -> None:
    for seed, name in enumerate(NAMES):
        write(b"images/sub/" + name, 10 + seed)
    code, rows, _ = predict("images/sub", "--out", "rows.csv")
    assert code == 0 and rows == []
    content = Path("rows.csv").read_bytes()
    assert b"images/sub/\xff\xfe.png," in content and b"\r\n" not in content
    with open("rows.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        found = [os.fsencode(row["path"]) for row in csv.DictReader(file)]
    assert found == sorted(
        [b"images/sub/" + name for name in [*NAMES, b"c.png", b"d.png"]],
        key=lambda name: name.decode("utf-8", "surrogateescape"),
    )
    for name in (b"eq=ual.png", b"\xff\xfe.png"):
        assert predict(os.fsdecode(b"images/sub/" + name))[0] == 0


def test_unreadable_files_are_skipped_and_told(images: str, predict: Predict) -> None:
    Path("images/b.png").write_bytes(b"no image")
    Path("images/sub/cut.jpg").write_bytes(b"\xff\xd8\xff")
    Path("images/notes.txt").write_text("")
    code, rows, err = predict(images, "--batch", "2")
    assert code == 1
    names = [row[0].removeprefix("images/") for row in rows[1:]]
    assert names == ["a.png", "sub/c.png", "sub/d.png", "z.png"]
    skipped = [line for line in err if line.startswith("skipped: ")]
    assert [line.split()[1] for line in skipped] == ["images/b.png", "images/sub/cut.jpg"]
    assert "left out 1 file without a known image suffix" in err[1] and "notes.txt" in err[1]
    assert err[-1].startswith("4 images, 2 unreadable in ")


def test_strict_ends_at_the_first_unreadable_file(images: str, predict: Predict) -> None:
    Path("images/b.png").write_bytes(b"no image")
    code, _, err = predict(images, "--strict", "--out", "rows.csv")
    assert code == 2 and err[-1].startswith("error: images/b.png is no readable image")
    assert sorted(os.listdir()) == ["images"]


def test_other_sizes_and_colours_are_told_once(images: str, predict: Predict) -> None:
    for seed in range(3):
        write(Path(f"images/large{seed}.png"), seed, size=20)
    Image.new("RGB", (8, 8), "red").save("images/red.png")
    _, rows, err = predict(images)
    assert len(rows) == 10
    assert (
        "note: 3 other-sized images resized to 8×8 pixels, bilinear (first: images/large0.png)"
        in (err)
    )
    assert "note: 1 colour image made greyscale (first: images/red.png)" in err


def test_a_file_is_written_whole_and_not_over_another(images: str, predict: Predict) -> None:
    assert predict(images, "--out", "rows.csv")[0] == 0
    before = Path("rows.csv").read_bytes()
    code, _, err = predict("images/a.png", "--out", "rows.csv")
    assert code == 2 and "rows.csv exists and is not overwritten; add --force" in err[0]
    assert Path("rows.csv").read_bytes() == before
    assert predict("images/a.png", "--out", "rows.csv", "--force")[0] == 0
    assert rows_of(Path("rows.csv").read_bytes())[1:] == rows_of(before)[1:2]
    assert sorted(os.listdir()) == ["images", "rows.csv"]


def test_a_link_stays_one_and_a_pipe_too(images: str, predict: Predict) -> None:
    Path("real.csv").write_text("")
    os.symlink("real.csv", "link.csv")
    assert predict(images, "--out", "link.csv", "--force")[0] == 0
    assert os.path.islink("link.csv") and len(rows_of(Path("real.csv").read_bytes())) > 1
    os.symlink("no/where.csv", "lost.csv")
    code, _, err = predict(images, "--out", "lost.csv")
    assert code == 2 and "no folder" in err[0] and "no; create it" in err[0]
    os.mkfifo("pipe")
    code, _, err = predict(images, "--out", "pipe", "--force")
    assert code == 2 and "pipe is no regular file" in err[0]


def test_a_dash_is_the_standard_output(images: str, predict: Predict) -> None:
    assert predict(images, "--out", "-")[:2] == predict(images)[:2]
    assert os.listdir() == ["images"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no image in an empty list; give image files"),
        (["nothing"], "no file or folder nothing; check the path"),
        (["images", "devise=cpu"], "unknown setting 'devise'; did you mean device?"),
        (["images", "seed=1"], "unknown setting 'seed'"),
        (
            ["images", "data.workers=x"],
            "data.workers must be a whole number in decimal digits, such as 100, or null",
        ),
        (["images", "data.workers=-1"], "data.workers must be at least 0"),
        (["images", "device=xyz"], "device 'xyz' cannot be used"),
        (["images", "precision=half"], "precision must be"),
        (["images", "--top", "11"], "--top must be 1 to 10"),
        (["images", "--top", "0"], "--top must be 1 to 10"),
        (["images", "--batch", "0"], "batch must be at least 1"),
        (["images", "--out", "images", "--force"], "images is a folder; name a file in it"),
        (["images", "--out", ".", "--force"], "is a folder; name a file in it"),
        (["images", "--out", "images/a.png", "--force"], "a.png is one of the images"),
        (["images", "--out", "no/rows.csv"], "no folder no; create it"),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: Sequence[str], message: str, images: str, predict: Predict
) -> None:
    code, rows, err = predict(*words)
    assert code == 2 and rows == []
    assert len(err) == 1 and err[0].startswith("error: ") and message in err[0]


def test_a_run_that_is_half_done_says_of_which_stage_the_model_is(
    digits: Path, tmp_path: Path, images: str, capfd: pytest.CaptureFixture[str]
) -> None:
    half = unbound(shutil.copytree(digits, tmp_path / "half"))
    text = (half / "config.yaml").read_text()
    assert "algorithms:\n- supervised\n" in text
    more = text.replace("algorithms:\n- supervised\n", "algorithms:\n- supervised\n- selmix\n")
    (half / "config.yaml").write_text(more)
    for words in (["predict", str(half), images], ["export", str(half), "--state-dict", "w.pt"]):
        assert cli.main(words) == 0
        err = capfd.readouterr().err
        assert "model: stage 1 of 2, supervised (unfinished: --resume continues the run)" in err


def test_no_run_is_told(tmp_path: Path, images: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", str(tmp_path), images]) == 2
    assert "is no run of ssl_selmix" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGPIPE")
def test_a_reader_that_has_seen_enough(digits: Path, images: str) -> None:
    for i in range(500):  # more than a pipe holds
        Path(f"images/{i:03d}-{'long' * 50}.png").symlink_to("a.png")
    words = ["predict", str(digits), images, "data.workers=0"]
    code = f"import sys; from ssl_selmix import cli; sys.exit(cli.main({words!r}))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"path,class,probability,entropy\n"
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == predictions.PIPE_CLOSED and err == f"{MODEL}\n".encode()


def test_no_cell_is_a_formula() -> None:
    """A spreadsheet that opens the file computes nothing; a path stays a path to the same file."""
    names = ["=1+1", "-1", "+1.5", "@x", "-cat", "\tcat", "cat"]
    probs = torch.eye(7, dtype=torch.float64)
    files = ["=a.png", "b.png", "-c.png", "+d.png", "@e.png", "f.png", "/g.png"]
    rows = list(predictions._rows(files, probs, names, 1))
    assert [row[0] for row in rows] == [
        *("./=a.png", "b.png", "./-c.png", "./+d.png", "./@e.png", "f.png", "/g.png")
    ]
    assert [row[1] for row in rows] == ["'=1+1", "-1", "+1.5", "'@x", "'-cat", "'\tcat", "cat"]
    assert {row[3] for row in rows} == {"0"}


def test_a_terminal_is_not_commanded_by_names() -> None:
    row = ["\x1b]0;x\x07.png", "caf\udce9", "1", "0"]
    assert predictions._lines([row], shown=True) == b"\\x1b]0;x\\x07.png,caf\\udce9,1,0\n"
    assert predictions._lines([row]) == b"\x1b]0;x\x07.png,caf\xe9,1,0\n"
