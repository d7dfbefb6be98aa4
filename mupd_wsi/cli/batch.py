"""``mupd-wsi batch``: many slides, each of which is stained or named with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mupd_wsi.cli.batch_progress import batch_display
from mupd_wsi.cli.console import Console, json_option, quiet_option, verbose_option
from mupd_wsi.cli.failures import EXIT_PROBLEMS
from mupd_wsi.cli.options import PlaceType, cluster_option, options_from, staining_options, target_option

if TYPE_CHECKING:
    from mupd_wsi.batch.ledger import Shard
    from mupd_wsi.batch.running import BatchOptions, BatchResult, Events


class ShardType(click.ParamType["Shard"]):
    """``I/N``, from ``1/N`` to ``N/N``."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Shard:
        """Parse the two numbers, or tell how they are written."""
        from mupd_wsi.batch.ledger import Shard

        if isinstance(value, Shard):
            return value
        number, _, count = str(value).partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            self.fail(f"{value!r} is not I/N with I from 1 to N, such as 1/8", param, ctx)
        return Shard(int(number), int(count))


class BytesType(click.ParamType[int]):
    """A number of gigabytes, as bytes."""

    name = "GB"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse the number."""
        if isinstance(value, int):
            return value
        try:
            size = int(float(value) * 1e9)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no number of gigabytes, such as 50", param, ctx)
        if size < 1:
            self.fail(f"{value!r} leaves no room at all", param, ctx)
        return size


@click.command()
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@target_option(required=False)
@click.option("-o", "--output", "place", required=True, type=PlaceType(), help="Folder for all that is written.")
@click.option(
    "--manifest",
    "manifests",
    multiple=True,
    type=click.Path(path_type=Path),
    help="CSV list: slide, and any of target, mpp, roi, output.",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Slides at a time, the cores shared out. Default: 1.")
@click.option("--devices", metavar="cuda:0,cuda:1", help="One process a device, instead of --device and --jobs.")
@click.option("--shard", type=ShardType(), help="Do the I-th of N parts only: for job arrays.")
@click.option("--retry", type=click.IntRange(min=0), default=0, show_default=True, help="Further attempts at failures.")
@click.option(
    "--keep-going/--fail-fast", default=True, show_default=True, help="After a failure: do the rest, or stop."
)
@click.option("--cache", type=click.Path(path_type=Path), help="Copy slides here ahead of their turn.")
@click.option("--cache-size", type=BytesType(), default="50", show_default=True, help="Bound of the copies.")
@staining_options
@cluster_option
@json_option
@verbose_option
@quiet_option
@click.pass_obj
def batch(console: Console, /, **chosen: Any) -> int:
    """Stain many slides: files, folders (searched through and through), patterns, and CSV lists.

    What is done already is not done again, what failed is tried again. summary.csv and summary.html in the output
    folder tell what became of every slide. Exit 1: some slides failed, and the rest is done.

    \b
    Examples:
      mupd-wsi batch slides/ --target CD8 -o stained/
      mupd-wsi batch 'scans/**/*.svs' --target CD3e,CD8 -o stained/ --jobs 4
      mupd-wsi batch --manifest slides.csv -o stained/ --devices cuda:0,cuda:1
    """
    from mupd_wsi.batch.inputs import find_slides
    from mupd_wsi.batch.naming import plan_tasks
    from mupd_wsi.batch.running import model_facts, run_batch

    place, inputs, manifests, targets = (chosen.pop(n) for n in ("place", "inputs", "manifests", "targets"))
    cluster, device = chosen.pop("cluster"), chosen["device"]
    run = _run_options(chosen, cluster)
    options = options_from(chosen)
    entries = find_slides(inputs, manifests, pictures=options.mpp is not None, outside=Path(place))
    url = place if isinstance(place, str) else None
    with ExitStack() as stack:
        folder = stack.enter_context(batch_folder(place))
        tasks = plan_tasks(entries, targets, model_facts(run.model, trust=run.trust).panel, folder, options, url)
        events = None if cluster is None else stack.enter_context(_on_cluster(cluster, run, device))
        progress = stack.enter_context(batch_display(console))
        result = run_batch(tasks, folder, run, progress=progress, events=events)
    show_batch(console, result, place)
    return 0 if result.ok else EXIT_PROBLEMS


@contextmanager
def batch_folder(place: Path | str) -> Iterator[Path]:
    """The folder of a batch, or a local mirror of one that lies at a URL."""
    if isinstance(place, Path):
        yield place
        return
    from mupd_wsi.batch.transfer import mirrored

    with mirrored(place) as folder:
        yield folder


def shown_place(place: Path | str, name: str) -> str:
    """Where a file of a batch lies, for people."""
    return f"{place.rstrip('/')}/{name}" if isinstance(place, str) else str((place / name).resolve())


@contextmanager
def _on_cluster(cluster: str, run: BatchOptions, device: str) -> Iterator[Events]:
    """Who stains on a cluster, while that is open."""
    from mupd_wsi.batch.cluster import opened_client
    from mupd_wsi.batch.dasking import dask_events
    from mupd_wsi.batch.work import Seat

    model = str(Path(run.model).resolve()) if Path(run.model).is_dir() else run.model
    seat = Seat(model, device, threads=1, batch_size=run.batch_size, trust=run.trust)
    with opened_client(cluster, run.jobs if run.jobs > 1 else None) as client:
        yield lambda feed: dask_events(feed, client, seat)


def _run_options(chosen: dict[str, Any], cluster: str | None) -> BatchOptions:
    """Take what is about the batch, and not about one slide, out of the parameters."""
    from mupd_wsi.batch.ledger import Shard
    from mupd_wsi.batch.running import BatchOptions
    from mupd_wsi.model.devices import resolve_device

    names = (
        "model",
        "trust",
        "jobs",
        "devices",
        "shard",
        "retry",
        "keep_going",
        "cache",
        "cache_size",
        "batch_size",
        "device",
    )
    own = {name: chosen.pop(name) for name in names}
    if own["devices"] and own["jobs"]:
        raise click.UsageError("Give --jobs or --devices, not both: there is one process a device.")
    if cluster is not None and own["devices"]:
        raise click.UsageError("Give --cluster or --devices, not both: a cluster's workers choose theirs by --device.")
    places = [name.strip() for name in (own["devices"] or own["device"]).split(",") if name.strip()]
    return BatchOptions(
        model=own["model"],
        devices=tuple(places if cluster else map(resolve_device, places)),
        jobs=own["jobs"] or 1,
        batch_size=own["batch_size"],
        shard=own["shard"] or Shard(),
        retry=own["retry"],
        keep_going=own["keep_going"],
        cache=own["cache"],
        cache_bytes=own["cache_size"],
        trust=own["trust"],
    )


def show_batch(console: Console, result: BatchResult, place: Path | str) -> None:
    """Print what became of the slides, and where it is written."""
    left = f", {result.left} not begun" if result.left else ""
    lines = [f"failed: {failure.slide}: {failure.reason}" for failure in result.failed]
    lines.append(f"{result.done} stained, {result.skipped} done before, {len(result.failed)} failed{left}")
    table, page = (shown_place(place, path.name) for path in (result.summary.table, result.summary.page))
    lines += [f"table: {table}", f"page:  {page}"]
    values = {
        "ok": result.ok,
        "done": result.done,
        "skipped": result.skipped,
        "failed": [{"slide": f.slide, "output": f.key, "reason": f.reason} for f in result.failed],
        "left": result.left,
        "table": table,
        "page": page,
    }
    console.result("\n".join(lines), values)
