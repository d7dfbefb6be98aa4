"""``mupd-wsi stain``: the main verb. It turns options into a call of the library, and its result into words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mupd_wsi.cli.console import Console, json_option, quiet_option, verbose_option
from mupd_wsi.cli.interrupt import advise
from mupd_wsi.cli.progress import duration, progress_display
from mupd_wsi.cli.seams import judge_seams
from mupd_wsi.geometry import Region
from mupd_wsi.request import Progress, ProgressCallback, StainOptions, StainPlan, StainResult


class RegionType(click.ParamType[Region]):
    """``X,Y,W,H`` in level-0 pixels."""

    name = "X,Y,W,H"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Region:
        """Parse the four numbers, or tell how they are written."""
        if isinstance(value, Region):
            return value
        try:
            x, y, width, height = (int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(
                f"{value!r} is not four whole numbers X,Y,W,H (level-0 pixels), such as 1000,2000,512,512", param, ctx
            )
        if width < 1 or height < 1:
            self.fail(f"{value!r} is empty: W and H must be at least 1", param, ctx)
        return Region(x, y, width, height)


@click.command()
@click.argument("slide", type=click.Path(path_type=Path))
@click.option(
    "--target",
    "targets",
    required=True,
    multiple=True,
    metavar="NAME[,NAME...|all]",
    help="Markers to stain for, in any usual spelling; may be repeated. 'mupd-wsi models' lists them.",
)
@click.option(
    "--as",
    "style",
    type=click.Choice(["ihc", "mif"]),
    help="ihc: haematoxylin and DAB (default for one target). mif: one channel a target (default for several).",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Default: SLIDE.TARGET.ome.tiff in the current folder."
)
@click.option(
    "--format", "file_format", type=click.Choice(["ome-tiff", "ome-zarr"]), help="Default: by the ending of PATH."
)
@click.option(
    "--model", default="mupd-mini", show_default=True, metavar="NAME|FOLDER", help="The model, or its bundle."
)
@click.option("--mpp", type=float, metavar="UM", help="um per level-0 pixel, instead of what the file says.")
@click.option("--roi", type=RegionType(), help="Stain this part only, in level-0 pixels of the slide.")
@click.option(
    "--readout",
    type=click.Choice(["mean", "sample"]),
    help="mean: the expected intensity, one pass (default). sample: a seeded draw (default with --steps or --samples).",
)
@click.option("--steps", type=click.IntRange(2, 50), help="Steps of a draw. Default: what the model says.")
@click.option(
    "--samples",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Draws; of more than one the mean is written, and their standard deviation as a channel more for each target.",
)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Seed of a draw.")
@click.option(
    "--fuse",
    type=click.Choice(["crop", "blend", "joint"]),
    help="Overlaps of tiles: cut, blended in the end, or merged at every step. Default: what the model says.",
)
@click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]", help="Where the network runs."
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Tiles in one pass. Default: by the device.")
@click.option("--workers", type=click.IntRange(min=1), help="Threads that read the slide. Default: by the cores.")
@click.option("--no-tissue-mask", is_flag=True, help="Run the network on glass too.")
@click.option("--no-normalise", is_flag=True, help="Leave the slide's H&E colours as they are.")
@click.option(
    "--max-seam",
    type=click.FloatRange(min=0, min_open=True),
    metavar="R",
    help="Exit with 1 where tiles join worse: steps over their edges above R times those beside (seamless: about 1).",
)
@click.option("--strict", is_flag=True, help="A slide that does not look like H&E is an error.")
@click.option("--overwrite", is_flag=True, help="Replace an output that is there.")
@click.option("--restart", is_flag=True, help="Throw away what an interrupted run has finished.")
@click.option("--dry-run", is_flag=True, help="Show tiles, output size, memory and time; write nothing.")
@json_option
@verbose_option
@quiet_option
@click.pass_obj
def stain(console: Console, /, **chosen: Any) -> int:
    """Stain a whole H&E slide, and write the stained slide, a preview picture and a record of the run.

    \b
    Examples:
      mupd-wsi stain slide.svs --target CD8
      mupd-wsi stain slide.svs --target CD8,CD3e,Pan-CK,Hoechst --format ome-zarr
      mupd-wsi stain slide.svs --target CD8 --steps 4 --samples 4
      mupd-wsi stain slide.svs --target all --roi 10000,12000,4096,4096 --dry-run
    """
    from mupd_wsi.pipeline import plan_stain, stain_slide

    slide, output, model, dry_run = (chosen.pop(name) for name in ("slide", "output", "model", "dry_run"))
    max_seam = chosen.pop("max_seam")
    targets = list(chosen.pop("targets"))
    masked, normalised = (not chosen.pop(name) for name in ("no_tissue_mask", "no_normalise"))
    options = StainOptions(tissue_mask=masked, normalise=normalised, **chosen)
    if dry_run:
        plan = plan_stain(slide, targets, model=model, output=output, options=options)
        show_plan(console, plan)
        return 0
    with progress_display(console) as progress:
        result = stain_slide(
            slide, targets, model=model, output=output, options=options, progress=with_advice(progress)
        )
    show_result(console, result)
    return judge_seams(console, result.details["seams"], max_seam)


def with_advice(progress: ProgressCallback | None) -> ProgressCallback:
    """From the first finished tile on, a run that is stopped says how it goes on."""

    def report(now: Progress) -> None:
        if now.done:
            advise("the same command goes on where it was")
        if progress is not None:
            progress(now)

    return report


def show_plan(console: Console, plan: StainPlan) -> None:
    """Print what a run would take."""
    for warning in plan.warnings:
        console.warn(warning)
    rows = {
        "output": f"{plan.output} ({plan.file_format}, {plan.style})",
        "targets": ", ".join(plan.targets),
        "size": f"{plan.size} at {plan.mpp:g} um/px",
        "tiles": f"{plan.tiles_to_run} of {plan.tiles} hold tissue ({plan.tissue_fraction:.1%} of the area)",
        "peak memory": f"about {in_bytes(plan.peak_memory_bytes)}",
        "disk": f"at most {in_bytes(plan.disk_bytes)}",
        "time": f"about {duration(plan.seconds)}",
    }
    lines = "\n".join(f"{name:<12}  {text}" for name, text in rows.items())
    values = {
        "dry_run": True,
        "output": str(plan.output),
        "style": plan.style,
        "format": plan.file_format,
        "targets": list(plan.targets),
        "width": plan.size.width,
        "height": plan.size.height,
        "mpp": plan.mpp,
        "tiles": plan.tiles,
        "tiles_to_run": plan.tiles_to_run,
        "tissue_fraction": plan.tissue_fraction,
        "peak_memory_bytes": plan.peak_memory_bytes,
        "disk_bytes": plan.disk_bytes,
        "seconds": plan.seconds,
        "warnings": list(plan.warnings),
    }
    console.result(f"{lines}\nnothing was written", values)


def show_result(console: Console, result: StainResult) -> None:
    """Print where the outputs lie, as absolute paths."""
    for warning in result.warnings:
        console.warn(warning)
    console.note(f"stained {result.size} in {duration(result.seconds)}; virtual stain, research use only")
    paths = {"stained slide": result.output, "preview": result.preview, "record": result.record}
    lines = "\n".join(f"{name + ':':<14} {path.resolve()}" for name, path in paths.items())
    values = {
        "output": str(result.output.resolve()),
        "preview": str(result.preview.resolve()),
        "record": str(result.record.resolve()),
        "width": result.size.width,
        "height": result.size.height,
        "seconds": result.seconds,
        "warnings": list(result.warnings),
        "details": dict(result.details),
    }
    console.result(lines, values)


def in_bytes(count: int) -> str:
    """A number of bytes as ``1.5 GiB`` or ``12 MiB``."""
    mebibytes = count / 2**20
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1024 else f"{mebibytes:.0f} MiB"
