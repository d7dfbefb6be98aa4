"""A small folder of paired tiles whose markers follow from the H&E, and a recipe that learns them in seconds."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import yaml
from pairs import recipe_values

MARKERS = ("Hoechst", "CD8a", "Pan-CK")
TILE = 512


def _tile(rng):
    """Purple nuclei on pink: Hoechst marks every nucleus, CD8a the round ones, Pan-CK the pink between."""
    he = np.full((TILE, TILE, 3), (238, 200, 225), np.uint8)
    he[: TILE // 4] = 246  # a strip of glass
    planes = {name: np.zeros((TILE, TILE), np.uint8) for name in MARKERS}
    planes["Pan-CK"][TILE // 4 :] = 40
    for _ in range(250):
        x, y = int(rng.integers(TILE)), int(rng.integers(TILE // 4 + 8, TILE))
        axes = (4, 4) if rng.random() < 0.3 else (8, 3)
        color = (70, 40, 120) if axes == (4, 4) else (120, 90, 170)
        cv2.ellipse(he, (x, y), axes, 0, 0, 360, color, -1)
        cv2.ellipse(planes["Hoechst"], (x, y), axes, 0, 0, 360, 120, -1)
        cv2.ellipse(planes["Pan-CK"], (x, y), axes, 0, 0, 360, 0, -1)
        cv2.ellipse(planes["CD8a"], (x, y), axes, 0, 0, 360, 200 if axes == (4, 4) else 0, -1)
    return he, planes


@pytest.fixture(scope="session")
def paired_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    lines = ["x,y,tissue_fraction,split"]
    for x, split in ((0, "train"), (1, "train"), (3, "dev")):
        he, planes = _tile(rng)
        for channel, pixels in {"HE": he[..., ::-1], **planes}.items():
            (folder / channel).mkdir(exist_ok=True)
            assert cv2.imwrite(str(folder / channel / f"{x}_0.jpg"), pixels)
        lines.append(f"{x},0,0.75,{split}")
    (folder / "tiles.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def recipe_file(paired_folder, tmp_path):
    def write(**changes):
        values = recipe_values(paired_folder, **changes)
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write
