"""Is an output slide what it should be?"""

from __future__ import annotations

from glob import escape
from pathlib import Path

from mupd_wsi.errors import SlideError
from mupd_wsi.validation.checks import check_all
from mupd_wsi.validation.findings import Finding, ValidationReport
from mupd_wsi.validation.image import UnreadableError
from mupd_wsi.validation.tiff_image import open_tiff_image
from mupd_wsi.validation.zarr_image import open_zarr_image
from mupd_wsi.writers.staging import work_folder

__all__ = ["Finding", "ValidationReport", "validate_slide"]


def validate_slide(path: str | Path) -> ValidationReport:
    """Check a stained slide: metadata, um/px, names and colours, every tile of every level, the pyramid, provenance.

    Memory bound: some tiles.

    Args:
        path: an OME-TIFF file or an OME-Zarr folder.

    Returns:
        What was found; a file that is damaged or no image at all is a finding, too.

    Raises:
        SlideError: there is nothing at that path.
    """
    place = Path(path)
    if not place.exists():
        raise SlideError(f"{place} does not exist; give an OME-TIFF file or an OME-Zarr folder")
    opener = open_zarr_image if place.is_dir() else open_tiff_image
    try:
        with opener(place) as image:
            findings = list(check_all(image))
    except UnreadableError as error:
        findings = [Finding("error", error.code, str(error))]
    leftovers = sorted(place.parent.glob(f".{escape(place.name)}.*-*"))
    if work_folder(place).exists():
        message = f"{work_folder(place).name} beside it is a run that was stopped; the same command goes on there"
        findings.append(Finding("warning", "unfinished", message))
    if leftovers:
        message = f"{leftovers[0].name} beside it is left of a run that was killed; delete it"
        findings.append(Finding("warning", "leftover", message))
    return ValidationReport(tuple(findings))
