"""FreeMatch: FixMatch with thresholds that follow its confidence, and a fairness loss."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_selmix.algorithms.fixmatch import FixMatch


class FreeMatch(FixMatch):
    """Wang et al., ICLR 2023: `methods.pseudo_labels.Free`.

    Made for equal classes: the fairness loss is meant to spread the predictions evenly, which a
    pool with a tail contradicts. `free_fairness=0` leaves the adaptive thresholds.
    """

    @dataclass
    class Config(FixMatch.Config):
        """Hyper-parameters; `threshold` is not used."""

        confidence: str = "free"
        logit_adjustment: float = 0.0  # tau of the labeled loss; none in the paper

    config: Config
