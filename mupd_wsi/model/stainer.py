"""The only place where the network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mupd_wsi.errors import BundleError, UsageError
from mupd_wsi.geometry import Region
from mupd_wsi.model.bundle import ModelInfo, read_info, read_weights
from mupd_wsi.model.devices import Gpu, computes_in_bf16, resolve_device, usable_cores
from mupd_wsi.model.draws import draw
from mupd_wsi.model.extents import Area, Extent, cut_planes, whole_area
from mupd_wsi.model.features import features_of, image_features
from mupd_wsi.model.flow import PredictX0, euler_states, euler_times, read_out
from mupd_wsi.model.memory import BatchWidth, keep_freed_memory
from mupd_wsi.model.narrowing import narrowed
from mupd_wsi.model.network import MuPDNetwork
from mupd_wsi.model.noise import slide_noise_colored
from mupd_wsi.request import Readout, SampleOptions

MAX_CPU_THREADS: Final = 8  # each holds one tile's activations


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is computed of a tile: these channels of these rows and columns, px of the tile."""

    channels: tuple[int, ...]
    rows: Extent
    columns: Extent

    def within(self, part: Region | None, patch: int) -> Wanted | None:
        """What covers a part of it, given from its own corner, in whole patches; None where that is nothing."""
        if part is None:
            return None
        rows = self.rows.part(part.y, part.bottom, patch)
        return replace(self, rows=rows, columns=self.columns.part(part.x, part.right, patch))


