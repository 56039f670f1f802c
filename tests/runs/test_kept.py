"""Data sets that are kept for forked runs: what is found is what would be read, or nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_selmix.datasets import cifar10, features
from ssl_selmix.runs import kept
from ssl_selmix.runs.inputs import load_data
from ssl_selmix.runs.plan import Plan, Request
from ssl_selmix.training import machine


@pytest.fixture(autouse=True)
def _nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kept, "_kept", {})
    monkeypatch.setattr(kept, "_refused", set())


def write(name: str, rows: int = 40, seed: int = 0) -> None:
    found = np.random.default_rng(seed).standard_normal((rows, 3)).astype(np.float32)
    np.savez(name, train=found, train_y=np.arange(rows) % 2)


def plan(*settings: str, dataset: str = "features", root: str = "a.npz") -> Plan:
    place = [f"data.root={root}"] if dataset == "features" else []
    default = {
        **{"data.labeled.largest": 5, "data.labeled.rho": 2, "data.validation": 3, "data.test": 3},
        **{"data.unlabeled.largest": 5, "data.unlabeled.rho": 2},
    }
    sizes = [f"{key}={value}" for key, value in default.items()]
    words = [*(s for s in sizes if s.split("=")[0] not in " ".join(settings)), *place, *settings]
    return Plan(Request(["supervised"], dataset, "none", settings=words))


def keep(wanted: Plan) -> None:
    kept.keep(wanted.request.dataset, wanted.plain["data"])


def is_kept(wanted: Plan) -> bool:
    return kept.load(wanted).source is kept.load(wanted).source


def test_a_kept_data_set_is_that_which_is_read() -> None:
    write("a.npz")
    wanted = plan()
    read = load_data(wanted)
    assert not is_kept(wanted)
    keep(wanted)
    assert is_kept(wanted) and len(kept._kept) == 1
    found = load_data(wanted)
    assert found.sha256 == read.sha256 and found.images_sha256 == read.images_sha256
    index = torch.arange(40)
    assert torch.equal(found.data.pool.take(index), read.data.pool.take(index))
    digits = plan(dataset="digits")
    keep(digits)
    assert is_kept(digits) and kept.load(digits).sha256 == load_data(digits).images_sha256


def test_splits_share_it_and_what_is_loaded_otherwise_does_not() -> None:
    write("a.npz")
    keep(plan())
    for same in ("data.labeled.rho=3", "data.unlabeled.shape=inverted", "seed=4"):
        assert is_kept(plan(same))
    for other in ("data.test=4", "data.validation=4"):
        assert not is_kept(plan(other))


@pytest.mark.parametrize("how", ["other numbers", "other time", "gone to another folder"])
def test_files_that_changed_are_read_anew(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a.npz")
    keep(plan())
    before = kept.load(plan()).sha256
    if how == "other numbers":
        write("a.npz", seed=1)
    elif how == "other time":
        os.utime("a.npz", (1, 1))
    else:
        (tmp_path / "b").mkdir()
        monkeypatch.chdir(tmp_path / "b")
        write("a.npz", seed=1)
    assert not is_kept(plan())
    assert (kept.load(plan()).sha256 == before) == (how == "other time")
    keep(plan())
    assert is_kept(plan())


def test_what_cannot_be_read_is_not_kept() -> None:
    Path("a.npz").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"a\.npz"):
        keep(plan())
    assert not kept._kept


def test_code_of_a_user_is_not_executed_ahead() -> None:
    Path("mine.py").write_text("from ssl_selmix.datasets.digits import *\nPath('ran').touch()\n")
    kept.keep("./mine.py", {})
    assert not Path("ran").exists() and not kept._kept
    wanted = plan(dataset="./mine.py")
    keep(plan(dataset="digits"))
    assert not is_kept(wanted)


def test_there_is_room_for_some_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rows in (("a.npz", 40), ("b.npz", 40), ("c.npz", 40), ("large.npz", 400)):
        write(name, rows)
    size = kept.size_of(kept.load(plan()).source)
    assert size == 40 * 3 * 4 + 40 * 8
    monkeypatch.setattr(machine, "memory", lambda device: 2.5 * size / kept.SHARE)
    for name in ("a.npz", "b.npz", "a.npz", "c.npz", "large.npz"):
        keep(plan(root=name))
    found = {name: is_kept(plan(root=name)) for name in ("a.npz", "b.npz", "c.npz", "large.npz")}
    assert found == {"a.npz": True, "b.npz": False, "c.npz": True, "large.npz": False}
    monkeypatch.setattr(machine, "memory", lambda device: None)  # unknown: as if there were none
    write("d.npz")
    keep(plan(root="d.npz"))
    assert not is_kept(plan(root="d.npz"))


def test_nothing_is_computed_in_threads_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.npz")
    threads: list[int] = []
    load = features.load

    def watched(config: Any) -> Any:
        threads.append(torch.get_num_threads())
        return load(config)

    monkeypatch.setattr(features, "load", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        keep(plan())
        assert threads == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_files_are_looked_for_in_folders_up_to_a_number(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    (folder / "below").mkdir(parents=True)
    for name in ("b", "a", "below/c"):
        (folder / name).write_text(name)
    files = cifar10.files(cifar10.Config(root=str(tmp_path)))
    found = kept._look(files)
    assert found is not None and [Path(path).name for path, *_ in found] == ["a", "b", "c"]
    assert kept._look(files * kept.MOST_FILES) is None
    assert kept._look([tmp_path / "nothing"]) == []
