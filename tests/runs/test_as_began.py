"""Runs that were begun before a setting existed go on as they began."""

from pathlib import Path

from ssl_selmix.common import config
from ssl_selmix.common.text import dump
from ssl_selmix.runs.plan import Plan, Request


def test_a_run_from_before_relative_rates_goes_on_as_it_began(tmp_path: Path) -> None:
    before = Plan(
        Request(["selmix"], out=tmp_path, settings=["selmix.rate=absolute", "selmix.stop=none"])
    )
    told = before.identity()
    assert not {"rate", "offsets"} & told["selmix"].keys()  # as older runs recorded
    (tmp_path / "config.yaml").write_text(dump(told))
    again = Plan(Request(["selmix"], out=tmp_path, resume=True))
    assert again.plain["selmix"]["rate"] == "absolute" and again.config["selmix"].stop == "none"
    assert config.differences(told, again.identity()) == []
    assert again.fingerprint(0, "images") == before.fingerprint(0, "images")
    asked = Request(["selmix"], out=tmp_path, resume=True, settings=["selmix.rate=relative"])
    changed = config.differences(told, Plan(asked).identity())
    assert changed == ["selmix.rate: absolute -> relative"]


def test_a_new_run_has_the_defaults_of_today_also_when_it_goes_on(tmp_path: Path) -> None:
    new = Plan(Request(["selmix"], out=tmp_path))
    assert new.config["selmix"].rate == new.config["selmix"].stop == "auto"
    (tmp_path / "config.yaml").write_text(dump(new.identity()))
    again = Plan(Request(["selmix"], out=tmp_path, resume=True))
    assert config.differences(new.identity(), again.identity()) == []
    assert again.fingerprint(0, "images") == new.fingerprint(0, "images")


def test_checkpoints_count_no_key_that_they_did_not_know() -> None:
    assert config.as_released({"lr": 1.0, "rate": "absolute"}) == {"mu": 2, "lr": 1.0}
    assert config.as_released({"rate": "auto"}) == {"mu": 2, "rate": "auto"}
