"""Files of an image folder that are not as expected: an error in one line, or a line that tells.

Nothing is corrected or left out in silence; the table of docs/howto/data.md is tested here
row by row.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from ssl_selmix import cli
from ssl_selmix.data import ImageSet
from ssl_selmix.datasets import image_folder
from ssl_selmix.images import decode
from ssl_selmix.images import folder as folder_module
from ssl_selmix.images.find import find
from ssl_selmix.images.folder import listing
from tests.helpers.images import Pixels, noise, noise_tree, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with four images to train on and one to test on, 8×8 pixels."""
    return noise_tree(tmp_path / "images", {"train": 4, "test": 1})


def load(root: Path, size: int | None = None) -> ImageSet:
    found = image_folder.load(image_folder.Config(root=str(root), size=size))
    assert isinstance(found, ImageSet)
    return found


def words(root: Path, *more: str) -> list[str]:
    small = ["data.labeled.largest=1", "data.labeled.rho=1", "data.unlabeled.largest=2"]
    small += ["data.unlabeled.rho=1", "data.validation=1", "supervised.steps=1"]
    small += ["model.name=cnn-4", "supervised.batch=2", "--out", str(root.parent / "run")]
    return ["--algo", "supervised", "--dataset", "image_folder", f"data.root={root}", *small, *more]


