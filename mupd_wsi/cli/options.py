"""The options of staining, said once for all verbs that stain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from mupd_wsi.errors import RegionError
from mupd_wsi.geometry import Region, parse_region
from mupd_wsi.request import StainOptions

F = TypeVar("F", bound=Callable[..., Any])


class RegionType(click.ParamType[Region]):
    """``X,Y,W,H`` in level-0 pixels."""

    name = "X,Y,W,H"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Region:
        """Parse the four numbers, or tell how they are written."""
        if isinstance(value, Region):
            return value
        try:
            return parse_region(str(value))
        except RegionError as error:
            self.fail(str(error), param, ctx)


class PlaceType(click.ParamType["Path | str"]):
    """A path, or a URL, which stays a string."""

    name = "PATH|URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """Tell the two apart."""
        del param, ctx
        return str(value) if "://" in str(value) else Path(value)


def target_option(*, required: bool) -> Callable[[F], F]:
    """``--target`` for a verb, as ``targets``: a tuple of strings."""
    return click.option(
        "--target",
        "targets",
        required=required,
        multiple=True,
        metavar="NAME[,NAME...|all]",
        help="Markers to stain for, in any usual spelling; may be repeated. 'mupd-wsi models' lists them.",
    )


cluster_option = click.option(
    "--cluster",
    metavar="local|tcp://HOST:PORT|FILE.yaml",
    help="Stain on Dask workers: of this machine, of a running scheduler, or of a batch system.",
)

#: What is the same for one slide and for many; in the order in which ``--help`` shows them.
_STAINING: Final = (
    click.option(
        "--as",
        "style",
        type=click.Choice(["ihc", "mif"]),
        help="ihc: haematoxylin and DAB (default for one target). mif: one channel a target (default for several).",
    ),
    click.option(
        "--format",
        "file_format",
        type=click.Choice(["ome-tiff", "ome-zarr"]),
        help="Default: by the ending of the output's name, else ome-tiff.",
    ),
    click.option(
        "--model",
        default="mupd-mini",
        show_default=True,
        metavar="NAME|FOLDER|zoo:NAME",
        help="The model, the folder of one, or a stainer of lazyslide-models.",
    ),
    click.option("--mpp", type=float, metavar="UM", help="um per level-0 pixel, instead of what the file says."),
    click.option(
        "--readout",
        type=click.Choice(["mean", "sample"]),
        help="mean: the expected intensity, one pass (default). sample: a seeded draw (default with --steps).",
    ),
    click.option("--steps", type=click.IntRange(2, 50), help="Steps of a draw. Default: what the model says."),
    click.option(
        "--samples",
        type=click.IntRange(1, 64),
        default=1,
        show_default=True,
        help="Draws; of several the mean is written, and their standard deviation as one more channel a target.",
    ),
    click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Seed of a draw."),
    click.option(
        "--fuse",
        type=click.Choice(["crop", "blend", "joint"]),
        help="Overlaps of tiles: cut, blended in the end, or merged at every step. Default: what the model says.",
    ),
    click.option(
        "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]", help="Where the network runs."
    ),
    click.option("--batch-size", type=click.IntRange(min=1), help="Tiles in one pass. Default: by the device."),
    click.option("--workers", type=click.IntRange(min=1), help="Threads that read the slide. Default: by the cores."),
    click.option("--no-tissue-mask", is_flag=True, help="Run the network on glass too."),
    click.option("--no-normalise", is_flag=True, help="Leave the slide's H&E colours as they are."),
    click.option("--strict", is_flag=True, help="A slide that does not look like H&E is an error."),
    click.option("--overwrite", is_flag=True, help="Replace an output that is there."),
    click.option("--trust", is_flag=True, help="Run a --model that is a program, which is its author's code."),
    click.option("--restart", is_flag=True, help="Throw away what an interrupted run has finished."),
)


def staining_options(command: F) -> F:
    """All options of staining but the targets, the region and the output."""
    for option in reversed(_STAINING):
        command = option(command)
    return command


def options_from(chosen: dict[str, Any]) -> StainOptions:
    """The library's options of what click has parsed, less what is no option of staining.

    Args:
        chosen: what is left of a verb's parameters once it has taken its own out of it.
    """
    masked, normalised = (not chosen.pop(name) for name in ("no_tissue_mask", "no_normalise"))
    return StainOptions(tissue_mask=masked, normalise=normalised, **chosen)
