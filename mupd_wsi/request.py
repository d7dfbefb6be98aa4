"""What a caller of :func:`mupd_wsi.pipeline.stain_slide` passes in and gets back. Plain frozen values, no behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from mupd_wsi.errors import UsageError
from mupd_wsi.geometry import Region, Size

Style = Literal["ihc", "mif"]
FileFormat = Literal["ome-tiff", "ome-zarr"]
Readout = Literal["mean", "sample"]
#: How overlapping tiles become one picture: cut at their cores; blended in the end; merged at every step of the flow.
Fuse = Literal["crop", "blend", "joint"]

#: The words that every output carries.
NOTICE: Final = "virtual stain, research use only"
#: What a picture carries besides that a model has painted itself.
PAINTED_NOTICE: Final = "painted by the model, not a chemical stain"
#: What an IHC rendering carries besides.
IHC_NOTICE: Final = "rendered from predicted immunofluorescence, not chemical IHC"


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """How to read the model out.

    Attributes:
        readout: "mean", the expected intensity in one pass; or "sample", a seeded draw of the flow.
        steps: network evaluations of a draw; None takes the model's default. Not used by "mean".
        seed: of the draw, 0 to 2**64 - 1.
    """

    readout: Readout = "mean"
    steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise UsageError(f"steps must lie between 1 and 1000, got {self.steps}")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"seed must lie between 0 and 2**64 - 1, got {self.seed}")


@dataclass(frozen=True, slots=True)
class StainOptions:
    """How a slide is stained.

    Attributes:
        style: ``"ihc"`` paints one target as haematoxylin and DAB (RGB); ``"mif"`` writes one 8-bit channel a
            target. None: ``"ihc"`` for one target, ``"mif"`` for several, or for several samples.
        file_format: None: by the ending of the output's name, else OME-TIFF.
        mpp: um per level-0 pixel, overriding the file's. Only for slides given by path.
        roi: the part to stain, level-0 pixels; None: the whole slide.
        readout: ``"mean"`` is one pass, the expected intensity; ``"sample"`` a seeded draw. None: ``"sample"`` where
            steps or samples are given, else ``"mean"``.
        steps: network evaluations of a draw; None: the model's default.
        samples: draws; with more than one their mean is written, and their standard deviation as one more channel for
            each target, in the grey levels of the target's own.
        seed: of a draw; the seeds of several follow from it.
        fuse: how overlapping tiles become one picture: ``"crop"`` cuts them at their cores, ``"blend"`` fades one into
            the other, ``"joint"`` merges their predictions at every step. None: as the model says.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. Only for models given by name.
        batch_size: tiles in one pass of the network; None: the model's choice for the device.
        workers: threads that read the slide; None: by the number of cores.
        normalise: False leaves the slide's H&E colours as they are, instead of bringing them to the training slide's.
        tissue_mask: tiles without tissue are never run, and glass inside the others is set to background, so that
            nothing is hallucinated there. False runs and keeps everything.
        strict: a slide that does not look like H&E is an error instead of a warning.
        overwrite: replace an output that is there.
        trust: run the program of a model that is one, which is its author's code. Only for models given by name.
        restart: throw away what an interrupted run has finished, instead of going on from there.

    Raises:
        UsageError: a number below its least value, or options that contradict each other.
    """

    style: Style | None = None
    file_format: FileFormat | None = None
    mpp: float | None = None
    roi: Region | None = None
    readout: Readout | None = None
    steps: int | None = None
    samples: int = 1
    seed: int = 0
    fuse: Fuse | None = None
    device: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    normalise: bool = True
    tissue_mask: bool = True
    strict: bool = False
    overwrite: bool = False
    restart: bool = False
    trust: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (
            ("steps", self.steps, 1),
            ("samples", self.samples, 1),
            ("seed", self.seed, 0),
            ("batch_size", self.batch_size, 1),
            ("workers", self.workers, 1),
        ):
            if value is not None and value < least:
                raise UsageError(f"{name} must be at least {least}, got {value}")
        if self.readout == "mean" and (self.steps is not None or self.samples > 1):
            raise UsageError("steps and samples belong to a draw: give --readout sample, or leave --readout out")
        if self.style == "ihc" and self.samples > 1:
            raise UsageError(
                f"--as ihc has no place for the spread of {self.samples} samples; use --as mif, or --samples 1"
            )

    @property
    def reads_out(self) -> Readout:
        """The read-out, settled."""
        return self.readout or ("mean" if self.steps is None and self.samples == 1 else "sample")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        done: tiles that the network has stained.
        total: tiles that it will stain; glass is not counted.
        resumed: those of ``done`` that an earlier, interrupted run has stained.
    """

    done: int
    total: int
    resumed: int = 0


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class StainPlan:
    """What a run would do and need, without doing it.

    Attributes:
        output: where it would write.
        style: brightfield or fluorescence.
        file_format: of the output.
        targets: canonical names, in channel order.
        size: output pixels.
        mpp: um per output pixel.
        tiles: of the grid.
        tiles_to_run: those that hold tissue.
        tissue_fraction: of the stained region's area, 0-1.
        peak_memory_bytes: estimate for the whole process.
        disk_bytes: estimate, temporary files included.
        seconds: estimate from timing the network once.
        warnings: as the run would give them.
    """

    output: Path
    style: Style
    file_format: FileFormat
    targets: tuple[str, ...]
    size: Size
    mpp: float
    tiles: int
    tiles_to_run: int
    tissue_fraction: float
    peak_memory_bytes: int
    disk_bytes: int
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StainResult:
    """A finished run.

    Attributes:
        output: the stained slide (a file, or a folder for OME-Zarr).
        preview: PNG of H&E and stain side by side.
        record: JSON file that holds ``details``.
        size: output pixels.
        warnings: one sentence each, for people.
        seconds: wall time from start to finish.
        details: the whole record, JSON-serialisable.
    """

    output: Path
    preview: Path
    record: Path
    size: Size
    warnings: tuple[str, ...]
    seconds: float
    details: Mapping[str, Any]