def refusal(root: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The one line that the command line answers with."""
    assert cli.main(words(root, *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]


# Files that are no whole image.


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("empty", "the file is empty"),
        ("text", "its bytes are of no known format"),
        ("truncated", ""),
        ("length", ""),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_broken_files_are_named(
    root: Path, suffix: str, damage: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "train" / "dog" / f"broken.{suffix}"
    write(path, noise(8, 8, 3))
    whole = path.read_bytes()
    contents = {
        "empty": b"",
        "text": b"this is no image",
        "truncated": whole[: len(whole) // 2],
        "length": flipped(whole, whole.index(b"IDAT") - 1 if suffix == "png" else 2),
    }
    path.write_bytes(contents[damage])
    message = refusal(root, capsys)
    assert f"{path} is no readable image ({reason}" in message
    assert "remove or replace it" in message and "0x" not in message  # no address of an object


def test_a_jpeg_cut_off_anywhere_is_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(8, 8, 3)).save(buffer, "JPEG")
    whole = buffer.getvalue()
    decode.rgb(whole, "x.jpg")
    for end in range(len(whole)):
        with pytest.raises(ValueError, match=r"x\.jpg is no readable image"):
            decode.rgb(whole[:end], "x.jpg")


def test_filling_truncated_images_up_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert "LOAD_TRUNCATED_IMAGES is on" in refusal(root, capsys)


def test_the_first_broken_file_is_named_whatever_finishes_first(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "BATCH", 1)
    monkeypatch.setattr(folder_module, "SMALL_FILE", 0)  # several threads
    for name in ("cat/3", "dog/0", "dog/2"):
        (root / "train" / f"{name}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cat/3\.png is no readable image"):
        load(root)


def test_a_link_to_nothing_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = root / "train" / "dog" / "link.png"
    link.symlink_to(root / "gone.png")
    assert f"{link} is no readable image (No such file" in refusal(root, capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(root: Path) -> None:
    (root / "train" / "dog" / "1.png").chmod(0)
    with pytest.raises(ValueError, match=r"dog/1\.png is no readable image \(Permission denied"):
        load(root)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_of_unknown_range_are_refused(root: Path, dtype: Any) -> None:
    Image.fromarray(np.ones((8, 8), dtype)).save(root / "train" / "dog" / "x.tif")
    with pytest.raises(ValueError, match=r"dog/x\.tif.*no known range, save it with 8 or 16 bits"):
        load(root)


# Images that become 8-bit RGB.


def as_mode(mode: str) -> tuple[Image.Image, Pixels, str]:
    """An image, the RGB pixels that it stands for, and what the log calls it."""
    grey, rgb = noise(8, 8), noise(8, 8, 3)
    three = grey[:, :, None].repeat(3, 2)
    alpha = np.full((8, 8, 1), 255, dtype=np.uint8)
    alpha[:4] = 0
    on_white = np.where(alpha > 0, rgb, 255).astype(np.uint8)
    palette = Image.fromarray(grey).convert("P")
    two = np.where(grey > 127, 255, 0).astype(np.uint8)
    deep = (grey.astype(np.uint16) << 8) + noise(8, 8, seed=1)
    kinds: dict[str, tuple[Image.Image, Pixels, str]] = {
        "grey": (Image.fromarray(grey), three, "greyscale"),
        "one bit": (Image.fromarray(two).convert("1"), two[:, :, None].repeat(3, 2), "greyscale"),
        "palette": (palette, three, "palette"),
        "rgba": (Image.fromarray(np.concatenate([rgb, alpha], 2)), on_white, "transparent"),
        "opaque": (Image.fromarray(rgb).convert("RGBA"), rgb, "opaque RGBA"),
        "grey alpha": (
            Image.fromarray(np.concatenate([three[:, :, :1], alpha], 2)),
            np.where(alpha > 0, three, 255).astype(np.uint8),
            "transparent",
        ),
        "16 bits": (Image.fromarray(deep), three, "16-bit"),
    }
    return kinds[mode]


@pytest.mark.parametrize(
    "mode", ["grey", "one bit", "palette", "rgba", "opaque", "grey alpha", "16 bits"]
)
def test_other_modes_become_rgb_and_are_counted(
    root: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image, expected, kind = as_mode(mode)
    for name in ("8.png", "9.png"):
        image.save(root / "train" / "cat" / name)
    found = load(root)
    for position in (4, 5):
        assert torch.equal(found.train[position].permute(1, 2, 0), torch.from_numpy(expected))
    (line,) = [text for text in warnings(capsys) if f" 2 {kind} images " in text]
    assert line.endswith(f"(first: {root}/train/cat/8.png)")
    assert line.startswith(f"warning: {root}/train: ")


def test_a_half_transparent_image_lies_on_white(root: Path) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    image.save(root / "train" / "cat" / "0.png")
    assert load(root).train[0, :, 0, 0].tolist() == [255, 127, 127]


def test_a_transparent_colour_of_a_palette_becomes_white(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image.new("P", (8, 8))
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.putpixel((0, 0), 1)
    image.save(root / "train" / "cat" / "0.gif", transparency=0)
    assert load(root).train[0, :, 0, :2].tolist() == [[200, 255], [0, 255], [0, 255]]
    said = warnings(capsys)
    assert any("1 palette image made RGB" in line for line in said)
    assert any("1 transparent image laid on white" in line for line in said)


def test_cmyk_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(root / "train" / "cat" / "0.jpg")
    red = load(root).train[0, :, 0, 0]
    assert red[0] > 200 and red[1] < 50 and red[2] < 50
    assert any("1 CMYK image made RGB" in line for line in warnings(capsys))


def test_16_bit_grey_of_other_formats(tmp_path: Path) -> None:
    values = np.array([[0x1234, 0xFEDC], [0x0100, 0x00FF]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.tif")
    (tmp_path / "x.pgm").write_bytes(b"P5 2 2 65535\n" + values.astype(">u2").tobytes())
    for name in ("x.tif", "x.pgm"):
        image, corrections = decode.rgb((tmp_path / name).read_bytes(), name)
        assert np.asarray(image)[:, :, 0].tolist() == [[0x12, 0xFE], [0x01, 0x00]]
        assert corrections == ["16-bit", "greyscale"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_images_upright(
    root: Path, orientation: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against Pillow's own way of doing it, which knows the eight values."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = root / "train" / "cat" / "0.png"
    Image.fromarray(noise(8, 8, 3)).save(path, exif=exif)
    with Image.open(path) as opened:
        expected = torch.from_numpy(np.array(ImageOps.exif_transpose(opened)))
    assert torch.equal(load(root).train[0].permute(1, 2, 0), expected)
    told = any("1 rotated image turned upright" in line for line in warnings(capsys))
    assert told == (orientation > 1)


def test_damaged_exif_data_do_not_matter(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(8, 8, 3)).save(buffer, "JPEG", exif=b"Exif\0\0nonsense")
    assert decode.rgb(buffer.getvalue(), "x.jpg")[1] == []


def test_of_several_frames_the_first_is_taken(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = root / "train" / "cat" / "0.tif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert load(root).train[1, :, 0, 0].tolist() == [255, 0, 0]  # after 0.png
    assert any("1 multi-frame image represented by" in line for line in warnings(capsys))


def test_a_large_jpeg_is_reduced_while_it_is_decoded(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 400).astype(np.uint8)
    write(tmp_path / "x.jpg", np.broadcast_to(ramp[None, :, None], (300, 400, 3)).copy())
    content = (tmp_path / "x.jpg").read_bytes()
    assert decode.rgb(content, "x.jpg", at_least=64)[0].size == (100, 75)
    small = folder_module.decode(str(tmp_path / "x.jpg"), 32)[0].astype(int)
    with Image.open(tmp_path / "x.jpg") as opened:
        slow = np.asarray(opened.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(small - slow.transpose(2, 0, 1)).max() <= 4


def test_nothing_is_said_of_ordinary_images(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(root)
    assert capsys.readouterr().out == ""


# What lies in the folders.


def hidden(folder: Path) -> None:
    (folder / "._0.png").write_bytes(b"not an image")


def hidden_folder(folder: Path) -> None:
    write(folder / ".old" / "0.png", noise(8, 8, 3))


def hidden_class(folder: Path) -> None:
    write(folder.parent / ".old" / "0.png", noise(8, 8, 3))


def text(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")


def linked_folder(folder: Path) -> None:
    (folder / "link").symlink_to(folder, target_is_directory=True)


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")  # whoever opens it waits for ever


def loose(folder: Path) -> None:
    write(folder.parent / "x.png", noise(8, 8, 3))


@pytest.mark.parametrize(
    ("put", "why"),
    [
        (hidden, "with a hidden name"),
        (hidden_folder, "with a hidden name"),
        (hidden_class, "with a hidden name"),
        (text, "without a known image suffix"),
        (linked_folder, "that link to a folder"),
        (pipe, "that are no regular files"),
        (loose, "beside the class folders"),
    ],
)
def test_what_is_left_out_is_counted(
    root: Path, put: Callable[[Path], None], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put(root / "train" / "cat")
    assert len(load(root).train) == 8
    (line,) = warnings(capsys)
    assert f"{root}/train: left out 1 file {why} (first: {root}/train/" in line


def test_a_folder_below_a_class_belongs_to_the_class(root: Path) -> None:
    inside = noise(8, 8, 3, seed=9)
    (root / "train" / "cat" / "1.png").unlink()
    write(root / "train" / "cat" / "1.png" / "more" / "x.PNG", inside)
    (root / "train" / "cat" / "1.png" / "more" / "empty").mkdir()
    (root / "train" / "cat" / "4.png").symlink_to(root / "test" / "dog" / "0.png")
    found = load(root)
    assert found.train_labels.tolist() == [0] * 5 + [1] * 4
    assert torch.equal(found.train[1].permute(1, 2, 0), torch.from_numpy(inside))
    assert found.test is not None and torch.equal(found.train[4], found.test[1])


def test_training_reads_the_kinds_of_file_that_predict_reads(root: Path) -> None:
    for name in ("0.JFIF", "1.tga", "2.pnm"):
        path = root / "train" / "cat" / name
        Image.fromarray(noise(8, 8, 3)).save(path, {"JFIF": "JPEG", "pnm": "PPM"}.get(name[2:]))
    assert load(root).train_labels.tolist() == [0] * 7 + [1] * 4
    assert find([root / "train" / "cat"]) == (listing(root / "train", ("cat",))[0], {})


def test_a_class_without_images(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (root / "train" / "dog").iterdir():
        path.rename(path.with_suffix(".heic"))
    message = refusal(root, capsys)
    assert f"class folder {root}/train/dog holds no image (but 3.heic); add" in message
    for path in (root / "train" / "dog").iterdir():
        path.unlink()
    assert f"class folder {root}/train/dog holds no image; add" in refusal(root, capsys, "--resume")


@pytest.mark.parametrize("part", ["train", "test"])
def test_classes_of_one_part_only(
    root: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(root / part / "eel" / "0.png", noise(8, 8, 3))
    assert "must hold the same classes; only one of them has eel" in refusal(root, capsys)


def test_more_labeled_images_than_a_class_has(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(root, capsys, "data.labeled.largest=5")
    assert "class 0 (cat) has 4 images, the split needs 8 (1 validation + 5 labeled" in message


def test_a_manifest_of_other_images(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words(root)) == 0
    manifest = root.parent / "run" / "manifest.json"
    write(root / "train" / "cat" / "0.png", noise(8, 8, 3, seed=77))
    capsys.readouterr()
    message = refusal(root, capsys, f"data.manifest={manifest}", "--out", str(root.parent / "two"))
    assert "drawn on other images" in message


def test_corrections_do_not_stop_a_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(noise(8, 8)).save(root / "train" / "cat" / "0.png")
    Image.new("RGBA", (8, 8)).save(root / "test" / "cat" / "0.png")
    assert cli.main(words(root)) == 0
    said = warnings(capsys)
    assert any("train: 1 greyscale image made RGB (first: " in line for line in said)
    assert any("test: 1 transparent image laid on white (first: " in line for line in said)
