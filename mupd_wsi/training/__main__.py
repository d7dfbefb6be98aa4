"""``python -m mupd_wsi.training RECIPE``: trains a model; a run that was stopped goes on where it was."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from mupd_wsi.training.recipe import load_recipe
from mupd_wsi.training.telling import told_in_a_line
from mupd_wsi.training.trainer import Trainer, TrainingProgress


@told_in_a_line
def main() -> int:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m mupd_wsi.training", description=__doc__)
    parser.add_argument("recipe", type=Path, help="YAML file, e.g. training/recipes/mupd-mini.yaml")
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints and the log")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, each with a share of every batch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    trainer = Trainer(load_recipe(arguments.recipe), arguments.run, arguments.threads)
    trainer.resume()
    trainer.run(_print)
    return 0


def _print(progress: TrainingProgress) -> None:
    left = (progress.steps - progress.step) * progress.seconds_per_step
    eta = time.strftime("%H:%M:%S", time.gmtime(left))
    dev = "" if progress.dev_pearson is None else f"  dev Pearson {progress.dev_pearson:.4f}"
    sys.stderr.write(
        f"step {progress.step}/{progress.steps}  loss {progress.loss:.4f}  {progress.seconds_per_step:.2f} s/step"
        f"  ETA {eta}{dev}\n"
    )
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
