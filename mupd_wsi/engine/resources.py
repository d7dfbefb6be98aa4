"""What a run holds open: the slide, the model, and the job that is checked against them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mupd_wsi.engine.job import StainJob
from mupd_wsi.engine.overlap import Stopwatch
from mupd_wsi.engine.preparing import prepare_job
from mupd_wsi.errors import UsageError
from mupd_wsi.request import StainOptions
from mupd_wsi.slides import Slide, open_slide

if TYPE_CHECKING:
    from mupd_wsi.model import TileStainer

DEFAULT_MODEL: Final = "mupd-mini"
DEFAULT_OPTIONS: Final = StainOptions()


@contextmanager
def opened_job(
    slide: Slide | str | Path,
    targets: str | Sequence[str],
    model: TileStainer | str | Path,
    output: str | Path | None,
    options: StainOptions,
    watch: Stopwatch,
) -> Iterator[StainJob]:
    """Open what was given by name, check the whole request, and close again what was opened here.

    Args:
        slide: an open slide, or the path of one.
        targets: as for :func:`mupd_wsi.engine.preparing.prepare_job`.
        model: a loaded model, a name, or the folder of a bundle.
        output: where to write, or None.
        options: the rest.
        watch: counts the stage "prepare".
    """
    with ExitStack() as stack:
        with watch.stage("prepare"):
            opened = stack.enter_context(_opened(slide, options))
            stack.enter_context(opened.forgiving())
            stainer = stack.enter_context(_loaded(model, options))
            job = prepare_job(opened, stainer, targets, None if output is None else Path(output), options)
        yield job


@contextmanager
def _opened(slide: Slide | str | Path, options: StainOptions) -> Iterator[Slide]:
    if isinstance(slide, Slide):
        if options.mpp is not None:
            raise UsageError("mpp is for slides given by path; give it to open_slide() instead")
        yield slide
        return
    with open_slide(slide, mpp=options.mpp) as opened:
        yield opened


@contextmanager
def _loaded(model: TileStainer | str | Path, options: StainOptions) -> Iterator[TileStainer]:
    if not isinstance(model, str | Path):
        if options.device != "auto" or options.batch_size is not None:
            raise UsageError("device and batch_size are for models given by name; give them to load_model() instead")
        yield model
        return
    from mupd_wsi.model import load_model

    with closing(
        load_model(model, device=options.device, batch_size=options.batch_size, trust=options.trust)
    ) as stainer:
        yield stainer
