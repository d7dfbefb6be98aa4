"""Fits the read-out's head to a finished network, and trains the decoder that draws are made by.

``python -m mupd_wsi.training.heads RECIPE --run FOLDER`` makes ``heads.pt`` of the folder's checkpoint. The network
itself is not moved, so its features are computed once, and read-out and draw, which want different things of features
that they share, do not pull at them. The read-out's head is linear, so the best one has a closed form.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mupd_wsi.errors import MupdError, UsageError
from mupd_wsi.model.bundle import state_hash
from mupd_wsi.model.decoder import flow_scales
from mupd_wsi.model.features import image_features
from mupd_wsi.model.flow import interpolate, shifted
from mupd_wsi.model.network import MuPDNetwork
from mupd_wsi.model.transform import TargetTransform
from mupd_wsi.training.finished import FinishedSquares, finished_squares, least_squares
from mupd_wsi.training.objective import Objective
from mupd_wsi.training.recipe import CHECKPOINT, HEADS, Recipe, load_recipe
from mupd_wsi.training.replicas import Replicas
from mupd_wsi.training.sources import PairSource, open_pairs
from mupd_wsi.training.trainer import (
    CHECKPOINT_SECONDS,
    UNCONDITIONAL_SHARE,
    RunningMeans,
    TrainingProgress,
    append_log,
    autocast,
    follow,
    learning_rate,
    parameter_groups,
    save_state,
)

BORDER = 16  # px of a crop's edge that are not compared: there the heads lack what lies beyond
LEAST_TIME = 0.02  # of the flow: below, x_t is the stain already
STEP = 8  # px; crops begin at multiples of it, where the decoder's coarse cells begin
WEIGHED_ON = 256  # crops that the weights of the losses are taken from


@dataclass(frozen=True, slots=True)
class HeadExample:
    """A share of a batch: what :meth:`MuPDNetwork.decode` is given, and what should come out."""

    features: Tensor
    image: Tensor
    markers: Tensor
    t: Tensor
    noise: Tensor
    conditional: bool


class HeadTrainer:
    """Trains heads on finished squares; may be stopped at any time and goes on from its last checkpoint.

    Args:
        recipe: of the run; its ``heads`` must be there.
        run: folder with a checkpoint of the network.
        pairs: the tiles.
        threads: of the processor, each with a share of every batch; a divisor of the batch.
    """

    def __init__(self, recipe: Recipe, run: Path, pairs: PairSource, threads: int = 1) -> None:
        if recipe.heads is None:
            raise UsageError("the recipe has no heads: there is nothing to train")
        if recipe.heads.batch % threads:
            raise UsageError(f"--threads {threads} must divide the heads' batch of {recipe.heads.batch}")
        self.recipe, self.heads, self.folder, self.threads = recipe, recipe.heads, run, threads
        trained = torch.load(run / CHECKPOINT, weights_only=True, map_location="cpu")
        self.trained_steps = trained["step"]
        self.transform = TargetTransform(**{k: tuple(v) for k, v in trained["transform"].items()})
        torch.manual_seed(recipe.seed)
        self.network = MuPDNetwork(recipe.finished_config).requires_grad_(False)
        unknown = self.network.load_state_dict(trained["average"], strict=False)
        if unknown.unexpected_keys or any(not _of_heads(name) for name in unknown.missing_keys):
            raise UsageError(f"{run} holds another network than the recipe's")
        self.pairs, self._network_hash = pairs, state_hash(trained["average"])[:16]
        self.step = 0

    def run(
        self,
        report: Callable[[TrainingProgress], None],
        preparing: Callable[[int, int], None] = lambda _done, _of: None,
    ) -> None:
        """Compute the features, fit and train the heads, and save them.

        Args:
            report: called every ten steps.
            preparing: called with the squares done and their number, while features are computed.
        """
        squares = self.squares(preparing)
        self.network.decoder.requires_grad_(True)
        self.optimiser = torch.optim.AdamW(parameter_groups(self.network, self.recipe.weight_decay))
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        if not self._resume():
            self._fit_readout(squares)
        self._train(squares, report)

    def _fit_readout(self, squares: FinishedSquares) -> None:
        plain = len(squares.markers) // self.heads.variants
        weights = least_squares(squares, plain, self.network.config.patch)
        for network in (self.network, self.average):
            network.readout_head.linear.weight.copy_(weights[:-1].T)
            network.readout_head.linear.bias.copy_(weights[-1])

    def squares(self, preparing: Callable[[int, int], None] = lambda _done, _of: None) -> FinishedSquares:
        """Squares of the train split as the network sees them; kept in the run's folder."""
        return finished_squares(
            self.network,
            self.pairs.tiles("train"),
            self.pairs.around(),
            self.folder / f"features-{self._network_hash}",
            variants=self.heads.variants,
            jitter=self.recipe.color_jitter,
            seed=self.recipe.seed,
            threads=self.threads,
            report=preparing,
        )

    def _train(self, squares: FinishedSquares, report: Callable[[TrainingProgress], None]) -> None:
        self.objective = self._objective(squares)
        replicas, noise = Replicas(self.network, self.threads), torch.Generator()
        means, saved = RunningMeans(), time.monotonic()
        for step in range(self.step, self.heads.steps):
            started = time.monotonic()
            noise.manual_seed(self.recipe.seed + 7919 * step)
            examples = self._examples(squares, np.random.default_rng([self.recipe.seed, step]), noise)
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(self.heads.learning_rate, self.recipe.warmup, self.heads.steps, step)
            self.optimiser.zero_grad(set_to_none=True)
            loss = replicas.backward(self._loss, examples)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimiser.step()
            self.step = step + 1
            follow(self.average, self.network, self.recipe.ema_decay, self.step)
            means.add(loss, time.monotonic() - started)
            if self.step % 10 == 0:
                progress = TrainingProgress(self.step, self.heads.steps, means.loss, means.seconds)
                append_log(self.folder / "heads.csv", progress)
                report(progress)
            if time.monotonic() - saved > CHECKPOINT_SECONDS or self.step == self.heads.steps:
                self._save()
                saved = time.monotonic()

    def _examples(
        self, squares: FinishedSquares, rng: np.random.Generator, noise: torch.Generator
    ) -> list[HeadExample]:
        crops = [_crop(squares, self.heads.crop, self.network.config.patch, rng) for _ in range(self.heads.batch)]
        features, he, markers = (torch.stack(part) for part in zip(*crops, strict=True))
        image = image_features(he.permute(0, 3, 1, 2).float())
        t = shifted(torch.rand(len(features), generator=noise), self.heads.time_shift).clamp_min(LEAST_TIME)
        eps = torch.randn(markers.shape, generator=noise)
        conditional = float(torch.rand((), generator=noise)) >= UNCONDITIONAL_SHARE
        parts = (features.float(), image, markers.float(), t, eps)
        shares = zip(*(part.chunk(self.threads) for part in parts), strict=True)
        return [HeadExample(f, i, m, at, e, conditional) for f, i, m, at, e in shares]

    def _loss(self, network: MuPDNetwork, example: HeadExample) -> Tensor:
        """Error of x0 at random flow times, in the units of the decoder's answer."""
        x0 = self.transform.standardise(example.markers)
        noisy = interpolate(x0, example.noise, example.t)
        features, image = example.features, example.image
        if not example.conditional:
            features, image = torch.zeros_like(features), torch.zeros_like(image)
        with autocast("cpu"):
            predicted = network.decode(features, image, example.t, noisy)
        _, scale = flow_scales(example.t[:, None, None, None])
        inner = np.s_[..., BORDER:-BORDER, BORDER:-BORDER]
        return self.objective.flow((predicted / scale)[inner], (x0 / scale)[inner])

    def _objective(self, squares: FinishedSquares) -> Objective:
        rng = np.random.default_rng(self.recipe.seed)
        drawn = (_crop(squares, self.heads.crop, self.network.config.patch, rng)[2] for _ in range(WEIGHED_ON))
        return Objective.from_crops(drawn, self.transform, 0.0)

    def _save(self) -> None:
        state: dict[str, Any] = {
            "step": self.trained_steps,
            "heads_step": self.step,
            "network_hash": self._network_hash,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "transform": {"mean": self.transform.mean, "std": self.transform.std},
        }
        save_state(state, self.folder / HEADS)

    def _resume(self) -> bool:
        """Go on from the folder's checkpoint; whether there is one of this network."""
        path = self.folder / HEADS
        if not path.is_file():
            return False
        state = torch.load(path, weights_only=True, map_location="cpu")
        if state["network_hash"] != self._network_hash:
            return False
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["heads_step"]
        return True