class Stainer:
    """A model on a device, ready to stain tiles.

    On the CPU each tile runs on one thread of its own, several at a time: no result depends on the number of threads or
    on which tiles share a batch. On a GPU batches have a fixed shape, the last one padded, for the same reason.

    Attributes:
        info: the model's card.
        device: "cpu", "cuda" or "cuda:N".
        precision: "fp32" or "bf16".
        batch_size: tiles that :meth:`stain` works on at a time, memory permitting; more are split.
        fitting: tiles at a time that the device has had memory for.
    """

    @property
    def stepwise(self) -> bool:
        """Not where a decoder draws deviations from the read-out: its draws see no more than the halo."""
        return not self.info.network.pixel_width

    def __init__(
        self,
        info: ModelInfo,
        network: MuPDNetwork,
        device: str,
        precision: str,
        batch_size: int | None = None,
        gpu: Gpu | None = None,
    ) -> None:
        self.info, self.device, self.precision = info, device, precision
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._gpu = None if device == "cpu" else gpu or Gpu(device)
        self._place = torch.device("cpu") if self._gpu is None else self._gpu.place
        self._network = network.eval().requires_grad_(False).to(self._place).as_precision(self._dtype)
        self._narrowed: dict[tuple[int, ...], MuPDNetwork] = {}
        self._threads: ThreadPoolExecutor | None = None
        if self._gpu is None:
            self.batch_size = batch_size or min(MAX_CPU_THREADS, usable_cores())
            self._threads = ThreadPoolExecutor(self.batch_size, "mupd-network", initializer=_one_torch_thread)
        else:
            self.batch_size = batch_size or self._gpu.tiles_that_fit(info.tile)
        self.fitting = BatchWidth(self.batch_size)

    def stain(
        self,
        rgb: NDArray[np.uint8],
        origins: Sequence[tuple[int, int]],
        options: SampleOptions,
        channels: Sequence[int] | None = None,
        margin: int = 0,
        parts: Sequence[Region | None] | None = None,
    ) -> NDArray[np.float32 | np.uint8]:
        """Stain tiles.

        Args:
            rgb: uint8 (B, H, W, 3), H and W multiples of ``info.network.trunk_stride``; halo included.
            origins: (x, y) of each tile's top left corner on the slide, output pixels; may be negative.
            options: the read-out.
            channels: markers to return, in this order; None means all.
            margin: px of the halo that are not returned, a multiple of the network's patch: what they are not needed
                for is not computed.
            parts: of what is returned of each tile, what is wanted; None of a tile: nothing. The rest may come as 0.

        Returns:
            float32 (B, len(channels), H - 2 * margin, W - 2 * margin): intensities in the units of the training stain,
            0-255.
        """
        rows, columns = (Extent(margin, side - margin) for side in rgb.shape[1:3])
        wanted = Wanted(tuple(range(len(self.info.panel)) if channels is None else channels), rows, columns)
        if self._gpu is not None:
            return self._stain_on_gpu(self._gpu, rgb, origins, options, wanted)
        assert self._threads is not None
        return self._stain_by_threads(self._threads, rgb, origins, options, wanted, parts)

    def times(self, options: SampleOptions) -> tuple[float, ...]:
        """Flow times of a read-out's evaluations, from 1 down, and 0 in the end."""
        steps = 1 if options.readout == "mean" else self._steps(options)
        return tuple(euler_times(steps, self.info.time_shift).tolist())

    def noise(self, seed: int, x: int, y: int, height: int, width: int) -> NDArray[np.float32]:
        """What a draw begins with at a place of the slide (output pixels): float32 (panel, height, width)."""
        blurs, gains = self.info.noise_blurs, self.info.noise_gains
        return slide_noise_colored(seed, x, y, len(self.info.panel), height, width, blurs, gains)

    def predict(self, rgb: NDArray[np.uint8], noisy: NDArray[np.float32] | None, t: float) -> NDArray[np.float32]:
        """One evaluation of the network, for those who walk along the flow themselves.

        Args:
            rgb: as for :meth:`stain`.
            noisy: x_t, float32 (B, panel, H, W); None stands for zeros.
            t: flow time, 0 to 1.

        Returns:
            x0, float32 (B, panel, H, W), in the standardised space of the training targets.
        """
        out = np.empty((len(rgb), len(self.info.panel), *rgb.shape[1:3]), np.float32)

        @torch.inference_mode()
        def run(part: NDArray[np.intp]) -> None:
            x = None if noisy is None else torch.from_numpy(noisy[part]).to(self._place)
            times = torch.full((len(part),), t, device=self._place)
            out[part] = self._predictor(rgb[part])(x, times).cpu().numpy()

        def run_part(part: slice, width: int) -> None:
            if self._threads is not None:
                _each(self._threads, lambda i: run(np.array([i])), part)
            else:  # of a fixed shape: the last tile fills up the last batch
                run(np.minimum(np.arange(part.start, part.start + width), len(rgb) - 1))

        self.fitting.in_parts(len(rgb), run_part)
        return out

    def intensities(self, x0: NDArray[np.float32], readout: Readout, channels: Sequence[int]) -> NDArray[np.float32]:
        """What a prediction shows: x0 (B, panel, H, W) as float32 (B, len(channels), H, W), 0-255."""
        values = torch.from_numpy(x0)
        planes = [self._intensity(values[:, channel], channel, readout) for channel in channels]
        return torch.stack(planes, dim=1).numpy()

    def close(self) -> None:
        """Stop the threads. The stainer cannot be used afterwards."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def _stain_by_threads(
        self,
        threads: ThreadPoolExecutor,
        rgb: NDArray[np.uint8],
        origins: Sequence[tuple[int, int]],
        options: SampleOptions,
        wanted: Wanted,
        parts: Sequence[Region | None] | None,
    ) -> NDArray[np.float32]:
        made = np.empty if parts is None else np.zeros
        out = made((len(rgb), len(wanted.channels), wanted.rows.length, wanted.columns.length), np.float32)

        def stain_one(i: int) -> None:
            one = slice(i, i + 1)
            inner = wanted if parts is None else wanted.within(parts[i], self.info.network.patch)
            if inner is None:
                return
            rows = slice(inner.rows.start - wanted.rows.start, inner.rows.stop - wanted.rows.start)
            columns = slice(inner.columns.start - wanted.columns.start, inner.columns.stop - wanted.columns.start)
            for place, plane in enumerate(self._planes(rgb[one], origins[one], options, inner)):
                out[i, place, rows, columns] = plane[0].numpy()

        def stain_part(part: slice, width: int) -> None:
            del width  # a tile needs no company
            _each(threads, stain_one, part)

        self.fitting.in_parts(len(rgb), stain_part)
        return out

    def _stain_on_gpu(
        self,
        gpu: Gpu,
        rgb: NDArray[np.uint8],
        origins: Sequence[tuple[int, int]],
        options: SampleOptions,
        wanted: Wanted,
    ) -> NDArray[np.float32]:
        made: dict[int, NDArray[np.float32]] = {}

        def stain_part(part: slice, width: int) -> None:
            batch, places = rgb[part], list(origins[part])
            if missing := width - len(batch):
                batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
                places += places[-1:] * missing
            with gpu.at_work():
                planes = torch.stack(list(self._planes(batch, places, options, wanted)), dim=1)
                made[part.start] = gpu.download(planes[: part.stop - part.start])

        self.fitting.in_parts(len(rgb), stain_part)
        return np.concatenate(list(made.values())) if len(made) > 1 else made[0]

    @torch.inference_mode()
    def _planes(
        self,
        rgb: NDArray[np.uint8],
        origins: Sequence[tuple[int, int]],
        options: SampleOptions,
        wanted: Wanted,
    ) -> Iterator[Tensor]:
        """Intensities of one channel after the other, (B, H, W) each: one fits the processor's cache, all do not."""
        places = wanted.channels
        if options.readout == "mean":
            network, places = self._for(wanted.channels)
            predict = self._predictor(rgb, (wanted.rows, wanted.columns), network)
            x0 = read_out(predict, len(rgb), self._place)
        else:
            keep_freed_memory()
            x0 = self._draw(rgb, origins, options, (wanted.rows, wanted.columns))
        for place, channel in zip(places, wanted.channels, strict=True):
            yield self._intensity(x0[:, place], channel, options.readout)

    def _draw(
        self, rgb: NDArray[np.uint8], origins: Sequence[tuple[int, int]], options: SampleOptions, part: Area
    ) -> Tensor:
        """A draw of what is wanted of tiles, (B, panel, rows, columns): roots, or standardised x0 without a decoder."""
        steps, image = self._steps(options), self._image(rgb)

        def noise_of(area: Area) -> Tensor:
            return self._noise(origins, options.seed, area)

        if self.info.network.pixel_width:
            return draw(self._network, self.info, image, noise_of, steps, part)
        # At each step x_t goes through the whole network, which sees too much to leave any out.
        tile = whole_area(image)
        *_, x0 = euler_states(self._predictor(rgb), noise_of(tile), steps, self.info.time_shift)
        return cut_planes(x0, tile, part)

    def _for(self, channels: tuple[int, ...]) -> tuple[MuPDNetwork, tuple[int, ...]]:
        """The network that reads out what is wanted, and where in its answer that stands."""
        if not self.info.network.pixel_width or len(channels) == len(self.info.panel):
            return self._network, channels
        if channels not in self._narrowed:  # made twice, if two threads come here first: the same both times
            made = narrowed(self._network, channels)
            if self._gpu is not None:
                self._gpu.settle()
            self._narrowed[channels] = made
        return self._narrowed[channels], tuple(range(len(channels)))

    def _predictor(
        self, rgb: NDArray[np.uint8], part: Area | None = None, network: MuPDNetwork | None = None
    ) -> PredictX0:
        """The network with the H&E of tiles bound to it, and what is wanted of them."""
        network, image = self._network if network is None else network, self._image(rgb)
        lead = self.info.lead // self.info.network.trunk_stride

        def predict(noisy: Tensor | None, t: Tensor) -> Tensor:
            given = noisy if noisy is None or self.info.network.pixel_width else noisy.to(self._dtype)
            x0: Tensor = network(image, t, given, lead=lead, wanted=part)
            return x0.float().contiguous()

        return predict

    def _image(self, rgb: NDArray[np.uint8]) -> Tensor:
        """What the network sees of tiles, fp32 (B, image_channels, H, W): how much dye there is must not be rounded."""
        if self._gpu is None:
            return features_of(rgb)
        return image_features(self._gpu.upload(rgb).permute(0, 3, 1, 2).float())

    def _intensity(self, values: Tensor, channel: int, readout: Readout) -> Tensor:
        """Of one channel, from what the network gives for it, any shape."""
        if not self.info.network.pixel_width:
            root = self.info.transform.root(values, channel)
        else:
            root = values.clamp_min(0).sqrt() if readout == "mean" else values
        curves = self.info.calibration if readout == "mean" else self.info.draw_calibration
        return curves.apply(root, channel).clamp_(0, 255)

    def _steps(self, options: SampleOptions) -> int:
        return options.steps or self.info.steps

    def _noise(self, origins: Sequence[tuple[int, int]], seed: int, part: Area) -> Tensor:
        rows, columns = part
        places = [(x + columns.start, y + rows.start) for x, y in origins]
        noise = np.stack([self.noise(seed, x, y, rows.length, columns.length) for x, y in places])
        return torch.from_numpy(noise).to(self._place)


