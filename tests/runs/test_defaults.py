"""What `ssl-selmix list` says of defaults is what the methods have."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from ssl_selmix import algorithm, cli
from ssl_selmix.common import plugins
from ssl_selmix.common.alike import Unlike, sentence, unlike
from ssl_selmix.common.config import flatten
from ssl_selmix.runs import defaults

# What makes one method and not another, or has another meaning in each.
OWN = {"alpha", "beta", "confidence", "objective", "prior", "prior_every", "select"}
SECOND = {
    *("selmix", "posthoc", "crt", "lws", "mixup", "cutmix", "balanced_subsampling"),
    *("debias", "gda", "wise_ft"),
}


Found = dict[str, dict[str, set[str]]]


def listed(part: Sequence[defaults.Default], known: Sequence[str]) -> Found:
    """Key -> value -> methods; the others are those that the listed ones leave of `known`."""
    found: Found = {}
    for key, values, _ in part:
        named = {name for who in values.values() for name in who} - {"the others"}
        others = set(known) - named
        found[key] = {v: others if "the others" in who else set(who) for v, who in values.items()}
    return found


def settings(name: str) -> dict[str, object]:
    return flatten(dataclasses.asdict(algorithm.load(name)[1].Config()))


@pytest.mark.parametrize("second", [False, True])
def test_the_list_has_every_default_that_differs(second: bool) -> None:
    names = [n for n in plugins.available("algorithm") if (n in SECOND) == second]
    found = unlike((name, settings(name)) for name in names)
    part = defaults.SECOND if second else defaults.FIRST
    trained = [name for name in names if "schedule" in settings(name)]
    told = listed(part, trained)
    measured = {k: {v: set(who) for v, who in values.items()} for k, values in found.items()}
    if second:  # SelMix's own word for the schedule of its step
        measured["schedule"]["constant"] = measured["schedule"].pop("auto", {"selmix"})
    assert told == {key: values for key, values in measured.items() if key not in OWN}
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
