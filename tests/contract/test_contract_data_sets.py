"""The checks of data sets: a good one passes, and each check finds what it is for."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from ssl_selmix import contract
from ssl_selmix.common import config, plugins
from ssl_selmix.contract import data_sets, reporting
from ssl_selmix.contract.data_sets import DataSubject

GOOD = """
import torch
from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.data import ImageSet
from ssl_selmix.splits import Counts, LongTailSplit


class Config(LongTailSplit):
    labeled = Counts(6, rho=3)
    unlabeled = Counts(8, rho=2)
    validation = 3
    test = 3


def load(config):
    labels = torch.arange(3).repeat_interleave(20)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(76, (60, 1, 8, 8), generator=generator)
    pixels = noise + labels[:, None, None, None] * 60
    weak = Weak(pad=1, flip=False)
    return ImageSet(
        train=pixels.to(torch.uint8),
        train_labels=labels.numpy(),
        class_names=("a", "b", "c"),
        mean=(90.0,),
        std=(60.0,),
        weak=weak,
        strong=Strong(weak=weak),
    )
"""


def written(tmp_path: Path, old: str = "", new: str = "") -> DataSubject:
    assert not old or GOOD.count(old) == 1
    file = tmp_path / "mine.py"
    file.write_text(GOOD.replace(old, new) if old else GOOD)
    return DataSubject(str(file))


@pytest.mark.parametrize("check", contract.DATA_CHECKS, ids=lambda check: check.__name__)
def test_a_good_data_set_passes(check: reporting.DataCheck, tmp_path: Path) -> None:
    check(written(tmp_path), tmp_path)


OTHER = (
    "import dataclasses\n@dataclasses.dataclass\nclass Config:\n    a: int = 1\n\n\nclass Rest:\n"
)
SAME = "\n    def draw(self, y, k, seed, **more):\n        return super().draw(y, k, 0, **more)\n"
NAMES = '("a", "b", "c")'
BROKEN = (
    (data_sets.check_settings, "class Config(LongTailSplit):\n", OTHER, "derive from ssl_selmix"),
    (data_sets.check_images, "return ImageSet(", "return dict(", "must return an .*ImageSet"),
    (data_sets.check_images, NAMES, '("a", "b", "b")', "must be at least 2 different"),
    (data_sets.check_images, NAMES, '("a", "b")', "must lie below 2, .* one is 2"),
    (data_sets.check_images, NAMES, 'tuple("abcd")', "class 3 has no train image"),
    (data_sets.check_images, ".to(torch.uint8)", ".float()", "of uint8, 0 to 255, not .*float32"),
    (data_sets.check_images, "(90.0,)", "(90.0, 1.0)", "mean must be 1 numbers"),
    (data_sets.check_images, "std=(60.0,)", "std=(0.0,)", "std must be 1 numbers"),
    (data_sets.check_images, "labels.numpy()", "labels.numpy()[1:]", "must be 60 whole numbers"),
    (data_sets.check_images, "weak=weak,\n", "test=pixels.byte(),\n", "come together"),
    (
        data_sets.check_same_again,
        "generator=generator",
        "generator=None",
        "other images or labels the second time",
    ),
    (data_sets.check_same_again, "    weak = W", "    config.test = 1\n    weak = W", "its config"),
    (data_sets.check_split, "test = 3\n", f"test = 3\n{SAME}", "every seed draws the same split"),
    (data_sets.check_split, "validation = 3", "validation = 30", "class 0 .* has 20 images"),
    (data_sets.check_views, "(90.0,)", "(float('nan'),)", "views must be finite"),
    (data_sets.check_training, "(90.0,)", "(float('nan'),)", "numbers|finite"),
)


@pytest.mark.parametrize(("check", "old", "new", "message"), BROKEN)
def test_what_is_wrong_is_found(
    check: reporting.DataCheck, old: str, new: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match=message):
        check(written(tmp_path, old, new), tmp_path)


def test_every_check_of_data_sets_is_shown_to_find_something() -> None:
    assert {check for check, *_ in BROKEN} == set(contract.DATA_CHECKS)
    titles = [inspect.getdoc(check) for check in contract.DATA_CHECKS]
    assert all(titles) and len(set(titles)) == len(titles)


def test_a_load_that_fails_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subject = written(tmp_path, "    weak = W", "    raise OSError('no disk')\n    weak = W")
    assert not contract.report(subject.name)
    out = capsys.readouterr().out
    assert out.count("no disk") == 1 and out.count("load failed") == 4
    with pytest.raises(ValueError, match=r"needs data\.root=PATH"):
        contract.report("image_folder")
    with pytest.raises(ValueError, match=r"write data\.rho, if it is"):
        contract.report("digits", settings=["rho=3"])
    with pytest.raises(ValueError, match=r"data\.labeled\.rho must be a decimal"):
        contract.report("digits", settings=["data.labeled.rho=x"])
    with pytest.raises(ValueError, match="which data sets take in checks and fixmatch does not"):
        contract.report("fixmatch", settings=["data.root=x"])


# A Config of one's own, however it is written.


@pytest.mark.parametrize(
    "labeled",
    [
        "labeled = Counts(6, rho=3)",
        "labeled: Counts = Counts(6, rho=3)",
        "labeled: Counts = field(default_factory=lambda: Counts(6, rho=3))",
    ],
)
def test_a_config_without_dataclass_has_its_defaults(labeled: str, tmp_path: Path) -> None:
    subject = written(tmp_path, "labeled = Counts(6, rho=3)\n    un", f"{labeled}\n    un")
    text = Path(subject.name).read_text()
    Path(subject.name).write_text("from dataclasses import field\n" + text)
    made = subject.config
    assert (made.labeled.largest, made.labeled.rho, made.validation, made.test) == (6, 3, 3, 3)
    assert subject.config.labeled is not made.labeled
    layers = [("here", config.parse_overrides(["data.labeled.rho=2", "data.test=4"]))]
    kind = plugins.dataset(subject.name).Config
    found = config.compose({"data": kind}, layers)[0]["data"]
    assert (found.labeled.rho, found.test, found.validation) == (2.0, 4, 3)


def test_a_config_without_fields_of_its_own_takes_all_from_settings(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    start, _, rest = GOOD.partition("    labeled = Counts")
    file.write_text(f'{start}    """Nothing."""\n\n\n{rest[rest.index("def load") :]}')
    with pytest.raises(ValueError, match=r"^data\.labeled\.largest has no default; set it"):
        _ = DataSubject(str(file)).config
    words = ["data.labeled.largest=5", "data.unlabeled.largest=6", "data.validation=2"]
    subject = DataSubject(str(file), [*words, "data.test=2"])
    assert len(subject.data.labeled) == 15 and subject.config.unlabeled.largest == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@dataclass\nclass Config(LongTailSplit):\n    test = 3", "test = 3 .* has no type"),
        ("class Config(LongTailSplit):\n    test = 1\n    b: int", "argument 'b'.* a default"),
        ("class Config:\n    pass", "is no dataclass; derive it from"),
        ("Config = 3", "is no dataclass; derive it from"),
    ],
)
def test_a_config_that_cannot_be_one_is_told(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    start = "from dataclasses import dataclass\nfrom ssl_selmix.splits import LongTailSplit\n"
    file.write_text(f"{start}\n\n{text}\n\n\ndef load(config):\n    pass\n")
    with pytest.raises(ValueError, match=message):
        plugins.dataset(str(file))
