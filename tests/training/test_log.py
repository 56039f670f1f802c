"""What a run leaves while it trains, and the tables at its end."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)
from torch import Tensor

from ssl_selmix import metrics
from ssl_selmix.common import console as console_
from ssl_selmix.runs import summary
from ssl_selmix.training.log import StageLog

NAMES = ("head", "body", "tail")
CONFUSION = torch.tensor([[4.0, 0, 0], [1, 3, 0], [2, 1, 1]]).double() / 12
FIGURES = metrics.from_confusion(CONFUSION) | {"ece": 0.125}


def console(width: int = 110) -> Console:
    return Console(file=io.StringIO(), width=width, color_system=None)


def text(out: Console) -> str:
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def stage_log(folder: Path, out: Console | None = None, pictures: bool = False) -> StageLog:
    """Drawing takes most of the time, and only the tests about pictures need it."""
    return StageLog(folder, "1-fixmatch", NAMES, out or console(), images=100, pictures=pictures)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


def record(
    folder: Path,
    steps: range,
    *,
    start: int = 0,
    resumed: bool = False,
    value: float = 1.0,
) -> None:
    """What the engine writes between two validations, for every step in `steps`."""
    stage = stage_log(folder)
    with stage.stage(start, 40, resumed=resumed):
        for step in steps:
            if step:
                stage.training(step, {"loss": value, "lr": 0.03})
            stage.validation(step, FIGURES, {}, CONFUSION)


# metrics.jsonl


def test_rows_hold_what_was_measured(tmp_path: Path) -> None:
    stage = stage_log(tmp_path)
    extra = {
        "objective": torch.tensor(0.25),
        "multipliers": torch.tensor([0.5, 0.25, 0.25]),
        "gain_matrix": torch.eye(3),
    }
    with stage.stage(0, 40, resumed=False):
        stage.training(10, {"loss": 2.0, "mask_rate": 0.5, "lr": 0.03})
        stage.validation(10, FIGURES, extra, CONFUSION)
    train, validation = rows(tmp_path)
    assert (train["kind"], train["step"]) == ("train", 10)
    assert (train["loss"], train["mask_rate"], train["lr"]) == (2.0, 0.5, 0.03)
    assert train["images_per_second"] == pytest.approx(100 * train["steps_per_second"])
    assert (validation["kind"], validation["step"]) == ("validation", 10)
    assert {key: validation[key] for key in FIGURES} == FIGURES
    assert (validation["objective"], validation["multipliers"]) == (0.25, [0.5, 0.25, 0.25])
    assert validation["gain_matrix"] == torch.eye(3).tolist()


def test_resuming_cuts_the_rows_after_the_checkpoint(tmp_path: Path) -> None:
    record(tmp_path, range(0, 31, 10))
    record(tmp_path, range(20, 41, 10), start=10, resumed=True, value=2.0)
    found = [(row["kind"], row["step"], row.get("loss")) for row in rows(tmp_path)]
    assert found == [
        ("validation", 0, None),
        ("train", 10, 1.0),
        ("validation", 10, None),
        ("train", 20, 2.0),
        ("validation", 20, None),
        ("train", 30, 2.0),
        ("validation", 30, None),
        ("train", 40, 2.0),
        ("validation", 40, None),
    ]


def test_resuming_at_the_first_checkpoint_keeps_its_row(tmp_path: Path) -> None:
    record(tmp_path, range(0, 11, 10))
    record(tmp_path, range(10, 11), start=0, resumed=True)
    assert [(r["kind"], r["step"]) for r in rows(tmp_path)] == [
        ("validation", 0),
        ("train", 10),
        ("validation", 10),
    ]


def test_starting_anew_forgets_all_rows(tmp_path: Path) -> None:
    record(tmp_path, range(0, 21, 10))
    record(tmp_path, range(0, 1))
    assert [row["step"] for row in rows(tmp_path)] == [0]


@pytest.mark.parametrize("half", ['{"kind": "train", "st', "{", '{"kind": "train", "step": 10'])
def test_half_a_row_is_dropped(tmp_path: Path, half: str) -> None:
    record(tmp_path, range(0, 11, 10))
    whole = rows(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(half)
    record(tmp_path, range(0), start=10, resumed=True)
    assert rows(tmp_path) == whole
    assert sorted(p.suffix for p in tmp_path.iterdir() if "tfevents" not in p.name) == [".jsonl"]


# TensorBoard


def test_event_file_holds_the_scalars(tmp_path: Path) -> None:
    stage = stage_log(tmp_path)
    with stage.stage(0, 40, resumed=False):
        for step in (10, 20):
            stage.training(step, {"loss": step / 4, "lr": 0.03})
            extra = {
                "objective": torch.tensor(0.25),
                "multipliers": torch.tensor([0.5, 0.25, 0.25]),
            }
            stage.validation(step, FIGURES, extra, CONFUSION)
    found = events(tmp_path)
    scalars = {
        tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }
    assert scalars["train/loss"] == [(10, 2.5), (20, 5)]
    assert scalars["validation/mean_recall"] == [
        (10, pytest.approx(2 / 3)),
        (20, pytest.approx(2 / 3)),
    ]
    assert scalars["validation/objective"] == [(10, 0.25), (20, 0.25)]
    assert scalars["per_class_recall/tail"] == [(10, 0.25), (20, 0.25)]
    assert scalars["multipliers/head"] == [(10, 0.5), (20, 0.5)]
    assert {"train/images_per_second", "train/lr", "validation/ece"} <= scalars.keys()


def test_a_class_without_validation_images_hides_no_other(tmp_path: Path) -> None:
    confusion = CONFUSION.clone()
    confusion[0] = 0
    figures = metrics.from_confusion(confusion)
    assert figures["per_class_recall"] == [None, 0.75, 0.25]
    stage = stage_log(tmp_path)
    with stage.stage(0, 40, resumed=False):
        stage.validation(0, figures, {}, confusion)
    tags = events(tmp_path).Tags()["scalars"]
    assert {"per_class_recall/body", "per_class_recall/tail"} <= set(tags)
    assert "per_class_recall/head" not in tags


def test_resuming_purges_the_events_after_the_checkpoint(tmp_path: Path) -> None:
    record(tmp_path, range(0, 31, 10))
    first = next(tmp_path.glob("*tfevents*"))
    first.rename(first.with_name("events.out.tfevents.0000000001.a"))  # files are read in order
    record(tmp_path, range(20, 41, 10), start=10, resumed=True, value=2.0)
    found = [(e.step, e.value) for e in events(tmp_path).Scalars("train/loss")]
    assert found == [(10, 1), (20, 2), (30, 2), (40, 2)]


def test_event_file_holds_the_pictures_if_they_are_asked_for(tmp_path: Path) -> None:
    for pictures in (False, True):
        stage = stage_log(tmp_path / f"{pictures}", pictures=pictures)
        with stage.stage(0, 40, resumed=False):
            stage.validation(0, FIGURES, {"gain_matrix": torch.eye(3)}, CONFUSION)
    assert events(tmp_path / "False").Tags()["images"] == []
    found = events(tmp_path / "True")
    assert sorted(found.Tags()["images"]) == ["confusion", "gain_matrix"]
    (image,) = found.Images("confusion")
    assert image.step == 0 and min(image.width, image.height) > 400
    assert image.encoded_image_string.startswith(b"\x89PNG")


def drawn(folder: Path, steps: range, **options: Any) -> list[int]:
    """The steps at which matrices are drawn."""
    stage = stage_log(folder, pictures=True)
    with stage.stage(steps[0], 40, resumed=options.get("resumed", False)):
        for step in steps:
            stage.validation(step, FIGURES, {}, CONFUSION)
    return [image.step for image in events(folder).Images("confusion")]


def test_matrices_are_drawn_rarely_and_at_the_end(tmp_path: Path) -> None:
    assert drawn(tmp_path / "whole", range(0, 41, 2)) == [0, 10, 20, 30, 40]
    assert drawn(tmp_path / "stopped", range(0, 35, 2)) == [0, 10, 20, 30, 34]
    assert drawn(tmp_path / "resumed", range(12, 41, 2), resumed=True) == [20, 30, 40]


def test_a_stage_that_is_ended_from_outside_is_not_kept_waiting(tmp_path: Path) -> None:
    stage = stage_log(tmp_path, pictures=True)
    with pytest.raises(KeyboardInterrupt), stage.stage(0, 40, resumed=False):
        stage.validation(0, FIGURES, {}, CONFUSION)
        stage.validation(2, FIGURES, {}, CONFUSION)
        raise KeyboardInterrupt
    assert [image.step for image in events(tmp_path).Images("confusion")] == [0]


# The terminal


def test_plain_text_off_a_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = console_.console()
    assert not out.is_terminal
    stage = stage_log(tmp_path, out)
    with stage.stage(0, 40, resumed=False):
        stage.validation(0, FIGURES, {}, CONFUSION)
        stage.training(20, {"loss": 1.5, "mask_rate": 0.25, "lr": 0.03})
        stage.validation(20, FIGURES, {}, CONFUSION)
        stage.warn("refused: /a/[b]/last.pt; " + "long " * 40)
    first, second, warning = capsys.readouterr().out.splitlines()
    assert first == "1-fixmatch  0/40  worst class 0.250  mean recall 0.667"
    start = "1-fixmatch  20/40  loss 1.500  mask 0.250  worst class 0.250  mean recall 0.667  "
    assert second.startswith(start) and second.endswith(" s left")
    assert warning.startswith("warning: refused: /a/[b]/last.pt; long long")
    assert "\x1b" not in first + second + warning


def test_progress_bar_on_a_terminal(tmp_path: Path) -> None:
    out = Console(file=io.StringIO(), width=120, force_terminal=True)
    stage = stage_log(tmp_path, out)
    with stage.stage(0, 40, resumed=False):
        stage.training(20, {"loss": 1.5, "lr": 0.03})
        stage.validation(20, FIGURES, {}, CONFUSION)
        stage.warn("careful")
    shown = text(out)
    assert "20/40" in shown and "loss 1.500" in shown and "warning: careful" in shown
    assert "mean recall" not in shown  # no lines beside the bar


def test_files_are_closed_after_an_error(tmp_path: Path) -> None:
    stage = stage_log(tmp_path)
    with pytest.raises(ZeroDivisionError), stage.stage(0, 40, resumed=False):
        stage.validation(0, FIGURES, {}, CONFUSION)
        raise ZeroDivisionError
    assert "validation/g_mean" in events(tmp_path).Tags()["scalars"]


# The report


def results(num_stages: int, num_classes: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    stages = []
    for name in ("fixmatch", "selmix", "third")[:num_stages]:
        matrix = torch.rand(num_classes, num_classes, generator=generator).double()
        matrix += (
            num_classes * torch.eye(num_classes) * torch.rand(num_classes, generator=generator)
        )
        figures = metrics.from_confusion(matrix)
        stages.append({"algorithm": name, "validation": figures, "test": figures})
    return {"stages": stages}


def shown(found: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    out = console()
    summary.show(found, names, out)
    lines = text(out).splitlines()
    assert all(len(line) <= 110 for line in lines)
    return lines


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")]


def percent(value: Tensor | float) -> str:
    return f"{100 * float(value):.1f}"


def test_report_of_one_stage() -> None:
    found = results(1, 3)
    lines = shown(found, NAMES)
    assert sum("percent" in line for line in lines) == 3
    assert not any("change" in line for line in lines)
    figures = found["stages"][0]["test"]
    stage = [cells(line) for line in lines if "fixmatch" in line and "recall" not in line]
    assert stage == 2 * [["fixmatch", *(percent(figures[key]) for key in summary.FIGURES)]]
    rows = [cells(line) for line in lines if any(name in line for name in NAMES) and "│" in line]
    recall, coverage = figures["per_class_recall"], figures["per_class_coverage"]
    assert rows == [[NAMES[k], percent(recall[k]), percent(coverage[k])] for k in range(3)]


def test_report_of_two_stages_shows_the_change() -> None:
    found = results(2, 3)
    lines = shown(found, NAMES)
    first, last = (stage["test"] for stage in found["stages"])
    change = [cells(line) for line in lines if cells(line)[0] == "change"]
    expected = [f"{100 * (last[key] - first[key]):+.1f}" for key in summary.FIGURES]
    assert change == 2 * [["change", *expected]]
    (tail,) = [cells(line) for line in lines if cells(line)[0] == "tail"]
    recall = [stage["per_class_recall"][2] for stage in (first, last)]
    coverage = [stage["per_class_coverage"][2] for stage in (first, last)]
    change_of_tail = f"{100 * (recall[1] - recall[0]):+.1f}"
    assert tail == ["tail", *map(percent, recall), change_of_tail, *map(percent, coverage)]


def test_report_of_many_classes_shows_the_worst() -> None:
    found, names = results(2, 30), tuple(f"class-{k:02}" for k in range(30))
    lines = shown(found, names)
    listed = [cells(line)[0] for line in lines if cells(line)[0].startswith("class-")]
    recall = found["stages"][-1]["test"]["per_class_recall"]
    assert listed == [names[k] for k in sorted(range(30), key=recall.__getitem__)[:20]]
    assert any("the 20 worst of 30 classes; results.json has all" in line for line in lines)


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("num_classes", [2, 20, 30])
def test_report_with_classes_that_have_no_test_image(num_stages: int, num_classes: int) -> None:
    found = results(num_stages, num_classes)
    for stage in found["stages"]:
        stage["test"]["per_class_recall"][1] = None
    lines = shown(found, tuple(f"class-{k:02}" for k in range(num_classes)))
    row = [cells(line) for line in lines if cells(line)[0] == "class-01"]
    if num_classes > 20:
        assert row == []
    else:
        assert row[0][1 : 1 + num_stages] == num_stages * ["-"]


def test_names_with_brackets_are_names() -> None:
    lines = shown(results(1, 3), ("[bold]", "[/]", "[x=1]"))
    assert [cells(line)[0] for line in lines if "[" in line] == ["[bold]", "[/]", "[x=1]"]


def test_report_of_recalls_that_are_zero() -> None:
    found = results(2, 3)
    zero = metrics.from_confusion(torch.tensor([[0.5, 0, 0], [0, 0.5, 0], [1, 0, 0]]).double())
    found["stages"][1]["test"] = zero
    assert zero["g_mean"] == 0 and not math.isnan(float(str(zero["h_mean"])))
    assert any(cells(line)[0] == "tail" and "0.0" in cells(line) for line in shown(found, NAMES))
