"""What `ssl-selmix list` says of defaults is what the methods have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pytest

from ssl_selmix import algorithm, cli
from ssl_selmix.common import plugins
from ssl_selmix.common.alike import Unlike, sentence, unlike
from ssl_selmix.common.config import flatten
from ssl_selmix.runs import defaults

# What makes one method and not another, or has another meaning in each.
OWN = {"alpha", "beta", "confidence", "objective", "prior", "prior_every", "select"}
OWN |= {"debias_from", "warmup"}
OF_FINE_TUNING = 0.0  # the default of ema in second stages that train


Found = dict[str, dict[str, set[str]]]


def settings(name: str) -> dict[str, object]:
    return flatten(dataclasses.asdict(algorithm.load(name)[1].Config()))


TOLD = {name: settings(name) for name in plugins.available("algorithm")}
TRAINED = {name: told for name, told in TOLD.items() if "schedule" in told}


def listed(part: Sequence[defaults.Default], known: Mapping[str, Mapping[str, object]]) -> Found:
    """Key -> value -> methods; the others are those with the key that no other value names."""
    found: Found = {}
    for key, values, _ in part:
        named = {name for who in values.values() for name in who} - {"the others"}
        others = {name for name, told in known.items() if key in told} - named
        found[key] = {v: others if "the others" in who else set(who) for v, who in values.items()}
    return found


@pytest.mark.parametrize("second", [False, True])
def test_the_list_has_every_default_that_differs(second: bool) -> None:
    """Where a new method differs from its relatives: give it their default, or say why not."""
    known = {n: told for n, told in TRAINED.items() if (told["ema"] == OF_FINE_TUNING) == second}
    found = unlike(known.items())
    measured = {k: {v: set(who) for v, who in values.items()} for k, values in found.items()}
    if second:  # SelMix's own word for the schedule of its step
        measured["schedule"]["constant"] = measured["schedule"].pop("auto", {"selmix"})
    part = defaults.SECOND if second else defaults.FIRST
    assert listed(part, known) == {k: values for k, values in measured.items() if k not in OWN}
    assert all(why for _, _, why in part)


def test_list_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "  logit_adjustment  1 (fixmatch, selftrain, supervised), 0 (the others): " in out
    assert "set them alike, such as flexmatch.logit_adjustment=1" in out


def test_what_differs_between_methods() -> None:
    told = [("a", {"x": 1, "y": 0.5}), ("b", {"x": 2.0, "z": 1}), ("a", {"x": 1, "y": 0.25})]
    found: Unlike = {"x": {"1": ["a"], "2": ["b"]}}
    assert unlike(told) == found  # y differs within a alone, z is b's alone
    assert unlike([("a", {"x": None}), ("b", {"x": 2})]) == {}
    assert sentence(found) == "x 1 (a), 2 (b)"
    # Nobody is called one of the others who has another value as well.
    assert sentence({"x": {"1": ["a", "b", "c", "d"], "2": ["d"]}}) == "x 1 (a, b, c, d), 2 (d)"
