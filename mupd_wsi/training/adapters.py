"""Low-rank adaptation: a trained network's matrices stay, a small change of each is learnt beside the heads.

Hu et al., "LoRA: low-rank adaptation of large language models", arXiv 2106.09685: W + B A with B zero at the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mupd_wsi.model.network import MuPDNetwork

#: Parts whose matrices get a low-rank change, and parts that depend on the markers and are trained whole.
ADAPTED: Final = ("trunk", "down_stages", "downs", "up_stages", "ups", "merges")
TRAINED: Final = ("head", "head_norm", "embed_noisy")
_KEY: Final = ".parametrizations.weight."


class LowRank(nn.Module):
    """A matrix plus the product of two thin ones; begins as the matrix itself."""

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(rows, rank))
        self.down = nn.Parameter(torch.randn(rank, columns) / columns**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """The changed matrix (rows, columns)."""
        return weight + self.up @ self.down


def add_adapters(network: MuPDNetwork, rank: int) -> None:
    """Freeze a network but for the low-rank changes that it gets, and what depends on the markers."""
    network.requires_grad_(False)
    for name in ADAPTED:
        for module in list(network.get_submodule(name).modules()):
            if isinstance(module, nn.Linear):
                small = LowRank(module.out_features, module.in_features, rank)
                parametrize.register_parametrization(module, "weight", small)
    for name, child in network.named_children():
        if name in TRAINED:
            child.requires_grad_(True)


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's state with low-rank changes added to their matrices; one without any comes back as it is."""
    plain = {name: weight for name, weight in state.items() if _KEY not in name}
    for name, weight in state.items():
        owner, found, part = name.partition(_KEY)
        if found and part == "original":
            plain[f"{owner}.weight"] = weight + state[f"{owner}{_KEY}0.up"] @ state[f"{owner}{_KEY}0.down"]
    return plain
