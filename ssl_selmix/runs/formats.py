"""The file formats of exported models: each writes a file and returns what it holds, loaded.

Shapes: N images, C×H×W pixels, K classes.
"""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_selmix import models
from ssl_selmix.common.atomic import beside
from ssl_selmix.models.classifier import Decided
from ssl_selmix.models.input import ToSize
from ssl_selmix.models.libraries import timm_sized
from ssl_selmix.runs.weights import Predictor

INPUT, OUTPUT = "images", "logits"
BATCHES = (1, 7)  # of the check; a batch size that a file has learnt by heart fails one of them
OTHER_NETWORK = 1e-3  # deviation that no rounding explains

Model = Callable[[Tensor], Tensor]
Found = tuple[Model, dict[str, Any]]  # the model of a file, and what to say of it


class Named(nn.Module):
    """A network with a name for messages.

    Shape: images N×C×H×W -> logits N×K.
    """

    def __init__(self, net: nn.Module, name: str) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.name = name
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits N×K."""
        logits: Tensor = self.net(images)
        return logits


class Deployed(Named):
    """A network as it is exported, with or without the normalisation of its images.

    Shape: images N×C×H×W -> logits N×K.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Predictor, name: str, normalise: bool) -> None:
        super().__init__(model.net, name)
        self.normalise, self.config = normalise, model.config
        self.image_shape = model.image_shape
        self.channels, self.num_classes = model.image_shape[0], len(model.class_names)
        self.register_buffer("mean", model.mean)
        self.register_buffer("std", model.std)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits N×K."""
        logits: Tensor = self.net((images - self.mean) / self.std if self.normalise else images)
        return logits


@torch.inference_mode()
def deviation(loaded: Model, model: Model, inputs: Sequence[Tensor]) -> float:
    """The largest difference of two logits N×K, relative to the largest; inf if one is no number.

    Shape: inputs, batches n×C×H×W that both models take.

    Raises:
        ValueError: the loaded model does not run.
    """
    worst = 0.0
    for images in inputs:
        try:
            found, expected = loaded(images), model(images)
        except Exception as error:  # runtimes raise nearly anything
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"what was written does not take a batch of {len(images)} ({reason}); "
                "use another format"
            ) from error
        if found.shape != expected.shape or not bool(found.isfinite().all()):
            return math.inf
        scale = float(expected.abs().max()) or 1.0
        worst = max(worst, float((found - expected).abs().max()) / scale)
    return worst


@contextmanager
def _explained(model: Named, kind: str) -> Iterator[None]:
    """Warnings are not shown, for the check decides; what torch refuses is told in a line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError:  # such as a full disk, which another format would meet as well
        raise
    except Exception as error:  # exporters raise nearly anything
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"torch cannot write {model.name} as {kind} ({type(error).__name__}: {reason}); "
            "use another format"
        ) from error


def _onnx(model: Named, path: Path, inputs: Sequence[Tensor]) -> Found:
    with _explained(model, "onnx"):
        torch.onnx.export(
            model,
            (inputs[-1],),
            path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,  # one file, of up to 2 GB
            verbose=False,
        )
        run, runtime = _onnx_runtime(path)
    return run, {"input_name": INPUT, "output_name": OUTPUT, "checked_with": runtime}


def _onnx_runtime(path: Path) -> tuple[Model, str]:
    """The file in onnxruntime, or else in the slow evaluator that comes with onnx."""
    import onnx  # type: ignore[import-not-found,import-untyped,unused-ignore]

    session: Any
    if find_spec("onnxruntime") is not None:
        import onnxruntime  # type: ignore[import-not-found,import-untyped,unused-ignore]

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        name = f"onnxruntime {onnxruntime.__version__}"
    else:
        from onnx.reference import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
            ReferenceEvaluator,
        )

        session = ReferenceEvaluator(onnx.load(path))
        name = f"onnx {onnx.__version__}"

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])

    return run, name


def _save(path: Path, save: Callable[[io.BytesIO], Any]) -> None:
    """Write a file by way of memory: torch ends the process if the disk is full."""
    content = io.BytesIO()
    save(content)
    path.write_bytes(content.getbuffer())


def _pt2(model: Named, path: Path, inputs: Sequence[Tensor]) -> Found:
    with _explained(model, "pt2"):
        dynamic = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(model, (inputs[-1],), dynamic_shapes=dynamic)
        _save(path, partial(torch.export.save, program))
        return torch.export.load(path).module(), {}


