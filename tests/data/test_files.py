"""Images that stream from files: the same batches whoever makes them, and nothing left behind."""

import dataclasses
import gc
import itertools
import json
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_selmix.algorithm import Batch
from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.common import processes
from ssl_selmix.common.seeds import seed_of
from ssl_selmix.data import Data, Diagnostics, ImageSet, assemble
from ssl_selmix.data.batch import SeededView
from ssl_selmix.data.files import MEAN, STD, FilePool, FileSet
from ssl_selmix.data.pool import MemoryPool
from ssl_selmix.data.workers import (
    Made,
    Reader,
    Request,
    WorkerDied,
    Workers,
    _Processes,
    _Tasks,
    check_settings,
    naming_deaths,
)
from ssl_selmix.datasets import image_folder
from ssl_selmix.images import digests
from ssl_selmix.images.digests import FileImages
from ssl_selmix.splits import Counts, LongTailSplit
from tests.helpers.images import photo_tree

VIEWS = ("weak", "strong", "weak")
NUM = 20  # images of each class
# A worker is started by fork; Python 3.12 warns of that if there are other threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 20 JPEG files, about 60×48 pixels."""
    return photo_tree(tmp_path_factory.mktemp("photographs"), {"": NUM}, "012")


def source(folder: Path, workers: int = 0, memory: Path | None = None) -> FileSet:
    paths = sorted(map(str, folder.glob("*/*")))
    labels = np.array([int(Path(path).parent.name) for path in paths])
    images = FileImages.below(folder, paths)
    return FileSet(images, labels, ("a", "b", "c"), 32, workers=workers, memory=memory)


def assembled(folder: Path, workers: int = 0) -> tuple[Data, Diagnostics]:
    found = source(folder, workers)
    rule = LongTailSplit(Counts(6, rho=3), Counts(6, rho=2), validation=3, test=4)
    split = rule.draw(found.train_labels, 3, seed=0)
    data, diagnostics = assemble(found, split, seed=0, device=torch.device("cpu"))
    return data.at_stage("1-test"), diagnostics


def pool_of(data: Data) -> FilePool:
    assert isinstance(data.pool, FilePool)
    return data.pool


@pytest.fixture
def load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Data]]:
    """Data read by so many workers, which must be gone afterwards, each because it was told to."""
    killed: list[BaseProcess] = []
    terminate = BaseProcess.terminate

    def kill(process: BaseProcess) -> None:
        killed.append(process)
        terminate(process)

    monkeypatch.setattr(BaseProcess, "terminate", kill)
    # A worker that nobody tells to end looks for itself after five seconds, and torch kills it if
    # it has not ended after as many. No machine is so busy that one that was told takes a minute.
    monkeypatch.setattr(torch.utils.data._utils.worker, "MP_STATUS_CHECK_INTERVAL", 600.0)
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 60.0)
    gc.freeze()  # what was there before needs no search
    yield lambda workers: assembled(folder, workers)[0]
    gc.collect()
    gc.unfreeze()
    assert not killed and not multiprocessing.active_children()


def same(one: Batch, other: Batch) -> bool:
    pairs = [(one.x, other.x), (one.y, other.y), (one.index_u, other.index_u)]
    pairs += list(zip(one.more_x, other.more_x, strict=True))
    pairs += [(one.u[view], other.u[view]) for view in range(len(one.u))]
    return len(one.u) == len(other.u) and all(torch.equal(a, b) for a, b in pairs)


def first(data: Data, num: int, start: int = 0) -> list[Batch]:
    return list(itertools.islice(data.batches(VIEWS, 5, 2, start), num))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_bit(load: Callable[[int], Data], workers: int) -> None:
    alone, helped = first(load(0), 4), first(load(workers), 4)
    assert all(map(same, alone, helped))
    assert not same(alone[0], alone[1])


def test_workers_make_several_views_of_labeled_images(load: Callable[[int], Data]) -> None:
    views = ("weak", "strong", "weak")
    alone, helped = (
        next(load(workers).batches(VIEWS, 5, 2, 0, labeled_views=views)) for workers in (0, 2)
    )
    assert same(alone, helped) and len(alone.more_x) == 2
    assert same(dataclasses.replace(helped, more_x=()), first(load(0), 1)[0])
    assert not torch.equal(helped.x, helped.more_x[1])  # a view that is repeated is another one


def test_a_batch_is_a_function_of_its_step(load: Callable[[int], Data]) -> None:
    data = load(2)
    whole = first(data, 5)
    assert all(map(same, whole[3:], first(data, 2, start=3)))
    assert not same(whole[0], first(data.at_stage("2-other"), 1)[0])
    assert not same(whole[0], first(dataclasses.replace(data, seed=1), 1)[0])


