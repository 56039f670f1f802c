"""Networks: a body that makes features and a linear classifier."""

from ssl_selmix.models.backbones import Config, build
from ssl_selmix.models.classifier import Classifier

__all__ = ["Classifier", "Config", "build"]
