"""What decides the pixels of an output, written down when work on it begins: work goes on only where all agrees."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from mupd_wsi.engine.job import StainJob
from mupd_wsi.errors import OutputError
from mupd_wsi.record import software, write_atomically
from mupd_wsi.request import StainOptions
from mupd_wsi.writers.omexml import flattened

MANIFEST: Final = "manifest.json"
#: Grows when the manifest or the log changes in a way that older work cannot be read any more.
FORMAT: Final = 1
#: Measured on the slide, so the same whenever the slide and the software are.
_MEASURED: Final = {"slide_looks_like", "staining", "tissue_fraction", "warnings"}
#: Options that change no pixel, or that the facts tell in a settled form.
_NOT_COMPARED: Final = {
    *("device", "batch_size", "workers", "strict", "overwrite", "restart", "trust"),
    *("style", "file_format", "mpp", "roi", "readout", "steps", "seed"),
}
#: How a difference is called where its path would not say it.
_WORDS: Final = {
    "slide.fingerprint": "the slide's content",
    "model.weights_sha256": "the model's weights",
    "packages": "the version of",
}
MAX_SHOWN: Final = 3


def manifest_of(job: StainJob, options: StainOptions) -> dict[str, Any]:
    """Everything that decides the pixels of an output, JSON-serialisable.

    The kind of device counts, as a GPU rounds differently; which one of its kind does not, nor how many threads or
    tiles at a time. A new option or fact counts unless it is named in this module.
    """
    request = {name: value for name, value in asdict(options).items() if name not in _NOT_COMPARED}
    facts = {name: value for name, value in job.facts.items() if name not in _MEASURED}
    content = {
        "format": FORMAT,
        "output": job.place.output.name,
        "style": job.style,
        "device": job.stainer.device.partition(":")[0],
        "tiles": {"side": job.grid.side, "halo": job.grid.halo},
        "request": request,
        "packages": software()["packages"],
    }
    settled: dict[str, Any] = json.loads(json.dumps(content | facts))
    return settled


def key_of(manifest: Mapping[str, Any]) -> bytes:
    """32 bytes that stand for a manifest."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).digest()


def settle_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest into a work folder, or compare it with the one that is there.

    One that a loss of power has left empty is written anew: the log beside it is bound to its own manifest by the key.

    Raises:
        OutputError: the work in the folder was begun for another request; names what differs.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes() if path.exists() else b""
        if not content.strip(b"\0"):
            write_atomically(path, json.dumps(manifest).encode())
            return
        earlier = json.loads(content)
        found = differences(earlier, manifest)
    except (OSError, ValueError, AttributeError) as error:
        raise OutputError(f"{path} cannot be read ({error}); begin anew with --restart") from error
    if found:
        shown = "; ".join(found[:MAX_SHOWN]) + (f"; and {len(found) - MAX_SHOWN} more" if found[MAX_SHOWN:] else "")
        raise OutputError(
            f"work on {manifest['output']} was begun with other parameters: {shown}; "
            "give the same ones to go on, or --restart to begin anew"
        )


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two manifests, one phrase each: ``seed was 1, now 2``."""
    was, becomes = (dict(flattened(side)) for side in (earlier, now))
    return [
        f"{_called(name)} was {was.get(name, 'not given')}, now {becomes.get(name, 'not given')}"
        for name in dict.fromkeys((*was, *becomes))
        if was.get(name) != becomes.get(name)
    ]


def _called(name: str) -> str:
    head, _, rest = name.partition(".")
    if head == "packages":
        return f"{_WORDS[head]} {rest}"
    return _WORDS.get(name, name.removeprefix("request."))
