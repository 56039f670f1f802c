"""Every benchmark of costs runs, in a tiny setting; how long anything takes is never asserted."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import (
    algorithms,
    augment,
    device,
    features,
    gpu,
    gpu_report,
    memory,
    reference,
    scaling,
    selmix_step,
    startup,
    step,
    timing,
)
from benchmarks.synthetic import Sizes, make_data, network, steps_of
from ssl_selmix import cli
from ssl_selmix.models.execution import Execution
from ssl_selmix.training import machine
from studies import claims, promises
from tests.helpers.images import noise_tree
from tests.helpers.results import END, measure, results, stage, write

TINY = ["--rounds", "1", "--network", "cnn-4"]
OF_STEP = ["--batch", "2", "--size", "8", "--workers", "0"]
Shown = Callable[..., list[list[str]]]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Benchmarks choose the number of threads; the next test wants the one it had."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cells(capsys: pytest.CaptureFixture[str]) -> Shown:
    """Rows of the tables that a benchmark prints, as cells; machine and commit are said."""

    def run(main: Callable[[list[str]], None], *words: str) -> list[list[str]]:
        main(list(words))
        out = capsys.readouterr().out
        assert "torch " in out and "commit " in out and "medians of 1" in out
        lines = [line for line in out.splitlines() if line.startswith("|")]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    return run


@pytest.mark.slow
def test_step_times_all_arms_and_names_the_targets(cells: Shown) -> None:
    rows = cells(step.main, *TINY, *OF_STEP, "--precisions", "bf16", "fp32")
    first = [row[0] for row in rows]
    for precision in ("bf16", "fp32"):
        assert {f"{arm}, {precision}" for arm in ("network", "joint", "split")} <= set(first)
    targets = {row[0]: row[3] for row in rows if " / " in row[0]}
    assert targets["reference / joint, bf16"] == "at least 2.7"
    assert targets["lazy, 50 % count, bf16 / network, bf16"] == "at most 0.6"
    assert targets["reference / joint, fp32"] == ""  # the targets are for the default


@pytest.mark.slow
def test_step_against_the_mask_rate(cells: Shown) -> None:
    rows = cells(step.main, *TINY, *OF_STEP, "--rates", "--precisions", "fp32")
    assert [row[0] for row in rows[2:]] == [f"{i / 10:.1f}" for i in range(11)]


def test_a_fixed_share_counts() -> None:
    data = make_data(Sizes(size=8))
    args = SimpleNamespace(batch=4, mu=5, network="cnn-4")
    ours = step.Ours(data, args, Execution(views="lazy"))  # type: ignore[arg-type]
    ours.at(0.3)()
    classes, weight = ours.rule(torch.rand(20, 10), torch.arange(20))
    assert weight.sum() == 6 and classes.shape == (20,)
    assert ours.algorithm.net.execution.views == "lazy"


@pytest.mark.slow
def test_features_has_extraction_step_and_runs(cells: Shown) -> None:
    few = ["data.labeled.largest=9", "data.labeled.rho=3", "data.unlabeled.largest=9"]
    words = [*TINY, "--size", "8", "--images", "16", "--features", "400", "--dimension", "8"]
    rows = cells(features.main, *words, "--steps", "4", *few, "data.validation=5")
    assert {"network alone", "extraction", "step on features"} <= {row[0] for row in rows}
    assert [row[3] for row in rows if " / " in row[0]] == ["at least 0.9", "at least 100"]
    assert sum(row[-2:-1] == ["yes"] and "60 s" in row for row in rows) == 2


@pytest.mark.slow
def test_augment_covers_both_sizes(cells: Shown) -> None:
    rows = cells(augment.main, "--rounds", "1", "--batch", "4", "--files", "1")
    for view in ("weak, 32 px", "strong, 32 px", "weak, 224 px", "strong, 224 px"):
        assert {row[1] for row in rows if row[0] == view} == {
            "ours",
            "torchvision PIL",
            "torchvision v2",
            "albumentations",
        }


@pytest.mark.slow
def test_selmix_step_has_the_reference_with_and_without_pseudo_labels(cells: Shown) -> None:
    sizes = ["--labeled", "9", "--unlabeled", "9", "--rho", "3", "--validation", "2"]
    rows = cells(selmix_step.main, *TINY, *OF_STEP, *sizes, "--steps", "1")
    names = {row[0] for row in rows}
    assert {"ours, amortised", "reference, amortised"} <= names
    assert "reference with pseudo-labels, amortised" in names


@pytest.mark.slow
def test_scaling_prints_exponents(cells: Shown) -> None:
    parts = ["--parts", "batch", "size", "classes", "pool"]
    sizes = ["--batches", "1", "2", "--sizes", "8", "16", "--classes", "2", "4"]
    pools = ["--pools", "1000", "2000", "--pool-of-classes", "50"]
    rows = cells(scaling.main, *TINY, *parts, *sizes, *pools)
    costs = [row for row in rows if row[0] not in ("cost", "---")]
    assert len(costs) == 1 + 1 + 2 + 5
    assert all(float(row[-1]) == float(row[-1]) for row in costs)


@pytest.mark.slow
def test_scaling_over_processes(cells: Shown) -> None:
    rows = cells(scaling.main, *TINY, "--parts", "processes", "--processes", "1", "--steps", "1")
    assert rows[-1][0] == "1 × 1 thread"


@pytest.mark.slow
def test_memory_is_told_for_every_part() -> None:
    parts = {what: most for what, _, most in memory.memory_of_run(1000, 32)}
    assert next(iter(parts)) == "SHA-256 of the images" and len(parts) == 6
    assert all(most >= 0 for most in parts.values())


@pytest.mark.slow
def test_memory_in_a_fresh_process() -> None:
    assert 0 < timing.apart(timing.resident) <= timing.apart(timing.peak) * 2


def test_a_peak_is_seen_and_forgotten() -> None:
    timing.forget_peak()
    before = timing.peak()
    # The system may take back some 30 MB of a large process meanwhile, so that more is held.
    held = torch.ones(50_000_000)  # 200 MB
    assert timing.peak() - before > 1.5e8
    del held


@pytest.mark.slow
def test_algorithms(cells: Shown) -> None:
    words = ["--batch", "2", "--size", "8", "--steps", "1", "--threads", "1"]
    rows = cells(algorithms.main, *TINY, *words, "supervised")
    assert [row[0] for row in rows[2:]] == ["fixmatch", "supervised"]


@pytest.mark.slow
def test_startup_ends_with_the_first_step(tmp_path: Path) -> None:
    startup.start_arms(tmp_path, ["threads=1"])["the first step on digits"]()
    assert list(tmp_path.glob("first-0/1-fixmatch/last.pt")), "the validation before step 0"
    assert not list(tmp_path.glob("first-0/results.json")), "and nothing after the step"


@pytest.mark.slow
def test_startup_reports_what_failed() -> None:
    with pytest.raises(SystemExit, match="no-such-word"):
        startup.python("-c", "raise SystemExit('no-such-word')")


def test_imports_by_package() -> None:
    trace = "import time:  1500 |  2000 |   torch.nn\nimport time:  500 | 500 | torch\n"
    trace += "import time:  20 |  20 | json"
    assert startup.packages(trace) == {"torch": 0.002, "json": 0.00002}


# gpu.py, as far as a CPU can tell


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which would be measured")
def test_without_a_gpu_one_line_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 1
    assert capsys.readouterr().out.startswith("no CUDA GPU here: nothing is measured; --rehearse")


@pytest.mark.slow
def test_the_gpu_command_is_rehearsed_without_what_the_machine_may_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All parts run on a CPU, and their tables come into a page in the place of what was there."""
    for name in ("albumentations", "omegaconf"):
        monkeypatch.setitem(sys.modules, name, None)  # an import raises ImportError then
    monkeypatch.setattr(gpu, "command", lambda words, seconds: cli.main(list(words)) and None)
    noise_tree(tmp_path / "photos", {"train": 14, "test": 3}, (16, 16, 3), "abc")
    file = tmp_path / "gpu.json"
    words = ["--rehearse", "--photos", str(tmp_path / "photos"), "--out", str(file)]
    assert gpu.main(words) == 0, capsys.readouterr()
    found = json.loads(file.read_text())
    assert found["rehearsed"] and not [p for p in gpu.PARTS if "error" in found[p]]
    assert [r["mu"] for r in found["steps"]["rows"]] == [2, 7]
    assert all(row["resumed"] and row["repeated"] for row in found["resume"])
    assert [row["fp32"]["largest"] for row in found["agreement"]] == [0.0, 0.0]
    assert [stage["steps"] for stage in found["job"]["stages"]] == [2, 2]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{gpu_report.BEGIN}\nold\n{gpu_report.END}\nafter\n")
    gpu_report.main([str(file), str(page)])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "\nold\n" not in text
    for part in (
        "steps/s, μ = 2, eager",
        "| selmix | yes | yes |",
        "Features: cnn-4",
        "| fixmatch, 2",
    ):
        assert part in text
    assert "no figure here means anything" in text


