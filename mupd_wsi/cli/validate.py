"""``mupd-wsi validate``: is an output slide what it should be?"""

from __future__ import annotations

from pathlib import Path

import click

from mupd_wsi.cli.console import Console, json_option, verbose_option
from mupd_wsi.cli.failures import EXIT_PROBLEMS


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
@json_option
@verbose_option
@click.pass_obj
def validate(console: Console, output: Path) -> int:
    """Check a stained OME-TIFF or OME-Zarr, every tile of it; exit 1 if it is not right.

    \b
    Example:
      mupd-wsi validate slide.CD8.ome.tiff
    """
    from mupd_wsi.validation import validate_slide

    report = validate_slide(output)
    findings = [{"severity": f.severity, "code": f.code, "message": f.message} for f in report.findings]
    lines = [f"{f['severity']:<8} {f['message']} [{f['code']}]" for f in findings]
    lines.append(f"{output}: {'right' if report.ok else 'not right'}")
    console.result("\n".join(lines), {"path": str(output), "ok": report.ok, "findings": findings})
    return 0 if report.ok else EXIT_PROBLEMS
