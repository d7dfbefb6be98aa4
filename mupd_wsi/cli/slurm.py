"""``mupd-wsi slurm``: a job script that stains a batch on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mupd_wsi.cli.console import Console, json_option, verbose_option
from mupd_wsi.cli.options import PlaceType


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--inputs", required=True, multiple=True, help="Slide, folder, pattern or CSV list; may be repeated.")
@click.option("--target", "targets", multiple=True, help="Markers to stain for.")
@click.option("-o", "--output", "folder", default="stained", show_default=True, type=PlaceType(), help="Folder.")
@click.option("--array", type=click.IntRange(min=1), required=True, help="Tasks that share the slides.")
@click.option("--gpus", type=click.IntRange(min=0), default=0, show_default=True, help="GPUs of a task.")
@click.option("--cpus", type=click.IntRange(min=1), default=4, show_default=True, help="Cores of a task.")
@click.option("--time", default="4:00:00", show_default=True, help="Time limit of a task.")
@click.option("--mem", default="16G", show_default=True, help="Memory of a task.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF BATCH]...")
@json_option
@verbose_option
@click.pass_obj
def slurm(console: Console, /, **chosen: Any) -> None:
    """Print a SLURM job script: an array of tasks that share the slides, stop in time, and go on when requeued.

    Further options are those of 'mupd-wsi batch'. Paths are written out in full.

    \b
    Examples:
      mupd-wsi slurm --inputs slides/ --target CD8 --array 8 --gpus 1 --time 4:00:00 > job.sh
      mupd-wsi slurm --inputs slides.csv -o stained/ --array 4 --cpus 16 --readout sample > job.sh
    """
    from mupd_wsi.batch.slurm import ArrayJob, array_script
    from mupd_wsi.cli.batch import batch

    folder = _whole(str(chosen["folder"]))
    inputs = map(_whole, chosen["inputs"])
    targets = [part for name in chosen["targets"] for part in ("--target", name)]
    arguments = [*inputs, *targets, "-o", folder, *chosen["options"]]
    batch.make_context("mupd-wsi batch", list(arguments), resilient_parsing=False, obj=Console())  # refuses wrong ones
    job = ArrayJob(*(chosen[name] for name in ("array", "gpus", "cpus", "time", "mem")))
    script = array_script(job, arguments, folder)
    console.result(script.rstrip("\n"), {"script": script, "array": job.array, "output": folder})


def _whole(text: str) -> str:
    """A path in full; a URL as it is."""
    from mupd_wsi.batch.remote import is_url

    return text if is_url(text) else str(Path(text).absolute())
