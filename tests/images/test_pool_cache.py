"""The cache of decoded images: the same images or none, whatever happens to its file."""

import json
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from ssl_selmix import cli
from ssl_selmix.data import ImageSet
from ssl_selmix.data.pool import MemoryPool
from ssl_selmix.datasets import image_folder
from ssl_selmix.images import cache as cache_module
from ssl_selmix.images import folder as folder_module
from ssl_selmix.images.cache import HEADER, STALE, PoolCache, digest_of, folder_of, key_of
from ssl_selmix.images.decode import DECODING
from ssl_selmix.images.folder import decode_all
from ssl_selmix.splits import Counts
from tests.helpers.images import noise, noise_tree, write


@pytest.fixture(autouse=True)
def every_pool_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "LEAST", 0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with four images to train on and two to test on; one of them is grey."""
    root = noise_tree(tmp_path / "images", {"train": 4, "test": 2})
    write(root / "test" / "dog" / "1.png", noise(8, 8))
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(root: Path, cache: Path | str, size: int | None = None) -> ImageSet:
    config = image_folder.Config(root=str(root), cache=str(cache), size=size)
    found = image_folder.load(config)
    assert isinstance(found, ImageSet)
    return found


def same(one: ImageSet, two: ImageSet) -> bool:
    assert one.test is not None and two.test is not None
    return (
        torch.equal(one.train, two.train)
        and torch.equal(one.test, two.test)
        and one.train_labels.tolist() == two.train_labels.tolist()
        and (one.mean, one.std, one.class_names) == (two.mean, two.std, two.class_names)
    )


def pools(cache: Path) -> list[Path]:
    return sorted(cache.glob("images-*.pool"))


def forbid_decoding(patch: pytest.MonkeyPatch) -> None:
    def decode(file: str, size: int | None) -> None:
        raise AssertionError(f"{file} was decoded")

    patch.setattr(folder_module, "decode", decode)


def test_the_second_start_decodes_nothing(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = load(root, "none")
    first = load(root, cache)
    said = capsys.readouterr().out
    assert f"cached 8 images of {root}/train in {cache}/images-" in said
    forbid_decoding(monkeypatch)
    second = load(root, cache)
    assert same(plain, first) and same(first, second)
    # What was corrected is told again: the run does not know who read it the last time.
    said = capsys.readouterr().out
    assert "cached" not in said
    assert f"1 greyscale image made RGB (first: {root}/test/dog/1.png)" in said


def test_a_run_cannot_change_the_cache(root: Path, cache: Path) -> None:
    load(root, cache)
    before = [path.read_bytes() for path in pools(cache)]
    found = load(root, cache)
    found.train.zero_()
    assert [path.read_bytes() for path in pools(cache)] == before
    assert load(root, cache).train.any()


def test_changed_bytes_of_the_same_size_and_time_are_noticed(root: Path, cache: Path) -> None:
    path = root / "train" / "dog" / "2.png"
    Image.fromarray(noise(8, 8, 3, seed=7)).save(path, compress_level=0)
    status = path.stat()
    load(root, cache)
    Image.fromarray(noise(8, 8, 3, seed=8)).save(path, compress_level=0)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size and path.stat().st_mtime == status.st_mtime
    found = load(root, cache)
    assert torch.equal(found.train[6].permute(1, 2, 0), torch.from_numpy(noise(8, 8, 3, seed=8)))
    assert len(pools(cache)) == 3  # the test images are still the same


def test_moved_and_renamed_images_are_found_again(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = load(root, cache)
    moved = root.with_name("elsewhere")
    root.rename(moved)
    (moved / "test" / "dog" / "1.png").rename(moved / "test" / "dog" / "2.png")
    forbid_decoding(monkeypatch)
    capsys.readouterr()
    assert same(first, load(moved, cache))
    assert f"(first: {moved}/test/dog/2.png)" in capsys.readouterr().out


def test_labels_are_those_of_the_folders_not_of_the_cache(root: Path, cache: Path) -> None:
    load(root, cache)
    (root / "train" / "cat" / "3.png").rename(root / "train" / "dog" / "!.png")
    found = load(root, cache)
    assert found.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert len(pools(cache)) == 2  # the same images in the same order


def test_size_and_decoder_have_pools_of_their_own(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(root, cache)
    assert load(root, cache, size=7).train.shape == (8, 3, 7, 7)
    assert len(pools(cache)) == 4
    monkeypatch.setattr(folder_module, "DECODING", DECODING + 1)
    load(root, cache)
    assert len(pools(cache)) == 6
    monkeypatch.setattr("PIL.__version__", "0.1")
    load(root, cache)
    assert len(pools(cache)) == 8


def test_files_that_change_while_they_are_decoded(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool is named by the bytes that were decoded, not by those that were looked up."""
    original = decode_all
    path = root / "train" / "cat" / "0.png"

    def slow(files: list[str], size: int | None, *more: object) -> object:
        Image.fromarray(noise(8, 8, 3, seed=55)).save(path)
        return original(files, size, *more)  # type: ignore[arg-type]

    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "decode_all", slow)
        changed = load(root, cache)
    path.write_bytes(whole)
    assert not torch.equal(load(root, cache).train[0], changed.train[0])


