"""The metrics by name: how they are titled, grouped, rounded and explained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Column:
    """One metric in a table.

    Attributes:
        key: as in :attr:`mupd_wsi.evaluation.measuring.Evaluation.table`.
        title: for people.
        text: what it means.
        digits: after the point.
    """

    key: str
    title: str
    text: str
    digits: int = 3


GROUPS: Final[tuple[tuple[str, tuple[Column, ...]], ...]] = (
    (
        "Pixels and patches",
        (
            Column("pearson_1px", "Pearson, pixel", "Correlation of real and virtual intensity, pixel by pixel."),
            Column("pearson_8px", "8 px", "The same for means over squares of 8 px."),
            Column("pearson_64px", "64 px", "The same for means over squares of 64 px."),
            Column("spearman", "Spearman", "Rank correlation of pixels, on a random sample of them."),
            Column(
                "ssim",
                "SSIM",
                "Structural similarity (Wang et al. 2004, Gaussian window) with the real stain's 99.8 % quantile as "
                "range. Dark glass counts as alike, so sparse markers score high.",
            ),
            Column("psnr", "PSNR, dB", "Peak signal-to-noise ratio with the same range.", 1),
            Column(
                "mean_ratio", "mean, virtual / real", "Whether the stain is as bright as the real one on the whole."
            ),
        ),
    ),
    (
        "Positive area",
        (
            Column("area_real", "real", "Share of pixels at or above the positive level (see evaluation.json).", 4),
            Column("area_virtual", "virtual", "The same share in the virtual slide, at the same level.", 4),
            Column("dice", "Dice", "Overlap of the two positive areas: twice the common area over their sum."),
        ),
    ),
    (
        "Cells",
        (
            Column(
                "cell_auc",
                "AUC",
                "How often a really positive cell has a higher virtual mean than a negative one (0.5 is chance).",
            ),
            Column("cell_f1", "F1", "Of calling cells positive from one virtual threshold a marker."),
            Column(
                "positive_cells_real", "positive, real", "Share of cells whose real mean is at the positive level.", 4
            ),
            Column("positive_cells_virtual", "virtual", "The same share by the virtual mean, at the same level.", 4),
            Column("positive_fraction_error", "error", "Absolute difference of the two shares.", 4),
            Column(
                "h_score_real", "H-score, real", "100 (1+) + 200 (2+) + 300 (3+) shares of cells by DAB density.", 1
            ),
            Column("h_score_difference", "virtual - real", "Difference of the H-scores.", 1),
        ),
    ),
    (
        "Uncertainty",
        (
            Column(
                "sd_coverage_90", "covered", "Share of pixels whose error is below 1.645 predicted SD; 0.90 is right."
            ),
            Column("sd_error_ratio", "error / SD", "Root mean square error over root mean square SD; 1 is right."),
            Column("sd_error_spearman", "Spearman", "Whether the error is larger where the SD is: rank correlation."),
        ),
    ),
)


def present(keys: set[str]) -> list[tuple[str, list[Column]]]:
    """The groups with the columns that were measured."""
    groups = [(title, [c for c in columns if c.key in keys]) for title, columns in GROUPS]
    return [(title, columns) for title, columns in groups if columns]
