"""What a stage without steps is told about the objective that it chooses something for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ssl_selmix import objectives
from ssl_selmix.algorithm import Algorithm, Task
from ssl_selmix.decision.goal import build


@dataclass
class Config(Algorithm.FixedConfig, objectives.Config):
    """Which objective, without the settings of multipliers that go by steps."""

    objective: str = "h_mean"  # a name, or a function of the confusion matrix in a file
    step_size: ClassVar[None] = None  # type: ignore[misc]
    beta: ClassVar[None] = None  # type: ignore[misc]
    tau: ClassVar[None] = None  # type: ignore[misc]
    lambda_max: ClassVar[None] = None  # type: ignore[misc]


def objective_of(config: Config, task: Task) -> objectives.Objective:
    """The objective with its constraints; a function of one's own may be one without a gradient.

    Raises:
        ValueError: there is no such objective, or it has no such option.
    """
    if config.objective in objectives.DESCRIPTIONS:
        return config.build_objective(task.num_classes, task.tail)
    if config.alpha is not None:
        raise ValueError(f"alpha={config.alpha} belongs to the objectives *_coverage; omit it")
    terms = [objectives.import_function(c) for c in config.constraints]
    return build(objectives.import_function(config.objective), task.num_classes, terms)
