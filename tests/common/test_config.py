"""Configuration: layers, types, and messages that name the mistake."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ssl_selmix.algorithm import Algorithm, load
from ssl_selmix.algorithms.fixmatch import FixMatch
from ssl_selmix.algorithms.selmix import SelMix
from ssl_selmix.algorithms.supervised import Supervised
from ssl_selmix.common import config, text
from ssl_selmix.common.config import (
    compose,
    differences,
    flatten,
    parse_overrides,
    parse_yaml,
    without_retired,
)


@dataclass
class Tail:
    largest: int = 30
    rho: float = 15.0


@dataclass
class Split:
    labeled: Tail = field(default_factory=Tail)
    test: int | None = 50
    root: str = ""
    manifest: str | None = None


@dataclass
class Method:
    lr: float = 0.03
    steps: int = 100
    nesterov: bool = True
    beta: float | None = None
    name: str = "a"
    weights: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    warmth: int | float | str = "auto"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")


RESPELT = ("2024_01", "1.10", "007", "1e3", "on", "12:30", "0x10", "1_0", "no", ".5", "2024-01-01")
SECTIONS: dict[str, type[Any]] = {"data": Split, "fixmatch": Method, "selmix": Method}


def composed(*words: str, preset: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    layers = [
        ("preset digits", parse_yaml(preset, "preset digits")),
        ("command line", parse_overrides(words)),
    ]
    return compose(SECTIONS, layers)


# Layers.


def test_defaults() -> None:
    objects, plain = composed()
    assert objects["fixmatch"] == Method() and objects["data"] == Split()
    assert objects[""] == config.Run()
    assert plain["data"] == {
        "labeled": {"largest": 30, "rho": 15.0},
        "test": 50,
        "root": "",
        "manifest": None,
    }
    assert (plain["seed"], plain["device"]) == (0, "auto")


def test_command_line_beats_preset_beats_default() -> None:
    preset = "fixmatch: {lr: 0.1, steps: 7}\ndata:\n  labeled: {rho: 3}\nseed: 5\n"
    objects, plain = composed("fixmatch.lr=0.2", "seed=6", preset=preset)
    assert objects["fixmatch"] == Method(lr=0.2, steps=7)
    assert objects["selmix"] == Method()
    assert objects["data"].labeled == Tail(30, 3.0)
    assert objects[""].seed == plain["seed"] == 6
    assert plain["fixmatch"]["lr"] == 0.2


def test_the_last_word_wins() -> None:
    assert composed("fixmatch.steps=3", "fixmatch.steps=4")[0]["fixmatch"].steps == 4


def test_objects_are_what_the_plain_values_say() -> None:
    words = ("data.test=null", "fixmatch.lr=1e-3", "selmix.beta=0.5", "data.root=/a b")
    objects, plain = composed(*words)
    for name, kind in SECTIONS.items():
        assert isinstance(objects[name], kind)
    assert objects["data"] == Split(
        Tail(**plain["data"]["labeled"]), plain["data"]["test"], plain["data"]["root"]
    )
    assert Method(**plain["selmix"]) == objects["selmix"]


# Values.


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("fixmatch.lr=1e-3", 0.001),
        ("fixmatch.lr=3", 3.0),
        ("fixmatch.lr=.5", 0.5),
        ("fixmatch.lr=1E2", 100.0),
        ("fixmatch.steps=+10", 10),
        ("fixmatch.lr=-0.0", -0.0),
        ("fixmatch.lr=5.", 5.0),
        ("fixmatch.nesterov=false", False),
        ("fixmatch.nesterov=True", True),
        ("fixmatch.beta=null", None),
        ("fixmatch.beta=", None),
        ("fixmatch.beta=1e-3", 0.001),
        ("fixmatch.name=3", "3"),
        ("fixmatch.name=a=b", "a=b"),
        ("fixmatch.name=", ""),
        ("fixmatch.name=null", "null"),
        ("fixmatch.name=???", "???"),
        ("fixmatch.name=[a]", "[a]"),
        ("fixmatch.name='a'", "'a'"),
        ("data.root=${oc.env:HOME}", "${oc.env:HOME}"),
        ("data.root=${", "${"),
        ("data.root=/x/set #2", "/x/set #2"),
        ("data.root= a: b ", " a: b "),
        ("data.root=~", "~"),
        ("data.root=!!python/name:os.system", "!!python/name:os.system"),
        *((f"data.root={word}", word) for word in RESPELT),
        ("data.manifest=null", None),
        ("data.manifest=None", None),
        ("data.manifest=", None),
        ("data.manifest=~", "~"),
        *((f"data.manifest={word}", word) for word in RESPELT),
        ("data.test=none", None),
        ("data.test=~", None),
        ("selmix.weights=[1, 1e-3]", [1.0, 0.001]),
        ("selmix.weights=1,.5", [1.0, 0.5]),
        ("selmix.weights=3", [3.0]),
        ("selmix.weights=[]", []),
        ("selmix.weights=", []),
        ("selmix.names=[on, 007, 'a, b', \"#\", null]", ["on", "007", "a, b", "#", "null"]),
        ("selmix.names=a >= 1, 1_0", ["a >= 1", "1_0"]),
        ("selmix.warmth=auto", "auto"),
        ("selmix.warmth=1", 1),
        ("selmix.warmth=1e-1", 0.1),
        ("selmix.warmth=1_0", "1_0"),
        ("data.test=null", None),
        ("data.labeled.rho=1e2", 100.0),
    ],
)
def test_values_become_the_type_of_the_field(word: str, value: Any) -> None:
    found = flatten(composed(word)[1])[word.partition("=")[0]]
    assert found == value and type(found) is type(value)


def test_numbers_of_a_preset() -> None:
    objects, _ = composed(preset="fixmatch:\n  lr: 1e-3\n  beta: null\n")
    assert objects["fixmatch"].lr == 0.001 and objects["fixmatch"].beta is None


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("fixmatch.lrr=1", r"unknown key 'fixmatch\.lrr'; did you mean fixmatch\.lr"),
        ("fixmach.steps=1", r"unknown key 'fixmach\.steps'; did you mean fixmatch\.steps"),
        ("sed=1", r"unknown key 'sed'; did you mean seed"),
        ("zzz=1", r"unknown key .zzz.; known: checkpoint_minutes, compile, .*, threads"),
        ("data.labeled.rho.x=1", r"unknown key 'data\.labeled\.rho\.x'"),
        ("data.labeled=3", r"data\.labeled is a group; set one of .*largest, .*rho"),
        ("data=3", r"data is a group; set one of data\.labeled\.largest"),
        ("fixmatch=null", r"fixmatch is a group"),
        ("fixmatch={}", r"fixmatch is a group"),
        *(
            (
                f"fixmatch.steps={word}",
                rf"steps must be a whole number .*, not {word!r}".replace("[", r"\["),
            )
            for word in (
                "many",
                "1.5",
                "[1]",
                "null",
                "",
                "1_000",
                "0x10",
                "010",
                "1e3",
                "12:30",
                "٣",
            )
        ),
        *(
            (f"fixmatch.lr={word}", rf"fixmatch\.lr must be a decimal number, .*, not {word!r}")
            for word in (
                "fast",
                ".inf",
                "nan",
                ".nan",
                "0x1p3",
                "1_0.5",
                "007",
                "1:30",
                "1,5",
                "",
                "true",
            )
        ),
        *(
            (f"fixmatch.nesterov={word}", rf"nesterov must be true or false, not {word!r}")
            for word in ("maybe", "on", "off", "yes", "no", "1", "0", "", "null")
        ),
        ("fixmatch.steps=99999999999999999999", "at most 19 digits"),
        ("fixmatch.lr=1e999", "fixmatch.lr must be a number of at most"),
        ("data.test=all", r"data\.test must be a whole number .*, or null, not 'all'"),
        ("data.root=a\0b", r"data\.root must be a text, not 'a\\x00b'"),
        ("selmix.weights=[1", r"selmix\.weights must be a list"),
        ("selmix.weights=[1, x]", r"selmix\.weights must be a decimal number"),
        ("selmix.weights=[[1]]", r"selmix\.weights must be a decimal number"),
        ("selmix.weights=null", r"selmix\.weights must be a list"),
        ("selmix.names=[[a]]", r"selmix\.names must be a text"),
        ("selmix.names=[!!python/name:os.system x]", r"selmix\.names must be a list"),
    ],
)
def test_mistakes_name_the_key_and_the_layer(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message + r".*\(command line\)$"):
        composed(word)


def test_mistakes_of_a_preset_name_the_preset() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'selmix\.stpes'.*\(preset digits\)$"):
        composed(preset="selmix:\n  stpes: 3\n")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("fixmatch.steps=0", r"^fixmatch\.steps must be at least 1, not 0$"),
        ("selmix.steps=-3", r"^selmix\.steps must be at least 1, not -3$"),
        ("seed=-1", r"^seed must be >= 0, not -1$"),
        ("threads=-1", r"^threads must be >= 0, not -1$"),
    ],
)
def test_values_out_of_range(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        composed(word)


def test_nothing_of_a_setting_is_resolved() -> None:
    """Somebody's preset must not learn what the environment holds."""
    objects, plain = composed(preset="data:\n  root: '${oc.env:HOME}'\n  manifest: ${seed}\n")
    assert objects["data"].root == plain["data"]["root"] == "${oc.env:HOME}"
    assert objects["data"].manifest == "${seed}"


