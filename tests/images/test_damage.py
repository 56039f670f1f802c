"""Damage, depth, orientation, thin images and endless files, on every route that reads an image.

The routes: `rgb`, which fills pools of small images and serves `predict`; `Photo`, which streams;
the digests, which a start takes once of every streamed file.
"""

import io
import os
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_selmix.augment.image import views
from ssl_selmix.data import ImageSet
from ssl_selmix.datasets import image_folder
from ssl_selmix.images import damage, decode
from ssl_selmix.images.decode import contents, rgb
from ssl_selmix.images.digests import FileImages, hashes
from ssl_selmix.images.photo import Photo
from tests.helpers.images import noise_tree

Read = Callable[[bytes], object]


def digested(content: bytes) -> object:
    path = Path("digested.jpg")
    path.write_bytes(content)
    return hashes(FileImages(Path("."), ("digested.jpg",)), None)


ROUTES: dict[str, Read] = {
    "rgb": lambda content: rgb(content, "x.jpg"),
    "smaller": lambda content: rgb(content, "x.jpg", 16),
    "photo": lambda content: Photo(content, "x.jpg").pixels(1),
    "photo / 2": lambda content: Photo(content, "x.jpg").pixels(2),
    "digest": digested,
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def jpeg(**options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(90, 160, (96, 96, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


WHOLE, PROGRESSIVE = jpeg(), jpeg(progressive=True)
RESTARTS = jpeg(restart_marker_blocks=4)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2] + b"\xff\xd9"


def zeros(content: bytes) -> bytes:
    half = len(content) // 2
    return content[:half] + bytes(512) + content[half + 512 :]


def flipped(content: bytes) -> bytes:
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 0x5A]) + content[half + 1 :]


def without(content: bytes) -> bytes:
    half = len(content) // 2
    return content[:half] + content[half + 300 :]


# Not among them: one flipped byte in a progressive JPEG, of which libjpeg reads another image and
# complains of nothing.
DAMAGED = {
    **{f"{spoil.__name__} baseline": spoil(WHOLE) for spoil in (cut, zeros, flipped, without)},
    **{f"{spoil.__name__} progressive": spoil(PROGRESSIVE) for spoil in (cut, zeros, without)},
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_jpeg_damaged_in_its_middle_is_refused(route: str, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"x\.jpg|digested\.jpg") as refused:
        ROUTES[route](content)
    assert "a damaged JPEG" in str(refused.value) and "data.strict=false" in str(refused.value)


@pytest.mark.parametrize("spoil", [cut, zeros, without])
def test_a_lost_restart_interval_is_damage(spoil: Callable[[bytes], bytes]) -> None:
    assert damage.damage_of(RESTARTS) == ""
    assert damage.damage_of(spoil(RESTARTS)) != ""


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "content",
    [WHOLE, PROGRESSIVE, RESTARTS, WHOLE + bytes(40), WHOLE[:-2] + bytes(2) + WHOLE[-2:]],
    ids=["whole", "progressive", "restarts", "bytes after the end", "padded"],
)
def test_a_whole_jpeg_is_taken(route: str, content: bytes) -> None:
    ROUTES[route](content)


def test_without_strict_it_is_taken_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    image, notes = rgb(cut(WHOLE), "x.jpg", strict=False)
    assert image.size == (96, 96) and notes == ["damaged"]
    assert Photo(cut(WHOLE), "x.jpg", strict=False).pixels(1).shape == (96, 96, 3)
    Path("x.jpg").write_bytes(cut(WHOLE))
    files, memory = FileImages(Path("."), ("x.jpg",)), Path("memory")
    hashes(files, memory, strict=False)
    assert "x.jpg is damaged (premature end of data segment)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="damaged JPEG"):  # what was only seen is not checked
        hashes(files, memory)


def test_a_folder_tells_every_damaged_file_or_refuses_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_selmix.images.cache.LEAST", 0)
    root = noise_tree(tmp_path / "images", {"train": 4, "test": 1}, (96, 96, 3))
    for name in ("a", "b"):
        (root / "train" / "dog" / f"{name}.jpg").write_bytes(cut(WHOLE))

    def load(strict: bool) -> ImageSet:
        where = {"root": str(root), "size": 32, "cache": str(tmp_path / "cache")}
        found = image_folder.load(image_folder.Config(**where, strict=strict))  # type: ignore[arg-type]
        assert isinstance(found, ImageSet)
        return found

    with pytest.raises(ValueError, match=r"a\.jpg is no readable image \(a damaged JPEG"):
        load(strict=True)
    assert len(load(strict=False).train) == 10
    said = capsys.readouterr().out
    assert "a.jpg is damaged" in said and "b.jpg is damaged" in said
    assert "2 damaged images taken as they are" in said
    load(strict=False)  # from the cache
    assert "2 damaged images taken as they are" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"a\.jpg is no readable image \(a damaged JPEG"):
        load(strict=True)


