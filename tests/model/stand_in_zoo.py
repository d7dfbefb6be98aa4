"""What of lazyslide-models is asked for: a registry, with two stainers and one model that is none."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

TILE = 96


class Duo:
    """A stainer as the zoo has them: one size of tile, weights from a hub or a file."""

    channel_names = ("DAPI", "CD3_1:1000")
    output_mpp: float | None = None
    output_range: tuple[float, float] | None = (0.0, 1.0)
    input_constraint = SimpleNamespace(min=TILE, max=TILE, divisible_by=None)
    license = "CC-BY-4.0"

    def __init__(self, model_path: str | None = None, token: str | None = None) -> None:
        del token
        self.model = nn.Conv2d(3, 2, 1, bias=False)
        if model_path is None:
            raise OSError("the hub cannot be reached\nand a trace")
        self.model.load_state_dict(torch.load(model_path, map_location="cpu", weights_only=True))

    def predict(self, image: Tensor) -> Tensor:
        found: Tensor = self.model(image)
        return found

    def get_transform(self) -> None:
        return None


class Picture:
    """A stainer that paints: the H&E, and it inverted."""

    stains = ("PAS", "Trichrome")
    output_mpp: float | None = None
    output_range: tuple[float, float] | None = (0.0, 1.0)

    def predict(self, image: Tensor) -> Tensor:
        return torch.cat([image, 1 - image], dim=1)

    def get_transform(self) -> None:
        return None


MODEL_REGISTRY = {"duo": Duo, "picture": Picture, "uni": type("Encoder", (), {})}
