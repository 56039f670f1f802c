"""The study of kills: what it kills exists, and its verdict is that of the digests."""

from __future__ import annotations

import gzip
import signal
import subprocess
from pathlib import Path

import pytest

from benchmarks import kill_resume
from benchmarks.kill_resume import JOBS, Outcome
from ssl_selmix import cli
from ssl_selmix.runs.plan import Plan


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_one_that_can_be_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Plan] = []
    monkeypatch.setattr("ssl_selmix.runs.train.run", lambda request: asked.append(Plan(request)))
    job = JOBS[name]
    assert cli.main(["train", *job.words(tmp_path), "--out", str(tmp_path / "run")]) == 0
    assert [stage for stage, _ in asked[0].algorithms] == list(job.stages)


def test_six_jobs_take_files_digits_and_features_and_have_second_stages() -> None:
    assert len(kill_resume.SIX) == 6 == len({JOBS[name].stages[0] for name in kill_resume.SIX})
    assert {JOBS[name].on for name in kill_resume.SIX} == {"digits", "files", "features"}
    assert all(len(JOBS[name].stages) > 1 for name in kill_resume.SIX)
    assert sum(kill_resume.shares(100, 6)) == 100


def test_one_bit_or_one_exit_code_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Outcome(2, {"1-a/last.pt": "x"}, {"1-a/last.pt": "x"}, ["start-up", "1-a"], [])
    bad = Outcome(1, {"1-a/last.pt": "x", "1-a/best.pt": "y"}, {"1-a/last.pt": "z"}, ["1-a"], [])
    code = Outcome(1, good.expected, good.found, ["1-a"], [3])
    assert good.same and not bad.same and not code.same
    assert bad.differ == ["1-a/best.pt", "1-a/last.pt"]
    outcomes = iter([good, bad])
    monkeypatch.setattr(kill_resume, "disturbed", lambda *given: next(outcomes))
    monkeypatch.setattr(kill_resume, "write_sources", lambda *given: None)
    log = tmp_path / "log.gz"
    assert kill_resume.main(["--kills", "3", "--jobs", "daso", "csst", "--log", str(log)]) == 1
    told = gzip.decompress(log.read_bytes()).decode()
    assert told == capsys.readouterr().out
    assert "1-a/best.pt                         y               missing         DIFFERENT" in told
    assert "| daso, crt | digits | 2 | 1 start-up, 1 1-a | 1 | 0 |" in told
    assert "| together |  | 3 |  | 3 | 2 |" in told and told.endswith("3 SIGKILL: NOT identical\n")


def test_a_process_is_killed_when_it_is_as_far_as_asked(tmp_path: Path) -> None:
    log = tmp_path / "1-a" / "metrics.jsonl"
    log.parent.mkdir()
    script = 'sleep 0.1; echo \'{"kind": "validation", "step": 7}\' > "$0"; sleep 60'
    words = ["sh", "-c", script, str(log)]
    process = subprocess.Popen(words)
    life, met, code = kill_resume.kill_after(process, tmp_path, 1, 0.0, signal.SIGKILL)
    assert met == "1-a/7" and code == -signal.SIGKILL and 0 < life < 30
