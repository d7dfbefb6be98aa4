"""The checks of ``mupd-wsi doctor``. Each really tries the thing: a codec encodes and decodes, the model loads."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

from mupd_wsi.errors import BundleError

GIB: Final = 1024**3
#: Less than this is worth a warning: one slide with all markers needs up to 2 GiB of each.
ENOUGH_MEMORY: Final = 4 * GIB
ENOUGH_DISK: Final = 10 * GIB

LIBRARIES: Final = {
    "numpy": "numpy",
    "torch": "torch",
    "tifffile": "tifffile",
    "imagecodecs": "imagecodecs",
    "zarr": "zarr",
    "openslide-python": "openslide",
    "opencv-python-headless": "cv2",
    "scikit-image": "skimage",
    "pillow": "PIL",
    "safetensors": "safetensors",
}
REINSTALL: Final = "install mupd-wsi again: pip install --force-reinstall mupd-wsi"


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: what was looked at.
        status: ``fail`` means that staining does not work here.
        found: what was found, one line.
        advice: what to do; empty where all is well.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def run_checks() -> list[Check]:
    """All checks, in the order they are shown."""
    checks = [check_package(), *check_libraries()]
    if any(check.status == "fail" for check in checks):
        return checks  # what follows would only fail with them
    return [
        *checks,
        check_openslide(),
        *check_codecs(),
        *check_devices(),
        check_model(),
        check_memory(),
        check_folder(),
    ]


def check_package() -> Check:
    """The package and the Python that runs it."""
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    try:
        return Check("mupd-wsi", "ok", f"{version('mupd-wsi')}, {found}")
    except PackageNotFoundError:
        return Check("mupd-wsi", "warn", f"run from its source folder, {found}", "pip install .")


def check_libraries() -> Iterator[Check]:
    """Every library that staining needs imports."""
    for distribution, module in LIBRARIES.items():
        try:
            importlib.import_module(module)
            yield Check(distribution, "ok", version(distribution))
        except (ImportError, OSError, PackageNotFoundError) as error:
            yield Check(distribution, "fail", f"cannot be imported: {error}", f"pip install {distribution}")


def check_openslide() -> Check:
    """The OpenSlide library itself, which openslide-bin brings."""
    import openslide

    return Check("OpenSlide library", "ok", str(openslide.__library_version__))


def check_codecs() -> Iterator[Check]:
    """The codecs of slides in and out encode and decode a small picture."""
    import imagecodecs
    import numpy as np

    ramp = np.arange(64, dtype=np.uint8)
    picture = np.stack([np.add.outer(ramp, ramp)] * 3, axis=-1)
    codecs: dict[str, tuple[Callable[..., bytes | bytearray], Callable[..., Any], int]] = {
        "JPEG": (imagecodecs.jpeg8_encode, imagecodecs.jpeg8_decode, 8),
        "JPEG 2000": (imagecodecs.jpeg2k_encode, imagecodecs.jpeg2k_decode, 8),
        "deflate": (imagecodecs.zlib_encode, imagecodecs.zlib_decode, 0),
        "zstd": (imagecodecs.zstd_encode, imagecodecs.zstd_decode, 0),
    }
    for name, (encode, decode, tolerance) in codecs.items():
        try:
            back = np.frombuffer(bytes(decode(encode(picture))), np.uint8)
        except (imagecodecs.DelayedImportError, RuntimeError, ValueError) as error:
            yield Check(f"codec {name}", "fail", f"does not work: {error}", "pip install --force-reinstall imagecodecs")
            continue
        distance = int(np.abs(back.astype(int) - picture.reshape(-1)).max())
        right = distance <= tolerance
        yield Check(f"codec {name}", "ok" if right else "fail", f"round trip within {distance} grey levels")


def check_devices() -> Iterator[Check]:
    """What the network can run on."""
    import torch

    yield Check("CPU", "ok", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        yield Check("CUDA", "ok", "no device; staining runs on the CPU")
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        yield Check(f"CUDA cuda:{number}", "ok", f"{properties.name}, {properties.total_memory / GIB:.0f} GiB")


def check_model() -> Check:
    """The bundled model loads, and its weights are the ones its description names."""
    from mupd_wsi.model import load_model

    try:
        model = load_model(device="cpu").info
    except (BundleError, OSError) as error:
        return Check("bundled model", "fail", str(error), REINSTALL)
    return Check(
        "bundled model",
        "ok",
        f"{model.name} {model.version}, {len(model.panel)} targets, {model.mpp:g} um/px, hash right",
    )


def check_memory() -> Check:
    """Memory of the machine, where the system tells."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return Check("memory", "ok", "this system does not tell")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if total < ENOUGH_MEMORY:
        return Check("memory", "warn", f"{total / GIB:.1f} GiB", "use a small --batch-size and few --workers")
    return Check("memory", "ok", f"{total / GIB:.1f} GiB")


def check_folder() -> Check:
    """The current directory can be written, and its disk has room."""
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    found = f"{folder}, {free / GIB:.1f} GiB free"
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        return Check("current folder", "warn", f"{found}, not writable", "name another place with -o PATH")
    if free < ENOUGH_DISK:
        return Check("current folder", "warn", found, "free some disk, or write elsewhere with -o PATH")
    return Check("current folder", "ok", found)