@pytest.mark.parametrize(
    "word", [*RESPELT, "null", "~", "${seed}", "a: b", "x #y", "'a'", "", "é\udce9\n"]
)
def test_a_text_survives_config_yaml(word: str, tmp_path: Path) -> None:
    """By the file's own reader, and by that of a preset."""
    layers = [("words", {"data.root": word, "data.manifest": word, "selmix.names": [word]})]
    _, plain = compose(SECTIONS, layers)
    file = tmp_path / "config.yaml"
    file.write_text(text.dump(plain))
    assert text.load(file) == plain
    again = compose(SECTIONS, [("file", parse_yaml(file.read_text(), "file"))])[1]
    assert again == plain


def test_a_preset_is_read_by_the_types_of_the_fields() -> None:
    lines = "fixmatch: {lr: '0.1', steps: 010, nesterov: on, names: [on, 1_0], beta: ~}"
    for part, message in (("steps: 010", "whole number"), ("nesterov: on", "true or false")):
        with pytest.raises(ValueError, match=message):
            composed(preset=f"fixmatch: {{{part}}}")
    cut = lines.replace("steps: 010, nesterov: on, ", "")
    found = composed(preset=f"{cut}\ndata: {{root: 2024_01, manifest: 007}}\n")[0]
    assert (found["fixmatch"].lr, found["fixmatch"].beta) == (0.1, None)
    assert found["fixmatch"].names == ["on", "1_0"]
    assert (found["data"].root, found["data"].manifest) == ("2024_01", "007")


