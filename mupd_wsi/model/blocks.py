"""Building blocks of the network. Feature maps are channels-last: (B, H, W, D).

Nothing here mixes statistics over a tile (no GroupNorm, no global attention, no tile-relative positions), because
two tiles that share a pixel would then disagree about it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Pixels that a convolutional block widens at a time on a CPU; of 256 to 4096 the fastest (0.8 MB of fp32 at width 96).
STRIP: Final = 512


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN (Peebles and Xie, DiT, arXiv 2212.09748): ``x`` (B, H, W, D), ``shift`` and ``scale`` (B, 1, 1, D)."""
    return x * (1 + scale) + shift


def affine(x: Tensor, layer: nn.Module) -> Tensor:
    """``layer(x)`` of an ``nn.Linear``, any leading shape.

    Without gradients the bias is added in place: torch's own way copies it over the whole output first, which on a CPU
    is a quarter of this network's time (``torch.profiler``, 736 px).
    """
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return cast(Tensor, layer(x))
    linear = cast(nn.Linear, layer)
    y = torch.mm(x.reshape(-1, linear.in_features), linear.weight.t())
    if linear.bias is not None:
        y.add_(linear.bias)
    return y.view(*x.shape[:-1], -1)


class TimeEmbedding(nn.Module):
    """Sinusoidal features of the flow time t in [0, 1], then a two-layer perceptron."""

    def __init__(self, width: int, frequencies: int = 64) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, t: Tensor) -> Tensor:
        """Embed ``t`` (B,) as (B, width)."""
        rates = torch.exp(-math.log(1000.0) * torch.arange(self.frequencies, device=t.device) / self.frequencies)
        angles = 1000.0 * t[:, None].float() * rates
        return cast(Tensor, self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1)))


class ConvBlock(nn.Module):
    """ConvNeXt block (Liu et al., arXiv 2201.03545), per-pixel LayerNorm, modulated by the time embedding."""

    def __init__(self, width: int, time_width: int, kernel: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(time_width, 2 * width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.gain = nn.Parameter(torch.full((width,), 0.1))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Residual update of ``x`` (B, H, W, D) given ``time`` (B, T)."""
        y = self.spatial(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if len(time) == 1 and x.device.type == "cpu" and not torch.is_grad_enabled():
            return self._folded(x, y, time)
        shift, scale = self.modulation(time)[:, None, None].chunk(2, dim=-1)
        y = modulate(self.norm(y), shift, scale)
        return x + self.gain * cast(
            Tensor, self.narrow(F.hardswish(self.widen(y), inplace=not torch.is_grad_enabled()))
        )

    def _folded(self, x: Tensor, y: Tensor, time: Tensor) -> Tensor:
        """The same for one flow time, with modulation and gain folded into the matrices, a strip of pixels at a time:
        what is between the two matrices then stays in the processor's cache."""
        shift, scale = self.modulation(time)[0].chunk(2)
        widen = (self.widen.weight * (1 + scale)).t()
        widen_bias = self.widen.bias + self.widen.weight @ shift
        narrow = (self.narrow.weight * self.gain[:, None]).t()
        narrow_bias = self.narrow.bias * self.gain
        rows, given = x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1])
        out = torch.empty_like(rows)
        for residual, part, answer in zip(*(torch.split(whole, STRIP) for whole in (rows, given, out)), strict=True):
            wide = F.hardswish(torch.mm(self.norm(part), widen).add_(widen_bias), inplace=True)
            torch.mm(wide, narrow, out=answer)
            answer.add_(narrow_bias).add_(residual)
        return out.view(x.shape)


