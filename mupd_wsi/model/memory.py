"""A device that has too little memory for a batch gets half of it, and half of that, before anybody is bothered.

torch is imported where something has gone wrong: a run whose model needs none does without it.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from functools import cache
from typing import Final

from mupd_wsi.errors import DeviceMemoryError

#: What torch says where the processor's memory is full; it has no error class of its own.
_CPU_WORDS: Final = ("can't allocate memory", "not enough memory")


#: mallopt(3): memory below the first is kept by glibc when it is freed, and so is free memory at the end of a heap.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = (-3, 2**30), (-1, 2**31 - 1)


@cache
def keep_freed_memory() -> None:
    """Have glibc keep large pieces of memory for the next one, for the rest of the process.

    Otherwise each tensor of some megabytes is given back to the system and comes anew, page by page, filled with
    zeros: a quarter of the processor time of a draw, against 200 MB more memory a thread. Where there is no glibc,
    nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for name, value in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            libc.mallopt(name, value)


class BatchWidth:
    """How many tiles a device takes at a time.

    Attributes:
        width: so many, for now.
        asked: so many at first.
    """

    def __init__(self, width: int) -> None:
        self.width = self.asked = width

    def in_parts(self, count: int, work: Callable[[slice, int], None]) -> None:
        """Work on ``count`` tiles, as many at a time as fit; the width stays narrow once it was too wide.

        Args:
            count: tiles.
            work: of which tiles, and the width to fill up to; does the same whenever it is called again.

        Raises:
            DeviceMemoryError: not even one tile fits.
        """
        start = 0
        while start < count:
            width = self.width
            part = slice(start, min(start + width, count))
            try:
                work(part, width)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._narrow(width, error)
                continue
            start = part.stop

    def _narrow(self, failed: int, error: BaseException) -> None:
        if failed == 1:
            raise DeviceMemoryError(
                "the device has too little free memory for a single tile; end what else runs on it, or use --device cpu"
            ) from error
        # Another thread may have met the same, and have halved it already.
        self.width = min(self.width, failed // 2)
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python says that there is no memory left."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_WORDS)
