"""The checks of objectives: the shipped ones pass, and each check finds what it is for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

from ssl_selmix import contract
from ssl_selmix.common import plugins
from ssl_selmix.contract import goals
from ssl_selmix.contract.goals import GoalSubject

FUNCTIONS = """
def worst(c):
    recall = c.diagonal() / c.sum(1)
    return recall.min() + 0.1 * recall.mean()


def precision(c):
    return (c.diagonal() / c.sum(0)).mean()


def loss(c):
    return 1 - c.diagonal().sum()


def cut(c):
    return c.detach().diagonal().sum()


def jump(c):
    return c.diagonal().sum() + (c.detach() ** 2).sum() * 0.1


def root(c):
    return (c - c.detach()).abs().sqrt().sum() + c.diagonal().sum()


def inside(c):
    c[0, 0] += 0.0
    c.mul_(0.5)
    return c.diagonal().sum()


calls = []


def later(c):
    calls.append(c)
    return c.diagonal().sum() + len(calls)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    place = tmp_path / "mine.py"
    place.write_text(FUNCTIONS)
    return place


@pytest.mark.parametrize("name", [*sorted(plugins.objectives()), "worst"])
def test_a_good_objective_passes(name: str, file: Path, tmp_path: Path) -> None:
    subject = GoalSubject(f"{file}:worst" if name == "worst" else name)
    for check in contract.GOAL_CHECKS:
        check(subject, tmp_path / check.__name__)


BROKEN = (
    (goals.check_value, "precision", "must be a finite scalar .* where a class is never right"),
    (goals.check_pure, "inside", "changes the matrix; work on a copy|in-place"),
    (goals.check_pure, "later", "it says .*, then "),
    (goals.check_slope, "cut", "can be differentiated"),
    (goals.check_slope, "jump", "autograd gives .* changes by"),
    (goals.check_gain, "root", "it has no gradient for a matrix"),
    (goals.check_direction, "loss", "return the negative of a loss"),
    (goals.check_offsets, "loss", "no offsets can be chosen for it"),
    (goals.check_selmix, "root", "no numbers|not finite|NaN|nan"),
)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("check", "name", "message"), BROKEN)
def test_what_is_wrong_is_found(
    check: Callable[[GoalSubject, Path], None], name: str, message: str, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match=message):
        check(GoalSubject(f"{file}:{name}"), tmp_path / "folder")


def test_every_check_of_objectives_is_shown_to_find_something() -> None:
    assert {check for check, *_ in BROKEN} == set(contract.GOAL_CHECKS)
    titles = [inspect.getdoc(check) for check in contract.GOAL_CHECKS]
    assert all(titles) and len(set(titles)) == len(titles)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_command_tells_a_method_from_an_objective(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert contract.report(f"{file}:worst")
    assert "(objective): 7 passed, " in capsys.readouterr().out
    assert not contract.report(f"{file}:loss")
    with pytest.raises(ValueError, match="unknown name 'wrst'; did you mean worst"):
        contract.report(f"{file}:wrst")
    with pytest.raises(ValueError, match=r"if worst is an objective, write .*mine\.py:worst"):
        contract.report(str(file))
