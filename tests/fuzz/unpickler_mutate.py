"""Mutate pickles by changes of bytes, opcodes and splices, determined by a `random.Random`."""

import struct

OPCODES = b"(.012FIJKLMNPQRSTUVXabcd}eghijl]opqrst)uGBC" + bytes(range(0x80, 0x99))
SNIPPETS = [
    b"(", b"0", b"1", b"2", b"u", b"e", b"s", b"a", b"b", b"R", b"\x81", b"\x85R", b"\x94", b"t", b"l", b"d", b"o", b"\x90",
    b"}(", b"](", b"}\x94(", b"]\x94(", b")\x81}(", b")\x81\x94}\x94(", b")\x81N}(", b"u\x86b", b"u\x86\x94b", b"ub", b"N", b".",
    b"h\x00", b"h\x01", b"h\x02", b"h\x05", b"q\x00", b"q\x01", b"q\x05", b"r\x10\x00\x00\x00", b"g0\n", b"p1\n", b"K\x01",
    b"\x8c\x01a", b"\x8c\x01bN", b"X\x01\x00\x00\x00a", b"\x80\x02", b"\x80\x05", b"I01\n", b"L5L\n", b"S'a'\n", b"Va\n",
    b"\x8a\x01\x7f", b"\x91", b"\x93", b"\x96\x01\0\0\0\0\0\0\0x", b"\x97", b"\x98", b"\x82\x01", b"Q", b"P0\n",
]  # fmt: skip


def mutate(data, rng, others):
    """Return a mutated copy of `data`; `others` are pickles from which pieces may be copied."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(9)
        if kind == 0 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 1 and data:
            data[at % len(data)] = rng.choice(OPCODES)
        elif kind == 2:
            data[at:at] = rng.choice(SNIPPETS)
        elif kind == 3:
            del data[at : at + rng.choice((1, 1, 2, 5, 20))]
        elif kind == 4:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            data[at:at] = other[start : start + rng.choice((1, 3, 8, 30))]
        elif kind == 5:
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + rng.choice((1, 2, 4, 16))]
        elif kind == 6 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 7:
            size = rng.choice((0, 1, 0xFF, 0x7FFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
            data[at : at + 4] = struct.pack("<I", size)
        else:
            data[at:at] = rng.choice(SNIPPETS) + rng.choice(SNIPPETS)
    return bytes(data)
