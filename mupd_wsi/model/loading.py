"""From what a user calls a model to one that can stain."""

from __future__ import annotations

from pathlib import Path

from mupd_wsi.model.bundle import find_bundle, read_info
from mupd_wsi.model.foreign import ForeignStainer
from mupd_wsi.model.program import load_program, read_program_card, refuse_untrusted
from mupd_wsi.model.protocol import Card
from mupd_wsi.model.stainer import Stainer, load_bundle
from mupd_wsi.model.zoo import is_zoo, load_zoo, zoo_card


def load_model(
    name_or_folder: str | Path = "mupd-mini",
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    trust: bool = False,
) -> Stainer | ForeignStainer:
    """Load a model onto a device.

    Args:
        name_or_folder: a shipped model's name, the folder of a bundle or of a program
            (:class:`mupd_wsi.model.program.ProgramCard`), or a stainer of PyPI lazyslide-models,
            ``zoo:NAME[@UM][=WEIGHTS]``.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N".
        precision: "fp32", "bf16", or "auto": bf16 where the device computes in it. Foreign models are run in fp32.
        batch_size: tiles at a time; None lets the device decide. Foreign models take one.
        trust: run a program, which is foreign code.

    Raises:
        BundleError: no such model, its bundle is damaged, or it is a program and not trusted.
        UsageError: no such device or precision, or the zoo does not have it.
    """
    if is_zoo(name_or_folder):
        return load_zoo(str(name_or_folder), device)
    folder = find_bundle(name_or_folder)
    program = read_program_card(folder)
    if program is not None:
        return load_program(folder, program, device=device, trust=trust)
    return load_bundle(folder, device=device, precision=precision, batch_size=batch_size)


def read_card(name_or_folder: str | Path) -> Card:
    """What is known of a model before it is loaded. Nothing is run, and of the zoo no weights are fetched.

    Raises:
        BundleError, UsageError: as :func:`load_model`.
    """
    if is_zoo(name_or_folder):
        return zoo_card(str(name_or_folder))
    folder = find_bundle(name_or_folder)
    program = read_program_card(folder)
    return read_info(folder) if program is None else program.described


def settled_card(name_or_folder: str | Path, *, trust: bool) -> Card:
    """The card that a run would put into its record, the hash of the weights included: a stainer of the zoo is loaded.

    Raises:
        BundleError, UsageError: as :func:`load_model`; a program that is not trusted is refused here too.
    """
    if is_zoo(name_or_folder):
        return load_zoo(str(name_or_folder), "cpu").info
    folder = find_bundle(name_or_folder)
    program = read_program_card(folder)
    if program is not None:
        refuse_untrusted(folder, program, trust=trust)
    return read_card(folder)
