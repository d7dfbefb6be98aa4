"""A store that hands out no chunk of a Zarr array that unpacks to more than a chunk has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from zarr.abc.codec import BytesBytesCodec
from zarr.abc.store import ByteRequest, Store
from zarr.codecs import Crc32cCodec, ShardingCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from mupd_wsi.errors import SlideError
from mupd_wsi.slides.guards import require_chunk_fits

METADATA: Final = {"zarr.json", ".zattrs", ".zarray", ".zgroup", ".zmetadata"}
#: In a shard's index, for offset and length alike: the chunk is not there.
_MISSING: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Packing:
    """How an array's chunks lie in its files.

    Attributes:
        most: bytes of a chunk, unpacked.
        chunks: in a shard; None where a file is one chunk.
        index_bytes: of a shard's index, its checksum included.
        index_first: whether it begins the shard, rather than ending it.
    """

    most: int
    chunks: int | None = None
    index_bytes: int = 0
    index_first: bool = False


def packing_of(array: Any, name: str) -> Packing:
    """How a Zarr array is packed.

    Args:
        array: a ``zarr.Array``.
        name: of the slide, for messages.

    Raises:
        SlideError: its chunks are packed twice, so that what they unpack to cannot be told beforehand.
    """
    most = math.prod(array.chunks) * array.dtype.itemsize
    if array.metadata.zarr_format == 2:
        if array.metadata.filters:
            raise _packed_twice(name)
        return Packing(most)
    codecs = array.metadata.codecs
    shard = next((codec for codec in codecs if isinstance(codec, ShardingCodec)), None)
    if shard is None:
        _require_one_packing(codecs, name)
        return Packing(most)
    _require_one_packing((*codecs, *shard.codecs), name)
    if any(isinstance(codec, ShardingCodec) for codec in shard.codecs):
        raise _packed_twice(name)
    chunks = math.prod(-(-whole // part) for whole, part in zip(array.shards, array.chunks, strict=True))
    checksum = 4 * sum(isinstance(codec, Crc32cCodec) for codec in shard.index_codecs)
    return Packing(most, chunks, 16 * chunks + checksum, shard.index_location.value == "start")


class GuardedStore(WrapperStore[Store]):
    """A store that hands out no chunk that unpacks to more than a chunk has, alone or in a shard.

    Attributes:
        packings: by array's path, with a slash at its end; empty while the metadata are read.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.packings: dict[str, Packing] = {}

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """See :class:`zarr.abc.store.Store`.

        Raises:
            ValueError: a chunk is a trap.
        """
        content = await super().get(key, prototype, byte_range)
        packing = next((packing for path, packing in self.packings.items() if key.startswith(path)), None)
        if content is not None and packing is not None and key.rsplit("/", 1)[-1] not in METADATA:
            data = content.to_bytes()
            whole_shard = packing.chunks is not None and byte_range is None
            for chunk in _chunks(data, packing) if whole_shard else (data,):
                require_chunk_fits(chunk, packing.most)
        return content


def _chunks(shard: bytes, packing: Packing) -> Iterator[bytes]:
    """The chunks of a shard; those that do not lie inside it are left to the reader, who finds them missing."""
    size = packing.index_bytes
    index = shard[:size] if packing.index_first else shard[-size:]
    places = np.frombuffer(index[: 16 * (packing.chunks or 0)], "<u8").reshape(-1, 2).tolist()
    return (shard[at : at + length] for at, length in places if at != _MISSING and at + length <= len(shard))


def _require_one_packing(codecs: Iterable[Any], name: str) -> None:
    packings = [c for c in codecs if isinstance(c, BytesBytesCodec) and not isinstance(c, Crc32cCodec)]
    if len(packings) > 1:
        raise _packed_twice(name)


def _packed_twice(name: str) -> SlideError:
    return SlideError(f"{name} has chunks that are packed twice, which no slide needs: it is a trap, or rewrite it")