def test_threads_hear_of_their_own_files_and_others_are_heard_as_ever(
    capfd: pytest.CaptureFixture[str],
) -> None:
    stop = threading.Event()

    def talk() -> None:
        while not stop.is_set():
            os.write(2, b"of another thread\n")

    other = threading.Thread(target=talk)
    other.start()
    try:
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(damage.damage_of, [WHOLE, cut(WHOLE)] * 40))
    finally:
        stop.set()
        other.join()
    assert [bool(reason) for reason in found] == [False, True] * 40
    said = capfd.readouterr().err
    assert "of another thread" in said and "Corrupt JPEG" not in said


# Depth.


def tiff(bits: int, value: int, white_is_zero: bool = False) -> bytes:
    """16×16 grey pixels of a value, of so many bits each."""
    row = "".join(f"{value:0{bits}b}" for _ in range(16))
    rows = int(row, 2).to_bytes(len(row) // 8, "big") * 16
    if bits == 16:
        rows = struct.pack("<256H", *[value] * 256)
    tags = [(256, 3, 16), (257, 3, 16), (258, 3, bits), (259, 3, 1), (262, 3, 1 - white_is_zero)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 3, 16), (279, 4, len(rows))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, what) for tag, kind, what in tags)
    start = b"II*\0" + struct.pack("<I", 8 + len(rows)) + rows
    return start + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (tiff(8, 128), "greyscale"),
        (tiff(12, 2048), "12-bit"),
        (tiff(16, 32768), "16-bit"),
        (tiff(16, 32767, white_is_zero=True), "negative"),
        (b"P5 16 16 4095\n" + struct.pack(">256H", *[2048] * 256), "16-bit"),
        (b"P5 16 16 65535\n" + struct.pack(">256H", *[32768] * 256), "16-bit"),
    ],
    ids=["8 bits", "12 bits", "16 bits", "16 bits, white is 0", "12 bits of PGM", "16 bits of PGM"],
)
def test_half_of_the_range_is_half_of_the_range(content: bytes, told: str) -> None:
    image, notes = rgb(content, "grey")
    assert abs(image.getpixel((8, 8))[0] - 128) <= 1 and told in notes  # type: ignore[index,operator]
    assert abs(int(Photo(content, "grey").pixels(1)[8, 8, 0]) - 128) <= 1


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_heeded_on_every_route(turn: int, suffix: str) -> None:
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :48] = 255  # one bright corner
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = turn
    Image.fromarray(pixels).save(buffer, suffix, exif=exif)
    by_pillow = np.asarray(rgb(buffer.getvalue(), "x")[0]).astype(int)
    by_photo = Photo(buffer.getvalue(), "x").pixels(1).astype(int)
    assert by_pillow.shape == by_photo.shape == ((64, 96, 3) if turn < 5 else (96, 64, 3))
    assert abs(by_pillow - by_photo).max() <= 2
    corners = by_pillow[8::47, 8::79, 0] if turn < 5 else by_pillow[8::79, 8::47, 0]
    bright = {
        1: (0, 0),
        2: (0, 1),
        3: (1, 1),
        4: (1, 0),
        5: (0, 0),
        6: (0, 1),
        7: (1, 1),
        8: (1, 0),
    }
    assert np.argwhere(corners > 128).tolist() == [list(bright[turn])]


# Thin images, endless files.


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (7, 3001)])
def test_a_thin_image_is_cut_before_it_is_resized(shape: tuple[int, int]) -> None:
    """768,000×256 pixels of one line would be half a gigabyte."""
    import tracemalloc

    pixels = np.zeros((*shape, 3), np.uint8)
    buffer = io.BytesIO()
    across = pixels if shape[0] < shape[1] else pixels.transpose(1, 0, 2)
    across[:, 1500:] = 200
    Image.fromarray(pixels).save(buffer, "PNG")
    plain = views(64)["plain"]
    plain(Photo(buffer.getvalue(), "x"), (0, 0))
    tracemalloc.start()
    view = plain(Photo(buffer.getvalue(), "x"), (0, 0))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert view.shape == (64, 64, 3) and most < 20 << 20
    middle = view if shape[0] < shape[1] else view.transpose(1, 0, 2)
    assert middle[:, 0].max() < 20 and middle[:, -1].min() > 180  # the centre is in the centre


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe, sparse = tmp_path / "pipe.png", tmp_path / "sparse.png"
    os.mkfifo(pipe)
    with sparse.open("wb") as file:
        file.truncate(decode.LARGEST_FILE + 1)
    for path, why in (
        (pipe, "it is no regular file"),
        (Path("/dev/zero"), "it is no regular file"),
        (tmp_path, "it is a folder"),
        (sparse, "it has 512 MiB and an image file has at most 512"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(ValueError, match=f"is no readable image .{why}"):
            contents(str(path))


def test_a_bomb_is_refused_by_name() -> None:
    header = struct.pack(">II5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    import zlib

    content += struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IEND\xaeB`\x82"
    for read in (lambda: rgb(content, "b.png"), lambda: Photo(content, "b.png").pixels(1)):
        with pytest.raises(ValueError, match=r"b\.png is no readable image"):
            read()
