"""A stage that is killed between two validations, and the same undisturbed."""

from pathlib import Path
from typing import Any

import pytest

from ssl_selmix.algorithm import Context
from ssl_selmix.contract.subjects import Subject, fit, make_data, saved

STEPS: dict[str, Any] = {"steps": 5, "evaluate_every": 2}


def checkpoints_of_killed_and_whole(
    subject: Subject, folder: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of what a killed and resumed stage ends with, and an undisturbed one."""
    data, _ = make_data()
    fit(subject.make(data, **STEPS), data, folder / "whole")
    algorithm = subject.make(data, **STEPS)
    after_step = algorithm.after_step

    def die(ctx: Context) -> None:
        after_step(ctx)
        if ctx.step == 3:
            raise KeyboardInterrupt

    algorithm.after_step = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fit(algorithm, data, folder / "killed")
    fit(subject.make(data, **STEPS), data, folder / "killed", resume=True)
    return saved(folder / "killed"), saved(folder / "whole")
