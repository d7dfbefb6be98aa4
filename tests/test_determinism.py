"""The same slide every time: properties of whole runs over sizes, grids, regions, threads and formats.

The networks are stand-ins, quick and exact, for what is tested is how the run cuts and joins; the shipped network's own
part is tested in tests/model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from runs import image_of, scaled
from standins import StandInStainer, he_texture, save_slide

from mupd_wsi.engine.overlap import Stopwatch
from mupd_wsi.engine.resources import opened_job
from mupd_wsi.geometry import Region, output_size
from mupd_wsi.model.noise import slide_noise
from mupd_wsi.pipeline import StainOptions, stain_slide
from mupd_wsi.slides import open_slide

#: Sides of slides, px: one pixel, less than a tile, and no multiple of anything.
SIDES = st.one_of(st.integers(1, 5), st.integers(6, 90), st.integers(91, 420))
#: Tile and halo.
TILES = st.sampled_from([(96, 16), (64, 0), (90, 13), (48, 20), (200, 30)])
#: um per level-0 pixel; the output has 1.3.
PITCHES = st.sampled_from([0.25, 0.263, 0.5, 0.65, 1.3, 1.9])


class Blurring(StandInStainer):
    """A network that looks at its neighbours as far as its halo reaches, and draws with the noise of the place."""

    reach: int | None = None

    def stain(
        self,
        rgb: NDArray[np.uint8],
        origins: Any,
        options: Any,
        channels: Sequence[int],
        margin: int,
        parts: Any = None,
    ) -> NDArray[np.float32]:
        del parts
        self.origins += list(origins)
        reach, side = self.reach if self.reach is not None else self.info.halo, rgb.shape[1]
        planes = 255 - np.moveaxis(rgb[..., list(channels)].astype(np.int64), 3, 1)
        for axis in (2, 3):
            moved = [np.roll(planes, step, axis) for step in (-reach, 0, reach)]
            planes = moved[0] + 2 * moved[1] + moved[2]
        found = (planes / 16).astype(np.float32)
        if options.readout == "sample":
            noise = [slide_noise(options.seed, x, y, len(channels), side, side) for x, y in origins]
            found += 20 * np.stack(noise)
        return found[:, :, margin : side - margin, margin : side - margin].clip(0, 255)


def slide_of(folder: str, width: int, height: int) -> Path:
    return save_slide(Path(folder) / "s.png", he_texture(height, width, seed=width + height))


@settings(max_examples=scaled(25))
@example(1, 5, (96, 16), 1.9)  # so few colours that no threshold lies between them
@given(SIDES, SIDES, TILES, PITCHES)
def test_every_pixel_comes_once_and_from_its_place(width: int, height: int, tile: Any, mpp: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        slide = slide_of(folder, width, height)
        found = image_of(slide, StandInStainer(tile=tile[0], halo=tile[1]), mpp=mpp)
        with open_slide(slide, mpp=mpp) as opened:
            size = output_size(opened.size, opened.mpp, 1.3)
            whole = opened.read(Region(0, 0, size.width, size.height), 1.3)
    assert np.array_equal(found, 255 - np.moveaxis(whole, 2, 0))


@settings(max_examples=scaled(15))
@given(SIDES, SIDES, TILES, st.integers(1, 5), st.integers(1, 6), st.booleans())
def test_neither_batches_nor_threads_change_a_byte(
    width: int, height: int, tile: Any, batch: int, workers: int, draw: bool
) -> None:
    options: dict[str, Any] = {"steps": 2, "seed": 9} if draw else {}
    with tempfile.TemporaryDirectory() as folder:
        slide = slide_of(folder, width, height)
        single = image_of(slide, Blurring(tile=tile[0], halo=tile[1], batch_size=1), workers=1, **options)
        other = Blurring(tile=tile[0], halo=tile[1], batch_size=batch)
        assert np.array_equal(single, image_of(slide, other, workers=workers, **options))


@settings(max_examples=scaled(15))
@given(st.data(), SIDES, SIDES, TILES, PITCHES, st.sampled_from(["crop", "blend"]), st.booleans())
def test_a_region_is_the_crop_of_the_whole(
    data: st.DataObject, width: int, height: int, tile: Any, mpp: float, fuse: str, draw: bool
) -> None:
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    roi = Region(x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y)))
    options: dict[str, Any] = {"mpp": mpp, "fuse": fuse, "tissue_mask": data.draw(st.booleans())}
    options |= {"steps": 2, "seed": 9} if draw else {}
    stainer = Blurring(tile=tile[0], halo=tile[1])
    with tempfile.TemporaryDirectory() as folder:
        slide = slide_of(folder, width, height)
        whole, part = image_of(slide, stainer, **options), image_of(slide, stainer, roi=roi, **options)
        chosen = StainOptions(mpp=mpp, roi=roi)
        with opened_job(slide, "all", stainer, Path(folder) / "never.ome.tiff", chosen, Stopwatch()) as job:
            where = job.grid.region
    assert np.array_equal(part, whole[:, where.y : where.bottom, where.x : where.right])


@settings(max_examples=scaled(10))
@given(st.integers(1, 400), st.integers(1, 400), st.randoms(use_true_random=False))
def test_tiles_in_any_order_give_the_same_slide(width: int, height: int, random: Any) -> None:
    """Nothing passes from one tile to the next: one process or many may stain them."""
    stainer = Blurring()
    with tempfile.TemporaryDirectory() as folder:
        slide = slide_of(folder, width, height)
        expected = image_of(slide, stainer, steps=2)
        options = StainOptions(mpp=1.3, style="mif", tissue_mask=False, normalise=False, steps=2)
        with opened_job(slide, "all", stainer, Path(folder) / "never.ome.tiff", options, Stopwatch()) as job:
            tiles = list(job.tiles())
            random.shuffle(tiles)
            found = np.zeros_like(expected)
            for tile in tiles:
                core = tile.core
                pixels, _ = job.render(core, tile.crop(job.stain([tile], [job.read(tile)])[0]))
                found[:, core.y : core.bottom, core.x : core.right] = pixels
    assert np.array_equal(found, expected)


@settings(max_examples=scaled(10))
@example((96, 16), (64, 0), 65, 257)  # of the last tiles a single row and column lies on the slide
@given(TILES, TILES, st.integers(1, 300), st.integers(1, 300))
def test_a_draw_does_not_depend_on_the_grid(one: Any, other: Any, width: int, height: int) -> None:
    """Noise belongs to the place on the slide: with a network that sees no neighbours, any grid gives the same draw."""

    class Pointwise(Blurring):
        reach = 0

    with tempfile.TemporaryDirectory() as folder:
        slide = slide_of(folder, width, height)
        images = [
            image_of(slide, Pointwise(tile=tile, halo=halo, batch_size=1), steps=2, seed=3)
            for tile, halo in (one, other)
        ]
    assert np.array_equal(*images)


@settings(max_examples=scaled(8))
@given(st.integers(20, 300), st.integers(20, 300), TILES, st.sampled_from(["crop", "blend"]))
def test_a_mask_changes_nothing_inside_tissue(width: int, height: int, tile: Any, fuse: str) -> None:
    pixels = np.full((500, 600, 3), 243, np.uint8)
    pixels[60 : 60 + height, 70 : 70 + width] = he_texture(height, width)
    stainer = Blurring(tile=tile[0], halo=tile[1])
    with tempfile.TemporaryDirectory() as folder:
        slide = save_slide(Path(folder) / "s.png", pixels)
        options = StainOptions(mpp=1.3)
        with opened_job(slide, "all", stainer, Path(folder) / "never.ome.tiff", options, Stopwatch()) as job:
            tissue = job.tissue.pixels(job.grid.region, job.mpp)
        masked, every = (image_of(slide, stainer, tissue_mask=mask, fuse=fuse) for mask in (True, False))
    assert np.array_equal(masked[:, tissue], every[:, tissue])
    assert (masked[:, ~tissue] == 0).all()


@settings(max_examples=scaled(4))
@given(SIDES, SIDES, TILES)
def test_tiff_and_zarr_hold_the_same_pixels(width: int, height: int, tile: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        slide = slide_of(folder, width, height)
        written = []
        for name in ("o.ome.tiff", "o.ome.zarr"):
            stainer = Blurring(tile=tile[0], halo=tile[1])
            options = StainOptions(mpp=1.3, tissue_mask=False, steps=2, seed=2, style="mif")
            result = stain_slide(slide, "all", model=stainer, output=Path(folder) / name, options=options)
            written.append(result.output)
        with tifffile.TiffFile(written[0]) as file:
            tiff = file.series[0].levels[0].asarray()
        assert np.array_equal(tiff, np.asarray(zarr.open_group(str(written[1]), mode="r")["0"]))
        assert np.array_equal(tiff, image_of(slide, Blurring(tile=tile[0], halo=tile[1]), steps=2, seed=2))
