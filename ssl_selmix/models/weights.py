"""Weights from elsewhere into a network of ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ssl_selmix.models import classifier, published

NESTED = ("teacher", "algorithm", "state_dict", "model", "model_state_dict", "ema_model")
GAIN = "classifier.gain"  # of a network that ends in a decision rule
PREFIXES = ("module.", "_orig_mod.", "net.")


def bare_name(key: str) -> str:
    """The name of a tensor without the wrappers around its network."""
    while key.startswith(PREFIXES):
        key = key.partition(".")[2]
    return key


def load_into(net: classifier.Classifier, tensors: Mapping[str, Tensor]) -> list[str]:
    """Copy every tensor that fits into the network; say which of either side did not.

    Names of another library are tried with the body's prefix; its classifier, whatever its name,
    is recognised by its shape.

    Raises:
        ValueError: nothing fits.
    """
    if GAIN in tensors and not isinstance(net.classifier, classifier.Decided):
        net.classifier = classifier.Decided(net.classifier)
    wanted = net.state_dict()
    head = _foreign_head(net, tensors)
    known = published.names(tensors, wanted)
    found: dict[str, Tensor] = {}
    left: list[str] = []
    for key, value in tensors.items():
        module, _, kind = key.rpartition(".")
        names = (key, f"backbone.{key}", known.get(key))
        if names[2] == published.UNUSED:
            continue
        place = next((p for p in names if p in wanted), None)
        if place is None and head is not None and module == head:
            place = f"classifier.{kind}"
        if place is None or wanted[place].shape != value.shape:
            need = f", {place} needs {tuple(wanted[place].shape)}" if place else ""
            left.append(f"{key} {tuple(value.shape)}{need}")
        else:
            found[place] = value
    counted = [k for k in wanted if not k.endswith("num_batches_tracked")]
    if not any(k in found for k in counted):
        raise ValueError(
            "none of the tensors fits the network; set model.name to the network they were saved "
            f"from (first in the file: {', '.join(left[:3])})"
        )
    net.load_state_dict({**wanted, **found})
    missing = [k for k in counted if k not in found]
    notes = [f"not in the file, left as initialised: {', '.join(missing)}"] if missing else []
    return notes + ([f"in the file, did not fit: {', '.join(left)}"] if left else [])


def _foreign_head(net: classifier.Classifier, tensors: Mapping[str, Tensor]) -> str | None:
    """The one module of the file, not known to the network, that has its classifier's shape."""
    shape = net.classifier.weight.shape
    modules = [
        key.removesuffix(".weight")
        for key, value in tensors.items()
        if key.endswith(".weight") and value.shape == shape
    ]
    known = net.state_dict()
    foreign = [m for m in modules if not {f"{m}.weight", f"backbone.{m}.weight"} & known.keys()]
    return foreign[0] if len(foreign) == 1 else None
