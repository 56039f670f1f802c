"""SoftMatch: FixMatch that weighs every pseudo-label by its confidence instead of a threshold."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_selmix.algorithms.fixmatch import FixMatch


class SoftMatch(FixMatch):
    """Chen et al., ICLR 2023: `methods.pseudo_labels.Soft`.

    Made for equal classes: the alignment gives more weight to classes that are predicted seldom.
    On a long-tailed pool that favours the tail; labels stay those of the plain predictions.
    """

    @dataclass
    class Config(FixMatch.Config):
        """Hyper-parameters; `threshold` is not used, and `mask_rate` logs the mean weight."""

        confidence: str = "soft"
        logit_adjustment: float = 0.0  # tau of the labeled loss; none in the paper

    config: Config
