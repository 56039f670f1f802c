"""Published lists in the formats that they have on disk: what is loaded, and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from torchvision import datasets as torchvision

from ssl_selmix import cli
from ssl_selmix.data import ImageSet
from ssl_selmix.data.download import Archive
from ssl_selmix.data.files import FileSet
from ssl_selmix.datasets import (
    food101,
    imagenet_lt,
    inaturalist2018,
    isic2019,
    places_lt,
    semi_aves,
    sun397,
)
from ssl_selmix.runs.plan import Request
from ssl_selmix.splits import Counts
from tests.helpers.images import noise, write

SYNSETS = ("n01440764", "n01443537", "n01484850")
TAIL = (5, 3, 2)  # images of the classes
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of digests of this test alone."""
    monkeypatch.setenv("SSL_SELMIX_CACHE", str(tmp_path / "cache"))


def photos(root: Path, paths: Sequence[str]) -> None:
    """Noise at these paths, each image another one."""
    for path in paths:
        write(root / path, noise(20, 24, 3, seed=abs(hash(path)) % 2**32))


def text(root: Path, name: str, rows: Sequence[str]) -> Path:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(rows) + "\n")
    return file


def imagenet(root: Path, prefix: str = "ImageNet_LT") -> Path:
    """Three classes; the validation list names images of the train folder, as the published one."""
    rows: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for k, (name, num) in enumerate(zip(SYNSETS, TAIL, strict=True)):
        rows["train"] += [f"train/{name}/{name}_{90 - i}.JPEG {k}" for i in range(num)]
        rows["val"] += [f"train/{name}/{name}_{100 + i}.JPEG {k}" for i in range(2)]
        rows["test"] += [f"val/{name}/ILSVRC2012_val_{10 * k + i:08}.JPEG {k}" for i in range(2)]
    for part, of_part in rows.items():
        text(root, f"{prefix}_{part}.txt", of_part)
        photos(root, [row.rpartition(" ")[0] for row in of_part])
    return root


def load(module: ModuleType, root: Path, **settings: Any) -> ImageSet | FileSet:
    found: ImageSet | FileSet = module.load(module.Config(root=str(root), **settings))
    return found


def drawn(module: ModuleType, root: Path, **settings: Any) -> dict[str, list[int]]:
    """Images per class of each part."""
    config = module.Config(root=str(root), **settings)
    found = module.load(config)
    groups = {} if found.groups is None else {"groups": found.groups}
    split = config.draw(found.train_labels, len(found.class_names), 0, apart=found.apart, **groups)
    split.verify(found.train_labels, len(found.class_names))
    counts: dict[str, list[int]] = split.counts
    return counts


