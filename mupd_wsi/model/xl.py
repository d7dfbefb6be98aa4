"""mupd-xl: MuPD (arXiv 2604.03635) at the paper's scale, a SiT-XL/2 trunk on latents of a variational autoencoder.

It is built of the blocks that mupd-mini is built of, and predicts x0 likewise, so that the same sampler draws from it.
What differs: latents instead of pixels, global attention over a tile with positions relative to it, and text and RNA
streams. Tiles of it therefore do not agree by themselves where they overlap (docs/decisions/0012). There are no public
weights: bundles of it are made by ``mupd-wsi models import``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mupd_wsi.errors import BundleError
from mupd_wsi.model.blocks import CrossAttentionStream, TimeEmbedding, depth_to_space, modulate, space_to_depth


@dataclass(frozen=True, slots=True)
class XLConfig:
    """Shape of :class:`MuPDXL`. The defaults are mupd-xl: SiT-XL/2 (arXiv 2401.08740) and three condition streams.

    Attributes:
        latent_channels: of the autoencoder, for the stain and for the H&E alike.
        patch: latents that one token holds, on a side.
        width: of a token.
        depth: blocks.
        heads: of attention.
        image_width: of image tokens (features of a pathology encoder); 0 leaves the stream out.
        text_width: of text tokens; 0 leaves the stream out.
        rna_width: of RNA tokens, named gene or pathway scores; 0 leaves the stream out.
    """

    latent_channels: int = 4
    patch: int = 2
    width: int = 1152
    depth: int = 28
    heads: int = 16
    image_width: int = 1536
    text_width: int = 768
    rna_width: int = 512

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 4:
            raise BundleError(f"width {self.width} must be a multiple of 4 and of heads {self.heads}")

    @property
    def streams(self) -> dict[str, int]:
        """Widths of the condition streams that there are."""
        widths = {"image": self.image_width, "text": self.text_width, "rna": self.rna_width}
        return {name: width for name, width in widths.items() if width}


MUPD_XL: Final = XLConfig()


class ConditionStream(nn.Module):
    """One condition of decoupled cross-attention with adaLN of its own: the flow time shifts and scales its tokens, and
    gates its answer. Gate and output are zero at the start; an absent condition is not called and adds exactly 0."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.project = nn.Linear(context_width, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 3 * width)
        self.attention = CrossAttentionStream(width, width, heads)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, query: Tensor, context: Tensor, time: Tensor) -> Tensor:
        """Answer (B, L, D) to ``query`` (B, heads, L, D / heads) from ``context`` (B, M, E) at ``time`` (B, D)."""
        shift, scale, gate = self.modulation(time)[:, None].chunk(3, dim=-1)
        tokens = modulate(self.norm(self.project(context)), shift, scale)
        return cast(Tensor, gate * self.attention(query, tokens))


class XLBlock(nn.Module):
    """SiT block (global self-attention, perceptron, adaLN-Zero) with decoupled cross-attention between the two."""

    def __init__(self, config: XLConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(3))
        self.modulation = nn.Linear(width, 6 * width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.cross_query = nn.Linear(width, width)
        self.streams = nn.ModuleDict({n: ConditionStream(width, w, self.heads) for n, w in config.streams.items()})
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, time: Tensor, contexts: dict[str, Tensor]) -> Tensor:
        """Residual update of ``x`` (B, L, D) given ``time`` (B, D) and the contexts that are there, (B, M, E) each."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self._self_attention(modulate(self.norms[0](x), shift1, scale1))
        query = self._heads(self.cross_query(self.norms[1](x)))
        # Answers are summed only after all were asked with the same features: no stream sees another's.
        answers = [self.streams[name](query, context, time) for name, context in contexts.items()]
        x = sum(answers, x)
        return cast(Tensor, x + gate2 * self.perceptron(modulate(self.norms[2](x), shift2, scale2)))

    def _self_attention(self, tokens: Tensor) -> Tensor:
        query, key, value = (self._heads(part) for part in self.query_key_value(tokens).chunk(3, dim=-1))
        answer = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return cast(Tensor, self.attention_out(answer))

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


class MuPDXL(nn.Module):
    """Predicts the stain's clean latents x0 from noisy ones, the flow time, the H&E's latents and the conditions.

    The head gives the velocity v, as SiT's does; x0 = x_t - t v. At t = 1 with zero noise that is x0 = -v, the paper's
    one-pass read-out.
    """

    def __init__(self, config: XLConfig = MUPD_XL) -> None:
        super().__init__()
        self.config = config
        width, area = config.width, config.patch**2
        self.embed = nn.Linear(area * 2 * config.latent_channels, width)
        self.time = TimeEmbedding(width, 128)
        self.blocks = nn.ModuleList(XLBlock(config) for _ in range(config.depth))
        self.head_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, area * config.latent_channels)
        for layer in (self.head_modulation, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, he: Tensor | None, t: Tensor, noisy: Tensor | None = None, contexts: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Predict x0.

        Args:
            he: latents of the H&E (B, latent_channels, h, w), h and w multiples of the patch; None stands for zeros.
            t: flow time in [0, 1], (B,).
            noisy: x_t, the same shape; None stands for zeros, the one-pass read-out at t = 1.
            contexts: tokens (B, M, width) of the streams that are there, by name: "image", "text", "rna".

        Returns:
            x0 (B, latent_channels, h, w).
        """
        known = next((latents for latents in (he, noisy) if latents is not None), None)
        if known is None:
            raise ValueError("the network needs the H&E's latents or a noisy stain, got neither")
        start = torch.zeros_like(known) if noisy is None else noisy
        both = torch.cat([start, torch.zeros_like(start) if he is None else he], dim=1).permute(0, 2, 3, 1)
        patches = space_to_depth(both, self.config.patch)  # (B, h/p, w/p, D)
        rows, columns = patches.shape[1:3]
        x = self.embed(patches).flatten(1, 2) + grid_positions(rows, columns, self.config.width).to(patches)
        time = self.time(t).to(x.dtype)
        for block in self.blocks:
            x = block(x, time, contexts or {})
        shift, scale = self.head_modulation(time)[:, None].chunk(2, dim=-1)
        features = modulate(self.head_norm(x), shift, scale).to(self.head.weight.dtype)
        out = self.head(features).unflatten(1, (rows, columns))
        velocity = depth_to_space(out, self.config.patch).permute(0, 3, 1, 2)
        return start.to(velocity.dtype) - t.to(velocity.dtype)[:, None, None, None] * velocity

    def as_precision(self, dtype: torch.dtype) -> MuPDXL:
        """Convert the weights, all but the time embedding's and the head's, so that what comes out is not rounded."""
        for name, child in self.named_children():
            child.to(torch.float32 if name in ("time", "head") else dtype)
        return self


def grid_positions(rows: int, columns: int, width: int) -> Tensor:
    """Fixed sine and cosine positions of a grid, as SiT and MAE have them: (1, rows * columns, width)."""
    rates = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    waves = [torch.arange(n, dtype=torch.float64)[:, None] * rates for n in (columns, rows)]
    across, down = (torch.cat([wave.sin(), wave.cos()], dim=1) for wave in waves)
    grid = torch.cat([across.expand(rows, -1, -1), down[:, None].expand(-1, columns, -1)], dim=2)
    return grid.reshape(1, rows * columns, width).float()
