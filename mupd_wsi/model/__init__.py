"""Models: networks, bundles, and the stainer that runs them. Knows no slide.

What is imported from here is loaded when it is first asked for: torch, too, then.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from mupd_wsi.request import Readout, SampleOptions

if TYPE_CHECKING:
    from mupd_wsi.model.bundle import ModelInfo, bundled_models, find_bundle, read_info
    from mupd_wsi.model.foreign import ForeignStainer
    from mupd_wsi.model.loading import load_model
    from mupd_wsi.model.protocol import TileStainer
    from mupd_wsi.model.stainer import Stainer

__all__ = [
    "ForeignStainer",
    "ModelInfo",
    "Readout",
    "SampleOptions",
    "Stainer",
    "TileStainer",
    "bundled_models",
    "find_bundle",
    "load_model",
    "read_info",
]

_HOMES: Final = {
    "ForeignStainer": "foreign",
    "ModelInfo": "bundle",
    "Stainer": "stainer",
    "TileStainer": "protocol",
    "bundled_models": "bundle",
    "find_bundle": "bundle",
    "load_model": "loading",
    "read_info": "bundle",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