def refused(module: ModuleType, root: Path, **settings: Any) -> str:
    with pytest.raises(ValueError) as caught:
        load(module, root, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


# What is loaded.


def test_imagenet_lt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = imagenet(tmp_path)
    found = load(imagenet_lt, root)
    assert isinstance(found, FileSet) and found.class_names == SYNSETS
    first = f"train/{SYNSETS[0]}/{SYNSETS[0]}"
    assert found.train.names[:5] == tuple(f"{first}_{90 - i}.JPEG" for i in (4, 3, 2, 1, 0))
    assert found.apart == 6 and found.train.names[10] == f"{first}_100.JPEG"
    assert found.test is not None and found.test_labels is not None
    assert found.test.names[0] == f"val/{SYNSETS[0]}/ILSVRC2012_val_00000000.JPEG"
    assert np.bincount(found.test_labels).tolist() == [2, 2, 2]
    counts = drawn(imagenet_lt, root)
    assert counts["labeled"] == [5, 3, 2] and counts["validation"] == [2, 2, 2]
    told = " ".join(capsys.readouterr().out.split())
    assert "ImageNet_LT_train.txt lists 10 images and the published list 115846" in told


def test_the_images_of_a_list_and_of_folders_are_the_same_set(tmp_path: Path) -> None:
    """Small ones are decoded as those of `image_folder` are."""
    from ssl_selmix.datasets import image_folder

    root = imagenet(tmp_path / "list")
    for part, rows in (("train", "train"), ("validation", "val"), ("test", "test")):
        for row in (root / f"ImageNet_LT_{rows}.txt").read_text().splitlines():
            path = Path(row.rpartition(" ")[0])
            target = tmp_path / "folder" / part / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((root / path).read_bytes())
    one = load(imagenet_lt, root, size=16)
    other = load(image_folder, tmp_path / "folder", size=16, validation="folder")
    assert isinstance(one, ImageSet) and one.sha256() == other.sha256()
    assert np.array_equal(one.train_labels, other.train_labels) and one.apart == other.apart


def test_places_lt_and_lists_that_lie_elsewhere(tmp_path: Path) -> None:
    root = imagenet(tmp_path / "images", "Places_LT")
    lists = tmp_path / "lists"
    lists.mkdir()
    for file in root.glob("*.txt"):
        file.rename(lists / file.name)
    assert load(places_lt, root, lists=str(lists)).class_names == SYNSETS
    assert "no file" in refused(places_lt, root)


def inat(root: Path) -> Path:
    """JSON as the competition has it, and the same in lines."""
    root.mkdir(exist_ok=True)
    for part, nums in (("train", TAIL), ("val", (1, 1, 1))):
        images, annotations = [], []
        for k, num in reversed(list(enumerate(nums))):
            for i in range(num):
                name = f"train_val2018/Aves/{k}/{part}{k}{i}.jpg"
                number = 100 * len(part) + 10 * k + i
                images.append({"id": number, "width": 24, "height": 20, "file_name": name})
                annotations.append({"id": number, "image_id": number, "category_id": k})
        kinds = [{"id": k, "name": f"Avis {k}", "supercategory": "Aves"} for k in range(3)]
        content = {"info": {}, "images": images, "categories": kinds, "annotations": annotations}
        (root / f"{part}2018.json").write_text(json.dumps(content))
        pairs = zip(images, annotations, strict=True)
        rows = [f"{image['file_name']} {a['category_id']}" for image, a in pairs]
        text(root, f"iNaturalist18_{part}.txt", rows)
        photos(root, [str(image["file_name"]) for image in images])
    return root


def test_inaturalist(tmp_path: Path) -> None:
    root = inat(tmp_path)
    found = load(inaturalist2018, root)
    assert found.class_names == ("Avis 0", "Avis 1", "Avis 2")
    assert drawn(inaturalist2018, root)["labeled"] == [4, 2, 1]
    for part in ("train", "val"):
        (root / f"{part}2018.json").unlink()
    other = load(inaturalist2018, root)
    assert other.class_names == ("0", "1", "2") and found.sha256() == other.sha256()
    assert np.array_equal(found.train_labels, other.train_labels)


def test_hidden_names_of_inaturalist_are_numbers(tmp_path: Path) -> None:
    root = inat(tmp_path)
    content = json.loads((root / "train2018.json").read_text())
    content["categories"] = [{"id": k, "name": "Aves"} for k in range(3)]
    (root / "train2018.json").write_text(json.dumps(content))
    assert load(inaturalist2018, root).class_names == ("0", "1", "2")


def aves(root: Path) -> Path:
    rows: dict[str, list[str]] = {}
    for k, num in enumerate(TAIL):
        rows.setdefault("l_train", []).extend(
            f"trainval_images/{k}/{i}.jpg {k}" for i in range(num)
        )
        rows.setdefault("val", []).append(f"trainval_images/{k}/{9}.jpg {k}")
        rows.setdefault("test", []).extend(f"test/{2 * k + i}.jpg {k}" for i in range(2))
    rows["u_train_in"] = [f"u_train_in/{i}.jpg -1" for i in range(4)]
    rows["u_train_out"] = [f"u_train_out/{i}.jpg -1" for i in range(7)]
    rows["u_train"] = rows["u_train_in"] + rows["u_train_out"]
    rows["l_train_val"] = rows["l_train"] + rows["val"]
    for name, of_part in rows.items():
        text(root, f"{name}.txt", of_part)
        photos(root, [row.rpartition(" ")[0] for row in of_part])
    return root


@pytest.mark.parametrize(("pool", "number"), [("in", 4), ("out", 7), ("both", 11)])
def test_semi_aves(tmp_path: Path, pool: str, number: int) -> None:
    found = load(semi_aves, aves(tmp_path), pool=pool)
    assert found.extra_unlabeled is not None and len(found.extra_unlabeled) == number
    assert found.class_names == ("0", "1", "2") and found.apart == 3


def test_semi_aves_trained_on_the_validation_images_too(tmp_path: Path) -> None:
    root = aves(tmp_path)
    whole = {"train_list": str(root / "l_train_val.txt"), "validation": "1,min=1"}
    assert drawn(semi_aves, root, **whole)["labeled"] == [5, 3, 2]


def food(root: Path) -> Path:
    dishes = ("apple_pie", "baby_back_ribs", "waffles")
    rows = {
        part: [
            f"{dish}/{first + 1000 * k + i}" for k, dish in enumerate(dishes) for i in range(num)
        ]
        for part, first, num in (("train", 0, 9), ("test", 500, 4))
    }
    rows["train_lt"] = rows["train"][:5] + rows["train"][9:12] + rows["train"][18:20]
    for part, of_part in rows.items():
        text(root, f"food-101/meta/{part}.txt", of_part)
    photos(root / "food-101" / "images", [f"{row}.jpg" for p in rows for row in rows[p]])
    return root


def test_food101_draws_its_tails_and_judges_on_the_published_test_images(tmp_path: Path) -> None:
    root = food(tmp_path)
    tails = {"labeled": Counts(3, 3.0), "unlabeled": Counts(6, 3.0)}
    counts = drawn(food101, root, **tails, validation=1, test=3)
    assert counts["labeled"] == [3, 1, 1] and counts["unlabeled"] == [6, 3, 2]
    assert counts["validation"] == [1] * 3 and counts["test"] == [3] * 3
    assert food101.Config().counts(101)["labeled"][::100] == [250, 5]
    assert food101.Config().counts(101)["unlabeled"][::100] == [500, 10]


def test_food101_by_a_long_tailed_list(tmp_path: Path) -> None:
    root = food(tmp_path)
    own = {"train_list": str(root / "food-101" / "meta" / "train_lt.txt"), "test": 3}
    own |= {"labeled": Counts(0, shape="all"), "unlabeled": Counts(0, shape="unknown")}
    assert drawn(food101, root, **own, validation=1)["labeled"] == list(TAIL)
    (root / "food-101" / "meta" / "train_lt.txt").write_text("apple_pie/0\nwaffles/2000\n")
    message = refused(food101, root, **own, validation=1)
    assert "test.txt, row 5: no image of the class 'baby_back_ribs' to train on" in message


def test_sun397(tmp_path: Path) -> None:
    scenes = ("a/abbey", "a/apartment_building/outdoor", "y/youth_hostel")
    text(tmp_path, "SUN397/ClassName.txt", [f"/{scene}" for scene in scenes])
    for scene, num in zip(scenes, (7, 5, 4), strict=True):
        photos(tmp_path / "SUN397" / scene, [f"sun_{i}.jpg" for i in range(num)])
    found = load(sun397, tmp_path, test=1)
    assert isinstance(found, FileSet)
    assert found.class_names == ("abbey", "apartment_building/outdoor", "youth_hostel")
    mine = {Path(p).name: k for p, k in zip(found.train.paths, found.train_labels, strict=True)}
    assert len(found.train) == 16 and mine["sun_6.jpg"] == 0
    theirs = torchvision.SUN397(tmp_path)
    assert theirs.class_to_idx == {name: k for k, name in enumerate(found.class_names)}
    labels = dict(zip(map(str, theirs._image_files), theirs._labels, strict=True))
    assert [labels[path] for path in found.train.paths] == found.train_labels.tolist()
    assert drawn(sun397, tmp_path, test=1)["labeled"] == [5, 3, 2]
    (tmp_path / "SUN397" / "y" / "youth_hostel").rename(tmp_path / "SUN397" / "y" / "hostel")
    message = refused(sun397, tmp_path, test=1)
    assert "ClassName.txt, row 3: '/y/youth_hostel' is no folder with images" in message


def isic(root: Path) -> Path:
    kinds = ("MEL", "NV", "BCC")
    rows = ["image,MEL,NV,BCC,UNK"]
    lesions = ["image,age_approx,anatom_site_general,lesion_id,sex"]
    for k, kind in enumerate(kinds):
        for i in range(12 - 2 * k):
            name = f"ISIC_{1000 * k + i:07}"
            ones = ",".join("1.0" if kind == other else "0.0" for other in (*kinds, "UNK"))
            rows.append(f"{name},{ones}")
            # Two images of a lesion; of the last class, nobody recorded any.
            lesions.append(f"{name},55.0,anterior torso,{f'HAM_{k}{i // 2}' if k < 2 else ''},male")
            photos(root / "ISIC_2019_Training_Input", [f"{name}.jpg"])
    text(root, "ISIC_2019_Training_GroundTruth.csv", rows)
    text(root, "ISIC_2019_Training_Metadata.csv", lesions)
    return root


def test_isic2019_keeps_the_images_of_a_lesion_together(tmp_path: Path) -> None:
    root = isic(tmp_path)
    found = load(isic2019, root, size=16)
    assert found.class_names == ("MEL", "NV", "BCC") and found.groups is not None
    assert np.bincount(np.bincount(found.groups)).tolist() == [0, 8, 11]
    config = isic2019.Config(root=str(root), size=16)
    split = config.draw(found.train_labels, 3, 0, groups=found.groups)
    for one, other in (("labeled", "test"), ("labeled", "validation"), ("validation", "test")):
        mine, theirs = (set(found.groups[getattr(split, part)].tolist()) for part in (one, other))
        assert not mine & theirs
    assert load(isic2019, root, size=16, by_lesion=False).groups is None
    (root / "ISIC_2019_Training_Metadata.csv").unlink()
    assert "or set data.by_lesion=false" in refused(isic2019, root)


def test_archives_are_those_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    food, sun = food101.ARCHIVE, sun397.ARCHIVE
    assert (food.url, food.md5) == (torchvision.Food101._URL, torchvision.Food101._MD5)
    assert (sun.url, sun.md5) == (torchvision.SUN397._DATASET_URL, torchvision.SUN397._DATASET_MD5)
    (tmp_path / "there").mkdir()
    Archive("http://localhost:9/a.tar.gz", "0" * 32, "there").fetch(tmp_path)
    with pytest.raises(ValueError, match=r"the download of http://localhost:9/a\.tar\.gz \(MD5 0+"):
        Archive("http://localhost:9/a.tar.gz", "0" * 32, "absent").fetch(tmp_path)
    message = refused(sun397, tmp_path)
    assert "SUN397.tar.gz (MD5 8ca2" in message and "data.download=true" in message


def test_a_run_and_a_look_at_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = aves(tmp_path / "aves")
    settings = [f"data.root={root}", "data.size=16", "data.cache=none"]
    words = ["--algo", "fixmatch", "--dataset", "semi_aves", *settings]
    small = ["model.name=cnn-4", "fixmatch.steps=2", "fixmatch.batch=4", "threads=1", "device=cpu"]
    assert cli.main([*words, *small, "--out", str(tmp_path / "run")]) == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["counts"]["labeled"] == [5, 3, 2] and manifest["extra_unlabeled"] == 4
    capsys.readouterr()
    assert cli.main(["data", "semi_aves", *settings]) == 0
    assert "unlabeled" in capsys.readouterr().out
    held = [f"data.root={inat(tmp_path / 'inat')}", "data.cache=none"]
    assert cli.main(["data", "inaturalist2018", *held]) == 0  # validation images are drawn later
    assert "nothing to mend" in capsys.readouterr().out


def test_a_manifest_does_not_say_where_the_lists_are() -> None:
    words = ("data.root=/other", "data.lists=/other/lists", "data.train_list=/o/l.txt")
    request = Request(["supervised"], "semi_aves", settings=[*words, "data.pool=both"])
    assert "/o" not in request.command and "data.pool=both" in request.command


# What is refused, in one line with file, row, value and remedy.


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"train/{SYNSETS[0]}/x.JPEG", r"row 11: .* is no path with the number of a class"),
        (f"train/{SYNSETS[0]}/x.JPEG one", r"row 11: .* write it as in 'train/a/1\.jpg 0'"),
        (f"train/{SYNSETS[0]}/x.JPEG 1.5", r"row 11: .* is no path with the number of a class"),
        ("7", r"row 11: '7' is no path with the number of a class"),
        (f"train/{SYNSETS[0]}/x.JPEG 0", r"row 11: .*x\.JPEG' is no file in .*; put ImageNet_LT"),
        (f"train/{SYNSETS[0]}/{SYNSETS[0]}_90.JPEG 0", r"row 11: .* is in row 1 of ImageNet_LT_tr"),
        ("../other/x.JPEG 0", r"row 11: '\.\./other/x\.JPEG' lies outside .*; write paths below"),
        ("/etc/passwd 0", r"row 11: '/etc/passwd' lies outside"),
        (f"val/{SYNSETS[1]}/ILSVRC2012_val_00000010.JPEG 1", "is in row 11 of ImageNet_LT_train"),
        ("train/new/1.JPEG 7", r"no image of class 3 among 4 classes; .* numbered from 0"),
        ("train/new/1.JPEG 1", r"of class 1, whose images are in .*n01443537 \(row 6\)"),
        (f"train/{SYNSETS[2]}/1.JPEG 3", r"of class 3, and row 9 says 2 of the same folder"),
        (f"train/{SYNSETS[2]}/1.JPEG -1", r"is of class -1, |whose images|of the same folder"),
    ],
)
def test_wrong_rows(tmp_path: Path, row: str, message: str) -> None:
    root = imagenet(tmp_path)
    photos(root, ["train/new/1.JPEG", f"train/{SYNSETS[2]}/1.JPEG"])
    file = root / "ImageNet_LT_train.txt"
    file.write_text(file.read_text() + row + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        load(imagenet_lt, root)
    assert "\n" not in str(caught.value) and "ImageNet_LT_t" in str(caught.value)


def test_wrong_lists(tmp_path: Path) -> None:
    root = imagenet(tmp_path)
    (root / "ImageNet_LT_test.txt").write_text(f"val/{SYNSETS[0]}/ILSVRC2012_val_00000000.JPEG 5\n")
    assert "row 1: 'val/n01440764/" in (told := refused(imagenet_lt, root)) and "0 to 2" in told
    (root / "ImageNet_LT_test.txt").write_bytes(b"\xff\xfe\x00")
    assert "is no UTF-8 text (byte 0)" in refused(imagenet_lt, root)
    (root / "ImageNet_LT_test.txt").write_text("\n\n")
    assert "lists no image" in refused(imagenet_lt, root)
    (root / "ImageNet_LT_test.txt").unlink()
    assert "no file" in (told := refused(imagenet_lt, root)) and "or set data.lists" in told
    assert "no file nowhere.txt" in refused(imagenet_lt, root, train_list="nowhere.txt")
    with pytest.raises(ValueError, match=r"^ImageNet-LT needs data\.root=PATH; put"):
        imagenet_lt.load(imagenet_lt.Config())
    assert "SUN397 has no published validation list" in refused(sun397, root, validation="folder")
    assert "ISIC-2019 has no published test list" in refused(isic2019, isic(root), test=None)
    assert "say how many with data.test=200" in refused(food101, root, test=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "has no list 'images'"),
        (lambda c: c.update(annotations=[]), "has no list 'annotations'"),
        (lambda c: c["images"][2].pop("file_name"), "images 3: no file_name in"),
        (lambda c: c["annotations"][1].pop("category_id"), "annotation 2: category_id is 'None'"),
        (lambda c: c["annotations"].pop(), "image 10: .* has no annotation"),
        (
            lambda c: c["annotations"].append({"image_id": 500, "category_id": 2}),
            "annotation 11: the image 500 is in a second class, 2",
        ),
        (lambda c: c["annotations"].insert(0, 5), "annotations 1: no image_id in '5'"),
    ],
)
def test_wrong_json(tmp_path: Path, change: Any, message: str) -> None:
    root = inat(tmp_path)
    content = json.loads((root / "train2018.json").read_text())
    change(content)
    (root / "train2018.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"train2018\.json.*{message}"):
        load(inaturalist2018, root)


@pytest.mark.parametrize("content", ["[1, 2]", "{", "[" * 100_000])
def test_what_is_no_coco(tmp_path: Path, content: str) -> None:
    root = inat(tmp_path)
    (root / "train2018.json").write_text(content)
    assert "train2018.json is no" in refused(inaturalist2018, root)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("ISIC_9,1.0,1.0,0.0,0.0", "row 32: ISIC_9 has 2 classes marked 1.0; mark one"),
        ("ISIC_9,0.0,0.0,0.0,0.0", "row 32: ISIC_9 has 0 classes marked 1.0; mark one"),
        ("ISIC_9,1.0,nan,0.0,0.0", "row 32: ISIC_9 has 1 classes marked 1.0; mark one"),
        ("ISIC_9,1.0,0.0", "row 32: 3 values for 5 columns"),
        ("ISIC_9,1.0,0.0,0.0,0.0", "row 32: 'ISIC_2019_Training_Input/ISIC_9.jpg' is no file"),
    ],
)
def test_wrong_columns(tmp_path: Path, row: str, message: str) -> None:
    root = isic(tmp_path)
    file = root / "ISIC_2019_Training_GroundTruth.csv"
    file.write_text(file.read_text() + row + "\n")
    assert message in refused(isic2019, root)
    file.write_text("name,MEL\n")
    assert "no column 'image' but name, MEL" in refused(isic2019, root)


def test_wrong_names_in_folders(tmp_path: Path) -> None:
    root = food(tmp_path)
    text(root, "food-101/meta/train.txt", ["apple_pie/1", "apple_pie"])
    assert "train.txt, row 2: 'apple_pie' is no class and image" in refused(food101, root)
