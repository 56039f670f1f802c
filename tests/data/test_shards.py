"""Tar shards: what they may look like, what is refused, and that they give a folder's run."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_selmix import cli
from ssl_selmix.data import ImageSet, shards
from ssl_selmix.data.files import FileSet
from ssl_selmix.datasets import image_folder
from ssl_selmix.datasets import webdataset as plugin
from ssl_selmix.splits import Counts
from tests.helpers.images import noise, noise_tree, write

Members = Mapping[str, bytes | str]


def shard(path: Path, members: Members) -> Path:
    """A tar file of these members."""
    with tarfile.open(path, "w") as made:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return path


def png(seed: int, side: int = 16) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(noise(side, side, 3, seed=seed)).save(out, "PNG")
    return out.getvalue()


def shards_of(root: Path, folder: Path, label: str = "cls") -> None:
    """The images of folders as shards of seven samples, in another order than theirs."""
    folder.mkdir()
    for part in ("train", "test", "unlabeled"):
        files = sorted((root / part).rglob("*.png"), key=lambda file: file.name[::-1])
        for number, start in enumerate(range(0, len(files), 7)):
            members: dict[str, bytes | str] = {}
            for file in files[start : start + 7]:
                key = "/".join(file.relative_to(root / part).with_suffix("").parts)
                members[f"{key}.png"] = file.read_bytes()
                if part != "unlabeled":
                    told = file.parent.name
                    members[f"{key}.{label}"] = (
                        json.dumps({"label": told}) if label == "json" else f"{told}\n"
                    )
            shard(folder / f"{part}-{number:03}.tar", members)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = noise_tree(
        tmp_path_factory.mktemp("shards") / "p", {"train": 10, "test": 3}, (16, 16, 3)
    )
    for i in range(9):
        write(root / "unlabeled" / f"{i}.png", noise(16, 16, 3, seed=900 + i))
    shards_of(root, root / "cls")
    shards_of(root, root / "json", "json")
    return root


def words(folder: Path) -> list[str]:
    """Settings of the shards in a folder."""
    return [
        f"data.shards={folder}/train-{{000..002}}.tar",
        f"data.test_shards={folder}/test-*.tar",
        f"data.unlabeled_shards={folder}/unlabeled-{{000..001}}.tar",
    ]


def load(folder: Path, **settings: Any) -> ImageSet | FileSet:
    named: dict[str, Any] = {
        "cache": "none",
        "shards": [f"{folder}/train-{{000..002}}.tar"],
        "test_shards": [f"{folder}/test-*.tar"],
        "unlabeled_shards": [f"{folder}/unlabeled-{{000..001}}.tar"],
    }
    return plugin.load(plugin.Config(**named | settings))


def of_folder(photos: Path, **settings: Any) -> ImageSet | FileSet:
    drawn = {"labeled": Counts(0, shape="all"), "unlabeled": Counts(0, shape="unknown")}
    return image_folder.load(
        image_folder.Config(root=str(photos), validation=2, cache="none", **drawn, **settings)  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_shards_give_the_images_of_the_folders(photos: Path, kind: str) -> None:
    found, folder = load(photos / kind), of_folder(photos)
    assert isinstance(found, ImageSet) and found.sha256() == folder.sha256()
    assert np.array_equal(found.train_labels, folder.train_labels)
    assert found.class_names == folder.class_names and found.mean == folder.mean


def test_large_images_are_read_from_the_shards(photos: Path) -> None:
    found = load(photos / "cls", size=72, workers=0)
    folder = of_folder(photos, size=72, workers=0)
    assert isinstance(found, FileSet) and isinstance(folder, FileSet)
    assert found.train.names == folder.train.names and found.sha256() == folder.sha256()
    index = torch.arange(5)
    ours, theirs = (source.pools(torch.device("cpu"))[0].take(index) for source in (found, folder))
    assert torch.equal(ours, theirs)


def test_workers_read_shards_and_digests_are_remembered(photos: Path, tmp_path: Path) -> None:
    found = load(photos / "cls", size=72, workers=2, cache=str(tmp_path))
    assert isinstance(found, FileSet) and found.sha256() == found.sha256()
    assert len(list(tmp_path.glob("files-*.json"))) == 1
    pool, _ = found.pools(torch.device("cpu"))
    (batch,) = pool.plain(torch.arange(4), 4)
    assert batch.shape == (4, 3, 72, 72)


def test_a_run_on_shards_is_that_on_the_folders(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = [
        *("--algo", "fixmatch", "--then", "selmix", "model.name=cnn-4", "pictures=false"),
        *("fixmatch.steps=1", "selmix.steps=1", "fixmatch.batch=4", "selmix.batch=4"),
        *("data.validation=2", "data.cache=none"),
    ]
    sources = {
        "folder": ["image_folder", "--preset", "image_folder-as-found", f"data.root={photos}"],
        "shards": ["webdataset", *words(photos / "cls")],
    }
    for name, source in sources.items():
        assert cli.main([*common, "--dataset", *source, "--out", name]) == 0
    one, other = (
        torch.load(f"{name}/2-selmix/model.pt", weights_only=True)["state"]["teacher"]
        for name in sources
    )
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    manifests = [json.loads(Path(name, "manifest.json").read_text()) for name in sources]
    for key in ("indices_sha256", "images_sha256"):
        assert manifests[0][key] == manifests[1][key]
    assert str(photos) not in Path("shards/manifest.json").read_text()


def test_the_audit_looks_into_shards(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "webdataset", *words(photos / "cls")]) == 0
    assert "cat" in capsys.readouterr().out


# What shards look like.


def test_numbers_have_names_and_others_have_no_label(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {"c.jpg": png(9), "d.png": png(8), "d.cls": ""}
    for i in range(8):
        members |= {f"{i}.png": png(i), f"{i}.cls": str(i % 2), f"{i}.npy": b"x" * 2000}
    path = shard(tmp_path / "a.tar", members)
    found = plugin.load(
        plugin.Config(
            shards=[str(path)], test="1", validation=1, classes=["dog", "cat"], cache="none"
        )
    )
    assert found.class_names == ("dog", "cat") and found.train_labels.tolist() == [0] * 4 + [1] * 4
    assert found.extra_unlabeled is not None and len(found.extra_unlabeled) == 2


def test_keys_that_every_shard_counts_anew(tmp_path: Path) -> None:
    for k in range(3):
        members: dict[str, bytes | str] = {f"{i}.png": png(4 * k + i) for i in range(4)}
        members |= {f"{i}.cls": "ab"[i % 2] for i in range(4)}
        shard(tmp_path / f"{k}.tar", members)
    found = plugin.load(
        plugin.Config(shards=[f"{tmp_path}/{{0..2}}.tar"], test=1, size=72, workers=0)
    )
    assert isinstance(found, FileSet) and len(set(found.train.names)) == 12
    assert found.train.names[:2] == ("train/a/0/0.png", "train/a/1/0.png")


def test_which_of_two_images_and_which_label(tmp_path: Path) -> None:
    members: Members = {
        "0.left.png": png(1),
        "0.right.png": png(2),
        "0.json": '{"dx": 7, "label": 3}',
    }
    path = str(shard(tmp_path / "a.tar", members))
    (found,) = shards.read([path], "right.png", "dx")
    assert found.name == "0.right.png" and found.label == "7"
    with pytest.raises(
        ValueError, match=r"images left\.png, right\.png; name one with data\.image"
    ):
        shards.read([path])


SOUND: Members = {"0.png": png(0), "0.cls": "a", "1.png": png(1), "1.cls": "b"}
WRONG: dict[str, tuple[Members, str]] = {
    "no image": ({"0.cls": "a"}, "holds no image"),
    "outside": ({"../0.png": png(0)}, "leads out of the shard"),
    "absolute": ({"/0.png": png(0)}, "leads out of the shard"),
    "twice": ({"0.png": png(0), "./0.png": png(1)}, "twice; give every image its own key"),
    "no JSON": ({"0.png": png(0), "0.json": "{"}, r"0\.json is no JSON"),
    "no object": ({"0.png": png(0), "0.json": "[1]"}, r"0\.json is no object"),
    "deep JSON": ({"0.png": png(0), "0.json": "[" * 100_000}, r"0\.json is no JSON"),
    "label list": ({"0.png": png(0), "0.json": '{"label": [1, 2]}'}, "give a text or a whole"),
    "label share": ({"0.png": png(0), "0.json": '{"label": 0.5}'}, "give a text or a whole"),
    "latin-1": ({"0.png": png(0), "0.cls": b"\xe4"}, r"'0\.cls' is no UTF-8"),
    "long label": ({"0.png": png(0), "0.cls": "a" * (shards.LONGEST + 1)}, "bytes and a label"),
    "one class": ({"0.png": png(0), "0.cls": "a"}, "1 classes"),
    "no label": ({"0.png": png(0)}, "no image with a label to train on"),
    "look alike": (
        {"0.png": png(0), "0.cls": "cat", "1.png": png(1), "1.cls": "Cat"},
        "look alike",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_shards_are_refused_in_a_line(tmp_path: Path, case: str) -> None:
    members, message = WRONG[case]
    path = shard(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=message) as told:
        plugin.load(plugin.Config(shards=[str(path)], test=1))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_pipes_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as made:
        member = tarfile.TarInfo("0.png")
        member.type, member.linkname = kind, "/etc/passwd"
        made.addfile(member)
    with pytest.raises(ValueError, match=r"'0\.png' is (a link|no regular file)"):
        shards.read([str(tmp_path / "a.tar")])


def test_what_is_no_whole_tar_file(tmp_path: Path) -> None:
    whole = shard(tmp_path / "a.tar", SOUND).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:600])
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as made:
        made.add(tmp_path / "a.tar", "a")
    (tmp_path / "no.tar").write_bytes(b"nothing")
    (tmp_path / "empty.tar").write_bytes(b"")
    told = {"cut": "middle|no whole", "zipped": "compressed", "no": "no whole", "empty": "no whole"}
    for name, message in told.items():
        with pytest.raises(ValueError, match=message):
            shards.read([str(tmp_path / f"{name}.tar")])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none-{0..2}.tar", "no file .*none-0.tar"),
        ("none/*.tar", "no file"),
        ("{5..2}.tar", "no range"),
        ("{0..999999}.tar", "at most"),
        ("https://x.org/{0..2}.tar", "nothing is fetched"),
        ("pipe:curl x", "nothing is fetched or executed"),
    ],
)
def test_patterns_that_mean_no_shard(tmp_path: Path, pattern: str, message: str) -> None:
    name = pattern if ":" in pattern else f"{tmp_path}/{pattern}"
    with pytest.raises(ValueError, match=f"data.shards: .*{message}|{message}"):
        shards.files("data.shards", [name])


def test_settings_that_do_not_fit(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs data\.shards"):
        plugin.load(plugin.Config())
    with pytest.raises(ValueError, match="belongs to one part"):
        load(photos / "cls", unlabeled_shards=[f"{photos}/cls/train-000.tar"])
    with pytest.raises(ValueError, match=r"no test images; add them, or .*data\.test"):
        load(photos / "cls", test_shards=[])
    with pytest.raises(ValueError, match="no validation images"):
        load(photos / "cls", validation="folder")
    with pytest.raises(ValueError, match="no train image of the class 'bird'"):
        load(photos / "cls", classes=["cat", "dog", "bird"])
    birds = shard(tmp_path / "birds.tar", {"0.png": png(0), "0.cls": "bird"})
    with pytest.raises(ValueError, match=r"test image 0\.png: unknown class 'bird'"):
        load(photos / "cls", test_shards=[str(birds)])
    unlabeled = shard(tmp_path / "unlabeled.tar", {"0.png": png(0)})
    with pytest.raises(ValueError, match="has no label and cannot be judged"):
        load(photos / "cls", test_shards=[str(unlabeled)])
