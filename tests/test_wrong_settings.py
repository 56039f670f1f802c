"""Every key of every Config with wrong inputs: refused by name in one line, or taken as typed.

    pytest -s tests/test_wrong_settings.py

prints how many there were. A word of another type is refused in every field. A number that is
negative, zero or huge is refused or is what the run records: nothing is changed in silence. The
same of what `finetune` and `posthoc` take in Python, where a value may be anything, and of the
options of the commands posthoc, advise and sweep.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import ssl_selmix
from ssl_selmix import algorithm, cli
from ssl_selmix.algorithms.selmix import SelMix
from ssl_selmix.common import config, plugins
from ssl_selmix.finetuning import finetune
from ssl_selmix.runs.plan import Plan, Request

WRONG_INT = ["x", "1.5", "1e3", "0x10", "1_000", "010", "", "nan", ".inf", "[1]", "{a: 1}", "true"]
WRONG_INT += ["12:30", "99999999999999999999", "${seed}", "٣"]
WRONG_FLOAT = ["x", "0x10", "1_0.5", "007", "", "nan", ".nan", "inf", ".inf", "-.inf", "1e999"]
WRONG_FLOAT += ["[0.1]", "{a: 1}", "true", "1:30", "0,5", "${lr}", "1e3 x"]
WRONG_BOOL = ["x", "on", "off", "yes", "no", "1", "0", "", "null", "nan", "[true]", "${seed}"]
WRONG_NUMBERS = ["x", "[x]", "[1, nan]", "[[1]]", "null", "[1", "{a: 1}", "[1, 1e999]", "1;2"]
WRONG_TEXTS = ["[[a]]", "[{a: 1}]", "[a", "null"]
EXTREME = ["-1", "0", "-0", "99999999999", "-99999999999"]
EXTREME_FLOAT = ["-1", "0", "-0.0", "1e300", "-1e300", "1e-320", "-1e-320"]
NONSENSE = ["", "nonsense", "None", "-1", "nan", "[]", "a\0b", "\x1b[31m", "é\udce9", "x" * 999]


class Key(NamedTuple):
    """A setting, the type of its field, and an algorithm and a data set that have it."""

    name: str
    kind: Any
    algorithm: str
    dataset: str


def keys() -> Iterator[Key]:
    """All keys; one that several algorithms inherit comes once."""
    seen: set[tuple[Any, ...]] = set()
    for name in plugins.available("algorithm"):
        yield from _fields(name, algorithm.load(name)[1].Config, name, "digits", seen)
    for name in plugins.available("dataset"):
        yield from _fields("data", plugins.dataset(name).Config, "fixmatch", name, seen)
    plan = Plan(Request(["fixmatch"], "digits", "none"))
    for section in ("", *(plan.config.keys() - {"", "data", "fixmatch"})):
        yield from _fields(section, type(plan.config[section]), "fixmatch", "digits", seen)


def _fields(
    section: str, kind: type[Any], name: str, dataset: str, seen: set[tuple[Any, ...]]
) -> Iterator[Key]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        key = f"{section}.{field.name}".lstrip(".")
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _fields(key, hint, name, dataset, seen)  # type: ignore[arg-type]
            continue
        owner = next(k for k in kind.__mro__ if field.name in vars(k).get("__annotations__", {}))
        if (owner, field.name, field.default) not in seen:
            seen.add((owner, field.name, field.default))
            yield Key(key, hint, name, dataset)


def wrong(kind: Any) -> list[str]:
    """Words that no field of the type may take."""
    members = typing.get_args(kind) if typing.get_origin(kind) is not list else ()
    if str in members or kind is str:
        return []
    if type(None) in members:
        (inner,) = (member for member in members if member is not type(None))
        return [word for word in wrong(inner) if word not in ("", "null")]
    return {
        int: [*WRONG_INT, "null"],
        float: [*WRONG_FLOAT, "null"],
        bool: WRONG_BOOL,
        list[float]: WRONG_NUMBERS,
        list[str]: WRONG_TEXTS,
    }[kind]


def perhaps(kind: Any) -> list[str]:
    """Words that a field of the type may refuse or take as they are."""
    members = typing.get_args(kind) if typing.get_origin(kind) is not list else ()
    if kind is str or str in members:
        return NONSENSE
    return EXTREME if kind is int or int in members else EXTREME_FLOAT if kind is not bool else []


def taken(key: Key, word: str) -> Any:
    """What the run records of the word.

    Raises:
        ValueError: it is refused.
    """
    settings = [f"{key.name}={word}"] + ["device=cpu"] * (key.name != "device")
    plan = Plan(Request([key.algorithm], key.dataset, "none", settings=settings))
    return config.flatten(plan.plain)[key.name]


def test_wrong_inputs_are_refused_by_name_and_nothing_is_changed_in_silence() -> None:
    count: Counter[str] = Counter()
    silent: list[str] = []
    for key in keys():
        last = key.name.rpartition(".")[2]
        for word in wrong(key.kind) + perhaps(key.kind):
            try:
                value = taken(key, word)
            except ValueError as error:
                message = str(error)
                if last not in message or "\n" in message:
                    silent.append(f"{key.name}={word!r}: {message!r}")
                count["refused"] += 1
            else:
                if word in wrong(key.kind) or not _is(value, word):
                    silent.append(f"{key.name}={word!r} is {value!r}")
                count["taken as typed"] += 1
    for misspelt in ("fixmatch.lrr", "fixmatchs.lr", "x", "data", "fixmatch.lr.x", "."):
        with pytest.raises(ValueError, match=misspelt.replace(".", r"\.")):
            Plan(Request(["fixmatch"], "digits", "none", settings=[f"{misspelt}=1"]))
        count["refused"] += 1
    print(dict(count), f"of {len(list(keys()))} keys")
    assert not silent
    assert count["refused"] > 300


def _is(value: Any, word: str) -> bool:
    if value is None:
        return word.lower() in ("", "none", "null")
    if isinstance(value, str):
        return value == word
    if isinstance(value, list):
        return value == ([] if word in ("", "[]") else [type(value[0])(word)])
    return bool(value == float(word)) and math.isfinite(value)


# Python: values of every type.

ANYTHING: list[Any] = ["x", 1.5, -1, 0, math.nan, math.inf, [], {}, None, True, 10**400]
ANYTHING += [b"x", object(), 1j, ""]
OF_TYPE: dict[type, type | tuple[type, ...]] = {int: int, float: (int, float), bool: bool, str: str}
ARGUMENTS: dict[str, tuple[Any, ...]] = {  # of finetune, with values that are right
    "model": (),
    "labeled": (),
    "validation": (),
    "unlabeled": (None,),
    "test": (None,),
    "objective": (),
    "posthoc": (True,),
    "wise_ft": (True,),
    "classifier": (None,),
    "tune": (),
    "rank": (),
    "augment": (None,),
    "class_names": (None,),
    "preprocessing": (None,),
    "seed": (0, 10**400),
    "out": (None, "x"),
    "progress": (True,),
    "nonsense": (),
    "ema": (),
    "constraints": (),
}
OF_POSTHOC: dict[str, tuple[Any, ...]] = {
    "scores": (),
    "labels": (),
    "objective": (),
    "constraints": ([],),
    "rule": (),
    "folds": (),
    "calibrate": (),
    "prior": (None,),
    "probabilities": (True,),
    "seed": (0, 10**400),
    "nonsense": (),
}


def _fits(value: Any, members: tuple[Any, ...]) -> bool:
    """Whether a value is of one of the types; true is no number, and NaN and inf are none."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    types = [OF_TYPE.get(member, member) for member in members]
    return any(
        isinstance(value, kind) and isinstance(value, bool) == (kind is bool) for kind in types
    )


