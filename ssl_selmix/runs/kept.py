"""Data sets that a process keeps in memory for the runs that are forked from it.

A data set that can be kept says in `files(config)` which files its `load` reads; only shipped ones
are asked, for a user's own code is executed in the run that names it and nowhere else. What is kept
belongs to the settings that decide what is loaded and to those files as they are: their places,
sizes and times. A run looks at them again and loads by itself what it does not find. It has a copy
of what it finds, which it cannot change for another run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ssl_selmix import data
from ssl_selmix.common import config, plugins
from ssl_selmix.data import copies
from ssl_selmix.runs.plan import Plan
from ssl_selmix.training import machine

SHARE = 0.25  # of the machine's memory, that all data sets together may take
MOST_FILES = 1000  # of one data set; looking at more takes longer than it saves
# Which images are drawn is not the business of `load`, but whether all of a part are wanted is.
DRAWN = ("labeled", "unlabeled", "manifest")


class Loaded(NamedTuple):
    """A data set, the digest of its images, and of one that is kept that of each of them."""

    source: data.Source
    sha256: str
    digests: tuple[copies.Digests, copies.Digests | None] | None = None


_kept: dict[str, Loaded] = {}  # the one that was asked for last at the end
_refused: set[str] = set()


def load(plan: Plan) -> Loaded:
    """The data set of a run, as it was kept or else read."""
    settings = plan.config["data"]
    if _kept and (key := _key(plan.request.dataset, settings, plan.plain["data"])) in _kept:
        return _kept[key]
    source: data.Source = plan.dataset.load(settings)
    return Loaded(source, source.sha256())


def keep(dataset: str, plain: Mapping[str, Any]) -> None:
    """Read a data set and keep it, if it can be kept and there is room; others make room for it.

    Nothing is computed in threads, which a fork would miss.

    Args:
        dataset: its name.
        plain: its settings, as a run has them.

    Raises:
        Exception: whatever is wrong with it.
    """
    if dataset not in plugins.available("dataset"):
        return
    module = plugins.dataset(dataset)
    layers = [("the sweep", config.flatten({"data": plain}))]
    settings = config.compose({"data": module.Config}, layers)[0]["data"]
    key = _key(dataset, settings, plain)
    if key in _kept:
        _kept[key] = _kept.pop(key)
    elif key and key not in _refused:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            source: data.Source = module.load(settings)
            found = Loaded(source, source.sha256(), copies.digests(source))
            if key == _key(dataset, settings, plain):  # it was not written meanwhile
                _add(key, found)
        finally:
            torch.set_num_threads(threads)


def _add(key: str, loaded: Loaded) -> None:
    room = SHARE * (machine.memory(torch.device("cpu")) or 0) - size_of(loaded.source)
    if room < 0:
        _refused.add(key)
        return
    while _kept and sum(size_of(other.source) for other in _kept.values()) > room:
        del _kept[next(iter(_kept))]
    _kept[key] = loaded


def size_of(source: data.Source) -> int:
    """Bytes of all that a data set holds."""
    return sum(map(_bytes, vars(source).values()))


def _bytes(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return int(getattr(value, "nbytes", 0))


def _key(dataset: str, settings: Any, plain: Mapping[str, Any]) -> str:
    """What a kept data set is known by; "" if it cannot be kept."""
    if dataset not in plugins.available("dataset"):
        return ""
    files = getattr(plugins.dataset(dataset), "files", None)
    seen = None if files is None else _look(files(settings))
    if seen is None:
        return ""
    wanted = {name: value for name, value in plain.items() if name not in DRAWN}
    wanted["unknown"] = settings.unlabeled.shape == "unknown"
    return config.fingerprint(dataset, os.getcwd(), wanted, seen)


def _look(files: Iterable[Path]) -> list[tuple[str, int, int, int]] | None:
    """Place, size, time and number of every file, also of those in folders; None: too many."""
    found: list[tuple[str, int, int, int]] = []
    for file in chain.from_iterable((path, *path.rglob("*")) for path in files):
        if file.is_file():
            state = file.stat()
            found.append((str(file), state.st_size, state.st_mtime_ns, state.st_ino))
        if len(found) > MOST_FILES:
            return None
    return sorted(found)
