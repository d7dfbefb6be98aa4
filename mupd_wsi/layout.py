"""How the planes of a picture lie in memory.

Arrays are (planes, height, width) everywhere. Those of an RGB picture may lie pixel by pixel below that, as JPEG and
OpenCV want them, and as they come from a slide: then no copy has to sort them, and one call works on all three planes.
"""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

_RGB: Final = 3


def lies_by_pixel(planes: NDArray[Any]) -> bool:
    """Whether these are three planes (3, h, w) of which each pixel's values, and each row's pixels, stand side by side.

    Of two or four OpenCV would not always round halves as it does of one and of three.
    """
    return len(planes) == _RGB and planes.strides[0] == planes.itemsize and planes.strides[2] == _RGB * planes.itemsize


def as_picture(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (planes, h, w) as (h, w, planes), contiguous; copied where it does not lie so."""
    if lies_by_pixel(planes):
        return np.ascontiguousarray(planes.transpose(1, 2, 0))
    return np.asarray(cv2.merge(list(planes)), np.uint8).reshape(*planes.shape[1:], len(planes))


def as_planes(picture: NDArray[Any]) -> NDArray[Any]:
    """(h, w, planes) as (planes, h, w), a view."""
    return picture.transpose(2, 0, 1)
