"""ICC profiles (ICC.1:2001-04) whose transform is known in closed form."""

from __future__ import annotations

import struct

import numpy as np

# Primaries of the profile connection space, D50 (columns: red, green, blue), as in the profiles of these spaces.
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
D50 = (0.9642, 1.0, 0.8249)


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65_536) for value in values))


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(*values)


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


def profile(space: bytes, tags: dict[bytes, bytes], *, connection: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    """A version 2 profile of these tags."""
    text = b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\x00" + bytes(80)
    tags = {b"desc": text, b"cprt": b"text" + bytes(4) + b"none\x00", b"wtpt": _xyz(*D50)} | tags
    offset, table, bodies = 132 + 12 * len(tags), b"", b""
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, offset + len(bodies), len(tag))
        bodies += tag + bytes(-len(tag) % 4)
    size = offset + len(bodies)
    head = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, kind, space, connection)
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp")
    return head.ljust(68, b"\x00") + _fixed(*D50) + bytes(48) + struct.pack(">I", len(tags)) + table + bodies


def rgb_profile(primaries: np.ndarray, gamma: float) -> bytes:
    """Linear light is sample ** gamma; its XYZ is `primaries` @ light."""
    columns = {name: _xyz(*primaries[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return profile(b"RGB ", columns | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma)))


def grey_profile(gamma: float) -> bytes:
    return profile(b"GRAY", {b"kTRC": _curve(gamma)})


def cmyk_profile() -> bytes:
    """An odd printer: black ink alone is seen, as lightness 100 (none) to 0 (full), linear between."""
    grid = [(255 if corner % 2 == 0 else 0, 128, 128) for corner in range(16)]  # the last ink varies fastest
    identity = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut += identity * 4 + bytes(value for corner in grid for value in corner) + identity * 3
    return profile(b"CMYK", {b"A2B0": lut}, connection=b"Lab ", kind=b"prtr")


def encoded(light: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] as sRGB, of 255."""
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def converted(samples: np.ndarray, primaries: np.ndarray, gamma: float) -> np.ndarray:
    """Samples (..., 3) of 255 in the space of `rgb_profile`, as sRGB of 255."""
    light = (samples / 255) ** gamma
    return encoded(light @ primaries.T @ np.linalg.inv(SRGB).T)
