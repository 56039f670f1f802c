"""Features in a folder: several processes, a kill, a full disk, what is not of this run."""

import errno
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_selmix.contract.subjects import make_source
from ssl_selmix.data import extraction
from ssl_selmix.data.batch import SeededView
from ssl_selmix.data.extraction import Features
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.pool import MemoryPool
from ssl_selmix.images.digests import FileImages
from tests.helpers.images import photo_tree

CPU = torch.device("cpu")
VIEWS = {"weak": 2, "strong": 1}
HOW: dict[str, Any] = {"images": "a", "body": "b", "views": VIEWS, "dtype": "float32"}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "CHUNK", 8)


def embed(images: Tensor) -> Tensor:
    """Something that a body could make of images of 8×8 pixels, N×4."""
    return images.flatten(2).mean(1)[:, :4] + images.amax((1, 2, 3))[:, None]


def begun(folder: Path, **how: Any) -> Features:
    """60 images of three classes, of which nothing is computed yet, in 8 chunks."""
    source = replace(make_source(), apart=6)
    return Features(folder, extraction.parts_of(source, CPU, VIEWS), HOW | how)


def content(folder: Path) -> dict[str, bytes]:
    """The arrays."""
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.npy"))}


def test_rows_are_what_the_body_makes_of_the_views(tmp_path: Path) -> None:
    features = begun(tmp_path)
    found = features.make(embed, at_once=3)
    pool = features.parts[0].pool
    assert isinstance(pool, MemoryPool)
    (plain,) = pool.plain(torch.arange(60), 60)
    assert torch.equal(torch.cat([found["train"], found["validation"]]), embed(plain))
    assert found["train_weak"].shape == (54, 2, 4) and found["validation_strong"].shape == (6, 1, 4)
    chunk = features.chunks[2]
    assert chunk.index.tolist() == list(range(16, 24))
    for name, view, place in (("weak", 0, 1), ("weak", 1, 2), ("strong", 0, 3)):
        seen = pool.views(chunk.index, [chunk.views[place]])[0]
        assert torch.equal(found[f"train_{name}"][16:24, view], embed(seen))
    weak = found["train_weak"]
    assert not torch.equal(weak[:, 0], weak[:, 1]) and not torch.equal(weak[:, 0], found["train"])


def test_a_folder_that_is_whole_is_opened_and_not_made_again(tmp_path: Path) -> None:
    made = begun(tmp_path).make(embed, at_once=64)
    opened = begun(tmp_path).opened()
    assert opened is not None
    assert all(torch.equal(made[name], opened[name]) for name in made) and len(made) == 6


def test_features_as_a_data_set(tmp_path: Path) -> None:
    source = replace(make_source(), apart=6)
    found = begun(tmp_path).make(embed, at_once=64)
    seen = extraction.as_data(source, found)
    pool, test = seen.pools(CPU)
    assert test is None and (len(seen.train), seen.apart, seen.image_shape) == (60, 6, (4,))
    rows = torch.tensor([55, 2])
    assert torch.equal(pool.take(rows), torch.stack([found["validation"][1], found["train"][2]]))
    strong = pool.views(rows, [SeededView("strong", 5)])[0]
    expected = [found["validation_strong"][1, 0], found["train_strong"][2, 0]]
    assert torch.equal(strong, torch.stack(expected))


