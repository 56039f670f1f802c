"""Long-tailed semi-supervised image classification: SSL baselines and SelMix fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_selmix.finetuning import finetune
    from ssl_selmix.prediction import predict
    from ssl_selmix.weights import load

__version__ = "0.1.0"
__all__ = ["__version__", "finetune", "load", "predict"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the command line shows its help without loading torch.
    if name == "finetune":
        from ssl_selmix.finetuning import finetune

        return finetune
    if name == "load":
        from ssl_selmix.weights import load

        return load
    if name == "predict":
        from ssl_selmix.prediction import predict

        return predict
    raise AttributeError(f"module 'ssl_selmix' has no attribute {name!r}")
