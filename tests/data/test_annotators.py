"""Several annotators: their shares as soft labels, and the majority that all else goes by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_selmix import cli
from ssl_selmix.data import ImageSet, extraction
from ssl_selmix.data.targets import masses_of, shares_of
from ssl_selmix.datasets import table as plugin
from ssl_selmix.losses import LogitAdjusted

HEAD = "path,one,two,three,split"
ROWS = [
    *("0.png,a,a,b,train", "1.png,a,,,train", "2.png,b,b,b,train", "3.png,b,a,b,train"),
    *("4.png,a,a,,train", "5.png,b,,b,train", "6.png,a,b,,train"),  # the last one: a tie
    *("7.png,a,a,b,test", "8.png,b,b,,test"),
]


def write(folder: Path, rows: list[str], head: str = HEAD) -> Path:
    rng = np.random.default_rng(0)
    for row in rows:
        image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        image.save(folder / row.split(",")[0])
    (folder / "t.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder / "t.csv"


def load(file: Path, columns: str = "one,two,three", **settings: str) -> ImageSet:
    config = plugin.Config(
        file=str(file),
        label_column=columns,
        validation=1,
        cache="none",
        annotators=settings.get("annotators", "soft"),
    )
    found = plugin.load(config)
    assert isinstance(found, ImageSet)
    return found


def test_shares_are_of_those_who_said_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load(write(tmp_path, ROWS))
    assert found.train_labels.tolist() == [0, 0, 0, 1, 1, 1]  # 0, 1, 4, 2, 3, 5
    expected: list[list[float]] = [[2 / 3, 1 / 3], [1, 0], [1, 0], [0, 1], [1 / 3, 2 / 3], [0, 1]]
    assert found.shares is not None
    np.testing.assert_allclose(found.shares, expected, rtol=1e-6)
    # Who agree evenly have no majority: the image is an unlabeled one, and the user is told.
    assert found.extra_unlabeled is not None and len(found.extra_unlabeled) == 1
    assert "1 images have no majority (first: row 8)" in capsys.readouterr().out
    voted = load(write(tmp_path, ROWS), annotators="vote")
    assert voted.shares is None and voted.train_labels.tolist() == found.train_labels.tolist()
    assert voted.sha256() == found.sha256()
    made = extraction.as_data(found, {"train": torch.zeros(6, 4)})
    assert made.shares is found.shares


def test_the_loss_is_the_cross_entropy_of_the_shares() -> None:
    torch.manual_seed(0)
    shares = torch.from_numpy(shares_of(np.array([[0, 0, 1], [2, -1, -1], [1, 2, 1]]), 3))
    z, y, prior = torch.randn(3, 3), torch.tensor([0, 2, 1]), torch.tensor([0.7, 0.2, 0.1])
    rule = LogitAdjusted(prior, 1.0)
    log_p = (z + prior.log()).log_softmax(1)
    torch.testing.assert_close(
        rule(z, masses_of(y, 3, None, shares)), -(shares * log_p).sum(1).mean()
    )
    weights = torch.tensor([0.0, 2.0, 1.0])
    torch.testing.assert_close(
        rule(z, masses_of(y, 3, weights, shares)), -(weights * (shares * log_p).sum(1)).mean()
    )


@pytest.mark.parametrize(
    ("columns", "change", "message"),
    [
        ("one", None, r"needs several annotators, and data\.label_column names 'one' alone"),
        ("one,two,two", None, r"data\.label_column names 'two' twice"),
        ("one,four", None, r"data\.label_column: unknown column 'four'"),
        ("one,empty", None, "the annotator 'empty' has labeled no image; leave the column out"),
        (
            "one,two,three",
            ("2.png,b,b,b", "2.png,b,b,zebra"),
            "row 4: three is 'zebra', a class that is the majority of no train row; correct it",
        ),
        ("one,two,three", ("8.png,b,b,", "8.png,b,a,"), "row 10: a test image without a label"),
    ],
)
def test_wrong_annotators_are_refused_in_a_line(
    tmp_path: Path, columns: str, change: tuple[str, str] | None, message: str
) -> None:
    rows = [row.replace(*change) if change else row for row in ROWS]
    file = write(tmp_path, [f"{row}," for row in rows], f"{HEAD},empty")
    with pytest.raises(ValueError, match=message) as told:
        load(file, columns)
    assert "\n" not in str(told.value)


def test_runs_on_soft_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, ROWS)
    words = [
        *("train", "--dataset", "table", "data.file=t.csv", "data.validation=1"),
        *("data.label_column=one,two,three", "data.cache=none", "model.name=cnn-4"),
        *("pictures=false", "--algo", "fixmatch", "fixmatch.steps=2", "fixmatch.batch=4"),
    ]
    assert cli.main([*words, "data.annotators=soft", "--then", "smote", "--out", "x"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "data.annotators=soft: smote takes no soft labels of labeled images; leave" in told
    for kind in ("vote", "soft"):
        assert cli.main([*words, f"data.annotators={kind}", "--out", kind]) == 0
    assert cli.main([*words, "--out", "vote", "--resume"]) == 0  # vote is what was before
    states = [
        str(torch.load(tmp_path / k / "1-fixmatch/model.pt", weights_only=True)["state"])
        for k in ("vote", "soft")
    ]
    assert states[0] != states[1]
    capsys.readouterr()
    assert cli.main(["train", *words[1:], "data.annotators=median", "--out", "y"]) == 2
    assert "data.annotators" in capsys.readouterr().err
