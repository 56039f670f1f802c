"""Plain words for what followed a start, and what a table of SelMix and its controls consists of.

A row's own name says every setting in which its namesakes differ, and stays what scripts know it
by. The words here are for readers: "SelMix, then post-hoc offsets".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ssl_selmix.compare.methods import Group, Row

START, SELMIX, OFFSETS = "start", "SelMix", "post-hoc offsets"
PAIRED = {  # what is left of SelMix, by policy and mix
    ("selective", "feature"): SELMIX,
    ("selective", "none"): "the same classes without mixing",
    ("natural", "none"): "plain fine-tuning",
    ("uniform", "feature"): "uniform pairs",
    ("greedy", "feature"): "greedy pairs",
}
RULES = {
    "offsets": OFFSETS,
    "gains": "post-hoc gain matrix",
    "labeled_prior": "thresholds by class shares",
}
LINE, SUBSETS = "WiSE-FT", "balanced sub-sampling"
OTHERS = {
    **{"wise_ft": LINE, "crt": "cRT", "lws": "LWS", "mixup": "mixup", "cutmix": "CutMix"},
}
# What these words say already.
SAID = {
    "selmix": {"policy", "mix"},
    "posthoc": {"rule"},
    "balanced_subsampling": {"body_lr", "lr", "momentum", "batch_norm", "classifier"},
}
# What makes a table one of SelMix and its controls.
CONTROLS = {"posthoc", "wise_ft", "balanced_subsampling"}
ORDER = (
    *(SELMIX, f"{SELMIX}, then {OFFSETS}", f"{OFFSETS}, then {SELMIX}", f"{SELMIX}, then {LINE}"),
    *(OFFSETS, *RULES.values(), SUBSETS, *PAIRED.values(), *OTHERS.values()),
)


def _stage(row: Row, position: int) -> str:
    """What was done at one stage, in words; settings that they do not say behind them."""
    cell = next(iter(row.cells.values()))
    stage = cell.run.stages[position]
    settings: Mapping[str, Any] = stage.settings or {}
    told = re.search(r" \[(.*)\]$", row.steps[position])
    beside = told[1].split(", ") if told else []
    name = stage.algorithm
    said = SAID.get(name, set())
    keys = {word.partition("=")[0] for word in beside}
    if name == "selmix":
        how = (settings.get("policy", "selective"), settings.get("mix", "feature"))
        words = PAIRED.get(how, f"SelMix (policy={how[0]}, mix={how[1]})")
    elif name == "posthoc":
        words = RULES.get(str(settings.get("rule", "offsets")), name)
    elif name == "balanced_subsampling":
        part = "all weights" if settings.get("body_lr") else "last layer"
        words = f"{SUBSETS}, {part}" if "body_lr" in keys else SUBSETS
    else:
        words = OTHERS.get(name, name)
    more = [word for word in beside if word.partition("=")[0] not in said]
    return f"{words} ({', '.join(more)})" if more else words


def after_start(row: Row) -> str:
    """What followed the first stage; of that stage alone: start."""
    return ", then ".join(_stage(row, i) for i in range(1, len(row.steps))) or START


def names(group: Group) -> dict[str, str]:
    """Plain words for every row, by its name; no two rows have the same ones."""
    several = len({row.steps[0] for row in group.rows}) > 1
    found = {
        row.name: f"{row.steps[0]}: {after_start(row)}" if several else after_start(row)
        for row in group.rows
    }
    twice = {words for words, n in Counter(found.values()).items() if n > 1}
    return {name: name if words in twice else words for name, words in found.items()}


def called(group: Group, name: str | None) -> Row | None:
    """The row of this name, or of these plain words; None if there is none."""
    words = names(group) if name is not None else {}
    by_name = [row for row in group.rows if row.name == name]
    by_words = [row for row in group.rows if words.get(row.name) == name]
    return next(iter((*by_name, *by_words)), None) if name is not None else None


def is_selmix(row: Row) -> bool:
    """Whether SelMix itself is among what followed the start."""
    return any(_stage(row, i).startswith(SELMIX) for i in range(1, len(row.steps)))


def is_offsets(row: Row) -> bool:
    """Whether offsets alone followed the start."""
    return len(row.steps) == 2 and _stage(row, 1).startswith(OFFSETS)


def aim(row: Row) -> str | None:
    """The objective of the last stage that has one; None if no stage says so."""
    cell = next(iter(row.cells.values()))
    for stage in reversed(cell.run.stages[1 : cell.position + 1]):
        if stage.settings and "objective" in stage.settings:
            return str(stage.settings["objective"])
    return None


def families(group: Group) -> dict[str, list[Row]]:
    """Starts that SelMix or a control of it followed, with all rows of theirs, the start first.

    A start without offsets, WiSE-FT and sub-sampling is none of them.
    """
    found: dict[str, list[Row]] = {}
    for row in group.rows:
        found.setdefault(row.steps[0], []).append(row)
    kept = {}
    for start, rows in found.items():
        chains = [next(iter(r.cells.values())).run.chain[1 : len(r.steps)] for r in rows]
        if any(CONTROLS & set(chain) for chain in chains) and len(rows) > 2:
            kept[start] = sorted(rows, key=_place)
    return kept


def _place(row: Row) -> tuple[bool, bool, int, int, str]:
    words = after_start(row)
    known = [i for i, prefix in enumerate(ORDER) if words.startswith(prefix)]
    exact = ORDER.index(words) if words in ORDER else max(known, default=len(ORDER))
    return len(row.steps) > 1, not is_selmix(row), exact, len(row.steps), row.name
