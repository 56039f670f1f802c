"""The images of a run: where they come from, how they are split, what batches are made of them."""

from ssl_selmix.data.pool import Data
from ssl_selmix.data.source import Diagnostics, ImageSet, Source, assemble

__all__ = ["Data", "Diagnostics", "ImageSet", "Source", "assemble"]
