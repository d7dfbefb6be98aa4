"""What a batch has come to: a table as CSV, and a page with all previews side by side."""

from __future__ import annotations

import csv
import html
from collections import Counter
from collections.abc import Iterator, Sequence
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

_HEAD: Final = """<!doctype html>
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
.failed td:nth-child(3) {{ color: #a40000; font-weight: bold; }}
figure.doubtful {{ border-color: #d98c00; border-width: 2px; }}
</style>
<h1>{title}</h1>
<p>{counts}, as of {time}. <strong>{notice}.</strong> The same as a table: <a href="summary.csv">summary.csv</a>.</p>
"""
_END: Final = """</main>
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
    write_atomically(summary.table, (line.encode() for line in as_csv(states)))
    write_atomically(summary.page, (part.encode() for part in as_html(summary, folder.resolve().name)))
    return summary


def as_csv(states: Sequence[SlideState]) -> Iterator[str]:
    """The table's lines, one a slide; paths of outputs are those below the batch's folder."""
    lines = _Lines()
    writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for state in states:
        yield lines.taken()
        writer.writerow(as_row(state))
    yield lines.taken()


class _Lines:
    """What was written since it was last taken."""

    def __init__(self) -> None:
        self._text = ""

    def write(self, text: str) -> None:
        self._text += text

    def taken(self) -> str:
        text, self._text = self._text, ""
        return text


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


def as_html(summary: Summary, title: str) -> Iterator[str]:
    """The page, in parts. Whatever comes from outside is escaped; links are relative: the folder may be moved."""
    done = [state for state in summary.states if state.state == "done"]
    shared = _shared_warnings(done)
    yield _HEAD.format(
        title=html.escape(title),
        counts=_counted(summary),
        time=max((state.time for state in summary.states), default="")[:16].replace("T", " ") + " UTC",
        notice=NOTICE[0].upper() + NOTICE[1:],
    )
    yield from _missing([state for state in summary.states if state.state != "done"])
    yield from (f'<p class="warning">All slides: {html.escape(warning)}.</p>\n' for warning in shared)
    yield "<main>\n"
    yield from (f"{_figure(state, shared)}\n" for state in done)
    yield _END


def _counted(summary: Summary) -> str:
    """``3 of 6 slides are stained, 2 failed, 1 unfinished``: what there is none of is not named."""
    counts = summary.counts
    others = [f"{count} {name}" for name, count in counts.items() if count and name != "done"]
    return ", ".join([f"{counts['done']} of {len(summary.states)} slides are stained", *others])


def _shared_warnings(done: Sequence[SlideState]) -> list[str]:
    """What is said of all slides alike, of which there are several: it is said once."""
    first, *rest = [state.facts.get("warnings") or () for state in done] or [()]
    return [warning for warning in first if rest and all(warning in other for other in rest)]


def _missing(states: Sequence[SlideState]) -> Iterator[str]:
    if not states:
        return
    yield "<table>\n<tr><th>slide<th>targets<th>status<th>reason\n"
    for row in map(as_row, states):
        cells = (f"<td>{html.escape(str(row[name]))}</td>" for name in ("slide", "targets", "status", "reason"))
        yield f'<tr class="{row["status"]}">{"".join(cells)}\n'
    yield "</table>\n<p>The same command goes on: stained slides are passed over, all others are tried again.</p>\n"


def _figure(state: SlideState, shared: Sequence[str]) -> str:
    row = as_row(state)
    name = html.escape(f"{PurePosixPath(row['slide']).name}: {row['targets']}")
    own = "; ".join(warning for warning in state.facts.get("warnings") or () if warning not in shared)
    links = " ".join(
        f'<a href="{quote(row[what])}">{text}</a>' for what, text in (("output", "stained slide"), ("record", "record"))
    )
    return (
        f"<figure{' class=doubtful' if own else ''}>"
        f'<a href="{quote(row["preview"])}"><img loading="lazy" src="{quote(row["preview"])}" alt="{name}"></a>'
        f"<figcaption>{name} {links}"
        + (f'<br><span class="warning">{html.escape(own)}</span>' if own else "")
        + "</figcaption></figure>"
    )
