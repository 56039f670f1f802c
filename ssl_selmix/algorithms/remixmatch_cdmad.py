"""ReMixMatch + CDMAD: guesses and predictions less the logits of an image without content."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ssl_selmix.algorithm import Context
from ssl_selmix.algorithms.remixmatch import ReMixMatch
from ssl_selmix.data.batch import Batch
from ssl_selmix.methods import reference, remixmatch


class ReMixMatchCDMAD(reference.Debiased, ReMixMatch):
    """Lee & Kim, CVPR 2024, on ReMixMatch: debiased guesses, neither sharpened nor aligned.

    Their code aligns the guesses with the labeled classes if it is told that the pool is as skewed
    as the labeled images, which a method cannot know: `prior=labeled` does so. It mixes strong
    views of the labeled images and learns from their weak ones as well; here the weak ones are
    mixed, as in the other methods on ReMixMatch.
    """

    @dataclass
    class Config(ReMixMatch.Config, reference.TrainingConfig):
        """Hyper-parameters."""

        mu: int = 2
        prior: str = "none"
        temperature: float = 1.0  # T of the softmax of the guesses; 1: no sharpening
        lambda_u: float = 2.0
        lambda_r: float = 1.0  # lambda_r, weight of the rotation loss; 0.5 on STL-10
        ramp: float = 1.0  # lambda_U and lambda_U1 rise until the end
        # share of the steps from which guesses are corrected; 101 of 300 epochs
        debias_from: float = 0.337

    config: Config

    def guess(self, seen: remixmatch.Seen, batch: Batch, ctx: Context) -> Tensor:
        """Predictions of the weak views less b, M×K, without gradient."""
        logits = self.net.classifier(seen.weak.detach()).detach()
        return self.aim(self.debiased(logits, ctx.progress).softmax(1))