def _crop(squares: FinishedSquares, crop: int, patch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Features (crop / patch, crop / patch, width), H&E (crop, crop, 3) and markers (C, crop, crop) of some place."""
    i = int(rng.integers(len(squares.markers)))
    y, x = (int(rng.integers((squares.he.shape[1] - crop) // STEP + 1)) * STEP for _ in range(2))
    fine = np.s_[y // patch : (y + crop) // patch, x // patch : (x + crop) // patch]
    window = np.s_[y : y + crop, x : x + crop]
    parts = squares.features[i][fine], squares.he[i][window], squares.markers[i][(slice(None), *window)]
    features, he, markers = (torch.from_numpy(np.array(part)) for part in parts)
    return features, he, markers


def _of_heads(name: str) -> bool:
    return name.partition(".")[0] in ("readout_head", "decoder")


def main() -> int:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m mupd_wsi.training.heads", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    def show(progress: TrainingProgress) -> None:
        if progress.step % 100 == 0:
            left = (progress.steps - progress.step) * progress.seconds_per_step / 60
            sys.stderr.write(f"step {progress.step}/{progress.steps}, loss {progress.loss:.4f}, {left:.0f} min left\n")

    def show_preparing(done: int, of: int) -> None:
        if done % 50 == 0:
            sys.stderr.write(f"features of square {done}/{of}\n")

    try:
        recipe = load_recipe(arguments.recipe)
        with closing(open_pairs(recipe, arguments.run / "tiles")) as pairs:
            HeadTrainer(recipe, arguments.run, pairs, arguments.threads).run(show, show_preparing)
    except MupdError as error:
        sys.stderr.write(f"heads: error: {error}\n")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