class Tally:
    """Counts what is refused, and keeps what is not as it should be."""

    def __init__(self) -> None:
        self.refused, self.taken, self.wrong = 0, 0, list[str]()

    def of(self, name: str, value: Any, work: Callable[[], Any], *, right: bool) -> None:
        """One value; `right` may be taken, and nothing else."""
        told = f"{name}={value!r}"[:60] if value != 10**400 else f"{name}=10**400"
        try:
            work()
        except ValueError as error:
            self.refused += 1
            if name.rstrip("s") not in str(error) or "\n" in str(error):
                self.wrong.append(f"{told}: {error}")
        except TypeError as error:  # Python's own, for an argument that there is not
            self.refused += 1
            if f"unexpected keyword argument {name!r}" not in str(error):
                self.wrong.append(f"{told}: {error!r}")
        else:
            self.taken += 1
            if not right:
                self.wrong.append(f"{told} is taken")


def test_settings_of_finetune_that_are_wrong() -> None:
    tally, hints = Tally(), typing.get_type_hints(SelMix.Config)
    for found in dataclasses.fields(SelMix.Config):
        if found.name in ("ema", "constraints", "objective"):
            continue  # no settings of finetune, or an argument
        members = typing.get_args(hints[found.name]) or (hints[found.name],)
        for value in ANYTHING:
            asked = {found.name: value} if found.name != "steps" else {}
            steps = value if found.name == "steps" else 2
            right = _fits(value, members)
            work = partial(finetune._config, asked, steps, "mean_recall", False)
            tally.of(found.name, value, work, right=right)
    print(f"finetune's settings: {tally.refused} refused, {tally.taken} of their type")
    assert not tally.wrong and tally.refused > 400


