"""Rules at the fields of configurations, and what a program can read of them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from ssl_selmix.algorithm import Algorithm, load
from ssl_selmix.common import plugins
from ssl_selmix.common.config import Run, compose
from ssl_selmix.common.rules import (
    Checked,
    Rules,
    Setting,
    at_least,
    check,
    describe,
    one_of,
    positive,
    within,
)
from ssl_selmix.models import Config as ModelConfig


@dataclass
class Base(Checked):
    # Two lines about
    # the rate.
    rate: float = positive(0.5)
    size: int = at_least(2, 3)  # n, a "size" # with a mark
    share: float | None = within("[0, 1)", None)  # None: chosen later
    kind: str = one_of("one", "two", default="two")
    names: list[str] = field(default_factory=list)


@dataclass
class Narrow(Base):
    rate: float = within("(0, 1]", 1.0)
    size: int = 4
    kind: str = one_of("one", "three")  # of two lists, this one too


def refused(**values: Any) -> str:
    with pytest.raises(ValueError) as info:
        Base(**values)
    return str(info.value)


def test_values_out_of_range_are_refused_by_rule_and_value() -> None:
    assert refused(rate=0) == "rate must be > 0, not 0"
    assert refused(size=1) == "size must be >= 2, not 1"
    assert refused(share=1.0) == "share must be in [0, 1), not 1.0"
    assert refused(kind="six") == "kind must be one of one, two, not 'six'"
    for value in (math.nan, math.inf, -math.inf):
        assert refused(share=value).startswith("share must be in [0, 1), not ")


def test_values_of_another_type_are_refused() -> None:
    assert refused(size=2.5) == "size must be a whole number, not 2.5"
    assert refused(rate="fast") == "rate must be a number, not 'fast'"
    assert refused(size=True) == "size must be a whole number, not True"
    assert refused(share="half") == "share must be in [0, 1), not 'half'"
    assert refused(share=False) == "share must be in [0, 1), not False"


def test_ends_of_intervals() -> None:
    for rule, inside, outside in (
        ("> 0", [1e-9], [0, -1]),
        (">= -2", [-2], [-2.1]),
        ("[0, 1)", [0, 0.5], [-0.1, 1]),
        ("(0, 1]", [1, 0.5], [0, 1.1]),
    ):
        for value in inside:
            check("x", value, rule)
        for value in outside:
            with pytest.raises(ValueError, match="x must be "):
                check("x", value, rule)


def test_a_field_that_is_declared_again_keeps_the_rules_of_its_bases() -> None:
    assert Narrow() == Narrow(rate=1.0, size=4, kind="one")
    wrong: tuple[tuple[str, Any, str], ...] = (
        ("rate", 1.5, "in (0, 1]"),
        ("rate", -1.0, "> 0"),  # the base's rule comes first
        ("size", 1, ">= 2"),  # declared again without a rule
        ("kind", "two", "one of one, three"),
    )
    for name, value, told in wrong:
        with pytest.raises(ValueError) as info:
            Narrow(**{name: value})
        assert str(info.value) == f"{name} must be {told}, not {value!r}"


def test_a_config_with_rules_is_a_plain_dataclass_that_settings_make() -> None:
    assert Base().rate == Base.rate == 0.5
    assert compose({"narrow": Narrow}, [])[0]["narrow"] == Narrow()
    assert dataclasses.replace(Narrow(), size=9).size == 9


def test_rules_of_a_released_plug_in_are_read_once_more_and_deprecated() -> None:
    @dataclass
    class Config(Algorithm.Config):
        strength: float = 1.0
        RULES: ClassVar[Rules] = {"strength": "[0, 2]", "keep": ("last",)}

    with pytest.warns(DeprecationWarning, match=r"Config\.RULES .* at its field"):
        assert Config(strength=2.0, keep="last").strength == 2.0
    with (
        pytest.warns(DeprecationWarning, match="RULES"),
        pytest.raises(ValueError, match=r"strength must be in \[0, 2\], not 3.0"),
    ):
        Config(strength=3.0)
    with (
        pytest.warns(DeprecationWarning, match="RULES"),
        pytest.raises(ValueError, match="keep must be one of last, not 'best'"),
    ):
        Config()


def test_settings_are_described_with_rules_and_meanings() -> None:
    assert describe(Narrow) == [
        Setting("rate", "float", 1.0, ("> 0", "(0, 1]"), "Two lines about the rate."),
        Setting("size", "int", 4, (">= 2",), 'n, a "size" # with a mark'),
        Setting("share", "float | None", None, ("[0, 1)",), "None: chosen later"),
        Setting(
            "kind", "str", "one", (("one", "two"), ("one", "three")), "of two lists, this one too"
        ),
        Setting("names", "list[str]", [], (), ""),
    ]


def test_a_class_without_its_source_has_settings_without_meanings() -> None:
    made = dataclasses.make_dataclass("Made", [("rate", "float", positive(1.0))], bases=(Checked,))
    assert describe(made) == [Setting("rate", "float", 1.0, ("> 0",), "")]


@pytest.mark.parametrize("name", sorted(plugins.available("algorithm")))
def test_every_number_and_word_of_a_shipped_method_has_a_rule_or_is_checked_elsewhere(
    name: str,
) -> None:
    # `select` is checked with the figures of the method, objectives by `objectives.get`.
    # The temperature of SelMix is a number or auto.
    elsewhere = {"select", "objective", "temperature"}
    found = describe(load(name)[1].Config)
    for setting in found:
        plain = setting.type.partition(" ")[0] in ("int", "float", "str")
        assert setting.rules or not plain or setting.name in elsewhere, setting
    meanings = {setting.name: setting.meaning for setting in found}
    if load(name)[1].trains:
        assert meanings["batch"] == "B, labeled images a step"
    assert meanings and all(meanings.values())


def test_the_runs_own_settings_and_the_networks_are_described() -> None:
    assert [s.name for s in describe(Run) if s.rules] == [
        *("seed", "threads", "precision", "checkpoint_minutes"),
    ]
    name, branches, momentum, *others = describe(ModelConfig)
    assert all(setting.meaning for setting in others)
    assert name.meaning.startswith("wrn-DEPTH-WIDTH") and momentum.rules == ("(0, 1]",)
    assert branches.rules == (">= 1",)