def test_a_part_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*given: Any) -> None:
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(gpu, "PARTS", {"steps": fails, "job": gpu.job, "memory": fails})
    assert gpu.main(["--rehearse", "--out", str(tmp_path / "gpu.json")]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["job"] is None and found["memory"]["error"] == "RuntimeError: no kernel for this"
    assert "without steps, memory" in capsys.readouterr().out
    shown = gpu_report.report({"resume": [], "agreement": [], "features": fails_of(), **found})
    assert "steps: not measured (RuntimeError: no kernel for this)" in shown


def fails_of() -> dict[str, str]:
    return {"error": "no time was left"}


def test_the_page_has_what_a_measured_file_says() -> None:
    """docs/explain/performance.md is filled from the file, or says that no GPU was at hand."""
    page = (ROOT / "docs" / "explain" / "performance.md").read_text()
    file = ROOT / "docs" / "results" / "gpu.json"
    told = gpu_report.report(json.loads(file.read_text())) if file.exists() else gpu_report.NONE
    assert gpu_report.into(page, told) == page


def test_work_of_a_step_is_that_of_its_layers() -> None:
    data = make_data(Sizes(size=16))
    net = network("wrn-10-1", data)
    work = device.work_of(steps_of("fixmatch", data, net, {"batch": 4, "mu": 2}), "cpu")
    expected = machine.flops_per_step(net, (3, 16, 16), 20)
    # The images need no gradient, which spares a third of the first layer.
    assert 0.97 * expected < work.flops < expected
    weights = 4 * sum(p.numel() for p in net.parameters())
    assert work.bytes > 10 * weights  # several passes over weights, besides the activations


def test_traffic_counts_reads_and_writes_but_no_views() -> None:
    x = torch.ones(100)
    with device.Traffic("cpu") as traffic:
        y = x.view(10, 10).t()
        torch.empty(1000)
    assert traffic.bytes == 0
    with device.Traffic("cpu") as traffic:
        y + 1
    assert traffic.bytes == 2 * 400
    with device.Traffic("cuda") as traffic:
        y + 1
    assert traffic.bytes == 0


H200 = SimpleNamespace(
    major=9,
    minor=0,
    multi_processor_count=132,
    clock_rate=1_980_000,
    memory_clock_rate=3_201_000,
    memory_bus_width=6144,
)


def test_limits_are_near_the_data_sheet() -> None:
    limits = device.limits_of(H200, "bf16")
    assert limits.flops == pytest.approx(989e12, rel=0.1)  # at the highest clock, not the usual one
    assert limits.bytes == pytest.approx(4.8e12, rel=0.05)
    unknown = SimpleNamespace(**{**vars(H200), "major": 99})
    assert device.limits_of(unknown, "bf16").flops is None


def test_a_row_has_shares_of_the_limits() -> None:
    row = {"mu": 2, "mode": "eager", "seconds": [0.01], "cpu": 0.001, "busy": 0.005}
    row |= {"flops": 1e12, "bytes": 1e9}
    found = {"network": "n", "batch": 64, "precision": "bf16", "rows": [row]}
    found["limits"] = {"flops": 1e15, "bytes": 1e12}
    lines = gpu_report.PARTS["steps"](found).splitlines()
    cells = "100 | 10.0 ms | 10.0 ms to 10.0 ms | 50% | 1.00 ms (10%) | 100 (10%) | 100 (10%)"
    assert f"| μ = 2, eager | {cells} |" in lines
    assert "| steps/s, μ = 2, eager | 100 | at least 100 | yes |" in lines
    assert "| processor time, μ = 2, eager | 10% | under 10% of a step | no |" in lines


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), max_size=8))
def test_union_of_intervals(found: list[tuple[int, int]]) -> None:
    points = {p for start, length in found for p in range(start, start + length)}
    assert device.covered([(start, start + length) for start, length in found]) == len(points)


