"""``mupd-wsi stain``: the main verb. It turns options into a call of the library, and its result into words."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import click

from mupd_wsi.cli.console import Console, json_option, quiet_option, verbose_option
from mupd_wsi.cli.interrupt import advise
from mupd_wsi.cli.options import PlaceType, RegionType, cluster_option, options_from, staining_options, target_option
from mupd_wsi.cli.progress import duration, progress_display
from mupd_wsi.cli.seams import judge_seams
from mupd_wsi.request import Progress, ProgressCallback, StainPlan, StainResult


@click.command()
@click.argument("slide", type=PlaceType())
@target_option(required=True)
@click.option("-o", "--output", type=PlaceType(), help="Default: SLIDE.TARGET.ome.tiff in the current folder.")
@click.option("--roi", type=RegionType(), help="Stain this part only, in level-0 pixels of the slide.")
@staining_options
@click.option(
    "--max-seam",
    type=click.FloatRange(min=0, min_open=True),
    metavar="R",
    help="Exit with 1 where tiles join worse: steps over their edges above R times those beside (seamless: about 1).",
)
@cluster_option
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
    cluster = chosen.pop("cluster")
    options = options_from(chosen)
    if dry_run and (isinstance(slide, str) or isinstance(output, str)):
        raise click.UsageError("--dry-run needs slide and output on this machine, not by URL.")
    if dry_run:
        plan = plan_stain(slide, targets, model=model, output=output, options=options)
        show_plan(console, plan)
        return 0
    places: tuple[str, ...]
    with ExitStack() as stack:
        run: Callable[..., StainResult] = partial(stain_slide, targets=targets)
        if cluster is not None:
            from mupd_wsi.batch.cluster import opened_client
            from mupd_wsi.batch.one_slide import stain_on_cluster

            run = partial(stain_on_cluster, targets=targets, client=stack.enter_context(opened_client(cluster)))
        progress = with_advice(stack.enter_context(progress_display(console)))
        if isinstance(slide, str) or isinstance(output, str):
            from mupd_wsi.batch.transfer import stain_by_url

            result, places = stain_by_url(run, slide, output, options, model=model, progress=progress)
        else:
            result = run(slide, model=model, output=output, options=options, progress=progress)
            places = (str(result.output.resolve()), str(result.preview.resolve()), str(result.record.resolve()))
    show_result(console, result, places)
    return judge_seams(console, result.details.get("seams"), max_seam)


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


def show_result(console: Console, result: StainResult, places: tuple[str, ...]) -> None:
    """Print where the outputs lie.

    Args:
        console: to print on.
        result: of the run.
        places: of stained slide, preview and record: absolute paths or URLs.
    """
    for warning in result.warnings:
        console.warn(warning)
    console.note(f"stained {result.size} in {duration(result.seconds)}; virtual stain, research use only")
    names = ("stained slide", "preview", "record")
    lines = "\n".join(f"{name + ':':<14} {place}" for name, place in zip(names, places, strict=True))
    values = {
        **dict(zip(("output", "preview", "record"), places, strict=True)),
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
