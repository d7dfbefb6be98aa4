"""Virtual staining of whole slides: H&E in, IHC or multiplex immunofluorescence out. Research use only.

    from mupd_wsi import open_slide, stain_slide, load_model

Nothing heavy is imported before one of these names is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mupd_wsi.model import load_model
    from mupd_wsi.pipeline import stain_slide
    from mupd_wsi.request import StainOptions
    from mupd_wsi.slides import open_slide

    __version__: str

__all__ = ["StainOptions", "__version__", "load_model", "open_slide", "stain_slide"]

_HOMES: Final = {
    "StainOptions": "mupd_wsi.request",
    "load_model": "mupd_wsi.model",
    "open_slide": "mupd_wsi.slides",
    "stain_slide": "mupd_wsi.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("mupd-wsi")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
