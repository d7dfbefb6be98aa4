"""A model that costs next to nothing, as a folder for ``--model``: what a run takes is then what is not the network."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

#: As mupd-mini's, px and um/px.
TILE, HALO, MPP = 736, 112, 1.3


class Colours(nn.Module):
    """Where it is blue there is haematoxylin, where it is green there is none of anything."""

    def forward(self, image: Tensor) -> Tensor:
        """Two of the three colours, inverted: (1, 3, h, w) to (1, 2, h, w)."""
        return 1 - image[:, :2]


def write_free_model(folder: Path) -> Path:
    """Write card and program; returns the folder."""
    folder.mkdir()
    program = folder / "colours.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as such
        torch.jit.script(Colours()).save(str(program))  # type: ignore[no-untyped-call]
    card = {
        "kind": "torchscript",
        "name": "free",
        "version": "1",
        "license": "CC0-1.0",
        "program": program.name,
        "program_sha256": hashlib.sha256(program.read_bytes()).hexdigest(),
        "mpp": MPP,
        "tile": TILE,
        "halo": HALO,
        "output_range": [0.0, 1.0],
        "channels": [{"name": "Hoechst", "color": [0, 0, 255]}, {"name": "CD8", "color": [255, 0, 0]}],
        "fuse": "crop",
    }
    (folder / "model.json").write_text(json.dumps(card), encoding="utf-8")
    return folder
