"""Words and exit code of ``--max-seam``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mupd_wsi.cli.console import Console
from mupd_wsi.cli.failures import EXIT_PROBLEMS

#: Grey levels, in the mean, by which a place may differ when it is stained on a shifted grid.
MAX_SHIFT: Final = 0.05


def judge_seams(console: Console, seams: Mapping[str, Any] | None, limit: float | None) -> int:
    """The exit code for what a run measured of its seams; says so where they are worse than was asked for.

    Args:
        console: where to say it.
        seams: of the record; None where none were measured.
        limit: largest edge-step ratio; None: anything goes. Where there is one, a place that is stained again on a
            shifted grid may not differ by more than :data:`MAX_SHIFT` on average either.
    """
    if limit is None:
        return 0
    if seams is None:
        console.warn("seams are not measured on a cluster; --max-seam has judged nothing")
        return 0
    step, shift = seams["edge_step"], seams["grid_shift"]
    if step is None and shift is None:
        console.note("no seam was looked for: no edge between two tiles lies in tissue")
    found = []
    if step is not None and step["ratio"] > limit:
        found.append(f"steps over tile edges are {step['ratio']:.3g} times those beside, --max-seam allows {limit:g}")
    if shift is not None and shift["mean"] > MAX_SHIFT:
        found.append(f"a shifted grid of tiles changes the stain by {shift['mean']:.2g} grey levels on average")
    for text in found:
        console.warn(f"{text}; the output is kept")
    return EXIT_PROBLEMS if found else 0
