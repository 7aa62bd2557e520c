"""Write and read spill files that are compressed or have a digest, as the options of `init` require.

By default, the engine writes the bytes of objects unchanged. If the store was made with ``spill_compress`` or
``spill_checksum``, the spilling process uses this module to write the files. It needs packages of the extra ``spill``:
`xxhash` (XXH3, 64 bits), `lz4` or `zstandard`. Every process that uses such a store needs them.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False  # importing `typing` for this would take longer than the rest of this module
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .._core import Store

__all__ = ["Form", "check_files", "flags"]

# The values of PRS_OPEN_SPILL_*, PRS_SPILL_* and the digest algorithm in csrc/store/prs.h.
_DIGEST, _LZ4, _ZSTD = 2, 4, 8
_XXH3 = 1
# Number of bytes that are compressed at a time.
PIECE = 1 << 20
# The maximum length of a compressed piece, the same as SPILL_FRAME in the extension.
_FRAME = PIECE + PIECE // 64 + 4096


def flags(checksum: bool, compress: str | None) -> int:
    """
    Return the options as flags of the engine.

    Parameters
    ----------
    checksum : bool
    compress : {"lz4", "zstd"}, optional
    """
    if compress not in (None, "lz4", "zstd"):
        raise ValueError(f'spill_compress must be "lz4", "zstd" or None, not {compress!r}')
    return (_DIGEST if checksum else 0) | {None: 0, "lz4": _LZ4, "zstd": _ZSTD}[compress]


def _missing(package: str) -> ImportError:
    return ImportError(
        f"the spill files of this store need the package {package!r}; hint: pip install {package}", name=package
    )


class Form:
    """
    The format of one store's spill files.

    Parameters
    ----------
    flags : int
        The result of `flags`.

    Attributes
    ----------
    codec, algorithm : int
        The values in the trailer of a file.
    hasher : callable
        Returns a digest object that can be updated; set only if there is an algorithm.
    """

    def __init__(self, flags: int) -> None:
        self.codec = 1 if flags & _LZ4 else 2 if flags & _ZSTD else 0
        self.algorithm = _XXH3 if flags & _DIGEST else 0
        if self.algorithm:
            try:
                import xxhash
            except ImportError:
                raise _missing("xxhash") from None
            self._digest: Callable[[memoryview], int] = xxhash.xxh3_64_intdigest
            self.hasher: Callable[[], Any] = xxhash.xxh3_64
        if self.codec == 1:
            try:
                import lz4.frame as codec
            except ImportError:
                raise _missing("lz4") from None
            self._codec = codec
        elif self.codec == 2:
            try:
                import zstandard as codec
            except ImportError:
                raise _missing("zstandard") from None
            self._codec = codec

    def digest_of(self, data: memoryview) -> int:
        """Return the digest of an object's bytes."""
        return self._digest(data)

    def compressor(self) -> Callable[[memoryview], bytes]:
        """Return a function that compresses a piece to a frame with a checksum. Only one thread may use it."""
        if self.codec == 1:
            compress = self._codec.compress
            return lambda piece: compress(piece, content_checksum=True)
        made: Callable[[memoryview], bytes] = self._codec.ZstdCompressor(level=1, write_checksum=True).compress
        return made

    def expander(self) -> Callable[[memoryview, int], bytes | None]:
        """Return a function, for one thread, that restores a piece from a frame or returns None for a damaged frame."""
        return self._expand_lz4 if self.codec == 1 else self._expand_zstd

    def _expand_lz4(self, frame: memoryview, size: int) -> bytes | None:
        try:
            # Check the size first: the header of a damaged frame may contain any size, and the decompressor would
            # allocate that much memory.
            if self._codec.get_frame_info(frame)["content_size"] != size:
                return None
            piece: bytes = self._codec.decompress(frame)
        except RuntimeError:
            return None
        return piece

    def _expand_zstd(self, frame: memoryview, size: int) -> bytes | None:
        try:
            if self._codec.frame_content_size(frame) != size:
                return None
            piece: bytes = self._codec.ZstdDecompressor().decompress(frame, max_output_size=size)
        except self._codec.ZstdError:
            return None
        return piece


