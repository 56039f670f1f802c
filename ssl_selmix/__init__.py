"""Long-tailed semi-supervised image classification: SSL baselines and SelMix fine-tuning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any
from warnings import warn

if TYPE_CHECKING:
    from ssl_selmix.decision import posthoc
    from ssl_selmix.deploy.model import predict
    from ssl_selmix.finetuning.finetune import finetune
    from ssl_selmix.runs.load import load


__version__ = "0.1.0"
__all__ = ["__version__", "finetune", "load", "posthoc", "predict"]


_PLACES = {
    "finetune": "finetuning.finetune",
    "load": "runs.load",
    "posthoc": "decision",
    "predict": "deploy.model",
}
# Modules of version 0.1 that documentation named, and where their contents are now.
_MOVED = {"forward": "methods.views", "image_files": "images.find", "stages": "runs.train"}


def __getattr__(name: str) -> Any:
    # Imported when asked for: the command line shows its help without loading torch.
    if name in _PLACES:
        return getattr(import_module(f"ssl_selmix.{_PLACES[name]}"), name)
    if name in _MOVED:
        text = f"ssl_selmix.{name} is ssl_selmix.{_MOVED[name]} now"
        warn(text, DeprecationWarning, stacklevel=2)
        return import_module(f"ssl_selmix.{_MOVED[name]}")
    place = f"ssl_selmix.{name}"
    try:
        if name.isidentifier() and not name.startswith("_"):
            return import_module(place)
    except ModuleNotFoundError as error:
        if error.name != place:  # something that the module needs is not installed
            raise
    raise AttributeError(f"module 'ssl_selmix' has no attribute {name!r}")
