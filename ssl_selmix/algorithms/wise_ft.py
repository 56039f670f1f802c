"""WiSE-FT: weights on the line between start and end of the stage before, chosen on validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_selmix import objectives
from ssl_selmix.algorithm import Algorithm, Context, Evaluation
from ssl_selmix.common.rules import at_least
from ssl_selmix.data.batch import Task
from ssl_selmix.methods import aim, weight_line
from ssl_selmix.models import Classifier


class WiseFT(Algorithm):
    """Wortsman et al., CVPR 2022: theta = (1 - alpha) theta_start + alpha theta_end.

    After `--algo fixmatch --then selmix` the start is what FixMatch handed on and the end what
    SelMix made of it. Nothing is trained: the validation images choose alpha.
    """

    trains = False
    needs_origin = True
    views: Sequence[str] = ()

    @dataclass
    class Config(aim.Config):
        """Which point of the line is the best."""

        points: int = at_least(2, 21)  # networks on the line, both ends among them, as published

    config: Config
    alpha: Tensor  # of the chosen point

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        net.requires_grad_(False)
        self.objective = aim.objective_of(config, task)
        self.register_buffer("alpha", torch.ones((), dtype=torch.float64))
        self._remarks: tuple[str, ...] = ()

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """Measure every point of the line, and move to the best one."""
        assert ctx.origin is not None, "the engine gives it to whoever needs_origin"
        start = weight_line.weights_of(ctx.origin)
        points = weight_line.choose(
            *(self.net, start, self.config.points, self.objective),
            evaluate=lambda: ctx.evaluate(self),
        )
        chosen = weight_line.best(points)
        self.alpha.fill_(chosen.alpha)
        same = sum(p.rank[:3] == chosen.rank[:3] for p in points)
        self._remarks = (
            f"alpha = {chosen.alpha:.3g} of {len(points)} points (0: the start, 1: the end of the "
            f"stage before); objective {points[0].objective:.4f} at 0, {chosen.objective:.4f} "
            f"there, {points[-1].objective:.4f} at 1."
            + (f" {same} points tie; of those the middle is nearest." if same > 1 else ""),
        )
        logs = objectives.report(self.objective, evaluation.confusion, ranked=False)
        found = {"start": points[0].objective, "after": chosen.objective}
        logs |= {f"objective_{name}": torch.tensor(value) for name, value in found.items()}
        return logs | {"alpha": self.alpha.clone()}

    def remarks(self) -> Sequence[str]:
        """Which point was chosen, and what its ends are worth."""
        return self._remarks
