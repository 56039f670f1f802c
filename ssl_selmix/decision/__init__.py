"""Decision rules chosen on held-out scores, for the figure that matters, without training."""

from __future__ import annotations

from ssl_selmix.decision.choose import posthoc
from ssl_selmix.decision.rule import DecisionRule

__all__ = ["DecisionRule", "posthoc"]
