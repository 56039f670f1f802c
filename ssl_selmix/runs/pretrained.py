"""The weights of somebody else that a run starts from: read once, known by their digest after."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor

from ssl_selmix import models
from ssl_selmix.common.paths import expanded
from ssl_selmix.models import pretrained
from ssl_selmix.models.input import InputSpec
from ssl_selmix.runs.weights import of_file
from ssl_selmix.training import checkpoint


def spec_of(config: models.Config) -> InputSpec:
    """What a network with a resolved configuration takes."""
    mean, std = tuple(config.mean), tuple(config.std)
    return InputSpec(config.size, mean, std, config.interpolation)


class Pretrained:
    """Weights of a pre-trained body, from its library or a file.

    `recorded` is the digest that a run has written down: then nothing is read before it is needed.
    """

    def __init__(self, config: models.Config, recorded: str = "") -> None:
        self._config, self._recorded = config, recorded

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        """By the names of the body.

        Raises:
            ValueError: they cannot be had, are of another network, or not those of the run.
        """
        config = self._config
        if pretrained.asks_library(config):
            found = pretrained.from_library(config)
        else:
            file = expanded(config.pretrained)
            if not file.is_file():
                raise ValueError(
                    f"model.pretrained={config.pretrained} is no file; get "
                    f"{pretrained.known(config).file} and give its place, or true, which fetches it"
                )
            found = pretrained.from_tensors(config, of_file(file), str(file))
        digest = checkpoint.digest(found)
        if self._recorded not in ("", digest):
            raise ValueError(
                f"model.pretrained={config.pretrained} has other weights (SHA-256 {digest}) than "
                f"the run began with ({self._recorded}); give those, or use another --out"
            )
        return found

    @cached_property
    def sha256(self) -> str:
        """Their digest."""
        return self._recorded or checkpoint.digest(self._tensors)

    def into(self, net: models.Classifier) -> None:
        """Give the network's body these weights."""
        net.backbone.load_state_dict(net.backbone.state_dict() | self._tensors)

    def plain(self) -> dict[str, Any]:
        """What results.json says of them."""
        config = self._config
        known = pretrained.known(config)
        asked = pretrained.asks_library(config)
        return {
            "name": config.name,
            "source": known.file if asked else config.pretrained,
            "sha256": self.sha256,
            "licence": known.licence,
            "input": str(spec_of(config)),
        }
