"""The training loop: flow matching with x0 prediction, half of it at the read-out."""

from __future__ import annotations

import copy
import csv
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mupd_wsi.errors import UsageError
from mupd_wsi.model.devices import computes_in_bf16
from mupd_wsi.model.features import image_features
from mupd_wsi.model.flow import interpolate
from mupd_wsi.model.network import MuPDNetwork
from mupd_wsi.model.transform import TargetTransform
from mupd_wsi.training.adapters import add_adapters
from mupd_wsi.training.augment import jitter_stains
from mupd_wsi.training.fitting import fit_transform
from mupd_wsi.training.objective import Objective
from mupd_wsi.training.recipe import CHECKPOINT, Recipe
from mupd_wsi.training.replicas import Replicas
from mupd_wsi.training.sources import PairSource, open_pairs
from mupd_wsi.training.starting import starting_weights
from mupd_wsi.training.tiles import CropSampler

UNCONDITIONAL_SHARE = 0.1  # of the generative batches: the paper's condition dropout, so that guidance works
CHECKPOINT_SECONDS = 300.0

Crops = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Example:
    """A share of a batch.

    Attributes:
        features: of the H&E, (B, image_channels, H, W).
        x0: standardised markers, (B, C, H, W).
        t: flow times of the generative part, (B - split,).
        noisy: its x_t, (B - split, C, H, W).
        split: how many crops, the first, train the read-out.
        conditional: whether the generative part sees the H&E.
    """

    features: Tensor
    x0: Tensor
    t: Tensor
    noisy: Tensor
    split: int
    conditional: bool


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """One line of the log.

    Attributes:
        step: optimiser steps done.
        steps: optimiser steps in all.
        loss: running mean of the training loss.
        seconds_per_step: running mean.
        dev_pearson: mean over markers of the pixel Pearson on dev crops, where this step looked at them.
    """

    step: int
    steps: int
    loss: float
    seconds_per_step: float
    dev_pearson: float | None = None


