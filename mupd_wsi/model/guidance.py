"""Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): lean on the conditions more than the model does."""

from __future__ import annotations

from torch import Tensor

from mupd_wsi.model.flow import PredictX0


def guided(conditional: PredictX0, unconditional: PredictX0, scale: float) -> PredictX0:
    """Predict ``x0 = uncond + scale * (cond - uncond)``; v follows from x0, so guiding one guides the other.

    Args:
        conditional: the network with its conditions bound.
        unconditional: the same without them.
        scale: 1 is the conditional prediction (and runs it alone), 0 the unconditional one.
    """
    if scale == 1:
        return conditional

    def predict(x: Tensor | None, t: Tensor) -> Tensor:
        without = unconditional(x, t)
        return without + scale * (conditional(x, t) - without)

    return predict
