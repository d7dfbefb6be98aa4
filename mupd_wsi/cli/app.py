"""The command group, and the one place where exceptions become exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from mupd_wsi.cli import failures
from mupd_wsi.cli.batch import batch
from mupd_wsi.cli.console import Console
from mupd_wsi.cli.doctor import doctor
from mupd_wsi.cli.evaluate import evaluate
from mupd_wsi.cli.info import info
from mupd_wsi.cli.models import models
from mupd_wsi.cli.slurm import slurm
from mupd_wsi.cli.stain import stain
from mupd_wsi.cli.status import status
from mupd_wsi.cli.train import train
from mupd_wsi.cli.validate import validate


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done, 1 validate, doctor or --max-seam found something wrong or slides of a batch failed, "
    "2 wrong request, 3 bad input or output, 130 Ctrl-C. Virtual stain, research use only.",
)
@click.version_option(package_name="mupd-wsi", message="mupd-wsi %(version)s")
def app() -> None:
    """Stain a whole H&E slide virtually: IHC or multiplex immunofluorescence, as OME-TIFF or OME-Zarr.

    \b
    Example:
      mupd-wsi stain slide.svs --target CD8
    """


for verb in (stain, batch, status, slurm, info, validate, evaluate, train, models, doctor):
    app.add_command(verb)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: what follows the program's name; those of this process where None.

    Raises:
        KeyboardInterrupt: the user, or whoever sent SIGTERM, wants it to stop.
    """
    # torch's OpenMP threads otherwise spin while they wait and starve the readers and the writer.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    sys.excepthook = failures.report_bug
    console = Console()
    try:
        code = app.main(args=arguments, prog_name="mupd-wsi", standalone_mode=False, obj=console)
    except click.Abort as abort:
        # click's word for a KeyboardInterrupt, which it keeps as the cause
        raise abort.__cause__ or KeyboardInterrupt from None
    except BrokenPipeError:
        # Whoever reads our output has left; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return failures.EXIT_PROBLEMS
    except failures.EXPECTED as error:
        return failures.report(error, verbose=console.verbose)
    return code if isinstance(code, int) else 0
