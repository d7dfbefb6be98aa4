"""MuPD's network (arXiv 2604.03635) at the small scale: an hourglass with a transformer trunk that predicts x0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from mupd_wsi.model.blocks import (
    ConvBlock,
    TimeEmbedding,
    TransformerBlock,
    affine,
    depth_to_space,
    space_to_depth,
)
from mupd_wsi.model.config import NetworkConfig
from mupd_wsi.model.decoder import FlowDecoder, OverlapHead, with_ring
from mupd_wsi.model.densities import VIEW_WIDTH, density_views
from mupd_wsi.model.extents import Extent, Needs, cut, cut_planes, needs, whole_area

#: Parts that stay fp32 whatever the precision, so that what comes out is not rounded to bf16's 8 bits.
KEPT_PRECISE: Final = frozenset({"time", "head_norm", "head", "readout_head"})

NOTHING_GIVEN: Final = "the network needs the H&E image or a noisy stain, got neither"


class MuPDNetwork(nn.Module):
    """Predicts the clean stain x0 from a noisy one, the flow time and the conditions.

    The path is x_t = (1 - t) x0 + t eps, so the flow's velocity is v = (x_t - x0) / t. The H&E enters twice: as feature
    maps at the finest scale, where registration matters, and as the image stream of the trunk's cross-attention.

    With ``config.pixel_width`` the noisy stain does not pass through the trunk: read-out and draw start from the same
    features, made once a tile, by a head and a decoder of their own. ``head`` and ``embed_noisy`` are then what the
    trunk was trained by, and what a fine-tuning begins with.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.stage_widths
        patch_area = config.patch**2
        self.embed_image = nn.Linear(patch_area * config.image_channels, widths[0])
        self.embed_noisy = nn.Linear(patch_area * config.targets, widths[0], bias=False)
        self.embed_context = nn.Linear(config.trunk_stride**2 * config.image_channels, config.context_width)
        self.time = TimeEmbedding(config.time_width)
        self.trunk_modulation = nn.Linear(config.time_width, 6 * config.trunk_width)

        def stage(level: int) -> nn.ModuleList:
            return nn.ModuleList(
                ConvBlock(widths[level], config.time_width, config.kernel) for _ in range(config.stage_depths[level])
            )

        levels = range(len(widths))
        coarser = (*widths[1:], config.trunk_width)
        self.down_stages = nn.ModuleList(stage(level) for level in levels)
        self.downs = nn.ModuleList(nn.Linear(4 * widths[i], coarser[i]) for i in levels)
        streams = {"image": config.context_width, "text": config.text_width, "rna": config.rna_width}
        self.trunk = nn.ModuleList(
            TransformerBlock(
                config.trunk_width, config.trunk_heads, config.window, {n: w for n, w in streams.items() if w}
            )
            for _ in range(config.trunk_depth)
        )
        self.ups = nn.ModuleList(nn.Linear(coarser[i], 4 * widths[i]) for i in levels)
        self.merges = nn.ModuleList(nn.Linear(2 * widths[i], widths[i]) for i in levels)
        self.up_stages = nn.ModuleList(stage(level) for level in levels)
        self.head_norm = nn.LayerNorm(widths[0])
        self.head = nn.Linear(widths[0], patch_area * config.targets)
        if config.pixel_width:
            told = widths[0] + VIEW_WIDTH * len(config.density_squares)
            self.readout_head = OverlapHead(told, config.targets, config.patch)
            self.decoder = FlowDecoder(config)
        nn.init.zeros_(self.trunk_modulation.bias)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(
        self,
        image: Tensor | None,
        t: Tensor,
        noisy: Tensor | None = None,
        text: Tensor | None = None,
        rna: Tensor | None = None,
        lead: int = 0,
        wanted: tuple[Extent, Extent] | None = None,
    ) -> Tensor:
        """Predict x0.

        Args:
            image: H&E features (B, image_channels, H, W), H and W multiples of ``config.trunk_stride``; None is the
                unconditional case (then ``noisy`` gives the shape).
            t: flow time in [0, 1], (B,).
            noisy: x_t (B, targets, H, W); None stands for zeros, the one-pass read-out at t = 1.
            text: text tokens (B, M, text_width), or None.
            rna: RNA tokens (B, M, rna_width), or None.
            lead: trunk tokens before the first whole attention window, on both axes.
            wanted: rows and columns of the image that have to come out, in multiples of ``config.patch``; None is all.
                What they are needed for is computed, and nothing more.

        Returns:
            (B, targets, H, W) of what is wanted: x0 in the standardised space of the training targets. Of a read-out
            (no ``noisy``) of a network with ``config.pixel_width``: expected intensities; of a draw of it: deviations
            from what the read-out tells (:class:`mupd_wsi.model.calibration.RootMoments`).
        """
        if not self.config.pixel_width:
            features = self.features(image, t, noisy, text, rna, lead, wanted)
            return depth_to_space(affine(features, self.head), self.config.patch).permute(0, 3, 1, 2)
        at_once = torch.ones_like(t)
        if noisy is None:
            if image is None:
                raise ValueError(NOTHING_GIVEN)
            whole = whole_area(image)
            features = self.features(image, at_once, None, text, rna, lead, wanted)
            return self.read_out(features, image, wanted or whole, whole)
        if image is not None:
            features = self.features(image, at_once, None, text, rna, lead)
        else:
            rows, columns = (side // self.config.patch for side in noisy.shape[2:])
            features = noisy.new_zeros(len(noisy), rows, columns, self.config.stage_widths[0])
        whole = whole_area(noisy)
        return cut_planes(self.decode(features, image, t, noisy), whole, wanted or whole)

    def decode(self, features: Tensor, image: Tensor | None, t: Tensor, noisy: Tensor) -> Tensor:
        """From features of the H&E and x_t to x0; of a network with ``config.pixel_width`` only.

        All cover the same place. ``config.decoder_reach`` px at its edges are not what they would be in a larger one.

        Args:
            features: of :meth:`features` without noise, at t = 1, (B, H / patch, W / patch, F).
            image: H&E features (B, image_channels, H, W), or None.
            t: flow time in [0, 1], (B,).
            noisy: x_t (B, targets, H, W).
        """
        if image is None:
            image = noisy.new_zeros(len(noisy), self.config.image_channels, *noisy.shape[2:])
        time = self.time(t).to(self.decoder.norm.weight.dtype)
        x0: Tensor = self.decoder(features, image.permute(0, 2, 3, 1), noisy.permute(0, 2, 3, 1), t, time)
        return x0.permute(0, 3, 1, 2)

    def read_out(self, features: Tensor, image: Tensor, kept: Sequence[Extent], whole: Sequence[Extent]) -> Tensor:
        """Expected intensities of what is kept, (B, targets, H, W).

        Args:
            features: of :meth:`features` where that was wanted.
            image: H&E features of all.
            kept: rows and columns.
            whole: those of the image.
        """
        reach, patch = self.config.head_reach, self.config.patch
        seen = [part.widened(reach, patch, side.stop) for part, side in zip(kept, whole, strict=True)]
        if self.config.density_squares:
            views = cut(density_views(image, patch, self.config.density_squares), whole, seen, patch)
            features = torch.cat([features, views], dim=-1)
        ring = [Extent(part.start - reach, part.stop + reach) for part in kept]
        # At an image's own edges there is nothing beyond: what is nearest stands for it.
        around = [Extent(part.start - reach, part.stop + reach) for part in seen]
        features = cut(with_ring(features.to(self.readout_head.linear.weight.dtype)), around, ring, patch)
        answer: Tensor = self.readout_head(features)
        return answer.permute(0, 3, 1, 2)

    def features(
        self,
        image: Tensor | None,
        t: Tensor,
        noisy: Tensor | None = None,
        text: Tensor | None = None,
        rna: Tensor | None = None,
        lead: int = 0,
        wanted: tuple[Extent, Extent] | None = None,
    ) -> Tensor:
        """What the heads are given, normalised: fp32 (B, h, w, stage_widths[0]), one vector a patch.

        It covers what is wanted and the reach of the read-out's head (``config.head_reach``) around it.

        Args: those of :meth:`forward`.
        """
        time = self.time(t).to(self.trunk_modulation.weight.dtype)
        x, contexts = self._embed(image, noisy)
        contexts |= {name: tokens for name, tokens in (("text", text), ("rna", rna)) if tokens is not None}
        stride, window = self.config.trunk_stride, self.config.window
        whole = [Extent(0, tokens * self.config.patch) for tokens in x.shape[1:3]]
        parts = [
            needs(self.config, axis.length, lead * stride, part)
            for axis, part in zip(whole, wanted or whole, strict=True)
        ]
        trunk = [part.down[-1] for part in parts]
        maps = {name: cut(c, whole, trunk, stride) if c.ndim == 4 else c for name, c in contexts.items()}
        leads = tuple((lead - part.start // stride) % window for part in trunk)
        x, skips = self._descend(cut(x, whole, [part.down[0] for part in parts], self.config.patch), parts, time)
        modulation = self.trunk_modulation(time).reshape(len(t), 6, -1)
        for block in self.trunk:
            x = block(x, modulation, maps, leads)
        x = self._ascend(x, skips, parts, time)
        normed: Tensor = self.head_norm(x.to(self.head.weight.dtype))
        return normed

    def _descend(self, x: Tensor, parts: list[Needs], time: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The way down: what the trunk is given, and what each stage keeps for the way up."""
        skips = []
        for level, (blocks, down) in enumerate(zip(self.down_stages, self.downs, strict=True)):
            for block in blocks:  # type: ignore[attr-defined]  # a ModuleList, typed as Module by torch
                x = block(x, time)
            given, stride = [part.down[level] for part in parts], self.config.patch * 2**level
            skips.append(cut(x, given, [part.up[level] for part in parts], stride))
            x = affine(space_to_depth(cut(x, given, [part.down[level + 1] for part in parts], stride), 2), down)
        return x, skips

    def _ascend(self, x: Tensor, skips: list[Tensor], parts: list[Needs], time: Tensor) -> Tensor:
        """The way up, from what the trunk gives to the features that are wanted."""
        given = [part.down[-1] for part in parts]
        for level in reversed(range(len(skips))):
            kept, stride = [part.up[level] for part in parts], self.config.patch * 2**level
            x = depth_to_space(affine(cut(x, given, kept, 2 * stride), self.ups[level]), 2)
            x = affine(torch.cat([x, skips[level]], dim=-1), self.merges[level])
            for block in self.up_stages[level]:  # type: ignore[attr-defined]  # as above
                x = block(x, time)
            given = kept
        return cut(x, given, [part.features for part in parts], self.config.patch)

    def as_precision(self, dtype: torch.dtype) -> MuPDNetwork:
        """Convert the weights, all but those of :data:`KEPT_PRECISE`."""
        for name, child in self.named_children():
            child.to(torch.float32 if name in KEPT_PRECISE else dtype)
        return self

    def _embed(self, image: Tensor | None, noisy: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Features (B, H/p, W/p, D) of what is there, and the image stream's tokens."""
        contexts: dict[str, Tensor] = {}
        parts: list[Tensor] = []
        if image is not None:
            pixels = image.to(self.embed_image.weight.dtype).permute(0, 2, 3, 1)
            parts.append(affine(space_to_depth(pixels, self.config.patch), self.embed_image))
            contexts["image"] = affine(space_to_depth(pixels, self.config.trunk_stride), self.embed_context)
        if noisy is not None:
            parts.append(affine(space_to_depth(noisy.permute(0, 2, 3, 1), self.config.patch), self.embed_noisy))
        if not parts:
            raise ValueError(NOTHING_GIVEN)
        return sum(parts[1:], parts[0]), contexts


def parameter_count(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in network.parameters())
