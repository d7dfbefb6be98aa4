"""Stains a slide on so many local Dask workers of one thread each; prints the seconds that staining took, and all did.

python -m benchmarks.cluster_run SLIDE OUTPUT.ome.zarr WORKERS
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from mupd_wsi import StainOptions
from mupd_wsi.batch.cluster import opened_client
from mupd_wsi.batch.one_slide import stain_on_cluster


def run(slide: Path, output: Path, workers: int) -> dict[str, float]:
    """Seconds of staining on a cluster that is there, and with its start and end."""
    start = time.perf_counter()
    with opened_client("local", workers) as client:
        client.wait_for_workers(workers)
        ready = time.perf_counter()
        stain_on_cluster(slide, "CD8", client, output=output, options=StainOptions(overwrite=True, device="cpu"))
        staining = time.perf_counter() - ready
    return {"staining": staining, "whole": time.perf_counter() - start}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
