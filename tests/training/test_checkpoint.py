"""Checkpoints: whole or absent, and refused by name when they are not what they should be."""

import copy
import errno
import os
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_selmix.training import checkpoint
from ssl_selmix.training.checkpoint import Refused


def example(step: int = 3) -> dict[str, Any]:
    return {
        "fingerprint": "mine",
        "step": step,
        "value": -float("inf"),
        "flag": True,
        "nothing": None,
        "nested": {"weights": OrderedDict(a=torch.arange(6.0).view(2, 3), b=torch.tensor(1))},
        "optimizer": {"state": {0: {"momentum": torch.ones(2)}}, "groups": [{"params": [0, 1]}]},
        "types": [
            torch.zeros(3, dtype=torch.bfloat16),
            torch.tensor([True, False]),
            torch.empty(0, dtype=torch.float64),
            torch.tensor([[1, 2], [3, 4]]).T,
            (1, 2.5, "text"),
        ],
    }


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return type(first) is type(second) and all(map(equal, first, second))
    return bool(first == second)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "last.pt", example())
    return tmp_path / "last.pt"


def test_round_trip(path: Path) -> None:
    assert equal(checkpoint.load(path), example())
    assert equal(checkpoint.load(path, "mine"), example())
    assert files(path.parent) == ["last.pt"]


