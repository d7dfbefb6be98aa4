"""Between pictures and the latents that mupd-xl works on. Needs the extra ``mupd-wsi[xl]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from mupd_wsi.errors import BundleError, UsageError
from mupd_wsi.model.flow import euler_states, read_out
from mupd_wsi.model.guidance import guided
from mupd_wsi.model.xl import MuPDXL


class LatentCodec(Protocol):
    """A variational autoencoder: 8 x 8 px become one latent place."""

    def encode(self, rgb: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in 0-255 to latents (B, 4, H/8, W/8) of about unit variance; no randomness."""

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse: pictures in 0-255, (B, 3, H, W)."""


class DiffusersCodec:
    """diffusers' AutoencoderKL. Encoding takes the mean of the posterior, so that equal tiles give equal latents.

    Args:
        vae: the autoencoder, in eval mode.
    """

    def __init__(self, vae: Any) -> None:
        self._vae, self._scale = vae, float(vae.config.scaling_factor)

    @torch.inference_mode()
    def encode(self, rgb: Tensor) -> Tensor:
        """See :class:`LatentCodec`."""
        return cast(Tensor, self._vae.encode(rgb / 127.5 - 1).latent_dist.mean * self._scale)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """See :class:`LatentCodec`."""
        return cast(Tensor, ((self._vae.decode(latents / self._scale).sample + 1) * 127.5).clamp(0, 255))


def load_codec(folder: Path) -> DiffusersCodec:
    """Load an autoencoder that lies in a folder (``config.json`` and safetensors); nothing is downloaded.

    Raises:
        UsageError: diffusers is not installed.
        BundleError: the folder holds no autoencoder.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise UsageError("mupd-xl needs diffusers: pip install 'mupd-wsi[xl]'") from error
    try:
        vae = AutoencoderKL.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise BundleError(f"{folder} holds no autoencoder of diffusers: {str(error).splitlines()[0]}") from error
    return DiffusersCodec(vae.eval().requires_grad_(False))


@torch.inference_mode()
def stain_picture(
    network: MuPDXL,
    codec: LatentCodec,
    rgb: Tensor,
    contexts: dict[str, Tensor] | None = None,
    noise: Tensor | None = None,
    steps: int = 1,
    guidance: float = 1.0,
) -> Tensor:
    """Stain whole tiles: encode, sample or read out, decode.

    Args:
        network: in eval mode.
        codec: of the latents.
        rgb: H&E (B, 3, H, W) in 0-255, H and W multiples of 16.
        contexts: tokens of the condition streams that are there.
        noise: (B, 4, H/8, W/8), standard normal, for a draw; None reads out in one pass.
        steps: evaluations of a draw.
        guidance: of the conditions, the H&E among them; 1 is none.

    Returns:
        The stained picture, (B, 3, H, W) in 0-255.
    """
    he = codec.encode(rgb)

    def conditional(x: Tensor | None, t: Tensor) -> Tensor:
        return cast(Tensor, network(he, t, x, contexts))

    def unconditional(x: Tensor | None, t: Tensor) -> Tensor:
        return cast(Tensor, network(None, t, torch.zeros_like(he) if x is None else x))

    predict = guided(conditional, unconditional, guidance)
    if noise is None:
        return codec.decode(read_out(predict, len(rgb), he.device))
    *_, x0 = euler_states(predict, noise, steps)
    return codec.decode(x0)
