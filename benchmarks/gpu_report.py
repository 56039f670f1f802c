"""The tables of a file that `benchmarks.gpu` wrote, and the page that has them.

python -m benchmarks.gpu_report gpu.json                    prints them
python -m benchmarks.gpu_report gpu.json PAGE.md            writes them between the page's marks
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import FORMAT, TARGETS
from benchmarks.timing import as_time, digits, spread, table

BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
NONE = "No GPU was at hand when this page was written, so it has no figures of one."


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _steps(found: Mapping[str, Any]) -> str:
    at_most = found["limits"] or {}
    rows = []
    for row in found["rows"]:
        seconds = statistics.median(row["seconds"])
        flops, moved = row["flops"] / seconds, row["bytes"] / seconds
        busy = None if row["busy"] is None else row["busy"] / seconds
        cells = [f"μ = {row['mu']}, {row['mode']}", digits(1 / seconds), as_time(seconds)]
        cells += [spread(row["seconds"], as_time), _percent(busy)]
        cells += [f"{as_time(row['cpu'])} ({row['cpu'] / seconds:.0%})"]
        rows.append([*cells, _of(flops, at_most, "flops", 1e12), _of(moved, at_most, "bytes", 1e9)])
    told = f"{found['network']}, B = {found['batch']}, {found['precision']}"
    head = ["step", "steps/s", "median", "range", "busy", "processor", "TFLOP/s", "GB/s"]
    return f"FixMatch, {told}:\n\n{table(head, rows)}\n\n{_targets(found)}"


def _of(value: float, limits: Mapping[str, Any], key: str, unit: float) -> str:
    share = f" ({value / limits[key]:.0%})" if limits.get(key) else ""
    return f"{value / unit:.3g}{share}"


def _targets(found: Mapping[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        seconds = statistics.median(row["seconds"])
        how = f"μ = {row['mu']}, {row['mode']}"
        if row["mu"] == 2:
            least = TARGETS["steps_per_second"]
            cells = [f"steps/s, {how}", digits(1 / seconds), f"at least {least:g}"]
            rows.append([*cells, _met(1 / seconds >= least)])
        if row["mu"] == 7:
            most = TARGETS["longest"]
            cells = [f"a step, {how}", as_time(seconds), f"at most {as_time(most)}"]
            rows.append([*cells, _met(seconds <= most)])
        share = row["cpu"] / seconds
        most = TARGETS["cpu_share"]
        cells = [f"processor time, {how}", f"{share:.0%}", f"under {most:.0%} of a step"]
        rows.append([*cells, _met(share < most)])
    return table(["on an H200", "measured", "target", "met"], rows)


def _met(met: bool) -> str:
    return "yes" if met else "no"


def _resume(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [[r["method"], _met(r["repeated"]), _met(r["resumed"])] for r in found]
    told = "A stage that was ended after half of its steps and resumed, against an undisturbed one:"
    return f"{told}\n\n{table(['stage', 'repeated: same bits', 'resumed: same bits'], rows)}"


def _agreement(found: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for row in found:
        if "error" in row:
            rows.append([row["method"], row["error"], "", ""])
            continue
        each = (row[p] for p in ("fp32", "bf16", "fp16"))
        shown = [f"{e['first']:.1e}, {e['largest']:.1e}" for e in each]
        rows.append([row["method"], *shown])
    told = (
        "How far the losses of 20 steps are from those on the CPU in fp32, relative to their mean: "
        "at the first step, at most:"
    )
    return f"{told}\n\n{table(['method', 'fp32', 'bf16', 'fp16'], rows)}"


def _memory(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [r["what"], f"{r['classes']:,}", "" if r["bytes"] is None else f"{r['bytes'] / 2**30:.2f}"]
        for r in found
    ]
    return f"{table(['most memory of the device', 'classes', 'GiB'], rows)}"


def _features(found: Mapping[str, Any]) -> str:
    rate = digits(found["passes"] / found["seconds"])
    return (
        f"Features: {found['network']} at {found['pixels']} px in {found['precision']} makes those "
        f"of {rate} views a second ({found['images']:,} images, {found['passes']:,} views)."
    )


def _job(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "The job on photographs was not run."
    rows = []
    for stage in found["stages"]:
        cells = [f"{stage['algorithm']}, {stage['steps']} steps", digits(stage["seconds"])]
        for part in ("validation", "test"):
            cells += [f"{100 * stage[part][k]:.1f}" for k in ("mean_recall", "min_recall")]
        rows.append(cells)
    head = ["stage", "s", "validation: mean", "worst", "test: mean", "worst"]
    told = f"The whole job takes {digits(found['seconds'])} s; percent, one seed:"
    return f"{told}\n\n    ssl-selmix {found['command']}\n\n{table(head, rows)}"


PARTS: Mapping[str, Callable[[Any], str]] = {
    "steps": _steps,
    "resume": _resume,
    "job": _job,
    "features": _features,
    "memory": _memory,
    "agreement": _agreement,
}


def report(found: Mapping[str, Any]) -> str:
    """Markdown of all parts.

    Raises:
        ValueError: the file is none of `benchmarks.gpu`.
    """
    if found.get("format") != FORMAT:
        raise ValueError(f"no file of benchmarks.gpu: its format must be {FORMAT!r}")
    parts = [f"{found['device']}, CUDA {found['cuda']}; {found['about']}"]
    if found["rehearsed"]:
        parts.append("**A rehearsal on a CPU in tiny sizes: no figure here means anything.**")
    for part, shown in PARTS.items():
        value = found.get(part)
        failed = isinstance(value, Mapping) and "error" in value
        parts.append(f"{part}: not measured ({value['error']})" if failed else shown(value))  # type: ignore[index]
    return "\n\n".join(parts)


def into(page: str, text: str) -> str:
    """The page with this text between its marks.

    Raises:
        ValueError: it has none.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page needs the lines {BEGIN} and {END} where the tables go")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("page", type=Path, nargs="?")
    args = parser.parse_args(argv)
    text = report(json.loads(args.file.read_text()))
    if args.page is None:
        print(text)
    else:
        args.page.write_text(into(args.page.read_text(), text))


if __name__ == "__main__":
    main()
