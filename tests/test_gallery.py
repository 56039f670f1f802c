"""examples/gallery: every script runs, is short, and draws one picture that needs no colour."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "examples" / "gallery"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def builder() -> Any:
    spec = importlib.util.spec_from_file_location("gallery_build", FOLDER / "_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_ten_and_each_has_its_picture_and_what_it_prints() -> None:
    assert len(SCRIPTS) == 10 and builder().names() == SCRIPTS
    for name in SCRIPTS:
        lines = (FOLDER / f"{name}.py").read_text("utf-8").splitlines()
        assert len(lines) < 60, name
        assert (FOLDER / f"{name}.txt").read_text("utf-8").strip(), name
        file = FOLDER / f"{name}.png"
        assert file.stat().st_size < 60_000
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        assert np.ptp(pixels, axis=2).max() <= 8, f"{name} tells something by colour"


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "timm_posthoc":
        pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPS", "2")
    monkeypatch.setenv("SSL_SELMIX_CACHE", "none")
    plt.switch_backend("agg")
    printed = builder().run(name)
    plt.close("all")
    out = capsys.readouterr().out
    assert printed and all(line in out for line in printed)
    with Image.open(f"{name}.png") as image:
        assert image.width > 300
