"""A data set of three easy classes, small enough to train on within a test."""

import dataclasses
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.contract.subjects import make_source
from ssl_selmix.data import Data, ImageSet, assemble
from ssl_selmix.splits import Counts, LongTailSplit, Split
from tests.helpers import golden

# A busy machine is slow, which is no failure.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Share the cores among the processes of pytest-xdist, which inherit this environment."""
    if config.option.tx:
        share = max(1, (os.cpu_count() or 1) // len(config.option.tx))
        os.environ.setdefault("OMP_NUM_THREADS", str(share))


@pytest.fixture(scope="session", autouse=True)
def _hears_signals() -> None:
    """Under nohup SIGHUP is ignored, and SIGINT in a shell's background; tests send and want both.

    A program keeps to what its parent ignored.
    """
    for name, handler in (("SIGHUP", signal.SIG_DFL), ("SIGINT", signal.default_int_handler)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _no_width() -> Iterator[None]:
    """Output that goes nowhere has no width; pytest-xdist gives its processes one of 80."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept between runs goes with the tests, which write to nobody's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_SELMIX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With several processes, each tells the first one what it compared."""
    if (told := getattr(session.config, "workeroutput", None)) is not None:
        told["compared"] = {name: sorted(found) for name, found in golden.COMPARED.items()}
        told["outputs"] = dict(golden.OUTPUTS)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Collect what a process compared."""
    told = getattr(node, "workeroutput", {})
    golden.OUTPUTS.update(told.get("outputs", {}))
    for name, found in told.get("compared", {}).items():
        golden.COMPARED.setdefault(name, set()).update(found)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the recorded runs of published code, and how much of them was compared."""
    if any(golden.COMPARED.values()):
        terminalreporter.section("recorded outputs of published code, compared to 1e-5")
        for name, total in sorted(golden.OUTPUTS.items()):
            if total:  # else a file of another form, in the list below
                compared = len(golden.COMPARED[name])
                terminalreporter.write_line(f"{name}: {compared} of {total}")
        for name, test in golden.ELSEWHERE.items():
            terminalreporter.write_line(f"{name}: in {test}")


@pytest.fixture
def tiny_source() -> ImageSet:
    """90 noisy copies of three 8×8 patterns, 30 per class."""
    weak = Weak(pad=1, flip=False, padding="zeros")
    names = ("head", "body", "tail")
    source = make_source(3, per_class=30)
    return dataclasses.replace(source, class_names=names, weak=weak, strong=Strong(weak=weak))


@pytest.fixture
def tiny_split(tiny_source: ImageSet) -> Split:
    """12, 6, 3 labeled and 6, 8, 12 unlabeled images; 4 for validation, 5 to test, per class."""
    rule = LongTailSplit(Counts(12, rho=4), Counts(12, rho=2, reverse=True), validation=4, test=5)
    return rule.draw(tiny_source.train_labels, 3, seed=0)


@pytest.fixture
def tiny_data(tiny_source: ImageSet, tiny_split: Split) -> Data:
    """What a stage named 1-test trains on."""
    data, _ = assemble(tiny_source, tiny_split, seed=0, device=torch.device("cpu"))
    return data.at_stage("1-test")
