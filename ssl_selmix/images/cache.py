"""Decoded images between runs: one memory-mapped file per pool, named by what was decoded.

A name is a digest of the bytes of all image files and of how they are decoded. So a changed image
never meets an old pool, and a folder that was moved or copied meets its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_selmix.common.console import warn
from ssl_selmix.common.locks import in_turn
from ssl_selmix.images.decode import contents

FORMAT = "ssl_selmix pool 1"
HEADER = 4096  # bytes, a page: the pixels after it can be mapped
LEAST = 4 << 20  # bytes of image files; fewer are decoded in well under a second
LIMIT = 8 << 30  # bytes of a folder; above it, pools that were not used for longest go
STALE = 24 * 3600  # seconds after which a half-written file has lost its writer

# What people type to switch something off or on, and nobody names a folder.
SWITCHES = ("off", "no", "false", "0", "null", "none", "disabled", "on", "yes", "true", "1", "auto")

Notes = dict[str, tuple[int, int]]  # kind of correction -> how many images, index of the first


def folder_of(setting: str) -> Path | None:
    """The folder that a setting of auto, none or a path means; None is no cache.

    Raises:
        ValueError: the setting is empty, or a word that means on or off.
    """
    if not setting:
        raise ValueError("cache must be auto, none or a folder, not empty")
    if setting not in ("auto", "none") and setting.lower() in SWITCHES:
        raise ValueError(
            f"cache must be auto, none or a folder, not {setting!r}; write cache=none for no "
            f"cache, or cache=./{setting} for a folder of that name"
        )
    if setting == "auto":
        base = os.environ.get("XDG_CACHE_HOME", "")
        # The XDG specification: a relative path is to be ignored.
        home = base if os.path.isabs(base) else "~/.cache"
        setting = os.environ.get("SSL_SELMIX_CACHE") or f"{home}/ssl_selmix"
    return None if setting == "none" else Path(os.path.expanduser(setting))


def digest_of(content: bytes) -> bytes:
    """What identifies the bytes of one file."""
    return hashlib.blake2b(content, digest_size=16).digest()


def digests_of(files: Sequence[str]) -> tuple[list[bytes], int]:
    """The digest of every file, and how many bytes they have together.

    One thread: small files are read for less time than threads wait for each other's lock.
    """
    found, volume = [], 0
    for file in files:
        content = contents(file)
        volume += len(content)
        found.append(digest_of(content))
    return found, volume


def key_of(parts: Iterable[bytes], how: Mapping[str, Any]) -> str:
    """The name of a pool: digests of its files in order, and how they are decoded."""
    whole = hashlib.blake2b(json.dumps(how, sort_keys=True).encode(), digest_size=20)
    whole.update(b"\0" + b"".join(parts))  # a fixed size each, so that none passes as two
    return whole.hexdigest()


class PoolCache:
    """Pools in a folder; what cannot be read or written costs a warning and no run."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, key: str) -> tuple[Tensor, Notes] | None:
        """The pool of this name, N×C×H×W uint8, mapped copy-on-write, if there is a whole one."""
        if self.folder is None:
            return None
        path = self._path(key)
        try:
            pool, notes = _read(path, key)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, OSError) as error:
            reason = " ".join(str(error).split())
            warn(f"{path} is no usable cache of images ({reason}); they are decoded again")
            return None
        with suppress(OSError):  # a cache that others may only read is as good
            os.utime(path)  # the oldest go first
        return pool, notes

    @contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Decode the images of this name; another process that wants to waits for the pool."""
        if self.folder is None:
            yield
            return
        with suppress(OSError):  # `put` will say what is wrong
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # images may be private
        path = self._path(key)
        told = "decodes the same images; waiting for it (data.cache=none would not)"
        with in_turn(path.with_name(f".{path.name}.lock"), told):
            yield

    def put(self, key: str, pool: Tensor, notes: Notes) -> Path | None:
        """Keep a contiguous uint8 pool; where it is now, or None if that failed."""
        if self.folder is None:
            return None
        path = self._path(key)
        # A name of its own: two runs that decode the same images must not share a half-file.
        own = f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial"
        partial = self.folder / own
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # images may be private
            # Without fsync: what a power failure leaves does not match its checksum.
            with partial.open("xb") as file:
                file.write(_header(key, pool, notes))
                file.write(pool.numpy().reshape(-1).data)
            os.replace(partial, path)
        except OSError as error:
            warn(
                f"images cannot be cached in {self.folder} ({error.strerror or error}) and are "
                "decoded at every start; set data.cache to another folder, or to none"
            )
            self.folder = None  # no further attempt, so that the warning appears once
            return None
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        _trim(path)
        return path

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"images-{key}.pool"


def _header(key: str, pool: Tensor, notes: Notes) -> bytes:
    about = {"format": FORMAT, "key": key, "shape": list(pool.shape), "notes": notes}
    text = json.dumps({"about": about, "crc32": _checksum(about, pool.numpy())}).encode()
    assert len(text) <= HEADER
    return text.ljust(HEADER)


def _checksum(about: Mapping[str, Any], pixels: Any) -> int:
    start = zlib.crc32(json.dumps(about, sort_keys=True).encode())
    return zlib.crc32(pixels.reshape(-1).data, start)


def _read(path: Path, key: str) -> tuple[Tensor, Notes]:
    with path.open("rb") as file:
        header = json.loads(file.read(HEADER))
        about = header["about"]
        if (about["format"], about["key"]) != (FORMAT, key):
            raise ValueError("it is of another format or name")
        shape = tuple(about["shape"])
        size, expected = os.fstat(file.fileno()).st_size, HEADER + int(np.prod(shape))
        if size != expected:
            raise ValueError(f"it has {size} bytes of {expected}")
        # Copy-on-write: torch takes no read-only array without a warning, and nothing that a
        # run does to its images may reach the file.
        pixels = np.memmap(file, np.uint8, "c", HEADER, shape)
    if _checksum(about, pixels) != header["crc32"]:
        raise ValueError("its bytes do not match their checksum")
    notes = {kind: (int(count), int(first)) for kind, (count, first) in about["notes"].items()}
    return torch.from_numpy(pixels), notes


def _trim(newest: Path) -> None:
    """Remove pools above the limit, the one just written last, and what dead writers left."""
    entries: list[tuple[float, int, Path]] = []
    with suppress(OSError):
        for path in newest.parent.glob("images-*.pool"):
            with suppress(OSError):  # another run may remove it at the same time
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
        for path in newest.parent.glob(".images-*.partial"):
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - STALE:
                    path.unlink()
    total = 0
    for _, size, path in sorted(entries, key=lambda e: (e[2] == newest, e[0]), reverse=True):
        total += size
        if total > LIMIT and path != newest:
            with suppress(OSError):
                path.unlink()  # a run that has it mapped keeps its pages
