"""Opens slides and reads of them, under a limit of memory, line by line: a fuzzer's slides may crash the process.

A line in is a path. A line out is ``ok`` and a checksum, ``refused`` and the error's class, ``memory`` where it ran
out, or ``bug`` with what was raised and where. The memory limit is on address space beyond what the libraries take.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import traceback
import warnings
from pathlib import Path

from mupd_wsi.errors import MupdError
from mupd_wsi.geometry import Region
from mupd_wsi.slides import open_slide

#: Bytes beyond what the process has once its libraries are loaded.
MEMORY = 3 * 2**30


def read(path: Path) -> str:
    """Some places of every level, a thumbnail and the fingerprint; returns a checksum of the pixels."""
    digest = hashlib.sha256()
    with open_slide(path) as slide:
        for level, facts in enumerate(slide.levels):
            width, height = min(300, facts.size.width), min(300, facts.size.height)
            for share in (0, 0.5, 1):
                x, y = round(share * (facts.size.width - width)), round(share * (facts.size.height - height))
                digest.update(slide.read_level(level, Region(x, y, width, height)).tobytes())
        digest.update(slide.thumbnail(64).tobytes())
        slide.fingerprint()
    return digest.hexdigest()


def main() -> None:
    """Answer line by line."""
    import cv2  # noqa: F401
    import imagecodecs
    import tifffile  # noqa: F401
    import zarr  # noqa: F401
    from PIL import Image

    imagecodecs.jpeg8_decode(imagecodecs.jpeg8_encode(bytes_picture()))
    Image.init()
    warnings.simplefilter("ignore")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        try:
            answer = f"ok {read(Path(line.rstrip()))}"
        except MupdError as error:
            one_line = "\n" not in str(error.args[0])
            answer = f"refused {type(error).__name__}" if one_line else f"bug message of many lines: {error!r}"
        except MemoryError:
            answer = "memory"
        except Exception as error:
            answer = f"bug {error!r} {traceback.format_exc()[-1500:]}"
        print(answer.replace("\n", " "), flush=True)


def bytes_picture() -> object:
    """A small picture."""
    import numpy as np

    return np.zeros((16, 16, 3), np.uint8)


if __name__ == "__main__":
    main()
