"""Whether what lies where a task would write is what it would write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

from mupd_wsi.batch.remote import exists, identity, is_url, read
from mupd_wsi.batch.tasks import SlideTask
from mupd_wsi.batch.transfer import places_of
from mupd_wsi.engine.destination import destination
from mupd_wsi.engine.preparing import target_labels
from mupd_wsi.markers import Panel
from mupd_wsi.request import StainOptions
from mupd_wsi.slides.identity import fingerprint

#: Options that change how a slide is stained but not what comes out, or what its name and its format are.
IRRELEVANT: Final = frozenset(
    {"device", "batch_size", "workers", "strict", "overwrite", "file_format", "restart", "trust"}
)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What of a model a record is compared with.

    Attributes:
        panel: its markers.
        weights_sha256: of its weights.
    """

    panel: Panel
    weights_sha256: str


@dataclass(frozen=True, slots=True)
class Match:
    """What was found in a task's place.

    Attributes:
        found: ``nothing``; ``same``; ``other``, made otherwise; ``unknown``, without a record that tells.
        difference: what is different, for people; of ``other`` only.
        record: of the output; empty where there is none.
    """

    found: Literal["nothing", "same", "other", "unknown"]
    difference: str = ""
    record: Mapping[str, Any] | None = None


def match(task: SlideTask, model: ModelFacts) -> Match:
    """Compare a task with the record beside its output. The slide is read only where all else agrees.

    Raises:
        OSError: the slide cannot be read.
    """
    if not (exists(task.remote) if task.remote else task.output.exists()):
        return Match("nothing")
    if task.remote is None and destination(task.output, None, "", (), 0).publishing.exists():
        return Match("nothing")  # its run was stopped while it gave the names; staining goes on there
    record = _record(task)
    if record is None:
        return Match("unknown")
    difference = _difference(task, model, record)
    return Match("other", difference, record) if difference else Match("same", record=record)


def _record(task: SlideTask) -> dict[str, Any] | None:
    try:
        if task.remote:
            content = read(places_of(task.remote).record) or b""
        else:
            content = destination(task.output, None, "", (), 0).record.read_bytes()
        record = json.loads(content)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _difference(task: SlideTask, model: ModelFacts, record: Mapping[str, Any]) -> str:
    """What of a request is not what a record says; empty where all is."""
    own = record.get("model")
    if not isinstance(own, dict) or own.get("weights_sha256") != model.weights_sha256:
        return "model"
    wanted = [model.panel.names[i] for i in target_labels(task.targets, model.panel)]
    if record.get("targets") != wanted:
        return f"targets ({_shown(record.get('targets'))}, now {_shown(wanted)})"
    request = record.get("request")
    before = request if isinstance(request, dict) else {}
    now = json.loads(json.dumps(asdict(task.options)))
    defaults = {f.name: f.default for f in fields(StainOptions)}
    for name in now.keys() - IRRELEVANT:
        then = before.get(name, defaults[name])
        if then != now[name]:
            return f"{name} ({_shown(then)}, now {_shown(now[name])})"
    return "" if _same_slide(task, record) else "slide (its data has changed)"


def _same_slide(task: SlideTask, record: Mapping[str, Any]) -> bool:
    if is_url(task.slide):
        return bool(record.get("slide_source") == identity(task.slide))
    slide = record.get("slide")
    return isinstance(slide, dict) and slide.get("fingerprint") == fingerprint(Path(task.slide))


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