def test_arguments_of_finetune_that_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    x, y, tally = torch.randn(24, 3, 4, 4), torch.arange(24) % 3, Tally()
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    given: dict[str, Any] = {"model": net, "labeled": (x, y), "validation": (-x, y)}
    given |= {"steps": 1, "batch": 4, "progress": False}
    for name, right in ARGUMENTS.items():
        for value in ANYTHING:
            may = any(value is one or (value == one and type(value) is type(one)) for one in right)
            if may and name not in ("seed", "out"):
                continue
            tally.of(name, value, partial(ssl_selmix.finetune, **given | {name: value}), right=may)
    capsys.readouterr()
    print(f"finetune's arguments: {tally.refused} refused")
    assert not tally.wrong and tally.refused > 200
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_arguments_of_posthoc_that_are_wrong() -> None:
    tally, generator = Tally(), torch.Generator().manual_seed(0)
    given: dict[str, Any] = {"scores": torch.randn(30, 3, generator=generator).double()}
    given |= {"labels": torch.arange(30) % 3, "folds": 2}
    for name, right in OF_POSTHOC.items():
        for value in ANYTHING:
            may = any(value is one or (value == one and type(value) is type(one)) for one in right)
            if not may:
                work = partial(ssl_selmix.posthoc, **given | {name: value})
                tally.of(name, value, work, right=False)
    print(f"posthoc's arguments: {tally.refused} refused")
    assert not tally.wrong and tally.refused > 100


# Options of commands.

SWEEP = """
out: runs
seeds: [0]
settings:
  model.name: cnn-4
  data: {labeled.largest: 15, unlabeled.largest: 20, validation: 3, test: 3}
  algo.steps: 2
  then.steps: 2
splits:
  same: {data.unlabeled.shape: long_tail}
algorithms:
  fixmatch:
then:
  selmix:
"""

WRONG_OPTIONS = {
    "posthoc": {
        "--folds": ["x", "1", "0", "-1", "1.5", "nan", "", "99999999999", "[2]"],
        "--seed": ["x", "-1", "1.5", "nan", "", "true"],
        "--prior": ["x", "", "0.5,0.5", "1,1,1", "nan,0,1", "-1,1,1", "0,0.5,0.5", "0.2;0.3;0.5"],
        "--objective": ["x", "", "h_mea", "./none.py:f", "nan", "h_mean "],
        "--constraint": ["x", "", "./none.py:g", "0.5"],
        "--rule": ["x", "", "offset", "none"],
        "--calibrate": ["x", "", "true"],
        "--test": ["none.npz", "", ".", "wrong.npz"],
        "--out": ["", ".", "taken.npz", "none/rule.npz"],
        "--nonsense": ["1"],
        "nonsense": ["x"],
    },
    "advise": {
        "--objective": ["x", ""],
        "--against": ["none", ""],
        "--nonsense": ["1"],
        "nonsense": ["x"],
    },
    "sweep": {
        "--jobs": ["x", "0", "-1", "1.5", "nan", ""],
        "--only": ["x", "-1", "99", "1.5", ""],
        "--engine": ["x", ""],
        "--slurm": ["", "none/a.sh", "."],
        "--out": ["", "taken.npz", "taken.npz/x"],
        "--nonsense": ["1"],
        "algo.lr": ["x", "", "nan", "0", "-1"],
        "then.lr": ["x"],
        "fixmatch.lrr": ["1"],
        "nonsense": ["1"],
    },
}


def test_options_of_commands_that_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("scores.npz", scores=rng.normal(size=(30, 3)), labels=np.arange(30) % 3)
    np.savez("wrong.npz", scores=rng.normal(size=(30, 2)), labels=np.arange(30) % 2)
    Path("taken.npz").write_bytes(b"")
    Path("sweep.yaml").write_text(SWEEP)
    first = {"posthoc": "scores.npz", "advise": "none", "sweep": "sweep.yaml"}
    count, wrong = 0, []
    for command, options in WRONG_OPTIONS.items():
        for option, values in options.items():
            for value in values:
                words = [option, value] if option[0] == "-" else [f"{option}={value}"]
                try:
                    code = cli.main([command, first[command], *words])
                except SystemExit as stop:
                    code = int(stop.code or 0)
                err, count = capsys.readouterr().err, count + 1
                if code != 2 or len(err.splitlines()) != 1 or not err.startswith("error: "):
                    wrong.append(f"{command} {' '.join(words)}: {code} {err[-300:]}")
    print(f"options of commands: {count} refused")
    assert not wrong and count > 60
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"scores.npz", "wrong.npz", "taken.npz", "sweep.yaml"}