# What they share


def test_arms_take_turns_there_and_back() -> None:
    order: list[str] = []
    arms = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = timing.alternate(arms, 2, warm=1, calls=1)  # type: ignore[arg-type]
    assert "".join(order) == "ba" + "ab" + "ba"
    assert [len(v) for v in times.seconds.values()] == [2, 2]


def test_ratios_are_taken_within_a_round() -> None:
    times = timing.Times({"a": [2.0, 20.0, 4.0], "b": [1.0, 10.0, 1.0]})
    assert times.ratio("a", "b") == 2.0 and times.median("a") == 4.0


@given(st.floats(-2, 3), st.floats(0.1, 10))
def test_the_exponent_of_a_power_law(slope: float, factor: float) -> None:
    sizes = [1, 10, 100]
    costs = [factor * size**slope for size in sizes]
    assert timing.exponent(sizes, costs) == pytest.approx(slope, abs=1e-6)


def test_a_target_says_whether_it_is_met() -> None:
    least = timing.Target("x", "a", "b", 2.0, at_least=True)
    assert least.verdict(2.0) == ["at least 2", "yes"] and least.verdict(1.9)[1] == "no"
    most = timing.Target("x", "a", "b", 2.0)
    assert most.verdict(2.0) == ["at most 2", "yes"] and most.verdict(2.1)[1] == "no"


