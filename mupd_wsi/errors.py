"""One tree of errors: every failure that a user can cause or meet has a class here.

Each class also inherits the builtin it refines, so library users may catch either. The command line maps
the tree to exit codes: :class:`UsageError` to 2, every other :class:`MupdError` to 3.
"""

from __future__ import annotations


class MupdError(Exception):
    """Base of all errors that mupd-wsi raises on purpose. The message is one line and says what to do next."""


class UsageError(MupdError, ValueError):
    """The request itself cannot be meant: an unknown target, contradictory options."""


class UnknownTargetError(UsageError):
    """A target that the model does not have; the message lists the ones it has."""


class SlideError(MupdError, OSError):
    """The slide cannot be opened or read: not an image, truncated, empty, unsupported."""


class SlideLostError(SlideError):
    """A slide that was open cannot be read any more: it was changed or removed, or its disk or network fails."""


class PixelSizeError(MupdError, ValueError):
    """The slide's um/px is missing or absurd; the message shows the value and names ``--mpp``."""


class RegionError(MupdError, ValueError):
    """A region of interest lies outside the slide or is empty."""


class NotHEError(MupdError, ValueError):
    """The slide does not look like H&E and strict checking was asked for."""


class BundleError(MupdError, ValueError):
    """A model bundle cannot be read, has unknown fields, or its hash does not match."""


class DeviceMemoryError(MupdError, MemoryError):
    """The device has too little memory for one tile."""


class WorkerError(MupdError, RuntimeError):
    """A thread of a run has ended without doing its work."""


class OutputError(MupdError, OSError):
    """The output cannot be written: it exists, its folder is missing or read-only, the disk is too small."""


class ValidationError(MupdError, ValueError):
    """An output slide is not what it should be."""