def test_loads_with_weights_only(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    assert content["sha256"] == checkpoint.digest(example())


def test_saving_leaves_the_state_alone(tmp_path: Path) -> None:
    state = example()
    before = copy.deepcopy(state)
    checkpoint.save(tmp_path / "last.pt", state)
    assert equal(state, before)


def test_digest_depends_on_everything() -> None:
    variants: list[Any] = [
        {"a": torch.zeros(2)},
        {"b": torch.zeros(2)},
        {"a": torch.zeros(2, 1)},
        {"a": torch.zeros(2, dtype=torch.float64)},
        {"a": torch.tensor([0.0, -0.0])},
        {"a": [0.0, 0.0]},
        {"a": "0"},
        {"a": 0},
        {"a": 0.0},
        {"a": None},
        {"a": [[0], [0]]},
        {"a": [[0, 0], []]},
    ]
    assert len({checkpoint.digest(value) for value in variants}) == len(variants)
    assert checkpoint.digest(example()) == checkpoint.digest(example())


def test_digest_does_not_depend_on_the_layout_in_memory() -> None:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert checkpoint.digest(x) == checkpoint.digest(
        x.contiguous(memory_format=torch.channels_last)
    )


# Damage.


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"no zip at all", b"\x80\x02}q\x00.", b"\x00" * 1000],
    ids=["empty", "stub", "text", "pickle", "zeros"],
)
def test_files_that_are_no_checkpoint(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(Refused, match=r"last\.pt is damaged or no checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "content",
    [{"model": 1}, [1, 2], 3, {"state": 1, "sha256": "x"}, {"state": {}, "sha256": None}],
)
def test_checkpoints_of_other_programs(path: Path, content: Any) -> None:
    torch.save(content, path)
    with pytest.raises(Refused, match=r"last\.pt"):
        checkpoint.load(path)


def test_zip_of_something_else(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "hello")
    with pytest.raises(Refused, match=r"last\.pt"):
        checkpoint.load(path)


class Payload:
    """What a pickle of arbitrary code would hold."""


def test_pickled_code_is_not_run(path: Path) -> None:
    torch.save({"state": Payload(), "sha256": ""}, path)
    with pytest.raises(Refused, match=r"last\.pt"):
        checkpoint.load(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(Refused, match=str(path)):
            checkpoint.load(path)


def test_flipped_bits_are_never_loaded(tmp_path: Path) -> None:
    state = {"fingerprint": "mine", "w": torch.arange(4.0), "step": 3}
    path = tmp_path / "last.pt"
    checkpoint.save(path, state)
    whole = path.read_bytes()
    weights = whole.index(state["w"].numpy().tobytes())  # type: ignore[attr-defined]
    places = {*range(0, len(whole), 7), *range(weights, weights + 16)}
    refused = set()
    for place in sorted(places):
        damaged = bytearray(whole)
        damaged[place] ^= 8
        path.write_bytes(damaged)
        try:  # bits between the members of the zip mean nothing, so some files are still whole
            assert equal(checkpoint.load(path, "mine"), state)
        except Refused as error:
            assert "last.pt" in str(error)
            refused.add(place)
    assert refused.issuperset(range(weights, weights + 16))


def test_truncated_files_are_never_loaded(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(0, len(whole), 101):
        path.write_bytes(whole[:length])
        with pytest.raises(Refused, match=r"last\.pt is damaged"):
            checkpoint.load(path)


def test_one_changed_weight_does_not_match_the_digest(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["state"]["nested"]["weights"]["a"][0, 0] = 9
    torch.save(content, path)
    with pytest.raises(Refused, match=r"last\.pt is damaged: .*SHA-256"):
        checkpoint.load(path)


@pytest.mark.parametrize("fingerprint", ["other", ""])
def test_foreign_fingerprint(path: Path, fingerprint: str) -> None:
    with pytest.raises(Refused, match=r"last\.pt belongs to another run"):
        checkpoint.load(path, fingerprint)


def test_missing_fingerprint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "x.pt", {"step": 1})
    with pytest.raises(Refused, match="another run"):
        checkpoint.load(tmp_path / "x.pt", "mine")


# The newest usable one.


def test_the_file_before_becomes_previous(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path / "last.pt", example(step), keep_previous=True)
    assert files(tmp_path) == ["last.pt", "previous.pt"]
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 3
    assert checkpoint.load(tmp_path / "previous.pt")["step"] == 2
    state, refused, _ = checkpoint.newest(tmp_path, "mine")
    assert state is not None and state["step"] == 3 and refused == []


def test_previous_is_used_when_the_last_is_damaged_or_gone(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path / "last.pt", example(step), keep_previous=True)
    (tmp_path / "last.pt").write_bytes(b"PK")
    state, refused, _ = checkpoint.newest(tmp_path, "mine")
    assert state is not None and state["step"] == 1
    assert len(refused) == 1 and str(tmp_path / "last.pt") in refused[0]
    (tmp_path / "last.pt").unlink()  # killed between the two renames of `save`
    state, refused, _ = checkpoint.newest(tmp_path, "mine")
    assert state is not None and state["step"] == 1 and refused == []


def test_nothing_usable(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path, "mine") == (None, [], "")
    assert checkpoint.newest(tmp_path / "missing", "mine") == (None, [], "")
    for step in (1, 2):
        checkpoint.save(tmp_path / "last.pt", example(step), keep_previous=True)
    state, refused, _ = checkpoint.newest(tmp_path, "other")
    assert state is None and len(refused) == 2
    assert "last.pt" in refused[0] and "previous.pt" in refused[1]


# A full disk.


@pytest.mark.parametrize("keep_previous", [False, True])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_write_leaves_the_old_files_and_no_partial_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, keep_previous: bool
) -> None:
    path = tmp_path / "last.pt"
    for step in (1, 2):
        checkpoint.save(path, example(step), keep_previous=True)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, example(3), keep_previous=keep_previous)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_real_write_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"old")
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from ssl_selmix.common.atomic import write_atomically\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_atomically(Path(sys.argv[1]), bytes(100_000))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1 and "File too large" in done.stderr
    assert path.read_bytes() == b"old" and files(tmp_path) == ["config.yaml"]


def test_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        checkpoint.save(tmp_path / "missing" / "last.pt", example())


def test_new_file_replaces_an_old_partial_one(tmp_path: Path) -> None:
    (tmp_path / ".last.pt.partial").write_bytes(b"left by a killed run")
    checkpoint.save(tmp_path / "last.pt", example())
    assert files(tmp_path) == ["last.pt"]