def _state_dict(model: Deployed, path: Path, inputs: Sequence[Tensor]) -> Found:
    """Named as in the library that the network comes from, if that gives the same logits."""
    if isinstance(model.net.classifier, Decided):
        raise ValueError(
            "this model ends in a gain matrix (posthoc.rule=gains), which a state dict of its "
            "network has no place for; use --onnx or --pt2"
        )
    tensors = model.net.state_dict()
    with torch.random.fork_rng([]), _explained(model, "state_dict"):
        if (theirs := _theirs(model)) is not None:
            net, head, code = theirs
            renamed = {_renamed(key, head): value for key, value in tensors.items()}
            _save(path, partial(torch.save, renamed))
            try:
                net.load_state_dict(torch.load(path, weights_only=True))
            except RuntimeError:  # it has tensors that are left out here, such as auxiliary heads
                pass
            else:
                sized, line = _sized(net.eval(), model)
                if deviation(sized, model, inputs) < OTHER_NETWORK:
                    return sized, {"load": _code(code, path) + line}
        _save(path, partial(torch.save, dict(tensors)))
        own = models.build(model.config, model.num_classes, model.channels)
        own.load_state_dict(torch.load(path, weights_only=True))
    config = f"models.Config({', '.join([repr(model.name), *_options(model)])})"
    arguments = f"{config}, {model.num_classes}, {model.channels}"
    return own.eval(), {
        "load": _code(f"from ssl_selmix import models\n\nnet = models.build({arguments})", path)
    }


def _sized(net: nn.Module, model: Deployed) -> tuple[nn.Module, str]:
    """A library's network on images of the run's size, and the line that enlarges them so."""
    to_size = model.net.to_size
    if not isinstance(to_size, ToSize) or model.image_shape[1:] == (to_size.size, to_size.size):
        return net, ""
    size, mode = (to_size.size, to_size.size), to_size.interpolation
    line = f"net = torch.nn.Sequential(torch.nn.Upsample({size}, mode={mode!r}), net)\n"
    return nn.Sequential(nn.Upsample(size, mode=mode), net), line


def _options(model: Deployed) -> list[str]:
    """What decides the shape of a network beside its name, as arguments."""
    config = model.config
    names = ["size", "interpolation"] if config.size else []
    names += ["tune", "rank", "scale"] if config.tune == "adapter" else []
    # A pre-trained network takes colours; building one reads no weights.
    grey = ["pretrained='true'"] if config.starts_trained and model.channels == 1 else []
    return [f"{name}={getattr(config, name)!r}" for name in names] + grey


def _code(network: str, path: Path) -> str:
    """All that somebody needs to type, in the file's folder, to have the model."""
    lines = [
        f"import torch\n{network}",
        f"net.load_state_dict(torch.load({path.name!r}, weights_only=True))",
        "net.eval()  # or batch norms take the statistics of the batch, and predictions differ",
    ]
    return "\n".join(lines) + "\n"


def _renamed(key: str, head: str) -> str:
    part, _, rest = key.partition(".")
    return rest if part == "backbone" else f"{head}.{rest}"


def _theirs(model: Deployed) -> tuple[nn.Module, str, str] | None:
    """The network as its library builds it, the name of its last layer, and the code for it."""
    library, _, name = model.name.partition(":")
    k = model.num_classes
    net: nn.Module
    if library == "torchvision":
        from torchvision.models import get_model

        net = get_model(name, weights=None, num_classes=k)
        linears = [key for key, module in net.named_modules() if isinstance(module, nn.Linear)]
        made = f"get_model({name!r}, weights=None, num_classes={k})"
        return net, linears[-1], f"from torchvision.models import get_model\n\nnet = {made}"
    if library == "timm":
        import timm

        sized = timm_sized(name, model.config.size)
        net = timm.create_model(name, num_classes=k, in_chans=model.channels, **sized)
        head = net.get_classifier()  # type: ignore[operator]
        heads = [key for key, module in net.named_modules() if module is head]
        more = "".join(f", {key}={value}" for key, value in sized.items())
        made = f"timm.create_model({name!r}, num_classes={k}, in_chans={model.channels}{more})"
        return (net, heads[0], f"import timm\n\nnet = {made}") if heads else None
    return None


def write_checked(
    kind: str, path: Path, model: Named, inputs: Sequence[Tensor], tolerance: float
) -> None:
    """Write a file of one of PLAIN beside its place, and move it there if it gives the logits.

    Raises:
        ValueError: it does not, or the format cannot hold the model.
    """
    if not path.parent.is_dir():
        raise ValueError(f"no folder {path.parent}; create it")
    for name in ("onnx", "onnxscript") if kind == "onnx" else ():
        if find_spec(name) is None:
            raise ValueError(f"ONNX needs the package {name}; pip install 'ssl_selmix[onnx]'")
    with beside(path) as folder:
        made = folder / path.name
        loaded, _ = PLAIN[kind](model, made, inputs)
        found = deviation(loaded, model, inputs)
        if not found <= tolerance:
            raise ValueError(
                f"{path} is not written: as {kind} the model deviates by {found:.1e} of its "
                f"largest logit, and {tolerance:g} is allowed; use another format"
            )
        made.replace(path)


Writer = Callable[[Deployed, Path, Sequence[Tensor]], Found]
# Of any network, with dynamic batches.
PLAIN: dict[str, Callable[[Named, Path, Sequence[Tensor]], Found]] = {"onnx": _onnx, "pt2": _pt2}
WRITERS: dict[str, Writer] = {**PLAIN, "state_dict": _state_dict}
