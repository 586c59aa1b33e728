"""Writes blocks.bin: blocks of every weight format, and what llama.cpp's own reading makes of them.

Needs gguf and numpy:

    python generate.py

Per format, little-endian: its number in ggml (u32), the bytes of its blocks (u32 and as many bytes), and their values (u32 and as many
f32). The blocks are random, their scales between 2^-6 and 1; the last ones have all bits of their quants set, clear, and in turn.
"""

import pathlib
import struct

import numpy as np
from gguf import GGML_QUANT_SIZES, quants
from gguf.constants import GGMLQuantizationType as Type

# Where a block has numbers of 16 bits that are floats.
HALVES = {
    Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0],
    Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
    Type.IQ4_NL: [0], Type.IQ4_XS: [0], Type.MXFP4: [],
}  # fmt: skip
FILLS = [0xFF, 0x00, 0xAA]


def blocks(kind, random):
    width, size = GGML_QUANT_SIZES[kind]
    count = 3 if width == 256 else 6
    rows = random.integers(0, 256, (count + len(FILLS), size), dtype=np.uint8)
    for row, fill in zip(rows[count:], FILLS):
        row[:] = fill
    for at in HALVES[kind]:
        scales = random.uniform(2**-6, 1, len(rows)) * random.choice([-1, 1], len(rows))
        rows[:, at : at + 2] = scales.astype(np.float16).reshape(-1, 1).view(np.uint8)
    if kind == Type.MXFP4:
        # 255 is no number, which the reference reads as one; 0 and 1 are its special cases.
        rows[:, 0] = np.concatenate([[0, 1, 2, 250], random.integers(110, 140, len(rows) - 4)])
    return rows


def main():
    random = np.random.default_rng(32)
    out = b""
    for kind in HALVES:
        rows = blocks(kind, random)
        values = quants.dequantize(rows, kind).astype("<f4").ravel()
        assert np.isfinite(values).all(), kind
        out += struct.pack("<II", kind, rows.size) + rows.tobytes()
        out += struct.pack("<I", values.size) + values.tobytes()
    path = pathlib.Path(__file__).parent / "blocks.bin"
    path.write_bytes(out)
    print(path, len(out))


if __name__ == "__main__":
    main()