class Trainer:
    """Trains one network by one recipe; may be stopped at any time and goes on from its last checkpoint.

    Memory: the decoded tiles of both splits (1 MB a channel and 1024-px tile) and the network's activations.

    Args:
        recipe: what to train.
        run_folder: for checkpoints and the log.
        threads: CPU threads, each with a share of every batch; a divisor of the batch. A GPU takes batches whole.
        device: "cpu", "cuda" or "cuda:N".
        pairs: where the tiles come from; None opens what the recipe names.
    """

    def __init__(
        self,
        recipe: Recipe,
        run_folder: Path,
        threads: int = 1,
        device: str = "cpu",
        pairs: PairSource | None = None,
    ) -> None:
        self.recipe, self.folder, self.device = recipe, run_folder, device
        run_folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(recipe.seed)
        self.pairs = pairs or open_pairs(recipe, run_folder / "tiles")
        self.train_tiles = self.pairs.tiles("train")
        self.transform: TargetTransform = fit_transform(self.train_tiles.markers, self.train_tiles.patch_tissue)
        self.network = MuPDNetwork(recipe.network_config)
        if recipe.start_from:
            started = starting_weights(recipe, recipe.start_from, self.transform)
            self.network.load_state_dict(self.network.state_dict() | started)
        if recipe.tune == "lora":
            add_adapters(self.network, recipe.lora_rank)
        self.network.to(device)
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.optimiser = torch.optim.AdamW(parameter_groups(self.network, recipe.weight_decay), betas=(0.9, 0.98))
        self.noise = torch.Generator().manual_seed(recipe.seed + 1)
        self.step = 0
        self.objective = self._objective().to(device)
        self.replicas = Replicas(self.network, threads if device == "cpu" else 1)
        self.dev_crops = _fixed_dev_crops(recipe, self.pairs)

    def run(self, report: Callable[[TrainingProgress], None]) -> None:
        """Train to the end, reporting every ten steps and at every look at the dev split."""
        means, saved = RunningMeans(), time.monotonic()
        for crops in _prefetched(self._batches()):
            started = time.monotonic()
            means.add(self._optimise(crops), time.monotonic() - started)
            looked = self.step % self.recipe.validate_every == 0 or self.step == self.recipe.steps
            if looked or self.step % 10 == 0:
                pearson = float(np.nanmean(self.dev_pearson())) if looked else None
                progress = TrainingProgress(self.step, self.recipe.steps, means.loss, means.seconds, pearson)
                append_log(self.folder / "log.csv", progress)
                report(progress)
            if time.monotonic() - saved > CHECKPOINT_SECONDS or self.step == self.recipe.steps:
                self.save()
                saved = time.monotonic()

    def _batches(self) -> Iterator[list[Crops]]:
        rng = np.random.default_rng(self.recipe.seed)
        sampler = CropSampler(self.train_tiles, self.recipe.crop, self.recipe.positive_share, rng)
        for step in range(self.step, self.recipe.steps):
            # One generator a step: a run that was stopped goes on with the crops that it would have drawn.
            sampler.rng = np.random.default_rng([self.recipe.seed, step])
            yield [sampler.draw() for _ in range(self.recipe.batch)]

    def _objective(self, crops: int = 256) -> Objective:
        rng = np.random.default_rng(self.recipe.seed)
        sampler = CropSampler(self.train_tiles, self.recipe.crop, self.recipe.positive_share, rng)
        drawn = (torch.from_numpy(np.ascontiguousarray(sampler.draw()[1])) for _ in range(crops))
        return Objective.from_crops(drawn, self.transform, self.recipe.intensity_share)

    def _optimise(self, crops: list[Crops]) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.recipe.learning_rate, self.recipe.warmup, self.recipe.steps, self.step)
        rgb, x0 = self._tensors(crops)
        features = image_features(jitter_stains(rgb, self.recipe.color_jitter, self.noise)).to(self.device)
        x0 = x0.to(self.device)
        shares = zip(features.chunk(len(self.replicas)), x0.chunk(len(self.replicas)), strict=True)
        examples = [self._example(*share) for share in shares]
        self.optimiser.zero_grad(set_to_none=True)
        # MATH: its backward pass is twice as fast as the fused one on windows of 64 tokens.
        with sdpa_kernel(SDPBackend.MATH):
            loss = self.replicas.backward(self._loss, examples)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        follow(self.average, self.network, self.recipe.ema_decay, self.step)
        return loss

    def _example(self, features: Tensor, x0: Tensor) -> Example:
        """A share of a batch, with the noise of its generative part."""
        generative = self.step >= self.recipe.generative_from * self.recipe.steps
        split = len(x0) - (round(self.recipe.generative_share * len(x0)) if generative else 0)
        rest = x0[split:]
        t = torch.rand(len(rest), generator=self.noise).to(self.device)
        noisy = interpolate(rest, torch.randn(rest.shape, generator=self.noise).to(self.device), t)
        conditional = float(torch.rand((), generator=self.noise)) >= UNCONDITIONAL_SHARE
        return Example(features, x0, t, noisy, split, conditional)

    def _loss(self, network: MuPDNetwork, example: Example) -> Tensor:
        """Errors of x0 at the read-out and at random flow times, by the number of their crops."""
        split, count = example.split, len(example.x0)
        with autocast(self.device):
            predicted = network(example.features[:split], torch.ones(split, device=self.device))
            error = self.objective.readout(predicted, example.x0[:split])
            if split == count:
                return error
            image = example.features[split:] if example.conditional else None
            flow = self.objective.flow(network(image, example.t, example.noisy), example.x0[split:])
        return (split * error + (count - split) * flow) / count

    def _tensors(self, crops: list[Crops]) -> tuple[Tensor, Tensor]:
        """Batch of crops as H&E (B, 3, H, W) in 0-255 and standardised markers (B, C, H, W)."""
        rgb = torch.from_numpy(np.stack([he.transpose(2, 0, 1) for he, _ in crops])).float()
        markers = torch.from_numpy(np.stack([m for _, m in crops])).float()
        return rgb, self.transform.standardise(markers)

    @torch.inference_mode()
    def dev_pearson(self) -> NDArray[np.float64]:
        """Pixel Pearson between real and read-out intensities on the fixed dev crops, one a marker."""
        predicted = [self.read_out(crop).reshape(len(self.recipe.markers), -1) for crop in self.dev_crops]
        real = np.concatenate([m.reshape(len(m), -1) for _, m in self.dev_crops], axis=1).astype(np.float32)
        virtual = np.concatenate(predicted, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):  # a marker may be absent from all of them
            return np.array([np.corrcoef(r, v)[0, 1] for r, v in zip(real, virtual, strict=True)])

    @torch.inference_mode()
    def read_out(self, crop: Crops) -> NDArray[np.float32]:
        """Intensities that the averaged weights read out of a crop, (C, crop, crop), not calibrated."""
        rgb, _ = self._tensors([crop])
        with autocast(self.device):
            x0 = self.average(image_features(rgb).to(self.device), torch.ones(1, device=self.device))
        return np.asarray(self.transform.roots(x0.float()).square()[0].cpu().numpy())

    def save(self) -> None:
        """Write the checkpoint, atomically."""
        state: dict[str, Any] = {
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "noise": self.noise.get_state(),
            "transform": asdict(self.transform),
        }
        save_state(state, self.folder / CHECKPOINT)

    def resume(self) -> None:
        """Go on from the folder's checkpoint, where there is one.

        Raises:
            UsageError: it is of another network.
        """
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return
        state = torch.load(path, weights_only=True, map_location=self.device)
        try:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"{path} is of another network or other markers; name another --run folder") from error
        self.noise.set_state(state["noise"].cpu())
        self.step = state["step"]