def together(folder: Path, num: int, work: Callable[[Path], None]) -> list[int]:
    """Exit codes of so many processes that do the same at once."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(folder,)) for _ in range(num)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [worker.exitcode or 0 for worker in workers]


def share(folder: Path) -> None:
    """Take part, slowly, and write down how many images that were."""
    seen = []

    def slow(images: Tensor) -> Tensor:
        seen.append(len(images))
        time.sleep(0.005)
        return embed(images)

    begun(folder).make(slow, at_once=64)
    (folder / f"seen-{os.getpid()}").write_text(str(sum(seen[1:])))  # the first one tells D


def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    begun(tmp_path / "one").make(embed, at_once=64)
    assert together(tmp_path / "two", 2, share) == [0, 0]
    assert content(tmp_path / "two") == content(tmp_path / "one")
    seen = [int(file.read_text()) for file in (tmp_path / "two").glob("seen-*")]
    assert sum(seen) == 60 * 4 and min(seen) > 0


def killed(folder: Path) -> None:
    """Be killed at the third chunk."""
    chunks = []

    def until(images: Tensor) -> Tensor:
        chunks.append(images)
        if len(chunks) == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        return embed(images)

    begun(folder).make(until, at_once=64)


def test_a_killed_process_costs_the_chunk_that_it_was_at(tmp_path: Path) -> None:
    begun(tmp_path / "one").make(embed, at_once=64)
    assert together(tmp_path / "two", 1, killed) == [-signal.SIGKILL]
    assert begun(tmp_path / "two").opened() is None
    assert together(tmp_path / "two", 1, share) == [0]
    (seen,) = (int(file.read_text()) for file in (tmp_path / "two").glob("seen-*"))
    assert seen == (60 - 16) * 4
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_rows_that_a_power_failure_lost_are_computed_again(tmp_path: Path) -> None:
    begun(tmp_path / "one").make(embed, at_once=64)
    together(tmp_path / "two", 1, killed)
    with (tmp_path / "two" / "train.npy").open("r+b") as file:
        file.seek(-54 * 16, os.SEEK_END)
        file.write(bytes(40))
    begun(tmp_path / "two").make(embed, at_once=64)
    assert content(tmp_path / "two") == content(tmp_path / "one")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"images": "c"}, r"has features of other images \(a\) than this run \(c\)"),
        ({"body": "c"}, r"features of other weights \(b\)"),
        ({"views": {"weak": 1}}, r"features of other views"),
        ({"dtype": "float16"}, r"another number format \(float32\) than this run \(float16\)"),
    ],
)
def test_features_of_something_else_are_refused(
    other: dict[str, Any], message: str, tmp_path: Path
) -> None:
    begun(tmp_path).make(embed, at_once=64)
    with pytest.raises(ValueError, match=message):
        begun(tmp_path, **other).opened()


def test_a_damaged_folder_is_refused_and_a_copied_one_is_not(tmp_path: Path) -> None:
    begun(tmp_path).make(embed, at_once=64)
    file = tmp_path / "train_weak.npy"
    os.utime(file, ns=(1, 1))
    assert begun(tmp_path).opened() is not None
    about = json.loads((tmp_path / "about.json").read_text())
    assert about["stamps"]["train_weak"] == [file.stat().st_size, 1]
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    with pytest.raises(ValueError, match=r"damaged: rows 48 to 54 of train do not match"):
        begun(tmp_path).opened()
    file.write_bytes(changed[:-1])
    with pytest.raises(ValueError, match=r"train_weak\.npy is damaged or missing; delete"):
        begun(tmp_path).opened()


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_full_disk_leaves_nothing_that_passes_for_whole(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = getattr(os, call), []

    def full(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left") as refused:
            begun(tmp_path / "full").make(embed, at_once=64)
    assert str(tmp_path / "full") in str(refused.value.filename)
    if call == "posix_fallocate":
        assert "GiB" in refused.value.filename and not content(tmp_path / "full")
    assert begun(tmp_path / "full").opened() is None
    begun(tmp_path / "full").make(embed, at_once=64)
    begun(tmp_path / "one").make(embed, at_once=64)
    assert content(tmp_path / "full") == content(tmp_path / "one")


def test_numbers_too_large_for_half_precision(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no numbers in float16; set features\.dtype=float32"):
        begun(tmp_path, dtype="float16").make(lambda x: 1e5 + embed(x), at_once=64)


def test_a_body_that_gives_no_vector(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gives \(8, 8\) of an image and no vector"):
        begun(tmp_path).make(lambda x: x.mean(1), at_once=64)


def test_images_in_files(tmp_path: Path) -> None:
    photo_tree(tmp_path / "photos", {"train": 6, "test": 2}, "ab")
    files = {
        part: FileImages.below(
            tmp_path / "photos", sorted(map(str, (tmp_path / "photos" / part).rglob("*.jpg")))
        )
        for part in ("train", "test")
    }
    labels = {part: torch.arange(2).repeat_interleave(len(files[part]) // 2) for part in files}
    source = FileSet(
        *(files["train"], labels["train"].numpy(), ("a", "b"), 16),
        test=files["test"],
        test_labels=labels["test"].numpy(),
        workers=0,
    )
    features = Features(tmp_path / "f", extraction.parts_of(source, CPU, VIEWS), HOW)
    found = features.make(embed, at_once=5)
    pool, _ = source.pools(CPU)
    (plain,) = pool.plain(torch.arange(16), 16)
    rows = torch.cat([found["train"], found["test"]])
    torch.testing.assert_close(rows, embed(plain))
    chunk = features.chunks[1]
    seen = pool.views(chunk.index, chunk.views[1:])
    torch.testing.assert_close(found["train_weak"][8:, 1], embed(seen[1]))
    torch.testing.assert_close(found["train_strong"][8:, 0], embed(seen[2]))
