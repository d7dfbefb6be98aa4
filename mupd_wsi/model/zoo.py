"""The public stainers of PyPI lazyslide-models (extra ``zoo``), by name: ``zoo:gigatime``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from mupd_wsi.errors import MupdError, UsageError
from mupd_wsi.model.foreign import ForeignStainer, outputs_of, panel_of, weights_hash
from mupd_wsi.model.foreign_card import LIMIT, ForeignCard

PREFIX: Final = "zoo:"
PACKAGE: Final = "lazyslide-models"
#: Of zoo models that say nothing of their tiles: side, and halo at most, px. They are blended: most see further.
TILE: Final = 512
HALO: Final = 64


@dataclass(frozen=True, slots=True)
class Known:
    """What lazyslide-models does not say of one of its models.

    Attributes:
        mpp: um/px of its tiles.
        period: the product of its strides, px.
        source: where both are from.
    """

    mpp: float
    period: int
    source: str


_GIGATIME: Final = (
    "um/px 0.25 is deduced from GitHub prov-gigatime/GigaTIME, whose authors do not state it: training tiles of 556 px "
    "(128 um at the 0.23 um/px of a COMET scanner) are resized to 512 px (scripts/prov_data.py, README.md), and slides "
    "of TCGA are run at level 0 (scripts/gigatime_flash_tcga_wsi_inference.ipynb)."
)
#: lazyslide-models 0.1 has a field for sizes of tiles, which is used, and none for um/px or strides.
KNOWN: Final = {"gigatime": Known(0.25, 16, _GIGATIME), "gigatime-flash": Known(0.25, 16, _GIGATIME)}


@dataclass(frozen=True, slots=True)
class ZooName:
    """A name in its parts: ``zoo:KEY[@UM][=WEIGHTS]``.

    Attributes:
        key: in the registry of lazyslide-models.
        mpp: um/px that the user says; None: as known.
        weights: a file of weights that is on this machine; None: lazyslide-models fetches them.
    """

    key: str
    mpp: float | None = None
    weights: str | None = None


def is_zoo(name: object) -> bool:
    """Whether a model's name means one of the zoo."""
    return isinstance(name, str) and name.startswith(PREFIX)


def parse_zoo(name: str) -> ZooName:
    """Take a name apart.

    Raises:
        UsageError: its um/px is no number.
    """
    spelled, _, weights = name.removeprefix(PREFIX).partition("=")
    key, _, mpp = spelled.partition("@")
    try:
        return ZooName(key, float(mpp) if mpp else None, weights or None)
    except ValueError as error:
        raise UsageError(f"{name}: {mpp!r} is no um/px; write {PREFIX}{key}@0.5") from error


def zoo_card(name: str) -> ForeignCard:
    """What is known of a stainer of the zoo before its weights are there.

    Raises:
        UsageError: the extra is not installed, there is no such stainer, or nobody says at which um/px it was trained.
    """
    return _card(parse_zoo(name), _kind(name))


def load_zoo(name: str, device: str) -> ForeignStainer:
    """A stainer of the zoo, with the weights that lazyslide-models fetches for it, or those of a file.

    Args:
        name: ``zoo:KEY[@UM][=WEIGHTS]``.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: as :func:`zoo_card`, or its weights cannot be had.
    """
    wanted, kind = parse_zoo(name), _kind(name)
    _card(wanted, kind)  # refuses before weights are fetched
    try:
        model = kind(model_path=wanted.weights) if wanted.weights else kind()
        card = _card(wanted, kind, weights_hash(getattr(model, "model", None)))
        return ForeignStainer.with_card(model, card, device)
    except MupdError:
        raise
    except Exception as error:  # of the hub, the network, a licence that was not accepted, a file that is none
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{name} cannot be had: {reason}") from error


def _kind(name: str) -> Any:
    """A stainer's class."""
    key = parse_zoo(name).key
    try:
        from lazyslide_models import MODEL_REGISTRY  # type: ignore[import-not-found]  # an extra
    except ModuleNotFoundError as error:
        raise UsageError(f"{name} needs {PACKAGE} ({error}): pip install 'mupd-wsi[zoo]'") from error
    except (ImportError, OSError, RuntimeError) as error:  # of torchvision for another build of torch: RuntimeError
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"{name}: {PACKAGE} cannot be imported ({reason}): torchvision has to be of the same build as torch; "
            "pip install 'mupd-wsi[zoo]' into an environment of its own"
        ) from error
    kind = MODEL_REGISTRY.get(key)
    if kind is None or not _stains(kind):
        known = sorted(k for k in MODEL_REGISTRY if _stains(MODEL_REGISTRY[k]))
        raise UsageError(f"the zoo has no stainer {key!r}; it has: {', '.join(known)}")
    return kind


def _stains(kind: Any) -> bool:
    """Whether a class gives values for every pixel, and names them."""
    return hasattr(kind, "channel_names") or hasattr(kind, "stains")


def _card(wanted: ZooName, kind: Any, hashed: str = "unknown") -> ForeignCard:
    known = KNOWN.get(wanted.key)
    mpp = wanted.mpp if wanted.mpp is not None else _stated_mpp(kind)
    if mpp is None:
        mpp = known.mpp if known else None
    if mpp is None:
        raise UsageError(
            f"nobody says at which um/px {wanted.key} was trained, and a wrong one gives a picture that looks right; "
            f"look it up and say it: --model {PREFIX}{wanted.key}@0.5"
        )
    painted, names = outputs_of(kind)
    period = known.period if known else 1
    tile = _side(kind)
    return ForeignCard(
        name=wanted.key,
        panel=panel_of([_without_dilution(name) for name in names]),
        mpp=mpp,
        tile=tile,
        halo=min(HALO, tile // 4 // period * period),
        weights_sha256=hashed,
        fuse="blend",
        version=f"{PACKAGE} {_installed()}",
        license=str(getattr(kind, "license", None) or "see its authors"),
        credit=str(getattr(kind, "paper_url", None) or "not stated"),
        painted=painted,
        period=period,
        limits=(LIMIT, *((known.source,) if known and wanted.mpp is None else ())),
    )


def _stated_mpp(kind: Any) -> float | None:
    """What the package's own card says; that of 0.1 says nothing."""
    stated = getattr(kind, "mpp", None)
    return float(stated) if isinstance(stated, int | float) else None


def _side(kind: Any) -> int:
    """Tiles of the one size that a model takes, where it takes only one."""
    most = getattr(getattr(kind, "input_constraint", None), "max", None)
    return min(TILE, int(most)) if most else TILE


def _without_dilution(name: str) -> str:
    """A marker without its antibody's dilution, which some write behind it: "CD3_1:1000"."""
    return re.sub(r"_1:\d+$", "", name)


def _installed() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "unknown"
