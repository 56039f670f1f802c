"""A picture of the gains and of P at the re-estimations of a run, from its metrics.jsonl.

python -m studies.plot_pairs runs/digits-fixmatch-selmix-seed0 docs/figures/pairs.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def estimates(run: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows with a new P, and the class names."""
    (stage,) = run.glob("*-selmix")
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    names = json.loads((run / "manifest.json").read_text())["class_names"]
    return [r for r in rows if "pair_distribution" in r], names


def main() -> None:
    """Draw the first, a middle and the last re-estimation."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    found, names = estimates(args.run)
    shown = [found[0], found[len(found) // 2], found[-1]]
    figure = Figure(figsize=(9.6, 6.6), dpi=110, layout="constrained")
    axes = figure.subplots(2, 3)
    for column, row in enumerate(shown):
        for line, key in enumerate(("gain_matrix", "pair_distribution")):
            panel = axes[line, column]
            image = panel.imshow(np.asarray(row[key]), cmap="cividis")
            figure.colorbar(image, ax=panel, shrink=0.8)
            panel.set_xticks(range(len(names)), names)
            panel.set_yticks(range(len(names)), names)
            panel.set_title(f"{'gain G' if line == 0 else 'P'} at step {row['step']}", fontsize=10)
            if line:
                panel.set_xlabel("class of the partner")
            if column == 0:
                panel.set_ylabel("labeled class")
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(args.picture))


if __name__ == "__main__":
    main()
