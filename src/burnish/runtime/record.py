"""What a run directory says about its run, read back: options, manifest, metrics and events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from burnish.runtime.jsonl import parse_line, read_events, read_metrics
from burnish.runtime.rundir import CONFIG, EVENTS, MANIFEST, METRICS


@dataclass(frozen=True)
class RunRecord:
    """A run as its directory tells it.

    Attributes:
        config: run.yaml.
        manifest: manifest.json.
        metrics: the lines of metrics.jsonl.
        events: the lines of events.jsonl.
    """

    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]] = ()
    events: Sequence[Mapping[str, Any]] = ()

    def of_kind(self, kind: str) -> list[Mapping[str, Any]]:
        """The events of one kind, in order."""
        return [event for event in self.events if event.get("kind") == kind]


def read_record(run_dir: Path) -> RunRecord | None:
    """The record of a run directory; None if there is no run in it.

    Raises:
        ValueError: run.yaml or manifest.json is damaged.
    """
    config, manifest = run_dir / CONFIG, run_dir / MANIFEST
    if not (config.is_file() and manifest.is_file()):
        return None
    try:
        options = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{config} cannot be read: {error}. Restore it, or move the run directory aside.") from error
    made_with = parse_line(manifest.read_bytes())
    if not isinstance(options, dict) or made_with is None:
        damaged = manifest if isinstance(options, dict) else config
        raise ValueError(f"{damaged} holds no mapping, so it is damaged. Restore it, or move the run directory aside.")
    return RunRecord(options, made_with, read_metrics(run_dir / METRICS), read_events(run_dir / EVENTS))