@pytest.mark.parametrize(
    ("value", "text"), [(1.5, "1.50"), (1234.5, "1234"), (0.001234, "0.00123"), (0, "0")]
)
def test_three_digits(value: float, text: str) -> None:
    assert timing.digits(value) == text


def test_interleaved_rows_come_back() -> None:
    x = torch.arange(12)[:, None]
    mixed = reference.interleave(x, 3)
    assert mixed[:3, 0].tolist() == [0, 4, 8]
    assert torch.equal(reference.de_interleave(mixed, 3), x)


def test_reference_step_trains_and_reads_every_loss() -> None:
    data = make_data(Sizes(size=8))
    net = network("cnn-4", data)
    before = [p.detach().clone() for p in net.parameters()]
    made = reference.ReferenceStep(net, data, batch=2, mu=2, workers=0)
    made()
    assert set(made.meters) == {"loss", "labeled", "unlabeled", "mask"}
    changed = [not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)]
    assert all(changed)


def test_published_sampler_follows_the_pairs() -> None:
    data = make_data(Sizes(num_classes=3, size=8, labeled=9, unlabeled=9, rho=1, validation=1))
    views = (reference.pil_views(8)["plain"],)
    labeled, pool = (
        make(data, views) for make in (reference.labeled_pictures, reference.pool_pictures)
    )
    classes = torch.arange(27) % 3
    pairs = torch.zeros(3, 3)
    pairs[0, 1] = 1e9  # beside which the uniform share is nothing
    pairs[1, 2] = 1e9
    sampler = reference.JointSampler(labeled, pool, pairs, classes, batch=8, workers=0)
    x, partner, y = next(sampler)
    assert x.shape == partner.shape == (8, 3, 8, 8)
    assert set(y.tolist()) <= {0, 1}
    images = torch.stack([pool[i][0][0] for i in range(27)])
    for image, k in zip(partner, y, strict=True):
        found = [i for i in range(27) if torch.equal(images[i], image)]
        assert found and int(classes[found[0]]) == int(k) + 1


def test_promises_are_read_from_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = [(0.3, 0.2, 0.1, 0.01), (0.2, 0.1, -0.05, 0.02), (0.1, 0.15, 0.03, 0.02)]
    names = ("promised", "moved", "actual", "error")
    rows = [{f"change_{n}": v for n, v in zip(names, one, strict=True)} for one in changes]
    folder = tmp_path / "same" / "fixmatch+selmix" / "seed-0"
    write(folder, results([stage("selmix", END)]), logs=[[{"step": 0}, *rows]])
    promises.main([str(tmp_path)])
    cells = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert cells[:4] == ["selmix", "1", "3", "+20.0 ± 10.0"]
    assert cells[5:] == ["+2.7 ± 7.5", "+0.50", "+1.00", "1", "1"]


def test_claims_are_held_against_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def put(arm: str, seed: int, worst: float, mean: float) -> None:
        figures = measure([worst] * 2, mean_recall=mean, h_mean=mean, min_coverage=0.07)
        seconds = 40.0 if "+" in arm else 400.0
        end = stage("any", END, seconds=seconds, test=figures, validation=figures)
        write(tmp_path / arm / f"seed-{seed}", results([end], seed))

    for seed in (0, 1):
        put("fixmatch", seed, 0.3, 0.52)
    put("csst", 0, 0.4, 0.5)
    put("fixmatch+selmix", 0, 0.38, 0.51)  # 8 and 1 points exactly: it holds
    put("fixmatch+selmix", 1, 0.37, 0.53)
    claims.main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    changes = "+0.0 ± 1.4 | +7.5 ± 0.7 | +0.0 ± 1.4 | +0.0 ± 0.0 | 1 of 2 | 10 %"
    assert lines[2] == f"| fixmatch | selmix | {changes} |"
    assert lines[-1] == "| selmix | 1 | csst | 40.0 | 7.0 | fixmatch+selmix | 38.0 | 7.0 |"

    put("fixmatch+selmix+crt", 0, 0.39, 0.5)  # started from SelMix's weights, not from FixMatch's
    claims.main([str(tmp_path)])
    changes = "-1.0 | +1.0 | -1.0 | +0.0 | 0 of 1 | 100 %"
    assert f"| fixmatch+selmix | crt | {changes} |" in capsys.readouterr().out.splitlines()
