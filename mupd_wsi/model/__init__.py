"""Models: networks, bundles, and the stainer that runs them. Knows no slide."""

from mupd_wsi.model.bundle import ModelInfo, bundled_models, find_bundle, read_info
from mupd_wsi.model.foreign import ForeignStainer
from mupd_wsi.model.loading import load_model
from mupd_wsi.model.protocol import TileStainer
from mupd_wsi.model.stainer import SampleOptions, Stainer
from mupd_wsi.request import Readout

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
