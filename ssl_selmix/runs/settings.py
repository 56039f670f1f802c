"""Files of settings: presets, and configurations such as the config.yaml of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_selmix.common import config, plugins
from ssl_selmix.common.names import short_name
from ssl_selmix.common.paths import expanded
from ssl_selmix.runs.folder import CONFIG, MANIFEST, RunFolder

# What a configuration has beside settings: stages, what a run recorded of its weights and code.
BESIDE = ("algorithms", "init", "code", "processes", "pretrained")
CODE_KEYS = ("objective", "constraints")  # settings that may name functions in files


@dataclass(frozen=True)
class SettingsFile:
    """What a file says; what it does not say is empty."""

    origin: str  # how messages call it
    settings: Mapping[str, Any]  # by dotted key
    dataset: str = ""
    algorithms: tuple[str, ...] = ()
    init: Mapping[str, str] = field(default_factory=dict)  # path and sha256 of weights
    code: Mapping[str, str] = field(default_factory=dict)  # digests of files of a run's own
    manifest_sha256: str = ""  # of the split that data.manifest names
    processes: int = 1

    def of(self, sections: Mapping[str, type[Any]]) -> dict[str, Any]:
        """The settings without those of methods that are no stage of a run with these sections."""
        known = {*plugins.available("algorithm"), *map(short_name, self.algorithms)}
        others = known - sections.keys()
        kept = {k: v for k, v in self.settings.items() if k.partition(".")[0] not in others}
        return (
            config.without_retired(kept, sections) if self.algorithms else kept
        )  # maybe an old run

    @property
    def methods(self) -> list[str]:
        """The shipped methods that it has settings of, in its order."""
        names = dict.fromkeys(key.partition(".")[0] for key in self.settings)
        return [name for name in names if name in plugins.available("algorithm")]


def preset(name: str) -> SettingsFile:
    """A shipped preset, or a file of one's own.

    Raises:
        ValueError: there is none, it is no YAML, or it names stages.
    """
    origin = f"preset {name}"
    found = config.parse_yaml(plugins.preset_text(name), origin)
    if named := next((key for key in found if key.partition(".")[0] in BESIDE), ""):
        raise ValueError(
            f"{origin} has {named.partition('.')[0]}, which is no setting: give the configuration "
            f"of a run as --config {name}"
        )
    return SettingsFile(origin, found, str(found.pop("dataset", "") or ""))


def configuration(path: Path) -> SettingsFile:
    """A YAML file of settings that may name stages and a data set; a run's, or one's own.

    Raises:
        ValueError: there is none, or it is no YAML mapping.
    """
    path = expanded(path)
    file = path / CONFIG if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"no configuration {file}; give a run's {CONFIG}, or a YAML of your own")
    origin, run = f"config {file}", RunFolder(file.parent)
    if file.name == CONFIG and run.has(MANIFEST):  # a run, whose files are bound to each other
        found = config.flatten(run.config)
    else:
        found = config.parse_yaml(plugins.text_of(file), origin)
    used = {f"data.manifest.{part}": "" for part in ("path", "indices_sha256")}
    used = {key: str(found.pop(key, "")) for key in used}
    if manifest := used["data.manifest.path"]:
        found["data.manifest"] = manifest
    names = found.pop("algorithms", None) or []
    return SettingsFile(
        origin,
        {k: v for k, v in found.items() if k.partition(".")[0] not in (*BESIDE, "dataset")},
        dataset=str(found.get("dataset") or ""),
        algorithms=tuple(map(str, [names] if isinstance(names, str) else names)),
        init=_inner(found, "init."),
        code=_inner(found, "code."),
        manifest_sha256=used["data.manifest.indices_sha256"],
        processes=int(found.get("processes", 1)),
    )


def _inner(found: Mapping[str, Any], prefix: str) -> dict[str, str]:
    return {k.removeprefix(prefix): str(v) for k, v in found.items() if k.startswith(prefix)}


def code_in(settings: Mapping[str, Any]) -> Iterator[str]:
    """The files and modules that settings would have executed: those of objectives' functions."""
    for key, value in settings.items():
        for word in value if isinstance(value, list) else [value]:
            if key.rpartition(".")[2] in CODE_KEYS and ":" in str(word):
                yield str(word).rpartition(":")[0]
