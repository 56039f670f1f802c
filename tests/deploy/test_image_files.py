"""Image files as a run's network takes them: which are found, and what becomes of their pixels."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_selmix.augment import image
from ssl_selmix.data.files import MEAN, STD
from ssl_selmix.deploy.decoder import Decoder, chunks
from ssl_selmix.images.decode import contents
from ssl_selmix.images.find import find, suffixes
from ssl_selmix.images.folder import decode
from ssl_selmix.images.photo import Photo
from tests.helpers.images import photo

# A worker is started by fork; Python 3.12 warns of that if there are other threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo().save(path, exif=exif)


def animated(path: Path) -> None:
    photo().save(path, save_all=True, append_images=[photo(seed=1)])


FILES: dict[str, Callable[[Path], None]] = {
    "plain.jpg": lambda path: photo().save(path),
    "rotated.jpg": rotated,
    "cmyk.jpg": lambda path: photo().convert("CMYK").save(path),
    "grey.jpg": lambda path: photo().convert("L").save(path),
    "large.jpg": lambda path: photo(400, 300).save(path),
    "plain.png": lambda path: photo().save(path),
    "palette.png": lambda path: photo().convert("P").save(path),
    "alpha.png": lambda path: photo().convert("RGBA").rotate(30).save(path),
    "deep.png": lambda path: Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(
        path
    ),
    "bits.png": lambda path: photo().convert("1").save(path),
    "plain.webp": lambda path: photo().save(path, lossless=True),
    "plain.bmp": lambda path: photo().save(path),
    "plain.tiff": lambda path: photo().save(path),
    "plain.ppm": lambda path: photo().save(path),
    "plain.tga": lambda path: photo().save(path),
    "frames.gif": animated,
}


def manifest(shape: tuple[int, int, int], **more: Any) -> dict[str, Any]:
    return {"image_shape": list(shape), "mean": [1.0] * shape[0], "std": [2.0] * shape[0], **more}


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = tmp_path / request.param
    FILES[request.param](path)
    return str(path)


def test_small_images_are_those_of_training(file: str) -> None:
    expected, corrections, _ = decode(file, 16)
    found, notes = Decoder(manifest((3, 16, 16)))(file)
    assert found.dtype == torch.uint8 and np.array_equal(found.numpy(), expected)
    assert notes == [*corrections, "other-sized"]


def test_streamed_images_are_those_of_training(file: str) -> None:
    decoder = Decoder(manifest((3, 20, 20), mean=MEAN, std=STD))
    found, _ = decoder(file)
    expected = image.views(20)["plain"](Photo(contents(file), file), (0, 0))
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)
    assert "central 20×20" in decoder.how and "resized to 23 pixels" in decoder.how


def test_images_of_the_runs_size_stay_as_they_are(tmp_path: Path) -> None:
    photo(12, 8).save(tmp_path / "a.png")
    found, notes = Decoder(manifest((3, 8, 12)))(str(tmp_path / "a.png"))
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(photo(12, 8)))
    assert notes == []


def test_a_grey_run(tmp_path: Path) -> None:
    grey = photo(8, 8).convert("L")
    grey.save(tmp_path / "grey.png")
    photo(8, 8).save(tmp_path / "colour.png")
    decoder = Decoder(manifest((1, 8, 8)))
    for name in ("grey", "colour"):
        found, notes = decoder(str(tmp_path / f"{name}.png"))
        assert np.array_equal(found.numpy()[0], np.asarray(grey)) and found.shape == (1, 8, 8)
        assert notes == ([] if name == "grey" else ["colour"])
    assert decoder.told("colour") == "made greyscale" and decoder.told("palette") == "made RGB"


def test_five_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"5 channels.*pass tensors"):
        Decoder(manifest((5, 8, 8)))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in ("b/z.png", "b/a.JPG", "a.png", "c.webp", "notes.txt", ".hidden.png", ".dir/x.png"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "gone.png").symlink_to(root / "nothing.png")
    return root


def test_images_are_found_in_sorted_order_and_the_rest_is_told(tree: Path) -> None:
    found, left_out = find([tree])
    names = [os.path.relpath(path, tree) for path in found]
    assert names == ["a.png", "b/a.JPG", "b/z.png", "c.webp", "gone.png"]
    told = {why: [os.path.basename(p) for p in paths] for why, paths in left_out.items()}
    assert told == {
        "with a hidden name": [".dir", ".hidden.png"],
        "that link to a folder": ["loop"],
        "without a known image suffix": ["notes.txt"],
    }


def test_named_files_are_taken_whatever_they_are_called(tree: Path) -> None:
    named = [str(tree / "notes.txt"), str(tree / "b")]
    assert find(named)[0] == [named[0], f"{named[1]}/a.JPG", f"{named[1]}/z.png"]


def test_nothing_found_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file or folder .*gone; check the path"):
        find([tmp_path / "gone"])
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"no image in .*\(but .*a\.txt\)"):
        find([tmp_path])
    with pytest.raises(ValueError, match="no image in an empty list"):
        find([])


def test_a_locked_folder_counts_as_unreadable(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def locked(folder: str) -> Any:
        if folder.endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", locked)
    assert str(tree / "b") in find([tree])[0]


def test_stubs_of_pillow_are_no_images() -> None:
    assert {".jpg", ".png", ".webp", ".tif", ".gif", ".bmp"} <= suffixes()
    assert not {".h5", ".mpg", ".grib", ".pdf", ".txt"} & suffixes()


@pytest.fixture
def ten(tmp_path: Path) -> list[str]:
    """Ten files, of which the fourth and the last are no images."""
    for i in range(10):
        photo(8, 8, seed=i).save(tmp_path / f"{i}.png")
    for i in (3, 9):
        (tmp_path / f"{i}.png").write_bytes(b"\x89PNG and no more")
    return find([tmp_path])[0]


@pytest.mark.parametrize("workers", [0, 1, 2, 9])
def test_workers_change_nothing(ten: list[str], workers: int) -> None:
    before = torch.random.get_rng_state()
    found = list(chunks(Decoder(manifest((3, 8, 8))), ten, 4, workers))
    assert torch.equal(before, torch.random.get_rng_state())
    assert [len(chunk.files) for chunk in found] == [3, 4, 1]
    assert [len(chunk.images) for chunk in found] == [3, 4, 1]
    assert [len(chunk.unreadable) for chunk in found] == [1, 0, 1]
    assert [f for chunk in found for f in chunk.files] == [f for f in ten if f[-5] not in "39"]
    assert "3.png is no readable image" in found[0].unreadable[0]
    images = torch.cat([chunk.images for chunk in found])
    for pixels, seed in zip(images, (0, 1, 2, 4, 5, 6, 7, 8), strict=True):
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(photo(8, 8, seed=seed)))


def test_one_chunk_is_in_memory_at_a_time(ten: list[str]) -> None:
    read: list[str] = []

    class Counting(Decoder):
        def __call__(self, file: str) -> tuple[torch.Tensor, list[str]]:
            read.append(file)
            return super().__call__(file)

    stream: Iterator[Any] = chunks(Counting(manifest((3, 8, 8))), ten, 3, 0)
    for done in (3, 6, 9, 10):
        next(stream)
        assert read == ten[:done]


def test_a_chunk_without_any_image(ten: list[str]) -> None:
    (found,) = chunks(Decoder(manifest((3, 8, 8))), [ten[3], ten[9]], 4, 0)
    assert found.files == [] and len(found.images) == 0 and len(found.unreadable) == 2


def test_a_missing_file_is_a_line(tmp_path: Path) -> None:
    (found,) = chunks(Decoder(manifest((3, 8, 8))), [str(tmp_path / "no\nne.png")], 4, 0)
    assert found.unreadable and "\n" not in found.unreadable[0]
    assert "no\\nne.png" in found.unreadable[0]
