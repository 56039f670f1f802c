"""FlexMatch: FixMatch that asks less confidence of classes that it has learned less of."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_selmix.algorithms.fixmatch import FixMatch


class FlexMatch(FixMatch):
    """Zhang et al., NeurIPS 2021: `methods.pseudo_labels.Flex`.

    Made for equal classes. On a long-tailed pool the counts behind the thresholds follow the tail
    as well as the learning: a rare class stays lenient for good, a frequent one reaches tau first.
    """

    @dataclass
    class Config(FixMatch.Config):
        """Hyper-parameters; the paper's T = 0.5 has no effect on hard pseudo-labels."""

        confidence: str = "flex"
        logit_adjustment: float = 0.0  # tau of the labeled loss; none in the paper

    config: Config
