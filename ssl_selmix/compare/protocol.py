"""What must agree before two results may stand in one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ssl_selmix.common.config import flatten
from ssl_selmix.common.figures import plain
from ssl_selmix.common.names import unknown
from ssl_selmix.compare.reading import DATA, PLACES, RULE, Run

# The question that an experiment asks: runs that differ in these get tables of their own.
CONDITIONS = ("data.labeled.", "data.unlabeled.", "data.labeled_in_pool")
IMAGES = "images"
NOT_RECORDED = "not recorded"
# Who names the first means the second as well.
IMPLIED = {"network": ("parameters",), "dataset": (DATA,)}


def conditions(run: Run, by: Iterable[str]) -> dict[str, Any]:
    """The keys whose values give the run its table."""
    found = run.keys
    return {k: v for k, v in found.items() if k.startswith(CONDITIONS) or k in by}


def with_implied(names: Iterable[str]) -> list[str]:
    """The keys that a user named, and those that follow from them."""
    given = list(names)
    return list(dict.fromkeys(k for name in given for k in (name, *IMPLIED.get(name, ()))))


def check_names(runs: Sequence[Run], names: Iterable[str], option: str) -> None:
    """Refuse a key that no run records, or that makes no tables."""
    known = {key for run in runs for key in run.keys} | {DATA}
    known |= {IMAGES} if option == "--allow" else set()  # a seed with two splits is a mistake
    for name in names:
        if name not in known:
            raise ValueError(f"{unknown('key', name, known)} ({option})")


def differences(runs: Sequence[Run], by: Iterable[str] = ()) -> dict[str, dict[Any, Run]]:
    """Key -> value -> the first run that has it, for all that differs and makes no table."""
    found: dict[str, dict[Any, Run]] = {}
    recorded = [(run, run.keys) for run in runs]
    for key in dict.fromkeys(key for _, values in recorded for key in values):
        if key.startswith(CONDITIONS) or key in by:
            continue
        if key == DATA:
            found[key] = _data_sets(runs)
            continue
        for run, values in recorded:
            if key == RULE and key not in values:
                continue  # no stage of it takes a step
            found.setdefault(key, {}).setdefault(_text(values.get(key, NOT_RECORDED)), run)
    return {key: values for key, values in found.items() if len(values) > 1}


def _data_sets(runs: Sequence[Run]) -> dict[Any, Run]:
    """Values of the SHA-256 of runs that load alike and have other images; empty if there are none.

    Another size, a test part held out or a pool without labels give the same data set another one.
    """
    loads: dict[str, dict[Any, Run]] = {}
    for run in runs:
        split = flatten({"data": run.protocol["split"]})
        read = {k: v for k, v in split.items() if not k.startswith(CONDITIONS) and k not in PLACES}
        unlabeled = split.get("data.unlabeled.shape") == "unknown"
        if run.data:
            how = repr((run.dataset, unlabeled, sorted(read.items(), key=str)))
            loads.setdefault(how, {}).setdefault(run.data[:12], run)
    return next((values for values in loads.values() if len(values) > 1), {})


def images(runs: Sequence[Run]) -> dict[Any, Run]:
    """The images of a seed, for which the runs of a table disagree; empty if there is none."""
    units: dict[int, dict[Any, Run]] = {}
    for run in runs:
        units.setdefault(run.seed, {}).setdefault(run.images[:12], run)
    return next((values for values in units.values() if len(values) > 1), {})


def _text(value: Any) -> str:
    return plain(value) if isinstance(value, float) else str(value)


def refuse(
    found: Mapping[str, Mapping[Any, Run]], allowed: Iterable[str], splits: bool = False
) -> None:
    """Refuse differences that the user did not allow.

    Raises:
        ValueError: names keys, values and runs.
    """
    bad = {key: values for key, values in found.items() if values and key not in allowed}
    if not bad:
        return
    told = "; ".join(f"{key}: {_who(values)}" for key, values in bad.items())
    implied = {k for name in bad for k in IMPLIED.get(name, ())}
    names = " ".join(name for name in bad if name not in implied)
    remedy = (
        "one seed should mean one split" if splits else f"add --by {names} for a table of each kind"
    )
    raise ValueError(
        f"these runs do not compare: {told}; {remedy}, or --allow {names} to compare them all the "
        "same, which the output then says"
    )


def _who(values: Mapping[Any, Run]) -> str:
    shown = [f"{value} (run {run.name})" for value, run in list(values.items())[:3]]
    more = f" and {len(values) - 3} more" if len(values) > 3 else ""
    return " vs ".join(shown) + more


def summary(runs: Sequence[Run]) -> list[str]:
    """The protocol that all runs of a table share, a line per part of it."""
    differing = differences(runs)
    told = [run.keys for run in runs]
    shown = {k: v for k, v in told[0].items() if k not in differing}
    if any(one.get(DATA) != shown.get(DATA) for one in told):
        shown.pop(DATA, None)
    split = {k.removeprefix("data."): v for k, v in shown.items() if k.startswith("data.")}
    rest = {k: v for k, v in shown.items() if not k.startswith("data.")}
    rest = {("steps of the first stage" if k == "steps" else k): v for k, v in rest.items()}
    words = [", ".join(f"{k} {_text(v)}" for k, v in part.items()) for part in (rest, split)]
    return [words[0], *_further_steps(runs), f"split: {words[1]}"]


def _further_steps(runs: Sequence[Run]) -> list[str]:
    """How long every algorithm was trained as a further stage."""
    found: dict[str, set[int]] = {}
    for stage in (stage for run in runs for stage in run.stages[1:]):
        found.setdefault(stage.algorithm, set()).add(stage.steps or 0)
    told = [f"{name} {' or '.join(map(str, sorted(n)))}" for name, n in sorted(found.items())]
    return [f"steps of further stages: {', '.join(told)}"] if told else []
