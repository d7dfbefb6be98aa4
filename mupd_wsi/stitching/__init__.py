"""From stained tiles to full-width bands of rows. No torch, no files."""

from mupd_wsi.stitching.bands import Band, BandStitcher

__all__ = ["Band", "BandStitcher"]