def test_shapes_and_values_of_a_batch(load: Callable[[int], Data]) -> None:
    data = load(0)
    (batch,) = first(data, 1)
    assert batch.x.shape == (5, 3, 32, 32) and len(batch.u) == 3
    assert all(batch.u[view].shape == (10, 3, 32, 32) for view in range(3))
    assert batch.x.is_contiguous(memory_format=torch.channels_last)
    assert batch.x.dtype == torch.float32 and 0.1 < float(batch.x.abs().mean()) < 3
    pixels = batch.x * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    assert torch.allclose(pixels, pixels.round(), atol=1e-3)
    assert not torch.equal(batch.u[0], batch.u[2])  # a view that is repeated is another one
    assert data.image_shape == (3, 32, 32)
    assert data.device.type == "cpu" and data.task.num_unlabeled == len(data.unlabeled)


def test_batches_are_those_that_small_images_would_give(load: Callable[[int], Data]) -> None:
    """The same images are drawn for a step, in the same order, whatever holds them."""
    data = load(0)
    blank = torch.zeros(60, 3, 8, 8, dtype=torch.uint8)
    weak = Weak()
    pool = MemoryPool(blank, pool_of(data).normalise, weak, Strong(weak=weak))
    small = dataclasses.replace(data, pool=pool, test_pool=pool)
    for mine, other in zip(first(data, 3), small.batches(VIEWS, 5, 2, 0), strict=False):
        assert torch.equal(mine.y, other.y) and torch.equal(mine.index_u, other.index_u)


def test_rows_of_a_view(load: Callable[[int], Data]) -> None:
    (batch,) = first(load(0), 1)
    rows = torch.tensor([7, 0, 7])
    for view in range(3):
        assert torch.equal(batch.u.select(view, rows), batch.u[view][rows])


