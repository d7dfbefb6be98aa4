"""Fits the read-out's head to a finished network, and trains the decoder that draws are made by.

``python -m mupd_wsi.training.heads RECIPE --run FOLDER`` makes ``heads.pt`` of the folder's checkpoint. The network
itself is not moved, so its features are computed once, and read-out and draw, which want different things of features
that they share, do not pull at them. The read-out's head is linear, so the best one has a closed form. The decoder
learns how the stain deviates from what that read-out tells (:class:`mupd_wsi.model.calibration.RootMoments`).
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mupd_wsi.errors import UsageError
from mupd_wsi.model.bundle import state_hash
from mupd_wsi.model.calibration import RootMoments
from mupd_wsi.model.decoder import flow_scales, with_ring
from mupd_wsi.model.features import image_features
from mupd_wsi.model.flow import interpolate, shifted
from mupd_wsi.model.network import MuPDNetwork
from mupd_wsi.model.noise import colored, reach
from mupd_wsi.model.transform import TargetTransform
from mupd_wsi.training.finished import FinishedSquares, finished_squares, least_squares
from mupd_wsi.training.fitting import CurveCounts
from mupd_wsi.training.recipe import CHECKPOINT, HEADS, Damping, Recipe, load_recipe
from mupd_wsi.training.replicas import Replicas
from mupd_wsi.training.sources import PairSource, open_pairs
from mupd_wsi.training.telling import told_in_a_line
from mupd_wsi.training.trainer import (
    CHECKPOINT_SECONDS,
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
MOMENTS_EVERY = 4  # squares; on one in so many it is measured what the read-out tells
LEAST_SPREAD = 0.25  # of a channel's standard deviation: what the spread of a root is taken for at least
MOST_SPREADS = 8.0  # deviations beyond are dust and folds


@dataclass(frozen=True, slots=True)
class HeadExample:
    """A share of a batch: what read-out and decoder are given, and what should come out."""

    features: Tensor
    views: Tensor
    image: Tensor
    markers: Tensor
    t: Tensor
    noise: Tensor


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
        self.optimiser = torch.optim.AdamW(parameter_groups(self.network, self.recipe.weight_decay), fused=True)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        if not self._resume():
            self._fit_readout(squares)
            self.moments = self._fit_moments(squares)
        self._train(squares, report)

    def _fit_readout(self, squares: FinishedSquares) -> None:
        dampings = [self.heads.dampings.get(marker, Damping()) for marker in self.recipe.markers]
        weights = least_squares(squares, self.network.config.patch, dampings)
        for network in (self.network, self.average):
            network.readout_head.linear.weight.copy_(weights[:-1].T)
            network.readout_head.linear.bias.copy_(weights[-1])

    @torch.inference_mode()
    def _fit_moments(self, squares: FinishedSquares) -> RootMoments:
        """What the fitted read-out tells of the roots of intensities, on squares spread evenly."""
        mean, power = (CurveCounts.empty(len(self.recipe.markers)) for _ in range(2))
        for i in range(0, squares.plain, MOMENTS_EVERY):
            told = torch.from_numpy(squares.told(i))[None]
            roots = self.network.readout_head(with_ring(told))[0].permute(2, 0, 1).clamp_min(0).sqrt().numpy()
            mean.add(roots, np.sqrt(squares.markers[i], dtype=np.float32))
            power.add(roots, squares.markers[i])
        return RootMoments(mean.fit(), power.fit(), tuple(round(LEAST_SPREAD * std, 5) for std in self.transform.std))

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
            follow(self.average.decoder, self.network.decoder, self.recipe.ema_decay, self.step)
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
        features, views, he, markers = (torch.stack(part) for part in zip(*crops, strict=True))
        image = image_features(he.permute(0, 3, 1, 2).float())
        t = shifted(torch.rand(len(features), generator=noise), self.heads.time_shift).clamp_min(LEAST_TIME)
        eps = self._noise(markers.shape, noise)
        parts = (features.float(), views.float(), image, markers.float(), t, eps)
        return [HeadExample(*share) for share in zip(*(part.chunk(self.threads) for part in parts), strict=True)]

    def _noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Noise of the colour that draws begin with, (B, C, H, W)."""
        *planes, height, width = shape
        edge = 2 * reach(self.heads.noise_blurs)
        white = torch.randn(*planes, height + edge, width + edge, generator=generator).numpy()
        return torch.from_numpy(np.stack([colored(crop, self.heads.noise_blurs) for crop in white]))

    def _loss(self, network: MuPDNetwork, example: HeadExample) -> Tensor:
        """Error of x0 at random flow times, in the units of the decoder's answer."""
        x0 = self._deviations(network, example)
        noisy = interpolate(x0, example.noise, example.t)
        with autocast("cpu"):
            predicted = network.decode(example.features, example.image, example.t, noisy)
        _, scale = flow_scales(example.t[:, None, None, None])
        inner = np.s_[..., BORDER:-BORDER, BORDER:-BORDER]
        return (((predicted - x0) / scale)[inner]).square().mean()

    @torch.no_grad()
    def _deviations(self, network: MuPDNetwork, example: HeadExample) -> Tensor:
        """What is drawn: how far the roots of the stain lie from what the read-out tells of them, (B, C, H, W)."""
        told = torch.cat([example.features, example.views], dim=-1)
        readout = network.readout_head(with_ring(told)).permute(0, 3, 1, 2)
        return self.moments.deviations(example.markers.sqrt(), readout).clamp(-MOST_SPREADS, MOST_SPREADS)

    def _save(self) -> None:
        state: dict[str, Any] = {
            "step": self.trained_steps,
            "heads_step": self.step,
            "network_hash": self._network_hash,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "transform": {"mean": self.transform.mean, "std": self.transform.std},
            "moments": asdict(self.moments),
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
        self.step, self.moments = state["heads_step"], RootMoments.from_json(state["moments"])
        return True


def _crop(squares: FinishedSquares, crop: int, patch: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Features and views (crop / patch, crop / patch, width), H&E (crop, crop, 3) and markers (C, crop, crop)."""
    i = int(rng.integers(len(squares.markers)))
    y, x = (int(rng.integers((squares.he.shape[1] - crop) // STEP + 1)) * STEP for _ in range(2))
    fine = np.s_[y // patch : (y + crop) // patch, x // patch : (x + crop) // patch]
    window = np.s_[y : y + crop, x : x + crop]
    own = squares.features[i][fine], squares.views[i][fine], squares.he[i][window]
    return tuple(torch.from_numpy(np.array(part)) for part in (*own, squares.markers[i][(slice(None), *window)]))


def _of_heads(name: str) -> bool:
    return name.partition(".")[0] in ("readout_head", "decoder")


@told_in_a_line
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

    torch.set_num_threads(1)  # what is large is shared out among threads of its own
    recipe = load_recipe(arguments.recipe)
    with closing(open_pairs(recipe, arguments.run / "tiles")) as pairs:
        HeadTrainer(recipe, arguments.run, pairs, arguments.threads).run(show, show_preparing)
    return 0


if __name__ == "__main__":
    sys.exit(main())
