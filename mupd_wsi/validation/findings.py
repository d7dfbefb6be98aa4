"""What a validation finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not right.

    Attributes:
        severity: an "error" makes the slide wrong; a "warning" does not.
        code: short name, for scripts.
        message: one sentence, for people.
    """

    severity: Literal["error", "warning"]
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """All findings about one slide."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return all(f.severity != "error" for f in self.findings)
