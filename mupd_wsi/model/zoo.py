"""The public stainers of PyPI lazyslide-models (extra ``zoo``), by name: ``zoo:gigatime@0.5``."""

from __future__ import annotations

from typing import Any, Final

from mupd_wsi.errors import UsageError
from mupd_wsi.model.foreign import ForeignStainer

PREFIX: Final = "zoo:"
#: Of zoo models that say nothing of their tiles: side and halo, px. Theirs are blended, since most see further.
TILE: Final = 512
HALO: Final = 64


def is_zoo(name: object) -> bool:
    """Whether a model's name means one of the zoo."""
    return isinstance(name, str) and name.startswith(PREFIX)


def load_zoo(name: str, device: str) -> ForeignStainer:
    """A stainer of the zoo, with the weights that lazyslide-models fetches for it.

    Args:
        name: ``zoo:NAME@UM``. The zoo does not say at which um/px its models were trained, and a wrong one gives a
            picture that looks right: so it has to be said.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: the extra is not installed, there is no such stainer, no um/px was given, or its weights cannot be
            had.
    """
    key, _, spelled = name.removeprefix(PREFIX).partition("@")
    try:
        from lazyslide_models import MODEL_REGISTRY  # type: ignore[import-not-found]  # an extra
    except ImportError as error:
        raise UsageError(f"{name} needs lazyslide-models ({error}): pip install 'mupd-wsi[zoo]'") from error
    kind = MODEL_REGISTRY.get(key)
    if kind is None or not (hasattr(kind, "channel_names") or hasattr(kind, "stains")):
        known = sorted(k for k in MODEL_REGISTRY if hasattr(MODEL_REGISTRY[k], "channel_names"))
        raise UsageError(f"the zoo has no stainer {key!r}; it has: {', '.join(known)}")
    try:
        mpp = float(spelled)
    except ValueError as error:
        raise UsageError(
            f"say at which um/px {key} was trained, as its authors do: --model {PREFIX}{key}@0.5"
        ) from error
    side = _side(kind)
    return ForeignStainer(_made(kind, name), mpp=mpp, name=key, tile=side, halo=min(HALO, side // 4), device=device)


def _made(kind: Any, name: str) -> Any:
    try:
        return kind()
    except Exception as error:  # of the hub, the network, a licence that was not accepted
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{name} cannot be had: {reason}") from error


def _side(kind: Any) -> int:
    """Tiles of the one size that a model takes, where it takes only one."""
    most = getattr(getattr(kind, "input_constraint", None), "max", None)
    return min(TILE, int(most)) if most else TILE
