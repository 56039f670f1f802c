"""Checks of a method's settings and of its entry in the list."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ssl_selmix.algorithm import Algorithm
from ssl_selmix.common import config, plugins
from ssl_selmix.contract.subjects import Broken, Skipped, Subject, demand, make_data


def check_config_refuses(subject: Subject, folder: Path) -> None:
    """The configuration refuses values without meaning."""
    wrong: dict[str, Any] = {"steps": 0, "batch": 0, "lr": 0.0, "momentum": 1.0}
    wrong |= {"weight_decay": -1.0, "schedule": "linear", "ema": 1.0, "ema_buffers": "no"}
    wrong |= {"evaluate_every": 0, "keep": "first"}
    if not subject.kind.trains:
        taken = {f.name for f in dataclasses.fields(subject.kind.Config)} & wrong.keys()
        demand(
            not taken,
            f"{', '.join(sorted(taken))} can be set and mean nothing without steps; derive Config "
            "from Algorithm.FixedConfig",
        )
        return
    if issubclass(subject.kind.Config, Algorithm.PoolConfig):
        wrong["mu"] = 0
        data, _ = make_data()
        demand(
            subject.make(data).views,
            "mu does nothing in a method without views; derive Config from Algorithm.Config",
        )
    for field, value in wrong.items():
        message = _refusal(functools.partial(subject.kind.Config, **{field: value}))
        demand(
            message.startswith(f"{field} must be ") and ", not " in message,
            f"Config({field}={value!r}) must be refused with a ValueError '{field} must be ..., "
            f"not {value!r}'; derive Config from Algorithm.Config, and let a __post_init__ of "
            "your own call super().__post_init__()",
        )


def check_config_nan(subject: Subject, folder: Path) -> None:
    """No number of the configuration may be NaN."""
    data, _ = make_data()
    for f in dataclasses.fields(subject.kind.Config):
        if "float" in str(f.type) and "list" not in str(f.type):
            build = functools.partial(subject.make, data, None, **{f.name: math.nan})
            demand(
                f.name in _refusal(build),
                f"{f.name} may be NaN; write a rule at the field, such as "
                f"{f.name}: float = at_least(0, 1.0), from ssl_selmix.common.rules",
            )


def _refusal(build: Callable[[], object]) -> str:
    try:
        build()
    except ValueError as error:
        return str(error)
    return ""


def check_config_yaml(subject: Subject, folder: Path) -> None:
    """The configuration survives YAML."""
    kind = subject.kind.Config
    remedy = (
        "fields are numbers, words, lists or None, with @dataclass on the class and a type at each"
    )
    try:
        objects, plain = config.compose({subject.name: kind}, [])
        again, _ = config.compose({subject.name: kind}, [("file", config.flatten(plain))])
    except ValueError as error:
        raise Broken(f"Config cannot be written to config.yaml ({error}); {remedy}") from error
    same = objects[subject.name] == kind() and again == objects
    demand(same, f"Config changes on its way through config.yaml; {remedy}")


def check_listing(subject: Subject, folder: Path) -> None:
    """The listing has a line for it."""
    line = plugins.available("algorithm").get(subject.name)
    if line is None or not subject.kind.__module__.startswith("ssl_selmix.algorithms."):
        raise Skipped("the listing shows the shipped algorithms")
    demand(
        line.endswith(".") and len(line) < 110,
        "the first line of the file's docstring must be one sentence of less than 110 characters, "
        f"not {line!r}",
    )


def _shown(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    what = "finite" if bool(value.isfinite().all()) else "not finite"
    return f"{tuple(value.shape)} {what}{', with gradient' if value.requires_grad else ''}"
