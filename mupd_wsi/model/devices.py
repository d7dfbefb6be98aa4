"""Where networks run: which device, in which precision, and how tiles get to a GPU and back."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mupd_wsi.errors import UsageError

#: Device memory of a tile at work in fp32, for each of its pixels; as on a CPU (docs/decisions/0004).
TILE_BYTES_PER_PX: Final = 380
#: Of the memory that is free, what batches may take: allocators leave gaps, and kernels want room of their own.
USED_SHARE: Final = 0.7
#: Batches on the device at the same time: one at work, and one whose copies go.
BATCHES_HELD: Final = 2
MAX_BATCH: Final = 64


class Gpu:
    """One CUDA device. Each thread that uses it has a stream of its own, so copies go beside another thread's kernels.

    Copies overlap with kernels where they leave or reach pinned memory in another stream (PyTorch, "CUDA semantics").
    Not timed: no GPU could be had. What it does is tested on a stand-in whose memory is the processor's.

    Args:
        name: "cuda" or "cuda:N".
    """

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self._own: Final = threading.local()

    @property
    def place(self) -> torch.device:
        """Where its tensors are."""
        return torch.device(self.name)

    def tiles_that_fit(self, side: int) -> int:
        """Tiles of ``side`` px to work on at a time, by the memory that is free now.

        A power of 2 up to :data:`MAX_BATCH`: the batch's size may show in the last bits of a result, and a run that
        goes on should find the one that it began with.
        """
        room = USED_SHARE * self.free_bytes() / BATCHES_HELD
        fitting = int(min(MAX_BATCH, max(1, room // (TILE_BYTES_PER_PX * side**2))))
        return 1 << fitting.bit_length() - 1

    def free_bytes(self) -> int:
        """Memory that nobody has."""
        return int(torch.cuda.mem_get_info(self.place)[0])

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within, what this thread asks of the device is queued in its own stream."""
        if not hasattr(self._own, "stream"):
            self.settle()  # the weights came in another stream
            self._own.stream = torch.cuda.Stream(self.place)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._own.stream):
            yield

    def settle(self) -> None:
        """Wait for all streams: what one has made may then be used in any."""
        torch.cuda.synchronize(self.place)

    def upload(self, values: NDArray[Any]) -> Tensor:
        """Queue a copy to the device."""
        return self._pinned(torch.from_numpy(values)).to(self.place, non_blocking=True)

    def download(self, values: Tensor) -> NDArray[Any]:
        """Copy from the device, and wait for this thread's own queue alone."""
        held = self._pinned(torch.empty(values.shape, dtype=values.dtype))
        held.copy_(values, non_blocking=True)
        self._wait()
        return np.asarray(held.numpy())

    def _pinned(self, values: Tensor) -> Tensor:
        """The same in memory that the device can reach by itself."""
        return values.pin_memory()

    def _wait(self) -> None:
        torch.cuda.current_stream(self.place).synchronize()


def resolve_device(device: str) -> str:
    """Turn "auto" into a device that is there, and check any other.

    Raises:
        UsageError: the device is unknown or not there.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return device
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number.isdigit() or device == "cuda"):
        raise UsageError(f"unknown device {device!r}: give auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        raise UsageError(f"no device {device}: this machine has {count} CUDA device(s); use --device cpu or auto")
    return device


def computes_in_bf16(device: str) -> bool:
    """Whether bf16 is faster than fp32 there.

    Of processors those with tiles of matrices (AMX): avx512_bf16 alone multiplies half as fast as fp32 does
    (docs/decisions/0004), and elsewhere bf16 is emulated.
    """
    if device == "cpu":
        return "amx_bf16" in _cpu_flags()
    return bool(torch.cuda.is_bf16_supported())


def usable_cores() -> int:
    """CPU cores that this process may use, which a cluster's job limits may make fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
