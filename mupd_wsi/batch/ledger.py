"""The log of a batch, one JSON object a line, and what can be told from it.

Each run appends to ``batch.jsonl``, a shard to ``batch.I-of-N.jsonl``, so that machines never write to the same file.
A line is written whole; what a crash leaves of one is passed over by the next reader.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from mupd_wsi.batch.tasks import Outcome, SlideTask
from mupd_wsi.errors import OutputError
from mupd_wsi.writers.staging import output_errors

PATTERN: Final = "batch*.jsonl"
State = Literal["pending", "unfinished", "done", "failed"]
_STATES: Final[Mapping[str, State]] = {
    "planned": "pending",
    "started": "unfinished",
    "done": "done",
    "skipped": "done",
    "failed": "failed",
}


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several parts of a batch.

    Attributes:
        number: from 1 on.
        count: of all parts.
    """

    number: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(slots=True)
class SlideState:
    """What the logs say of one output.

    Attributes:
        key: the output's name below the batch's folder.
        slide: path or URL.
        targets: as asked for.
        state: ``unfinished`` is at work, or was when its run was ended.
        reason: why it failed; empty otherwise.
        time: of its last event, ISO 8601 in UTC.
        attempts: how often it was begun.
        facts: seconds, tiles, tissue_fraction and warnings of the output.
    """

    key: str
    slide: str
    targets: tuple[str, ...]
    state: State
    reason: str
    time: str
    attempts: int
    facts: dict[str, Any]


class Ledger:
    """Appends to the log of one run; what cannot be written is an OutputError.

    Args:
        folder: of the batch; made where it is missing.
        shard: which part of the batch this run is.

    Raises:
        OutputError: the folder or the log cannot be written.
    """

    def __init__(self, folder: Path, shard: Shard) -> None:
        name = "batch.jsonl" if shard.count == 1 else f"batch.{shard.number}-of-{shard.count}.jsonl"
        self.path: Final = folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            size = os.fstat(self._handle).st_size
            if size and os.pread(self._handle, 1, size - 1) != b"\n":
                os.write(self._handle, b"\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}; choose another folder with -o") from error

    def begin(self, tasks: list[SlideTask], shard: Shard, command: list[str]) -> None:
        """A run begins, with these tasks."""
        self._write({"event": "run", "shard": shard.number, "shards": shard.count, "command": command})
        lines = [self._line({"event": "planned", "key": t.key, "slide": t.slide, "targets": t.targets}) for t in tasks]
        self._put(b"".join(lines))

    def started(self, task: SlideTask) -> None:
        """A worker has begun with a task."""
        self._write({"event": "started", "key": task.key})

    def skipped(self, task: SlideTask, record: Mapping[str, Any]) -> None:
        """A task was done before, as its record says."""
        self._write({"event": "skipped", "key": task.key} | _facts_of(record))

    def ended(self, task: SlideTask, outcome: Outcome) -> None:
        """A task is over."""
        if outcome.ok:
            facts = {name: getattr(outcome, name) for name in ("seconds", "tiles", "tissue_fraction", "warnings")}
            self._write({"event": "done", "key": task.key} | facts)
        else:
            trace = {"trace": outcome.trace} if outcome.trace else {}
            self._write({"event": "failed", "key": task.key, "reason": outcome.reason} | trace)

    def note(self, text: str) -> None:
        """Something else worth knowing."""
        self._write({"event": "note", "text": text})

    def close(self) -> None:
        """Release the file."""
        os.close(self._handle)

    def _write(self, event: dict[str, Any]) -> None:
        self._put(self._line(event))

    def _put(self, content: bytes) -> None:
        view = memoryview(content)
        with output_errors(self.path):
            while view:  # a disk that is nearly full takes a part
                view = view[os.write(self._handle, view) :]

    @staticmethod
    def _line(event: dict[str, Any]) -> bytes:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        return (json.dumps({"time": time} | event, ensure_ascii=False) + "\n").encode()


def read_states(folder: Path) -> list[SlideState]:
    """All that the logs of a batch's runs and shards say, one state an output, in the order they were planned.

    A slide that is not stained counts only if the last run, with all of its shards, was asked for it; one that is
    stained counts in any case.

    Raises:
        OutputError: there is no log.
    """
    logs = sorted(folder.glob(PATTERN))
    if not logs:
        raise OutputError(f"{folder} holds no batch (no {PATTERN}); give the folder that 'mupd-wsi batch -o' wrote to")
    states: dict[str, SlideState] = {}
    plans: dict[Path, tuple[str, int, set[str]]] = {}
    for log in logs:
        for event in _events(log):
            if event["event"] == "run":
                plans[log] = (event["time"], int(event.get("shards", 1)), set())
            elif event["event"] in _STATES and log in plans:
                plans[log][2].add(event["key"])
                _update(states, event)
    _, shards, _ = max(plans.values(), key=lambda plan: plan[0], default=("", 1, set()))
    wanted = {key for _, count, keys in plans.values() if count == shards for key in keys}
    return [state for key, state in states.items() if key in wanted or state.state == "done"]


def _update(states: dict[str, SlideState], event: Mapping[str, Any]) -> None:
    key, kind, time = event["key"], event["event"], event["time"]
    known = states.get(key)
    if known is None:
        slide, targets = event.get("slide", key), tuple(event.get("targets", ()))
        known = states[key] = SlideState(key, slide, targets, "pending", "", "", 0, {})
    known.attempts += kind == "started"
    if kind == "planned":
        known.slide, known.targets = event["slide"], tuple(event["targets"])
    # What a run plans to do does not undo what is known; clocks of several machines decide the rest.
    if (kind == "planned" and known.time) or time < known.time:
        return
    known.time, known.state, known.reason = time, _STATES[kind], event.get("reason", "")
    if known.state == "done":
        known.facts = {name: event.get(name) for name in ("seconds", "tiles", "tissue_fraction")}
        # Most slides have the same ones: each sentence is held once, however many thousand slides there are.
        known.facts["warnings"] = tuple(map(sys.intern, event.get("warnings") or ()))


def _events(log: Path) -> Iterator[dict[str, Any]]:
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # what a crash has left of a line
            if isinstance(event, dict) and {"event", "time"} <= event.keys():
                yield event


def _facts_of(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "seconds": record.get("seconds", {}).get("total"),
        "tiles": record.get("tiles", {}).get("stained"),
        "tissue_fraction": record.get("tissue_fraction"),
        "warnings": record.get("warnings"),
    }
