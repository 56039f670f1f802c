"""When to end a fine-tuning stage early."""

from __future__ import annotations

from typing import Any

from torch import nn

WINDOW = 10  # gains looked back on by the paper's rule
FLAT = 0.05  # relative distance of their mean from the last one


class Stopping(nn.Module):
    """Watches the largest gain and the objective, one pair of figures per re-estimation.

    gain: the last ten largest gains have a mean within 5 % of the last one (SelMix, released code);
    gains that are all zero end the stage too, which the released code misses. patience: no better
    objective for `patience` re-estimations, with those that were `missed`. none: never.
    """

    def __init__(self, rule: str, patience: int) -> None:
        super().__init__()
        self.rule, self.patience = rule, patience
        self.gains: list[float] = []
        self.best, self.since = -float("inf"), 0

    def get_extra_state(self) -> dict[str, Any]:
        """The plain numbers, for checkpoints."""
        return {"gains": list(self.gains), "best": self.best, "since": self.since}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the plain numbers."""
        self.gains, self.best = list(state["gains"]), state["best"]
        self.since = state["since"]

    def record(self, gain: float, objective: float) -> None:
        """Add the figures of one re-estimation."""
        self.gains = [*self.gains[1 - WINDOW :], gain]
        self.since = 0 if objective > self.best else self.since + 1
        self.best = max(self.best, objective)

    def missed(self) -> None:
        """The steps before a re-estimation were taken back: there is nothing better."""
        self.since += 1

    @property
    def finished(self) -> bool:
        """Whether the rule says to stop."""
        if self.rule == "patience":
            return self.since >= self.patience
        if self.rule == "gain" and len(self.gains) == WINDOW:
            mean = sum(self.gains) / WINDOW
            return abs(mean - self.gains[-1]) <= FLAT * abs(mean)
        return False
