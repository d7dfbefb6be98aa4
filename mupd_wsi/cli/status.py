"""``mupd-wsi status``: where a batch stands, all of its runs and shards put together."""

from __future__ import annotations

from pathlib import Path

import click

from mupd_wsi.cli.batch import batch_folder, shown_place
from mupd_wsi.cli.console import Console, json_option, verbose_option
from mupd_wsi.cli.failures import EXIT_PROBLEMS
from mupd_wsi.cli.options import PlaceType


@click.command()
@click.argument("folder", type=PlaceType())
@json_option
@verbose_option
@click.pass_obj
def status(console: Console, folder: Path | str) -> int:
    """Tell what became of a batch's slides, and write its summary.csv and summary.html anew.

    It puts the parts of a job array together, and may be asked while they run. Exit 1 unless all slides are stained.

    \b
    Example:
      mupd-wsi status stained/
    """
    from mupd_wsi.batch.summary import as_row, summarise

    with batch_folder(folder) as here:
        summary = summarise(here)
    table, page = (shown_place(folder, path.name) for path in (summary.table, summary.page))
    counts = summary.counts
    lines = [
        f"{state.state}: {state.slide}" + (f": {state.reason}" if state.reason else "")
        for state in summary.states
        if state.state in ("failed", "unfinished")
    ]
    lines.append(", ".join(f"{count} {name}" for name, count in counts.items()))
    lines += [f"table: {table}", f"page:  {page}"]
    values = {
        "complete": summary.complete,
        "counts": counts,
        "slides": [as_row(state) for state in summary.states],
        "table": table,
        "page": page,
    }
    console.result("\n".join(lines), values)
    return 0 if summary.complete else EXIT_PROBLEMS
