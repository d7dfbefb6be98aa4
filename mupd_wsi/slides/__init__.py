"""Slides in: one way to open any of them, and pixels at any um/px."""

from mupd_wsi.slides.opening import BACKENDS, open_slide
from mupd_wsi.slides.slide import Level, Slide, slide_name
from mupd_wsi.slides.source import RawMpp

__all__ = ["BACKENDS", "Level", "RawMpp", "Slide", "open_slide", "slide_name"]
