"""The shape of a network, as plain data that a bundle stores and checks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from mupd_wsi.errors import BundleError


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Widths and depths of :class:`mupd_wsi.model.network.MuPDNetwork`.

    Attributes:
        targets: channels of the stain x, one a marker.
        image_channels: channels of the H&E as the network sees it (RGB and optical densities: 6).
        patch: pixels that space-to-depth folds into one token of the first stage.
        stage_widths: feature widths of the convolutional stages, finest first; each further one is 2x coarser.
        stage_depths: ConvNeXt blocks of each stage on the way down, and as many on the way up.
        trunk_width: width of the transformer blocks at the coarsest scale.
        trunk_depth: number of transformer blocks.
        trunk_heads: attention heads.
        window: side of the attention windows in trunk tokens; the model's card says where in a tile they begin,
            the same for all tiles, so every tile cuts the slide into the same windows.
        kernel: side of the depthwise convolutions.
        context_width: width of the image stream's key and value tokens.
        text_width: width of text tokens; 0 leaves the stream out.
        rna_width: width of RNA tokens; 0 leaves the stream out.
        time_width: width of the embedding of the flow time t.
        pixel_width: width of the features that the flow's decoder has at every pixel; 0: no decoder, read-out and draw
            come from one linear head, patch by patch.
        density_squares: sides, in patches, of the squares whose optical densities the read-out's head is told of
            (:mod:`mupd_wsi.model.densities`), odd; likewise.
        decoder_width: width of the flow's decoder at ``patch`` px; 0 without ``pixel_width``.
        decoder_depth: its blocks there; likewise.
    """

    targets: int
    image_channels: int = 6
    patch: int = 4
    stage_widths: tuple[int, ...] = (96, 160)
    stage_depths: tuple[int, ...] = (2, 3)
    trunk_width: int = 256
    trunk_depth: int = 4
    trunk_heads: int = 8
    window: int = 8
    kernel: int = 5
    context_width: int = 128
    text_width: int = 0
    rna_width: int = 0
    time_width: int = 128
    pixel_width: int = 0
    density_squares: tuple[int, ...] = ()
    decoder_width: int = 0
    decoder_depth: int = 0

    def __post_init__(self) -> None:
        if len(self.stage_widths) != len(self.stage_depths) or not self.stage_widths:
            raise BundleError("stage_widths and stage_depths of a network must have the same length, at least 1")
        if {bool(part) for part in (self.pixel_width, self.decoder_width, self.decoder_depth)} == {False, True}:
            raise BundleError("pixel_width, decoder_width and decoder_depth of a network go together")
        if any(side < 1 or side % 2 == 0 for side in self.density_squares):
            raise BundleError(f"density_squares must be odd numbers of patches, got {self.density_squares}")
        if self.trunk_width % self.trunk_heads:
            raise BundleError(f"trunk_width {self.trunk_width} must be a multiple of trunk_heads {self.trunk_heads}")

    @property
    def trunk_stride(self) -> int:
        """Pixels per trunk token."""
        return int(self.patch * 2 ** len(self.stage_widths))

    @property
    def window_px(self) -> int:
        """Pixels per attention window: input sides must be multiples of it."""
        return self.window * self.trunk_stride

    @property
    def head_reach(self) -> int:
        """Pixels of features around what is wanted that the read-out's head is given."""
        return self.patch if self.pixel_width else 0

    @property
    def decoder_reach(self) -> int:
        """Pixels around what is wanted that one step of a draw sees, in whole patches."""
        return self.patch * (self.decoder_depth + 1) if self.pixel_width else 0

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> NetworkConfig:
        """The inverse of :meth:`as_json`.

        Raises:
            BundleError: a field is unknown, missing or cannot be meant.
        """
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise BundleError(
                f"unknown network field(s) {', '.join(sorted(unknown))}: the bundle needs a newer mupd-wsi"
            )
        lists_as_tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            return cls(**lists_as_tuples)
        except TypeError as error:
            raise BundleError(f"the bundle's network description is incomplete: {error}") from error
