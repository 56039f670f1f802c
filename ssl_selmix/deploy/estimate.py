"""`ssl-selmix estimate RUN`: the class distribution of a finished run's unlabeled pool.

Shapes: K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from ssl_selmix import label_shift
from ssl_selmix.algorithm import Algorithm
from ssl_selmix.common.figures import limits, percent
from ssl_selmix.label_shift import Estimate
from ssl_selmix.models.execution import Execution
from ssl_selmix.runs import load
from ssl_selmix.runs.inputs import reload
from ssl_selmix.runs.plan import reopen
from ssl_selmix.training import engine


@dataclass(frozen=True)
class PoolEstimates:
    """Every estimate for a run's pool, (K,) each, and the truth where the pool has labels."""

    class_names: tuple[str, ...]
    labeled: Tensor  # class frequencies of the labeled images
    found: dict[str, Estimate]  # by the method that was asked for
    truth: Tensor | None

    def error(self, method: str) -> float:
        """L1 distance of an estimate from the truth."""
        assert self.truth is not None
        return float((self.found[method].prior - self.truth).abs().sum())

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "class_names": list(self.class_names),
            "labeled": self.labeled.tolist(),
            "truth": None if self.truth is None else self.truth.tolist(),
            "estimates": {
                asked: {
                    "prior": e.prior.tolist(),
                    "interval": e.interval.tolist(),
                    "method": e.method,
                    "note": e.note,
                    "condition_number": _finite(e.condition_number),
                    **({} if self.truth is None else {"l1_error": self.error(asked)}),
                }
                for asked, e in self.found.items()
            },
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def of_run(
    run: Path,
    methods: Sequence[str] = label_shift.METHODS,
    settings: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> PoolEstimates:
    """Estimate with the model that a run's last stage kept; held-out posteriors are validation's.

    Args:
        run: folder of a finished run.
        methods: of label_shift.METHODS.
        settings: key=value; where the run's images are now.
        trust: the file or module of the run's data set, which is executed, if it is not ours.

    Raises:
        ValueError: the folder is no finished run, its images are others, or code that it names is
            not trusted.
    """
    plan = reopen(run, settings, trust)
    inputs = reload(plan)
    data = inputs.data
    net = inputs.of_inputs(load.load(run).net).prepared(Execution(plan.run.precision), data.device)
    model = Algorithm(net, data.task, Algorithm.Config())
    if not data.task.num_unlabeled:
        raise ValueError(f"{run} has no unlabeled images, whose class distribution to estimate")
    seen = engine.evaluate(model, data, pool=True)
    assert seen.pool_logits is not None
    found = {
        method: label_shift.estimate(
            method,
            val_probs=seen.logits.double().softmax(1).cpu(),
            val_labels=seen.labels.cpu(),
            unlabeled_probs=seen.pool_logits.double().softmax(1).cpu(),
        )
        for method in methods
    }
    labels, k = inputs.diagnostics.labels, data.task.num_classes
    known = len(labels) > 0 and bool((labels >= 0).all())
    truth = torch.bincount(labels, minlength=k).double() / len(labels) if known else None
    return PoolEstimates(data.class_names, data.task.labeled_prior, found, truth)


def show(estimates: PoolEstimates, out: Console, shown: int = 30) -> None:
    """Print a column per method, in percent; the last method with its interval."""
    table = Table(title="class distribution of the unlabeled pool, percent", title_justify="left")
    for title in ("class", "labeled", *estimates.found):
        table.add_column(title, justify="left" if title == "class" else "right")
    last = list(estimates.found)[-1]
    table.add_column(f"95 % interval ({last})", justify="right")
    if estimates.truth is not None:
        table.add_column("truth", justify="right", style="bold")
    low, high = estimates.found[last].interval
    for k, name in enumerate(estimates.class_names[:shown]):
        row = [escape(name), percent(float(estimates.labeled[k]))]
        row += [percent(float(e.prior[k])) for e in estimates.found.values()]
        row.append(limits(float(low[k]), float(high[k]), between=" to ", signed=False))
        if estimates.truth is not None:
            row.append(percent(float(estimates.truth[k])))
        table.add_row(*row)
    if estimates.truth is not None:
        errors = [percent(estimates.error(method)) for method in estimates.found]
        labeled = percent(float((estimates.labeled - estimates.truth).abs().sum()))
        table.add_section()
        table.add_row("L1 error", labeled, *errors, "", "")
    if len(estimates.class_names) > shown:
        table.caption = f"the first {shown} of {len(estimates.class_names)} classes; --json has all"
    out.print(table)
    for asked, estimate in estimates.found.items():
        if estimate.note:
            text = f"{asked} fell back to {estimate.method}: {estimate.note}"
            out.print(text, highlight=False, markup=False)
    condition = estimates.found[last].condition_number
    out.print(f"condition number of the confusion matrix: {condition:.3g}", highlight=False)
