"""The study of near copies prints what the finder finds of changed images."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies import near_copies
from tests.helpers.images import photo_tree


def test_copies_saved_anew_are_found_and_mirrored_ones_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo_tree(tmp_path, {"train": 10}, "ab", name="{i:02}.png")
    near_copies.main([str(tmp_path), "--images", "15"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("15 images, 105 pairs of different ones, 0 named")
    shares = {line[:25].strip(): float(line[25:38]) for line in lines[4:]}
    assert shares.keys() == near_copies.CHANGES.keys()
    assert shares["JPEG, quality 90"] == 100 and shares["mirrored"] == 0
    assert shares["2 % of each side cut off"] > shares["10 % of each side cut off"]