@torch.no_grad()  # else each step would keep the one before
def follow(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move the exponential moving average of the weights; in the first steps it follows faster."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)


@dataclass
class RunningMeans:
    """Of the loss and the seconds of a step, the last steps weighing most."""

    seconds: float = math.nan
    _sum: float = 0.0
    _steps: int = 0

    def add(self, loss: float, seconds: float) -> None:
        """Count a step."""
        self._steps += 1
        self._sum = 0.98 * self._sum + 0.02 * loss
        self.seconds = seconds if self._steps == 1 else 0.95 * self.seconds + 0.05 * seconds

    @property
    def loss(self) -> float:
        """The first steps weigh no more than the others."""
        return self._sum / (1 - 0.98**self._steps)


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint, atomically."""
    part = path.with_name(f"{path.name}.part")
    torch.save(state, part)
    part.replace(path)


def append_log(path: Path, progress: TrainingProgress) -> None:
    """Add a line to a training's CSV log."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(asdict(progress)))
        if new:
            writer.writeheader()
        writer.writerow(asdict(progress))


def autocast(device: str) -> torch.autocast:
    """bf16 where that is faster than fp32."""
    return torch.autocast(device.partition(":")[0], dtype=torch.bfloat16, enabled=computes_in_bf16(device))


def learning_rate(peak: float, warmup: int, steps: int, step: int) -> float:
    """Linear warm-up over ``warmup`` steps, then a cosine down to 2 % of the peak at ``steps``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def parameter_groups(network: MuPDNetwork, weight_decay: float) -> list[dict[str, Any]]:
    """For AdamW: weight decay on the matrices that are trained, none on the vectors."""
    trained = [p for p in network.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    vectors = [p for p in trained if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _fixed_dev_crops(recipe: Recipe, pairs: PairSource, count: int = 40) -> list[Crops]:
    sampler = CropSampler(pairs.tiles("dev"), recipe.crop, 0.3, np.random.default_rng(0))
    return [sampler.draw() for _ in range(count)]


def _prefetched(batches: Iterator[list[Crops]], ahead: int = 4) -> Iterator[list[Crops]]:
    """The same batches, drawn by another thread while the network works."""
    waiting: queue.Queue[list[Crops] | None] = queue.Queue(maxsize=ahead)

    def fill() -> None:
        for batch in batches:
            waiting.put(batch)
        waiting.put(None)

    threading.Thread(target=fill, daemon=True).start()
    while (batch := waiting.get()) is not None:
        yield batch