@pytest.mark.parametrize(
    "lines",
    [
        "fixmatch: {steps: !!int 3}",
        "fixmatch: {name: !!python/name:os.system x}",
        "fixmatch: !!python/object/apply:os.system [ls]",
        "fixmatch: &a {name: *a}",
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{c}: &{c} [{','.join(['*' + b] * 10)}]\n" for b, c in zip("abcd", "bcde", strict=True)
        ),
        "a: " + "[" * 2000,
    ],
)
def test_a_preset_executes_nothing_and_explodes_nowhere(lines: str) -> None:
    with pytest.raises(ValueError, match="preset digits is no YAML"):
        composed(preset=lines)


# Reading.


@pytest.mark.parametrize("word", ["seed", "=3", ""])
def test_words_that_set_nothing(word: str) -> None:
    with pytest.raises(ValueError, match="is no setting; write key=value, such as seed=1"):
        parse_overrides([word])


def test_words_stay_as_they_were_typed() -> None:
    got = parse_overrides(["a.b={c: 1}", "f=[1, 2]", "g=", "h=: :"])
    assert got == {"a.b": "{c: 1}", "f": "[1, 2]", "g": "", "h": ": :"}


def test_a_group_may_be_set_as_a_mapping() -> None:
    assert composed("data.labeled={largest: 7, rho: 2}")[0]["data"].labeled == Tail(7, 2.0)
    with pytest.raises(ValueError, match=r"unknown key 'data\.labeled\.x'"):
        composed("data.labeled={x: 7}")
    with pytest.raises(ValueError, match=r"data\.labeled \(command line\) is no YAML"):
        composed("data.labeled={x")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "\n"])
def test_an_empty_preset_sets_nothing(text: str) -> None:
    assert parse_yaml(text, "preset x") == {}


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "3"])
def test_a_preset_is_a_mapping(text: str) -> None:
    with pytest.raises(ValueError, match="preset x must be a mapping"):
        parse_yaml(text, "preset x")


@pytest.mark.parametrize("text", ["a: [", "a: 1\na: 2\n", "a: 1\n  b: 2\n"])
def test_a_preset_that_is_no_yaml(text: str) -> None:
    with pytest.raises(ValueError, match="preset x is no YAML"):
        parse_yaml(text, "preset x")


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": {}, "e": None}) == {"a.b.c": 1, "d": {}, "e": None}


# Identity.


def test_fingerprint_ignores_order_and_nothing_else() -> None:
    first = config.fingerprint({"a": 1, "b": {"c": 2, "d": 3}})
    assert first == config.fingerprint({"b": {"d": 3, "c": 2}, "a": 1})
    others = [{"a": 1, "b": {"c": 2, "d": 4}}, {"a": 1, "b": {"c": 2}}, {"a": "1", "b": {}}]
    assert len({first, *map(config.fingerprint, others)}) == 4