# ---- files of a store that has ended
# ------------------------------------------------------------------------------------

_TRAILER = struct.Struct("<4sHBBQQQQQ16x")
# The header of an object: magic, version, flags.
_HEADER = b"PRSO\x01\x00\x00\x00"


def check_files(store: Store, spill_dir: str) -> tuple[int, list[dict[str, Any]]]:
    """
    Read the spill files of a dead store and check their content.

    Parameters
    ----------
    store : Store
        The copy of the store's tables that ``_core.snapshot`` returned.
    spill_dir : str

    Returns
    -------
    tuple of (int, list of dict)
        The same values as those of ``_core.check_spilled``.
    """
    given = (_DIGEST if store.spill_checksum else 0) | {None: 0, "lz4": _LZ4, "zstd": _ZSTD}[store.spill_compress]
    form = Form(given) if given else None
    damaged: list[dict[str, Any]] = []
    count = 0
    for record in store.records():
        if not record["spilled"] or record["freed"] or record["state"] == "creating":
            # The file of the object was never completed.
            continue
        count += 1
        slot = int.from_bytes(bytes.fromhex(record["id"])[16:20], "little")
        path = f"{spill_dir}/{store.id:016x}/{slot:08x}-{record['serial']:016x}"
        error = _check_file(path, record["size"], store.id, record["serial"], form)
        if error is not None:
            damaged.append({key: record[key] for key in ("id", "name", "size")} | {"error": error})
    return count, damaged


def _check_file(path: str, size: int, store: int, serial: int, form: Form | None) -> str | None:
    """Return a description of the damage to a file, or None if it is intact."""
    try:
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            if form is None:
                reason = "its spill file is shorter than the object" if length < size else None
                head = file.read(len(_HEADER))
            else:
                reason, head = _check_contents(file, length, size, store, serial, form)
    except FileNotFoundError:
        return "ObjectLostError: it was spilled, and its file was removed"
    except OSError as error:
        return f"OSError: {error}"
    if reason is None and head != _HEADER:
        reason = "its first bytes are not those of an object"
    return None if reason is None else f"CorruptObjectError: {reason}"


def _check_contents(file: Any, length: int, size: int, store: int, serial: int, form: Form) -> tuple[str | None, bytes]:
    file.seek(max(0, length - _TRAILER.size))
    trailer = file.read(_TRAILER.size)
    file.seek(0)
    if len(trailer) != _TRAILER.size:
        return "its spill file is shorter than a trailer", b""
    magic, version, codec, algorithm, of_store, of_serial, whole, stored, digest = _TRAILER.unpack(trailer)
    announced = (magic, version, of_store, of_serial, whole, stored, algorithm)
    expected = (b"PRSF", 1, store, serial, size, length - _TRAILER.size, form.algorithm)
    if announced != expected or codec not in (0, form.codec) or (codec == 0 and stored != size):
        return "the trailer of its spill file does not fit", b""
    running = form.hasher() if form.algorithm else None
    head, done = b"", 0
    expand = form.expander() if codec else None
    while done < size:
        want = min(PIECE, size - done)
        if expand is None:
            piece: bytes | None = file.read(want)
        else:
            count = int.from_bytes(file.read(4), "little")
            if count > _FRAME:
                return "a piece of its spill file is longer than any can be", head
            piece = expand(memoryview(file.read(count)), want)
        if piece is None or len(piece) != want:
            return "a piece of its spill file cannot be read", head
        head = head or piece[: len(_HEADER)]
        done += want
        if running is not None:
            running.update(piece)
    if file.tell() != stored:
        return "its spill file is longer than its contents", head
    if running is not None and running.intdigest() != digest:
        return "its bytes in the spill file are not those that were written: their digest differs", head
    return None, head
