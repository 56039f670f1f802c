"""All checks, and their report."""

from __future__ import annotations

import inspect
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ssl_selmix.common.names import blame
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
    check_forwards,
    check_frozen,
    check_gradients,
    check_logs,
    check_optimizer_groups,
    check_views,
)
from ssl_selmix.contract.subjects import Broken, Skipped, Subject, subject

Check = Callable[[Subject, Path], None]
CHECKS: tuple[Check, ...] = (
    check_gradients,
    check_logs,
    check_optimizer_groups,
    check_frozen,
    check_on_validation,
    check_views,
    check_forwards,
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


def outcomes(subject: Subject) -> Iterator[Outcome]:
    """Every check on one algorithm, each in a folder of its own."""
    for check in CHECKS:
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
                    blame(error, inspect.getfile(subject.kind)),
                    traceback.format_exc(),
                )
            else:
                yield Outcome(title, "passed")


def report(name: str, debug: bool = False) -> bool:
    """Print a line for each check and a summary; True if none failed.

    Raises:
        ValueError: there is no such algorithm, or its file cannot be imported.
    """
    since = time.perf_counter()
    found = subject(name)
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    for outcome in outcomes(found):
        counts[outcome.verdict] += 1
        reason = f": {outcome.reason}" if outcome.reason else ""
        print(f"{outcome.verdict:7}  {outcome.title}{reason}", flush=True)
        if debug and outcome.trace:
            print(outcome.trace)
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    print(f"{found.name} ({found.kind.__name__}): {summary}, {time.perf_counter() - since:.1f} s")
    return not counts["failed"]