def load_bundle(folder: Path, *, device: str, precision: str = "auto", batch_size: int | None = None) -> Stainer:
    """Load the bundle in a folder onto a device; see :func:`mupd_wsi.model.loading.load_model`."""
    device = resolve_device(device)
    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"unknown precision {precision!r}: give auto, fp32 or bf16")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch size must be at least 1, got {batch_size}")
    info = read_info(folder)
    with torch.device("meta"), _Uninitialised():
        network = MuPDNetwork(info.network)
    try:
        network.load_state_dict({k: v.float() for k, v in read_weights(folder, info).items()}, assign=True)
    except RuntimeError as error:
        raise BundleError(f"the weights in {folder} do not fit its model.json: {str(error).splitlines()[0]}") from error
    chosen = ("bf16" if computes_in_bf16(device) else "fp32") if precision == "auto" else precision
    return Stainer(info, network, device, chosen, batch_size)


class _Uninitialised(TorchFunctionMode):
    """Leaves out ``torch.nn.init``: for weights that are loaded next, a second of imports on the meta device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _each(threads: ThreadPoolExecutor, work: Callable[[int], None], part: slice) -> None:
    """Work on some tiles, a thread each."""
    jobs = [threads.submit(work, i) for i in range(part.start, part.stop)]
    wait(jobs)  # all of them, so that after a failure none still holds memory
    for job in jobs:
        job.result()


def _one_torch_thread() -> None:
    torch.set_num_threads(1)
