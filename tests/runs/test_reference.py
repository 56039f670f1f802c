"""Every setting of everything has a meaning, and `list` and `explain` tell it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ssl_selmix.common import plugins
from ssl_selmix.common.rules import Checked, at_least, one_of
from ssl_selmix.runs import reference


def test_every_setting_of_every_config_has_a_meaning_and_says_what_it_may_be() -> None:
    found = reference.everything()
    assert len(found) > 400
    assert not [label for label, entry in found if len(entry.meaning) < 4 or not entry.values]


@pytest.mark.parametrize("name", sorted(plugins.available("algorithm")))
def test_a_method_is_listed_with_all_that_can_be_set(name: str) -> None:
    shown = reference.of_name(name)
    lines = shown.splitlines()
    assert lines[0].startswith(f"{name}: ") and f"({name}.KEY=VALUE):" in shown
    for _, entry in reference.everything():
        if entry.key.startswith(f"{name}."):
            row = f"  {entry.name}={entry.default} "
            assert sum(f"{line} ".startswith(row) for line in lines) == 1, entry


def test_paper_symbols_defaults_and_rules_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")  # a row is a line then, whatever terminal there is
    shown = {" ".join(line.split()) for line in reference.of_name("fixmatch").splitlines()}
    for row in (
        "lambda_u=1.0 number >= 0 lambda_u, weight of the unlabeled loss",
        "mu=2 whole number >= 1 mu, unlabeled images per labeled image",
        "threshold=0.95 number in [0, 1] tau of fixed and flex, from which a label counts",
        "select=mean_recall text figure on validation by which keep=best chooses",
    ):
        assert row in shown


@pytest.mark.parametrize("name", sorted(plugins.available("dataset")))
def test_a_data_set_is_listed_with_its_presets(name: str) -> None:
    shown = reference.of_name(name)
    assert "labeled.rho=" in shown and "validation=" in shown
    for preset in plugins.presets():
        named = plugins.preset_dataset(preset) == name
        assert (f"\n  {preset} " in shown) == named


@dataclass
class Inner(Checked):
    largest: int  # N1
    kind: str = one_of("a", "b")  # which


@dataclass
class Outer(Checked):
    inner: Inner = field(default_factory=lambda: Inner(3, "b"))
    share: float | None = at_least(0, None)  # of all
    told: int = field(default=2, metadata={"meaning": "told elsewhere", "rule": "> 1"})


def test_groups_defaults_and_meanings_of_a_config() -> None:
    found = list(reference.entries("x", Outer))
    assert found == [
        reference.Entry("x.inner.largest", "3", "whole number", "N1"),
        reference.Entry("x.inner.kind", "b", "a|b", "which"),
        reference.Entry("x.share", "null", "number >= 0 or null", "of all"),
        reference.Entry("x.told", "2", "whole number > 1", "told elsewhere"),
    ]
    assert next(reference.entries("", Inner)).default == "(to be set)"


def test_explain_tells_defaults_and_presets_of_a_key_and_of_a_word() -> None:
    told = reference.explain("fixmatch.steps=3")
    assert told.startswith(
        "fixmatch.steps\n  T, how many steps the optimizer takes\n  may be: whole number >= 1\n"
    )
    assert "default: 10000" in told and "fixmatch.steps=1000 (digits)" in told
    told = reference.explain("beta_min")
    assert told.startswith("selmix.beta_min\n  mixing weight beta ~ U[beta_min, 1]\n")
    assert reference.explain("rho").startswith("data.labeled.rho of arrays and ")
    assert "default: 15.0 (data.labeled.rho of digits, " in reference.explain("rho")


def test_presets_sweeps_objectives_and_sections_are_listed() -> None:
    assert plugins.preset_text("cifar10-lt").rstrip() in reference.of_name("cifar10-lt")
    shown = reference.of_name("digits")  # of three kinds
    for part in ("settings (data.KEY=VALUE)", "preset digits (--preset", "sweep digits (ssl-sel"):
        assert part in shown
    shown = reference.of_name("mean_recall_min_coverage")
    assert "selmix.objective=mean_recall_min_coverage" in shown and "alpha=null" in shown
    assert "step_size" not in shown
    for name, key in (("run", "seed=0"), ("model", "name=wrn-28-2"), ("views", "lazy=false")):
        assert f"  {key} " in reference.of_name(name)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("from ssl_selmix.algorithm import Algorithm\nclass A(Algorithm):\n    pass", "algorithm"),
        ("Config = load = int", "dataset"),
    ],
)
def test_what_a_file_of_ones_own_is(text: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    assert reference.kind_of(str(file)) == kind
    file.write_text("def first(c):\n    return c[0, 0]\n")
    assert reference.kind_of(f"{file}:first") == "objective"
    with pytest.raises(ValueError, match=r"no method and no data set .*write .*mine\.py:first"):
        reference.kind_of(str(file))
