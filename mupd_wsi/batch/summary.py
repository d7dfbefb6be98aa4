"""What a batch has come to: a table as CSV, and a page with all previews side by side."""

from __future__ import annotations

import csv
import html
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import quote

from mupd_wsi.batch.ledger import SlideState, read_states
from mupd_wsi.engine.destination import destination
from mupd_wsi.record import write_atomically
from mupd_wsi.request import NOTICE

COLUMNS: Final = (
    "slide",
    "targets",
    "status",
    "reason",
    "output",
    "preview",
    "record",
    "seconds",
    "tiles",
    "tissue_fraction",
    "warnings",
    "attempts",
    "time",
)
CSV_NAME: Final = "summary.csv"
HTML_NAME: Final = "summary.html"

_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
td, th {{ text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #ddd; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(420px, 1fr)); gap: 1rem; }}
figure {{ margin: 0; padding: .5rem; border: 1px solid #ddd; }}
figure img {{ width: 100%; height: auto; display: block; }}
figcaption {{ overflow-wrap: anywhere; }}
.warning {{ color: #8a5300; }}
</style>
<h1>{title}</h1>
<p>{counts}. <strong>{notice}.</strong> The same as a table: <a href="summary.csv">summary.csv</a>.</p>
{missing}
<main>
{figures}
</main>
</html>
"""


@dataclass(frozen=True, slots=True)
class Summary:
    """Where a batch stands.

    Attributes:
        states: of all slides.
        table: the CSV file.
        page: the HTML file.
    """

    states: tuple[SlideState, ...]
    table: Path
    page: Path

    @property
    def counts(self) -> dict[str, int]:
        """Number of slides by state; all states are there."""
        found = Counter(state.state for state in self.states)
        return {name: found[name] for name in ("done", "failed", "unfinished", "pending")}

    @property
    def complete(self) -> bool:
        """Whether every slide is stained."""
        return all(state.state == "done" for state in self.states)


def summarise(folder: Path) -> Summary:
    """Put together what the logs of all runs and shards say, and write it beside them.

    Args:
        folder: of the batch.

    Raises:
        OutputError: there is no log, or the folder cannot be written.
    """
    states = tuple(read_states(folder))
    summary = Summary(states, folder / CSV_NAME, folder / HTML_NAME)
    write_atomically(summary.table, as_csv(states).encode())
    write_atomically(summary.page, as_html(summary, folder.resolve().name).encode())
    return summary


def as_csv(states: Sequence[SlideState]) -> str:
    """A line a slide; paths of outputs are those below the batch's folder."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(as_row(state) for state in states)
    return text.getvalue()


def as_row(state: SlideState) -> dict[str, Any]:
    """A slide's state by the table's columns; what there is none of is empty."""
    place = destination(Path(state.key), None, "", (), 0)
    done = state.state == "done"
    return {
        "slide": state.slide,
        "targets": ",".join(state.targets),
        "status": state.state,
        "reason": state.reason,
        "output": state.key if done else "",
        "preview": place.preview.as_posix() if done else "",
        "record": place.record.as_posix() if done else "",
        "seconds": state.facts.get("seconds", ""),
        "tiles": state.facts.get("tiles", ""),
        "tissue_fraction": state.facts.get("tissue_fraction", ""),
        "warnings": "; ".join(state.facts.get("warnings") or ()),
        "attempts": state.attempts,
        "time": state.time,
    }


def as_html(summary: Summary, title: str) -> str:
    """The page. Whatever comes from outside is escaped; links are relative, so that the folder may be moved."""
    done = [as_row(state) for state in summary.states if state.state == "done"]
    others = [as_row(state) for state in summary.states if state.state != "done"]
    return _PAGE.format(
        title=html.escape(title),
        counts=", ".join(f"{count} {name}" for name, count in summary.counts.items()),
        notice=NOTICE[0].upper() + NOTICE[1:],
        missing=_missing(others),
        figures="\n".join(map(_figure, done)),
    )


def _missing(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(str(row[name]))}</td>" for name in ("slide", "targets", "status", "reason"))
        for row in rows
    ]
    head = "<tr><th>slide<th>targets<th>status<th>reason"
    return "\n".join(["<table>", head, *lines, "</table>"])


def _figure(row: dict[str, Any]) -> str:
    name = html.escape(f"{PurePosixPath(row['slide']).name}: {row['targets']}")
    warnings = f'<br><span class="warning">{html.escape(row["warnings"])}</span>' if row["warnings"] else ""
    return (
        f'<figure><a href="{quote(row["output"])}"><img loading="lazy" src="{quote(row["preview"])}" alt="{name}"></a>'
        f'<figcaption>{name} <a href="{quote(row["record"])}">record</a>{warnings}</figcaption></figure>'
    )
