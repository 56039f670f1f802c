"""Recorded runs of published code (tests/golden): reading them, and networks that replay them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ssl_selmix.algorithm import Algorithm, Batch, Context, Task, load
from ssl_selmix.models import Classifier

GOLDEN = Path(__file__).parents[1] / "golden"
Vectors = dict[str, Tensor]


# File -> number of recorded outputs, and those that a test compared; for the end of a test run.
OUTPUTS: dict[str, int] = {}
COMPARED: dict[str, set[str]] = {}
ELSEWHERE = {  # files of another form, and the tests that compare with them
    "dataset_counts.json": "test_splits.py",
    "fixmatch_losses.npz": "test_losses.py",
    "metrics.json": "test_metrics.py",
    "objectives_K3.npz": "test_objectives.py and test_gains.py",
    "sampler.npz": "test_data.py",
    "schedules.json": "test_engine.py",
}


class Recording(dict[str, Tensor]):
    """The arrays of a file, which knows the file's name."""

    name = ""


def read(name: str) -> Vectors:
    """All arrays of a file, keyed by `case.in.name` and `case.out.name`; some have slashes."""
    arrays = np.load(GOLDEN / name).items()
    numbers = {
        k.replace("/in/", ".in.").replace("/out/", ".out."): np.asarray(v)
        for k, v in arrays
        if v.dtype.kind != "U"  # versions are strings
    }
    found = Recording({k: torch.from_numpy(v) for k, v in numbers.items()})
    found.name = name
    OUTPUTS[name] = sum(".out." in key for key in found)
    COMPARED.setdefault(name, set())
    return found


def cases(vectors: Vectors) -> set[str]:
    """The names of the recorded cases."""
    return {k.rpartition(".in.")[0] or k.rpartition(".out.")[0] for k in vectors}


def part(vectors: Vectors, case: str, side: str) -> Vectors:
    """What went into a case (`in`) or came out of it (`out`), by name."""
    start = f"{case}.{side}."
    return {k.removeprefix(start): v for k, v in vectors.items() if k.startswith(start)}


def assert_reproduces(
    vectors: Vectors, case: str, got: Vectors, without: Sequence[str] = ()
) -> None:
    """Every recorded output of the case has its counterpart in `got`, within 1e-5."""
    expected = part(vectors, case, "out")
    assert expected, case
    for name, value in expected.items():
        if name in without:
            continue
        found = got[name].detach()
        if isinstance(vectors, Recording):
            COMPARED[vectors.name].add(f"{case}.out.{name}")
        if not value.is_floating_point():
            assert torch.equal(found.to(value.dtype), value), name
        else:
            torch.testing.assert_close(found.to(value.dtype), value, rtol=1e-5, atol=1e-5, msg=name)


class Recorded(Classifier):
    """Features are parameters; an "image" is the number of the row it gets.

    Without a classifier the recorded rows are the logits themselves; it is made anew from its rows.
    """

    def __init__(self, rows: Tensor, classifier: nn.Linear | None = None) -> None:
        body, head = nn.Identity(), nn.Linear(1, rows.shape[1])
        super().__init__(body, head, rebuild=lambda: Recorded(self.rows.detach()))
        self.rows = nn.Parameter(rows.clone())
        self.classifier = classifier or nn.Identity()  # type: ignore[assignment]

    def features(self, x: Tensor) -> Tensor:
        return self.rows[x[:, 0, 0, 0].long()]


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with recorded weights K×D and bias (K,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


class Given:
    """Views that exist already."""

    def __init__(self, views: Sequence[Tensor]) -> None:
        self._views = views

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, view: int) -> Tensor:
        return self._views[view]

    def select(self, view: int, rows: Tensor) -> Tensor:
        return self._views[view][rows]


def batch_of(sizes: Sequence[int], y: Tensor) -> Batch:
    """Images that are row numbers: sizes[0] labeled ones, then the views of the unlabeled."""
    numbers = torch.arange(sum(sizes), dtype=torch.float32)[:, None, None, None]
    x, *views = numbers.split(list(sizes))
    return Batch(x, y, Given(views), torch.arange(len(views[0]) if views else 0))


def task_of(counts: Tensor, num_unlabeled: int = 16, num_validation: int = 0) -> Task:
    """A task with these labeled counts (K,)."""
    names = tuple(map(str, range(len(counts))))
    return Task(names, counts.double(), num_unlabeled, num_validation)


def run_step(name: str, given: Vectors, **settings: float) -> tuple[Algorithm, Vectors]:
    """One step of an algorithm on recorded logits: its losses, logs and logit gradients."""
    blocks = [given[k] for k in ("logits_x", "logits_u_w", "logits_u_s") if k in given]
    net = Recorded(torch.cat(blocks))
    counts = given.get("counts", given.get("prior", torch.ones(blocks[0].shape[1])))
    kind = load(name)[1]
    algorithm = kind(net, task_of(counts), kind.Config(**settings))  # type: ignore[arg-type]
    batch = batch_of([len(block) for block in blocks], given["y"])
    parts, logs = algorithm(batch, Context(0, 1, algorithm))
    loss = torch.stack(list(parts.values())).sum()
    loss.backward()
    assert net.rows.grad is not None
    gradients = net.rows.grad.split([len(block) for block in blocks])
    names = ("grad_logits_x", "grad_logits_u_w", "grad_logits_u_s")
    return algorithm, {"loss": loss, **parts, **logs} | dict(zip(names, gradients, strict=False))
