"""Networks: a body that makes features and a linear classifier."""

from ssl_selmix.models.backbones import Config, build
from ssl_selmix.models.classifier import Classifier
from ssl_selmix.models.tuning import merged, tune

__all__ = ["Classifier", "Config", "build", "merged", "tune"]
