"""Ways to damage a file, driven by a random generator; for hostile tests and the fuzzer."""

import struct

INTERESTING = (
    0, 1, 2, 3, 4, 7, 8, 9, 12, 13, 31, 32, 33, 64, 127, 128, 255, 256, 1000, 0x7FFF, 0x8000,
    0xFFFF, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**61, 2**63 - 1, 2**63,
    2**64 - 1,
)  # fmt: skip


def mutate(raw, rng, header_size):
    """Return `raw` with one to four changes, most of them in its first `header_size` bytes."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        size = min(header_size, len(data)) if rng.random() < 0.9 else len(data)
        at = rng.randrange(size) if size else 0
        kind = rng.randrange(9)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[min(at, len(data) - 1)] = rng.randrange(256)
        elif kind == 2:
            data[at : at + 4] = struct.pack("<I", rng.choice(INTERESTING) & 0xFFFFFFFF)
        elif kind == 3:
            data[at : at + 8] = struct.pack("<Q", rng.choice(INTERESTING))
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            del data[at : at + rng.randrange(1, 40)]
        elif kind == 6:
            data[at:at] = data[at : at + rng.randrange(1, 200)]
        elif kind == 7:
            data[at:at] = rng.randbytes(rng.randrange(1, 20))
        else:
            other = rng.randrange(len(data) + 1)
            length = rng.randrange(1, 64)
            data[at : at + length] = data[other : other + length]
    return bytes(data)


def mutate_json(raw, rng):
    """Change a token of a safetensors header and keep its length field right."""
    length = int.from_bytes(raw[:8], "little")
    text = raw[8 : 8 + length].decode("latin1")
    tokens = (
        '"F32"', '"I4"', "[]", "{}", "0", "-1", "1e99", "true", "null", "4", "24", '"__metadata__"',
        "[0,1]", "9" * 30, "NaN", '"dtype":"F32",', "[" * 2000,
        '{"a":' * 500, "18446744073709551616",
    )  # fmt: skip
    start = rng.randrange(len(text))
    end = min(len(text), start + rng.choice((0, 1, 2, 5, 20)))
    text = text[:start] + rng.choice(tokens) + text[end:]
    encoded = text.encode("latin1")
    return len(encoded).to_bytes(8, "little") + encoded + raw[8 + length :]