def damage(content: bytes, kind: str) -> bytes:
    header = json.loads(content[:HEADER])
    if kind == "notes":
        header["about"]["notes"] = {"greyscale": [5, 0]}
    if kind == "format":
        header["about"]["format"] = "ssl_selmix pool 0"
    if kind == "shape":
        header["about"]["shape"] = [2, 2]
    if kind in ("notes", "format", "shape"):
        return json.dumps(header).encode().ljust(HEADER) + content[HEADER:]
    return {
        "empty": b"",
        "header only": content[:HEADER],
        "header": b"\xff" + content[1:],
        "list": b"[]".ljust(HEADER) + content[HEADER:],
        "cut": content[:-1],
        "longer": content + b"\0",
        "flipped": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        *("empty", "header only", "header", "list", "cut", "longer", "flipped"),
        *("notes", "format", "shape"),
    ],
)
def test_a_damaged_pool_is_told_and_made_anew(
    root: Path, cache: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = load(root, cache)
    before = {path: path.read_bytes() for path in pools(cache)}
    for path, content in before.items():
        path.write_bytes(damage(content, kind))
    capsys.readouterr()
    assert same(first, load(root, cache))
    said = capsys.readouterr().out
    for path, content in before.items():
        assert f"warning: {path} is no usable cache of images (" in said
        assert path.read_bytes() == content


def test_a_cache_that_cannot_be_written_is_told_once(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    found = load(root, tmp_path / "file")
    said = capsys.readouterr().out
    assert same(found, load(root, "none"))
    assert said.count("images cannot be cached") == 1
    assert f"cannot be cached in {tmp_path}/file (" in said and "data.cache" in said


def test_a_full_disk_leaves_nothing(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "_header", full)
    load(root, cache)
    assert capsys.readouterr().out.count("(No space left on device)") == 1
    assert list(cache.iterdir()) == []


def test_two_that_need_the_same_images_decode_them_once(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(root, "none")
    decoded: list[int] = []
    looked: set[int] = set()
    both = threading.Barrier(2)
    get = PoolCache.get

    def missed_by_both(self: PoolCache, key: str) -> object:
        found = get(self, key)
        if threading.get_ident() not in looked:  # the first time of each, before it has the lock
            looked.add(threading.get_ident())
            both.wait(60)
        return found

    def counted(*args: object) -> object:
        decoded.append(1)
        return decode_all(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(folder_module, "decode_all", counted)
    monkeypatch.setattr(PoolCache, "get", missed_by_both)
    found: list[ImageSet] = []
    threads = [threading.Thread(target=lambda: found.append(load(root, cache))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 2  # the images to train on, and those to test on
    assert all(same(one, expected) for one in found) and len(found) == 2
    assert sorted(cache.iterdir()) == pools(cache)


def test_concurrent_writers_leave_whole_pools(root: Path, cache: Path) -> None:
    expected = load(root, "none")
    found: list[ImageSet] = []

    def start() -> None:
        for _ in range(5):
            found.append(load(root, cache))
            for path in pools(cache):
                path.unlink(missing_ok=True)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20 and all(same(expected, one) for one in found)
    assert not list(cache.glob(".*"))


def store(cache: Path, key: str, age: float) -> Path:
    pool = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)
    path = PoolCache(cache).put(key, pool, {})
    assert path is not None
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_above_the_limit_the_pools_used_longest_ago_go(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, used = store(cache, "a", 300), store(cache, "b", 400)
    (cache / "images.txt").write_text("of the user")
    assert PoolCache(cache).get("b") is not None  # that is use
    monkeypatch.setattr(cache_module, "LIMIT", 2 * used.stat().st_size)
    new = store(cache, "c", 0)
    assert not old.exists() and used.exists() and new.exists()
    monkeypatch.setattr(cache_module, "LIMIT", 1)
    last = store(cache, "d", 0)
    assert pools(cache) == [last] and (cache / "images.txt").exists()


def test_half_files_of_dead_writers_go(cache: Path) -> None:
    store(cache, "a", 0)
    dead, alive = cache / ".images-x.pool.1-2.partial", cache / ".images-y.pool.1-2.partial"
    for path, age in ((dead, 2 * STALE), (alive, 60)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    store(cache, "b", 0)
    assert not dead.exists() and alive.exists()


def test_a_small_folder_is_not_cached(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "LEAST", 1 << 20)
    load(root, cache)
    assert not cache.exists()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_SELMIX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/x")
    assert folder_of("auto") == Path("/home/x/.cache/ssl_selmix")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert folder_of("auto") == Path("/home/x/.cache/ssl_selmix")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert folder_of("auto") == Path("/xdg/ssl_selmix")
    monkeypatch.setenv("SSL_SELMIX_CACHE", "~/mine")
    assert folder_of("auto") == Path("/home/x/mine")
    assert folder_of("/else") == Path("/else")
    assert folder_of("none") is None
    monkeypatch.setenv("SSL_SELMIX_CACHE", "none")
    assert folder_of("auto") is None
    with pytest.raises(ValueError, match="auto, none or a folder, not empty"):
        image_folder.Config(cache="")


def test_the_digest_tells_where_a_file_ends() -> None:
    one, two = ([digest_of(part) for part in parts] for parts in ((b"ab", b"c"), (b"a", b"bc")))
    assert key_of(one, {}) != key_of(two, {})
    assert key_of(one, {"size": 8}) != key_of(one, {"size": None})


def test_a_file_that_cannot_be_read_is_named_before_decoding(root: Path, cache: Path) -> None:
    (root / "train" / "cat" / "9.png").symlink_to("gone.png")
    with pytest.raises(ValueError, match=r"cat/9\.png is no readable image \(No such file"):
        load(root, cache)


def test_a_run_from_the_cache_is_the_same_run(
    root: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--algo", "supervised", "--dataset", "image_folder", f"data.root={root}"]
    words += ["data.labeled.largest=1", "data.labeled.rho=1", "data.unlabeled.largest=2"]
    words += ["data.unlabeled.rho=1", "data.validation=1", "supervised.steps=2"]
    words += ["model.name=cnn-4", "supervised.batch=2", f"data.cache={cache}"]
    results = []
    for name in ("one", "two"):
        assert cli.main([*words, "--out", str(tmp_path / name)]) == 0
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        del manifest["run_id"]  # every run has its own
        results.append((manifest, (tmp_path / name / "1-supervised" / "best.pt").read_bytes()))
        forbid_decoding(monkeypatch)
    assert results[0] == results[1]
    monkeypatch.undo()  # the cache decides no result, so another one is no other run
    again = ["--resume", "data.cache=none", "--out", str(tmp_path / "two")]
    assert cli.main([*words, *again]) == 0


@pytest.mark.parametrize("where", ["none", "cache"])
@pytest.mark.parametrize("again", [False, True])
def test_labeled_and_unlabeled_images_lie_in_one_row_and_are_not_copied(
    root: Path, tmp_path: Path, where: str, again: bool
) -> None:
    """A pool of a million images is gigabytes, and was held twice while it was put together."""
    for i in range(3):
        write(root / "unlabeled" / f"{i}.png", noise(8, 8, 3, seed=70 + i))
    settings = {"root": str(root), "cache": "none" if where == "none" else str(tmp_path / "cache")}
    unlabeled = Counts(0, shape="unknown")
    config = image_folder.Config(**settings, unlabeled=unlabeled)  # type: ignore[arg-type]
    for _ in range(1 + again):
        found = image_folder.load(config)
    assert isinstance(found, ImageSet) and found.extra_unlabeled is not None
    pool, _ = found.pools(torch.device("cpu"))
    assert isinstance(pool, MemoryPool)
    assert pool.images.data_ptr() == found.train.data_ptr()
    assert torch.equal(pool.images, torch.cat([found.train, found.extra_unlabeled]))
    assert torch.equal(pool.images[-1], torch.from_numpy(noise(8, 8, 3, seed=72)).permute(2, 0, 1))


def test_a_pool_of_another_shape_is_told_as_ever(root: Path) -> None:
    write(root / "unlabeled" / "0.png", noise(9, 9, 3))
    config = image_folder.Config(root=str(root), unlabeled=Counts(0, shape="unknown"))
    with pytest.raises(
        ValueError, match=r"train images are \(8, 8\) and unlabeled images \(9, 9\)"
    ):
        image_folder.load(config)


def test_validation_images_of_a_folder_lie_in_the_same_row(root: Path) -> None:
    for part, count in (("validation", 2), ("unlabeled", 1)):
        noise_tree(root, {part: count})
    config = image_folder.Config(
        root=str(root), cache="none", validation="folder", unlabeled=Counts(0, shape="unknown")
    )
    found = image_folder.load(config)
    assert isinstance(found, ImageSet) and found.apart == 4 and len(found.train) == 12
    pool, _ = found.pools(torch.device("cpu"))
    assert isinstance(pool, MemoryPool) and pool.images.data_ptr() == found.train.data_ptr()
    assert len(pool.images) == 14 and found.train_labels.tolist() == [0] * 4 + [1] * 4 + [
        0,
        0,
        1,
        1,
    ]
