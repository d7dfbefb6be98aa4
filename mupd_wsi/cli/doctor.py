"""``mupd-wsi doctor``: what works on this machine and what does not."""

from __future__ import annotations

import click

from mupd_wsi.cli.console import Console, json_option, verbose_option
from mupd_wsi.cli.failures import EXIT_PROBLEMS


@click.command()
@json_option
@verbose_option
@click.pass_obj
def doctor(console: Console) -> int:
    """Check versions, devices, codecs, the bundled model, memory and disk; exit 1 if something needed is broken.

    \b
    Example:
      mupd-wsi doctor
    """
    from mupd_wsi.cli.checks import run_checks

    checks = run_checks()
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<4}  {check.name:<{width}}  {check.found}")
        if check.advice:
            lines.append(f"{'':<4}  {'':<{width}}  -> {check.advice}")
    broken = any(check.status == "fail" for check in checks)
    lines.append("something needed is broken; see above" if broken else "mupd-wsi works here")
    values = {"ok": not broken, "checks": [check.as_json() for check in checks]}
    console.result("\n".join(lines), values)
    return EXIT_PROBLEMS if broken else 0
