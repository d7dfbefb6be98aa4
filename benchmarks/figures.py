"""What a part of the benchmark gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure and what it has to reach.

    Attributes:
        name: what was measured.
        value: median over the runs.
        unit: of the value.
        at_most: the promise.
    """

    name: str
    value: float
    unit: str
    at_most: float

    @property
    def kept(self) -> bool:
        """Whether the promise holds."""
        return self.value <= self.at_most