class CrossAttentionStream(nn.Module):
    """One condition of decoupled cross-attention (IP-Adapter, arXiv 2308.06721; MuPD, arXiv 2604.03635).

    Each stream has its own keys and values and is queried by the same features; the streams' answers are summed, so
    one that is absent adds exactly 0.
    """

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.key_value = nn.Linear(context_width, 2 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """Attend from ``query`` (N, heads, L, D / heads) to ``context`` (N, M, context_width): (N, L, D)."""
        keys, values = (_split_heads(part, self.heads) for part in affine(context, self.key_value).chunk(2, dim=-1))
        answer = F.scaled_dot_product_attention(query, keys, values)
        return affine(_join_heads(answer), self.out)


class TransformerBlock(nn.Module):
    """DiT block: window self-attention, decoupled cross-attention, perceptron; adaLN with zero-initialised gates."""

    def __init__(self, width: int, heads: int, window: int, streams: dict[str, int]) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(3))
        self.modulation = nn.Parameter(torch.zeros(6, width))
        self.position = nn.Parameter(nn.init.normal_(torch.empty(window * window, width), std=0.02))
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.cross_query = nn.Linear(width, width)
        self.streams = nn.ModuleDict({n: CrossAttentionStream(width, w, heads) for n, w in streams.items()})
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.Hardswish(), nn.Linear(4 * width, width))

    def forward(
        self, x: Tensor, shared_modulation: Tensor, contexts: dict[str, Tensor], leads: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """Residual update.

        Args:
            x: (B, H, W, D).
            shared_modulation: (B, 6, D) from the flow time, the same for all blocks (PixArt, arXiv 2310.00426).
            contexts: by stream name; "image" as a map (B, H, W, E) that is cut into the same windows as x, the others
                as token lists (B, M, E) that every window of the sample sees. Absent streams are left out.
            leads: tokens before the first whole window, down and across: where the tile begins inside a window.
        """
        rows = []
        for down in spans(x.shape[1], leads[0], self.window):
            row = []
            for across in spans(x.shape[2], leads[1], self.window):
                part = (slice(None), down.place, across.place)
                local = {name: c[part] if c.ndim == 4 else c for name, c in contexts.items()}
                row.append(self._windows(x[part], shared_modulation, local, down, across))
            rows.append(torch.cat(row, dim=2) if len(row) > 1 else row[0])
        return torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]

    def _windows(
        self, x: Tensor, shared_modulation: Tensor, contexts: dict[str, Tensor], down: Span, across: Span
    ) -> Tensor:
        """The update of a part that is cut into windows of one size."""
        grid, side = x.shape[1:3], (down.window, across.window)
        per_sample = (grid[0] // side[0]) * (grid[1] // side[1])
        position = self.position.reshape(self.window, self.window, -1)[down.cells, across.cells].flatten(0, 1)
        modulation = (shared_modulation + self.modulation).repeat_interleave(per_sample, dim=0)[:, :, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(dim=1)  # each (N, 1, D)
        tokens = to_windows(x, side)  # (N, L, D)
        tokens = tokens + gate1 * self._self_attention(modulate(self.norms[0](tokens), shift1, scale1) + position)
        query = _split_heads(affine(self.norms[1](tokens) + position, self.cross_query), self.heads)
        for name, context in contexts.items():
            local = to_windows(context, side) if context.ndim == 4 else context.repeat_interleave(per_sample, 0)
            tokens = tokens + self.streams[name](query, local)
        wide = affine(modulate(self.norms[2](tokens), shift2, scale2), self.perceptron[0])
        wide = F.hardswish(wide, inplace=not torch.is_grad_enabled())
        tokens = tokens + gate2 * affine(wide, self.perceptron[2])
        return from_windows(tokens, side, grid[0], grid[1])

    def _self_attention(self, tokens: Tensor) -> Tensor:
        packed = affine(tokens, self.query_key_value)
        query, key, value = (_split_heads(part, self.heads) for part in packed.chunk(3, dim=-1))
        return affine(_join_heads(F.scaled_dot_product_attention(query, key, value)), self.attention_out)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of tokens along one axis that is cut into windows of one size.

    Attributes:
        place: where it lies in the tile.
        cells: which cells of a whole window its windows have.
    """

    place: slice
    cells: slice

    @property
    def window(self) -> int:
        """Tokens of one of its windows."""
        return int(self.cells.stop - self.cells.start)


def spans(extent: int, lead: int, window: int) -> list[Span]:
    """Cut an axis of ``extent`` tokens into the end of a window (``lead`` tokens), whole windows, the start of one."""
    lead = min(lead % window, extent)
    whole = (extent - lead) // window * window
    rest = extent - lead - whole
    cuts = [
        Span(slice(0, lead), slice(window - lead, window)),
        Span(slice(lead, lead + whole), slice(0, window)),
        Span(slice(lead + whole, extent), slice(0, rest)),
    ]
    return [cut for cut in cuts if cut.place.stop > cut.place.start]


def to_windows(x: Tensor, side: tuple[int, int]) -> Tensor:
    """Cut (B, H, W, D) into windows (B * H/h * W/w, h * w, D) of ``side`` (h, w)."""
    b, h, w, d = x.shape
    cut = x.reshape(b, h // side[0], side[0], w // side[1], side[1], d).permute(0, 1, 3, 2, 4, 5)
    return cut.reshape(-1, side[0] * side[1], d)


def from_windows(tokens: Tensor, side: tuple[int, int], height: int, width: int) -> Tensor:
    """The inverse of :func:`to_windows`."""
    rows, columns, d = height // side[0], width // side[1], tokens.shape[-1]
    cut = tokens.reshape(-1, rows, columns, side[0], side[1], d).permute(0, 1, 3, 2, 4, 5)
    return cut.reshape(-1, height, width, d)


def space_to_depth(x: Tensor, patch: int) -> Tensor:
    """(B, H, W, D) to (B, H/p, W/p, p * p * D), lossless."""
    b, h, w, d = x.shape
    folded = x.reshape(b, h // patch, patch, w // patch, patch, d).permute(0, 1, 3, 2, 4, 5)
    return folded.reshape(b, h // patch, w // patch, patch * patch * d)


def depth_to_space(x: Tensor, patch: int) -> Tensor:
    """The inverse of :func:`space_to_depth`."""
    b, h, w, d = x.shape
    unfolded = x.reshape(b, h, w, patch, patch, d // (patch * patch)).permute(0, 1, 3, 2, 4, 5)
    return unfolded.reshape(b, h * patch, w * patch, -1)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _join_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