def test_differences_name_what_decides_a_result() -> None:
    _, old = composed("device=cpu", "fixmatch.lr=0.1")
    _, new = composed("device=cuda", "threads=2", "fixmatch.lr=0.2", "data.test=null")
    assert differences(old, new) == ["data.test: 50 -> None", "fixmatch.lr: 0.1 -> 0.2"]
    assert differences(old, old) == []
    assert differences({"a": 1}, {"b": 1}) == ["a: 1 -> None", "b: None -> 1"]


# The shipped hyper-parameters.


def assert_refused(kind: type[Algorithm], name: str, value: Any, *choices: str) -> None:
    """The message holds the field, what it may be, and what it was."""
    with pytest.raises(
        ValueError, match=rf"^{name} must be .*not {re.escape(repr(value))}"
    ) as info:
        kind.Config(**{name: value})
    assert all(choice in str(info.value) for choice in choices)


@pytest.mark.parametrize("kind", [Algorithm, Supervised, FixMatch, SelMix])
def test_ranges_that_hold_for_every_algorithm(kind: type[Algorithm]) -> None:
    for name in ("steps", "batch", "evaluate_every"):
        assert_refused(kind, name, 0)
    for value in (0.0, -0.1, math.nan):
        assert_refused(kind, "lr", value)
    for name in ("momentum", "ema"):
        assert_refused(kind, name, 1.0)
        assert_refused(kind, name, -0.1)
    assert_refused(kind, "weight_decay", -1e-4)
    assert_refused(kind, "schedule", "linear", "cosine_7_16", "cosine", "constant")
    assert_refused(kind, "ema_buffers", "drop", "copy", "average")
    assert_refused(kind, "keep", "first", "best", "last")


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (Supervised, "logit_adjustment", [-0.5]),
        (FixMatch, "mu", [0]),
        (FixMatch, "threshold", [1.1, -0.1, math.nan]),
        (FixMatch, "lambda_u", [-1.0]),
        (FixMatch, "temperature", [0.0, -1.0]),
        (FixMatch, "logit_adjustment", [-0.5]),
        (SelMix, "temperature", [0.0, -1.0]),
        (SelMix, "body_lr", [-0.1]),
        (SelMix, "smoothing", [1.0, -0.1]),
        (SelMix, "beta_min", [1.5, -0.1]),
        (SelMix, "policy", ["best"]),
        (SelMix, "mix", ["pixel"]),
        (SelMix, "batch_norm", ["off"]),
        (SelMix, "step", ["large"]),
    ],
)
def test_ranges_of_a_method(kind: type[Algorithm], name: str, values: list[Any]) -> None:
    for value in values:
        assert_refused(kind, name, value)


def test_ends_of_the_ranges_are_allowed() -> None:
    FixMatch.Config(threshold=0.0, lambda_u=0.0, logit_adjustment=0.0, ema=0.0, momentum=0.0)
    FixMatch.Config(threshold=1.0, steps=1, batch=1, mu=1, evaluate_every=1, weight_decay=0.0)
    SelMix.Config(smoothing=0.0, beta_min=0.0, body_lr=0.0)
    SelMix.Config(beta_min=1.0)


@pytest.mark.parametrize("name", ["supervised", "selmix", "crt", "lws", "mixup", "cutmix"])
def test_a_stage_that_draws_no_pool_has_no_mu(name: str) -> None:
    kind = load(name)[1].Config
    with pytest.raises(TypeError, match="unexpected keyword argument 'mu'"):
        kind(mu=7)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=rf"^unknown key '{name}\.mu': .* leave it out \(here\)"):
        compose({name: kind}, [("here", {f"{name}.mu": 7})])


def test_a_retired_key_of_an_older_run_is_no_difference_unless_it_had_an_effect() -> None:
    new = {"selmix": {"lr": 0.1}, "fixmatch": {"mu": 2}}
    assert differences({"selmix": {"lr": 0.1, "mu": 2}, "fixmatch": {"mu": 2}}, new) == []
    other = {"selmix": {"lr": 0.1, "mu": 3}, "fixmatch": {"mu": 4}}
    assert differences(other, new) == ["fixmatch.mu: 4 -> 2", "selmix.mu: 3 -> 2"]
    sections = {"selmix": SelMix.Config, "fixmatch": FixMatch.Config}
    recorded = {"selmix.mu": 2, "fixmatch.mu": 2, "fixmatch.lost": None, "seed": 1}
    kept = {"fixmatch.mu": 2, "fixmatch.lost": None, "seed": 1}
    assert without_retired(recorded, sections) == kept


@pytest.mark.parametrize("kind", [Algorithm, Supervised, FixMatch, SelMix])
def test_defaults_pass_their_own_rules(kind: type[Algorithm]) -> None:
    objects, _ = compose({"method": kind.Config}, [])
    assert objects["method"] == kind.Config()
