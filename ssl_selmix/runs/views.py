"""What of a run's images becomes their views, and how a step looks at these."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from ssl_selmix.augment.augmix import AugMix, Mixing
from ssl_selmix.augment.ops import OPS
from ssl_selmix.augment.tensor import Weak
from ssl_selmix.common.rules import one_of
from ssl_selmix.data import ImageSet
from ssl_selmix.data.features import FeatureSet
from ssl_selmix.data.source import Source
from ssl_selmix.models import execution


@dataclass
class Config(execution.ViewsConfig, Mixing):
    """How a step looks at its views, and how strong views are made."""

    # how strong views are made of weak ones. randaugment: a few operations and a grey square, with
    # the data set's settings; augmix: a mixture of chains of operations
    strong: str = one_of("randaugment", "augmix")

    def __post_init__(self) -> None:
        """Refuse settings of a mixture where nothing is mixed."""
        execution.ViewsConfig.__post_init__(self)
        Mixing.__post_init__(self)
        for setting in fields(Mixing) if self.strong != "augmix" else ():
            if (value := getattr(self, setting.name)) != setting.default:
                raise ValueError(
                    f"{setting.name}={value} mixes nothing with strong={self.strong}; set "
                    "views.strong=augmix, too"
                )


def augmented(source: Source, config: Config) -> Source:
    """The same images, with the strong views that the settings ask for.

    An operation that the data set's own strong views leave out stays out.

    Raises:
        ValueError: these are features, or the data set leaves out all operations.
    """
    if config.strong == "randaugment":
        return source
    if isinstance(source, FeatureSet):
        raise ValueError(
            f"views.strong={config.strong} is for images, and these are features, whose views were "
            "drawn when they were made; leave it out"
        )
    own = getattr(source.strong, "ops", OPS)
    ops = tuple(name for name in config.augmix_operations if name in own)
    if not ops:
        raise ValueError(
            f"views.strong={config.strong} has none of the operations that this data set allows "
            f"({', '.join(own)}); leave it out"
        )
    mix = AugMix(
        weak=source.strong.weak if isinstance(source, ImageSet) else Weak(pad=0, flip=False),
        width=config.augmix_width,
        depth=config.augmix_depth,
        severity=config.augmix_severity,
        alpha=config.augmix_alpha,
        ops=ops,
    )
    return replace(source, strong=mix)
