"""All checks, and their report."""

from __future__ import annotations

import inspect
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_selmix.common import plugins
from ssl_selmix.common.names import blame
from ssl_selmix.contract.data_sets import DATA_CHECKS, DataSubject, check_words
from ssl_selmix.contract.goals import GOAL_CHECKS, GoalSubject
from ssl_selmix.contract.life import (
    check_best,
    check_evaluation,
    check_export,
    check_on_validation,
    check_origin,
    check_resume,
    check_starts,
    check_state,
    check_teacher,
)
from ssl_selmix.contract.limits import (
    check_missing_in_batch,
    check_missing_in_labeled,
    check_no_pseudo_labels,
    check_pool_labels,
)
from ssl_selmix.contract.settings import (
    check_config_nan,
    check_config_refuses,
    check_config_yaml,
    check_listing,
)
from ssl_selmix.contract.step import (
    check_batches,
    check_curriculum,
    check_forwards,
    check_frozen,
    check_gradients,
    check_logs,
    check_optimizer_groups,
    check_pseudo_labels,
    check_views,
)
from ssl_selmix.contract.subjects import Broken, Skipped, Subject, subject
from ssl_selmix.contract.weights import check_weights
from ssl_selmix.runs import reference

Check = Callable[[Subject, Path], None]
DataCheck = Callable[[DataSubject, Path], None]
CHECKS: tuple[Check, ...] = (
    check_gradients,
    check_logs,
    check_optimizer_groups,
    check_curriculum,
    check_frozen,
    check_on_validation,
    check_views,
    check_forwards,
    check_pseudo_labels,
    check_weights,
    check_batches,
    check_teacher,
    check_evaluation,
    check_export,
    check_starts,
    check_origin,
    check_state,
    check_resume,
    check_best,
    check_pool_labels,
    check_missing_in_batch,
    check_missing_in_labeled,
    check_no_pseudo_labels,
    check_config_refuses,
    check_config_nan,
    check_config_yaml,
    check_listing,
)


@dataclass(frozen=True)
class Outcome:
    """What became of a check: passed, failed or skipped, the reason, and the traceback."""

    title: str
    verdict: str
    reason: str = ""
    trace: str = ""


def outcomes(
    subject: Any, checks: Sequence[Callable[[Any, Path], None]] | None = None, file: str = ""
) -> Iterator[Outcome]:
    """Every check on one algorithm, data set or objective, each in a folder of its own.

    Args:
        subject: what the checks take.
        checks: of that kind of subject; None: those of algorithms.
        file: that it is in; "": that of the algorithm.
    """
    for check in CHECKS if checks is None else checks:
        title = (inspect.getdoc(check) or check.__name__).partition("\n")[0].rstrip(".")
        with tempfile.TemporaryDirectory() as folder:
            try:
                check(subject, Path(folder))
            except Skipped as reason:
                yield Outcome(title, "skipped", str(reason))
            except Broken as error:
                yield Outcome(title, "failed", str(error), traceback.format_exc())
            except Exception as error:
                yield Outcome(
                    title,
                    "failed",
                    blame(error, file or inspect.getfile(subject.kind)),
                    traceback.format_exc(),
                )
            else:
                yield Outcome(title, "passed")


def report(name: str, debug: bool = False, settings: Sequence[str] = ()) -> bool:
    """Print a line for each check and a summary; True if none failed.

    Args:
        name: of an algorithm, a data set or an objective; a path or dotted name of one's own.
        debug: print tracebacks of failed checks.
        settings: data.key=value, of a data set.

    Raises:
        ValueError: there is nothing of the name, its file cannot be imported, or a setting is none.
    """
    since = time.perf_counter()
    title, found = _found(name, settings)
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    for outcome in found:
        counts[outcome.verdict] += 1
        reason = f": {outcome.reason}" if outcome.reason else ""
        print(f"{outcome.verdict:7}  {outcome.title}{reason}", flush=True)
        if debug and outcome.trace:
            print(outcome.trace)
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    print(f"{title}: {summary}, {time.perf_counter() - since:.1f} s")
    return not counts["failed"]


def _found(name: str, settings: Sequence[str]) -> tuple[str, Iterator[Outcome]]:
    """What the name means, in words, and what its checks find."""
    kind = reference.kind_of(name)
    if settings and kind != "dataset":
        raise ValueError(
            f"{settings[0]} is a setting, which data sets take in checks and {name} does not; see "
            "ssl-selmix check --help"
        )
    if kind == "algorithm":
        method = subject(name)
        return f"{method.name} ({method.kind.__name__})", outcomes(method)
    if kind == "dataset":
        data = DataSubject(name, settings)
        file = inspect.getfile(data.module)
        check_words(settings)
        _ = data.config  # a mistake in the settings is no broken promise
        if name in plugins.available("dataset"):
            _ = data.source  # nor are files that are missing
        return f"{name} (data set)", outcomes(data, DATA_CHECKS, file)
    goal = GoalSubject(name)
    goal.make(3)
    return f"{name} (objective)", outcomes(goal, GOAL_CHECKS, name.rpartition(":")[0])
