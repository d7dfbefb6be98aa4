"""Shares of a batch on threads of their own: on a CPU that beats splitting every operation among the threads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from mupd_wsi.model.network import MuPDNetwork

Part = TypeVar("Part")


class Replicas:
    """Copies of a network that share its weights, each with gradients of its own.

    Args:
        network: whose ``grad`` :meth:`backward` fills.
        count: threads, each on one core.
    """

    def __init__(self, network: MuPDNetwork, count: int) -> None:
        self._network = network
        self._copies = [copy.deepcopy(network) for _ in range(count)]
        for replica in self._copies:
            for own, shared in zip(replica.parameters(), network.parameters(), strict=True):
                own.data = shared.data
        self._threads = ThreadPoolExecutor(count, "mupd-train", initializer=torch.set_num_threads, initargs=(1,))

    def __len__(self) -> int:
        return len(self._copies)

    def backward(self, loss: Callable[[MuPDNetwork, Part], Tensor], parts: Sequence[Part]) -> float:
        """Set the network's gradients to the mean of the parts', and return the mean loss."""

        def descend(replica: MuPDNetwork, part: Part) -> float:
            replica.zero_grad(set_to_none=True)
            value = loss(replica, part)
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            return float(value.detach())

        losses = list(self._threads.map(descend, self._copies, parts))
        for parameter, *copies in zip(self._network.parameters(), *(r.parameters() for r in self._copies), strict=True):
            gradients = list(_gradients(copies))
            parameter.grad = torch.stack(gradients).sum(dim=0) / len(parts) if gradients else None
        return sum(losses) / len(losses)


def _gradients(parameters: Sequence[Tensor]) -> Iterator[Tensor]:
    """Of those that the loss depends on: a condition that is left out has none."""
    return (parameter.grad for parameter in parameters if parameter.grad is not None)