def test_asking_without_a_stream_gives_the_same(load: Callable[[int], Data]) -> None:
    data = load(0)
    draw = next(iter(data._draws(VIEWS, 5, 2, 4, False)))
    (batch,) = first(data, 1, start=4)
    seeded = data._seeded(draw, VIEWS)
    views = data.pool.views(draw.unlabeled, seeded.unlabeled)
    assert all(torch.equal(views[view], batch.u[view]) for view in range(3))
    assert torch.equal(data.pool.views(draw.labeled, seeded.labeled)[0], batch.x)
    both = data._seeded(draw, VIEWS, ("weak", "strong")).labeled
    (strong,) = next(data.batches(VIEWS, 5, 2, 4, labeled_views=("weak", "strong"))).more_x
    assert torch.equal(data.pool.views(draw.labeled, both)[1], strong)
    assert both[:1] == seeded.labeled and both[1].seed != both[0].seed
    other = SeededView("weak", seed_of(data.seed, data.stage, "other", 4))
    assert not torch.equal(data.pool.views(draw.labeled, (other,))[0], batch.x)
    with pytest.raises(ValueError, match="weak or strong, not 'plain'"):
        data.batches(("plain",), 5, 2, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_plain_images_in_order(load: Callable[[int], Data], workers: int) -> None:
    data = load(workers)
    index = torch.tensor([50, 3, 17, 3, 59, 1, 2])
    expected = pool_of(data).normalise(data.take(index))
    assert torch.equal(torch.cat(list(data.plain(index, size=3))), expected)
    assert torch.equal(torch.cat(list(data.plain(index))), expected)
    assert [len(part) for part in data.plain(index, size=3)] == [3, 3, 1]
    assert len(torch.cat(list(data.test_batches()))) == len(data.test_labels) == 12


def test_test_images_of_their_own_follow_the_training_images(folder: Path) -> None:
    whole = source(folder)
    test = FileImages.below(folder, [str(folder / "2" / "07.jpg"), str(folder / "0" / "01.jpg")])
    both = dataclasses.replace(whole, test=test, test_labels=np.array([2, 0]))
    split = LongTailSplit(Counts(5), Counts(5), validation=2).draw(whole.train_labels, 3, seed=0)
    data, _ = assemble(both, split, seed=0, device=torch.device("cpu"))
    expected = pool_of(data).normalise(data.take(torch.tensor([47, 1])))
    assert torch.equal(torch.cat(list(data.test_batches())), expected)
    assert data.test_labels.tolist() == [2, 0]
    assert both.sha256() != whole.sha256()


def test_streams_may_run_side_by_side(load: Callable[[int], Data]) -> None:
    """Validation in the middle of training, or two streams of one algorithm."""
    data, alone = load(2), first(load(0), 3)
    one, other = data.batches(VIEWS, 5, 2, 0), data.batches(VIEWS, 5, 2, 0)
    for expected in alone:
        assert same(next(one), expected) and same(next(other), expected)
        assert len(torch.cat(list(data.plain(data.validation)))) == 9


def test_a_dropped_stream_leaves_its_workers_to_the_next(load: Callable[[int], Data]) -> None:
    data, expected = load(2), first(load(0), 1, start=7)[0]
    seen = set()
    for _ in range(3):
        assert same(first(data, 1, start=7)[0], expected)
        seen |= {child.pid for child in multiprocessing.active_children()}
    assert len(seen) == 2


def test_workers_leave_the_generator_of_training_alone(load: Callable[[int], Data]) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first(load(1), 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_one_line(folder: Path, tmp_path: Path, workers: int) -> None:
    data, _ = assembled(folder, workers)
    content = (folder / "0" / "00.jpg").read_bytes()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(content[: len(content) // 2])
    reader = Reader([str(broken)] * 60, 32)
    own = dataclasses.replace(pool_of(data), workers=Workers(reader, workers, pin=False))
    data = dataclasses.replace(data, pool=own)
    with pytest.raises(ValueError, match=r"broken\.jpg is no readable image \(.*remove") as raised:
        first(data, 1)
    assert "\n" not in str(raised.value)
    del raised, own  # the former holds this frame, and that the workers


def test_a_full_shared_memory_is_one_line_and_no_endless_wait(
    folder: Path, load: Callable[[int], Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory (shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    request = Request([0], (("weak", 0),), 0)
    tasks = _Tasks(Reader([str(folder / "0" / "00.jpg")], 32), workers=3)
    found = tasks[0, (request,)]  # handed to the process that trains, which raises it
    assert isinstance(found, WorkerDied)
    assert "No space left" in str(found) and "data.workers=3; lower it" in str(found)


def test_a_mistake_in_a_worker_is_not_taken_for_its_death() -> None:
    mistake = RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nshapes differ")
    with pytest.raises(RuntimeError) as raised, naming_deaths(1):
        raise mistake
    assert raised.value is mistake
    with pytest.raises(WorkerDied), naming_deaths(1):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="does not tell who sent a signal")
def test_workers_obey_their_parent_only(load: Callable[[int], Data]) -> None:
    """A cluster signals every process, and the one that trains needs its workers to end well."""
    data = load(1)
    batches = data.batches(VIEWS, 5, 2, 0)
    next(batches)
    (worker,) = multiprocessing.active_children()
    for name in ("TERM", "HUP", "INT"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    expected = first(load(0), 8)
    assert all(map(same, itertools.islice(batches, 7), expected[1:]))
    assert worker.is_alive()


@pytest.mark.slow
def test_a_worker_that_is_killed_while_the_model_trains_is_one_line(folder: Path) -> None:
    """torch raises in whatever line training has reached, far from what reads images.

    In a process of its own, for the killed child would trouble the tests that follow.
    """
    script = f"""if True:
        import multiprocessing, os, signal, time
        from pathlib import Path
        from tests.data.test_files import VIEWS, assembled
        batches = assembled(Path({str(folder)!r}), 1)[0].batches(VIEWS, 5, 2, 0)
        next(batches)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        try:
            time.sleep(30)
        except Exception as error:
            print(type(error).__name__, error)
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert re.fullmatch(r"WorkerDied .*killed by signal.*data\.workers=1; lower it\n", done.stdout)


def test_names_need_not_be_utf8(folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "0" / os.fsdecode(b"\xff.jpg")
    odd.parent.mkdir()
    odd.write_bytes((folder / "0" / "00.jpg").read_bytes())
    images = FileImages.below(tmp_path, [str(odd)] * 20)
    found = FileSet(images, np.arange(20) % 2, ("a", "b"), 32, workers=0)
    assert len(found.sha256()) == 64


def test_a_damaged_file_does_not_cost_the_digests_of_others(folder: Path, tmp_path: Path) -> None:
    good = folder / "0" / "00.jpg"
    broken = tmp_path / "1.jpg"
    broken.write_bytes(b"no image")
    (tmp_path / "0.jpg").write_bytes(good.read_bytes())
    images = FileImages.below(tmp_path, [str(tmp_path / "0.jpg"), str(broken)])
    with pytest.raises(ValueError, match=r"1\.jpg is no readable image"):
        digests.hashes(images, tmp_path / "memory")
    (record,) = (tmp_path / "memory").iterdir()
    assert list(json.loads(record.read_text())) == ["0.jpg"]


def test_a_worker_that_dies_is_one_line(
    load: Callable[[int], Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In torch's words; killing one here would raise them at any later moment of the tests."""

    def died(self: object, jobs: object) -> Iterator[Made]:
        yield []
        raise RuntimeError(f"{words} (pid 5) is killed by signal: Bus error.\nmore")

    monkeypatch.setattr(_Processes, "run", died)
    for words, kind in (("DataLoader worker", WorkerDied), ("something else", RuntimeError)):
        with pytest.raises(kind, match=rf"{words} \(pid 5\)") as raised:
            list(pool_of(load(1)).workers.run(iter(())))
        assert (kind is WorkerDied) == ("lower it" in str(raised.value))
        assert (kind is WorkerDied) != ("\n" in str(raised.value))


def test_the_reader_can_be_sent_to_another_process(folder: Path) -> None:
    """Where processes are spawned and not forked, it is."""
    reader = Reader(source(folder).train.paths, 32)
    job = (Request([3, 4], (("weak", 5),), 0),)
    ((there,),) = pickle.loads(pickle.dumps(reader)).make(pickle.loads(pickle.dumps(job)))
    ((here,),) = reader.make(job)
    assert torch.equal(here, there)


# Digests of the files.


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder that a test may change."""
    for path in folder.glob("*/*"):
        copy = tmp_path / "own" / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path / "own"


def test_the_digest_is_of_names_and_bytes_and_not_of_the_place(folder: Path, own: Path) -> None:
    assert source(own).sha256() == source(folder).sha256()
    before = source(own).sha256()
    (own / "1" / "05.jpg").rename(own / "1" / "05b.jpg")
    renamed = source(own).sha256()
    (own / "1" / "05b.jpg").write_bytes((own / "2" / "05.jpg").read_bytes())
    assert len({before, renamed, source(own).sha256()}) == 3


def test_files_are_read_once(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = tmp_path / "memory"
    read: list[str] = []
    original = digests._digest

    def digest_of(path: str, strict: bool) -> str:
        read.append(path)
        return original(path, strict)

    monkeypatch.setattr(digests, "_digest", digest_of)
    digest = source(own, memory=memory).sha256()
    assert len(read) == 60
    assert source(own, memory=memory).sha256() == digest
    assert len(read) == 60
    changed, stamp = own / "0" / "03.jpg", (own / "0" / "03.jpg").stat()
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1  # of the same size,
    time.sleep(0.02)
    changed.write_bytes(content)
    os.utime(changed, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # and dated back
    assert source(own, memory=memory).sha256() != digest
    assert read[60:] == [str(changed)]


@pytest.mark.parametrize("content", ["", "[]", '{"0/00.jpg": 3}', '{"0/00.jpg": [1, 2]}'])
def test_a_damaged_memory_is_replaced(own: Path, tmp_path: Path, content: str) -> None:
    memory = tmp_path / "memory"
    digest = source(own, memory=memory).sha256()
    (record,) = memory.iterdir()
    record.write_text(content)
    assert source(own, memory=memory).sha256() == digest
    assert len(json.loads(record.read_text())) == 60


def test_no_place_to_remember_costs_no_run(own: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert source(own, memory=tmp_path / "file").sha256() == source(own).sha256()


def test_damaged_and_missing_files_are_found_before_training(own: Path) -> None:
    whole = (own / "0" / "03.jpg").read_bytes()
    (own / "0" / "03.jpg").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"0/03\.jpg is no readable image"):
        source(own).sha256()
    images = source(own)
    (own / "0" / "03.jpg").unlink()
    with pytest.raises(ValueError, match=r"0/03\.jpg is no readable image \(No such file"):
        images.sha256()


def test_settings_without_meaning() -> None:
    with pytest.raises(ValueError, match="size must be at least 1 pixel, not 0"):
        check_settings(0, None)
    with pytest.raises(ValueError, match="workers must be at least 0, not -1"):
        check_settings(None, -1)


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (3, 3), (64, processes.MOST_WORKERS)])
def test_workers_are_one_for_each_core_up_to_a_number(
    cores: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    assert processes.default_workers() == workers


def test_image_folder_streams_above_64_pixels(folder: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part).symlink_to(folder)
    found = image_folder.load(
        image_folder.Config(root=str(tmp_path), size=65, workers=1, cache="none")
    )
    assert isinstance(found, FileSet) and found.workers == 1
    assert len(found.train) == 60 and found.image_shape == (3, 65, 65)
    assert found.test is not None and found.test.names[0] == "test/0/00.jpg"
    small = image_folder.load(image_folder.Config(root=str(tmp_path), size=64, cache="none"))
    assert isinstance(small, ImageSet) and small.train.device.type == "cpu"
