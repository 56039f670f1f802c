"""The report's view of single classes, and the pages: escaped, with hints, with images."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
import torch

from ssl_selmix import cli
from ssl_selmix.common.page import Text, environment, picture
from ssl_selmix.compare import classes, methods, reading
from tests.helpers.results import END, START, results, stage
from tests.helpers.results import write as write_results

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def test_the_worst_confusions_are_shares_of_the_true_class_and_most_certain_images_lead() -> None:
    labels = torch.tensor([0] * 4 + [1] * 10 + [2] * 2)
    probabilities = torch.eye(3)[labels] * 0.9 + 0.03
    probabilities[0] = torch.tensor([0.1, 0.8, 0.1])  # 1 of 4
    for i, p in ((4, 0.6), (5, 0.9), (6, 0.7)):  # 3 of 10, as 2
        probabilities[i] = torch.tensor([0.0, 1 - p, p])
    found = classes.worst(probabilities, labels, ["a", "b", "c"])
    assert [pair[:4] for pair in found] == [("b", "c", 3, 10), ("a", "b", 1, 4)]
    assert found[0][4].tolist() == [5, 6, 4] and found[1][4].tolist() == [0]
    assert classes.Pair("a", "b", 1, 3).percent == "33.3"


@pytest.mark.parametrize("channels", [1, 3])
def test_examples_are_small_pictures(channels: int) -> None:
    found = classes._images(torch.zeros(2, channels, 80, 70, dtype=torch.uint8))
    assert [text.partition(",")[0] for text in found] == ["data:image/jpeg;base64"] * 2
    small = classes._images(torch.zeros(1, channels, 8, 8, dtype=torch.uint8))[0]
    assert base64.b64decode(small.partition(",")[2])[1:4] == b"PNG"
    assert classes._images(torch.zeros(2, 5)) == []  # features


def test_recalls_of_classes_have_each_seed_and_its_start_as_a_hint(tmp_path: Path) -> None:
    for seed in (0, 1):
        made = results([stage("fixmatch", START), stage("selmix", END)], seed)
        write_results(tmp_path / str(seed), made | {"tail": [1]})
    ((group,), _) = methods.group(reading.read([tmp_path])[0])
    sheet = classes.sheet(group, "test")
    assert sheet.head[0] == "class" and set(sheet.head[1:]) == {"fixmatch", "fixmatch + selmix"}
    assert [row[0].text for row in sheet.rows] == ["0", "1 (tail)"]
    place = sheet.head.index("fixmatch + selmix")
    assert re.fullmatch(
        r"seed 0: [\d.]+ \(from [\d.]+\); seed 1: [\d.]+ \(from [\d.]+\)", sheet.rows[1][place].hint
    )


def test_names_cannot_leave_their_place_in_a_page(tmp_path: Path) -> None:
    content = results([stage("fixmatch", START), stage("selmix", END)])
    write_results(tmp_path / "r", content | {"class_names": [EVIL, "dog"]})
    out = tmp_path / "o.html"
    assert cli.main(["compare", str(tmp_path / "r"), "--html", str(out)]) == 0
    text = out.read_text()
    assert text.count("<script") == 1 and "alert(1)" in text and "<img src=x" not in text
    assert "no images: " in text  # these results have no model


def test_a_hint_is_an_attribute_that_names_cannot_end() -> None:
    made = environment("ssl_selmix.compare").from_string(
        '{% from "page.html.jinja" import table %}{{ table(x, [x], [[cell]]) }}'
    )
    text = made.render(x=EVIL, cell=Text(EVIL, hint=EVIL))
    assert "<script" not in text and "<img" not in text and text.count("&lt;/script&gt;") == 8


@pytest.mark.slow
def test_a_report_has_images_of_the_worst_confusions_where_the_run_is_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["supervised.steps=2", "model.name=cnn-4", "supervised.batch=8", "pictures=false"]
    assert cli.main(["train", "--algo", "supervised", "--out", "run", *words]) == 0
    pages = {}
    for num in ("0", "1"):
        out = Path(f"{num}.html")
        capsys.readouterr()
        words = ["compare", "run", "--html", str(out), "--examples", num, "--csv", "-"]
        assert cli.main(words) == 0
        assert capsys.readouterr().out.startswith("table,method,")  # and nothing else
        pages[num] = out.read_text()
    assert "data:image/png" not in pages["0"] and "--examples is 0" in pages["0"]
    assert pages["1"].count('src="data:image/png;base64,') >= classes.EXAMPLES
    found = re.findall(r"(\d+) of (\d+) \([\d.]+ %\)", pages["1"])
    assert found and all(size == "50" and 0 < int(count) <= 50 for count, size in found)
    assert re.search(r'alt="\d taken for \d, example 1"', pages["1"])
    assert "labeled images" in pages["1"]  # of the manifest


def test_a_picture_keeps_its_pixels() -> None:
    from PIL import Image

    image = Image.new("RGB", (3, 2), (1, 2, 3))
    assert picture(image).startswith("data:image/png;base64,") and image.size == (3, 2)
