"""Runs that were begun before a setting existed go on as they began."""

from pathlib import Path

import pytest

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


def test_where_pseudo_labels_come_from_is_recorded_if_it_is_not_as_before(tmp_path: Path) -> None:
    plain = Plan(Request(["fixmatch"], out=tmp_path))
    told = plain.identity()
    assert "pseudo_labels" not in told["fixmatch"] and "with_labeled" not in told["step"]
    prints = {plain.fingerprint(0, "images")}
    for words in (
        ["fixmatch.pseudo_labels=teacher"],
        ["views.split=true"],
        ["views.split=true", "views.with_labeled=true"],
    ):
        other = Plan(Request(["fixmatch"], out=tmp_path, settings=words))
        prints.add(other.fingerprint(0, "images"))
        keys = [line.partition(":")[0] for line in config.differences(told, other.identity())]
        assert sorted(keys) == sorted(w.partition("=")[0].replace("views", "step") for w in words)
        (tmp_path / "config.yaml").write_text(dump(other.identity()))
        again = Plan(Request(["fixmatch"], out=tmp_path, resume=True, config=tmp_path))
        assert config.differences(other.identity(), again.identity()) == []
    assert len(prints) == 4


def test_settings_of_pseudo_labels_are_refused_where_they_cannot_act() -> None:
    both = ["views.lazy=true", "views.with_labeled=true", "fixmatch.pseudo_labels=teacher"]
    with pytest.raises(ValueError, match="takes none; leave one of them out"):
        Plan(Request(["fixmatch"], settings=both))
    with pytest.raises(ValueError, match=r"views\.with_labeled=true changes nothing in a joint"):
        Plan(Request(["fixmatch"], settings=["views.with_labeled=true"]))
    with pytest.raises(ValueError, match="it is for FixMatch and its relatives"):
        Plan(Request(["remixmatch"], settings=["remixmatch.pseudo_labels=teacher"]))
