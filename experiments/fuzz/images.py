"""Mutated images; many of them make one `embed`."""

import functools
import os
import pathlib
import socket
import struct
import zlib

import numpy as np

from experiments.fuzz.damage import TEXTS, Place, chosen, damaged

SUFFIXES = (".jpg", ".png", ".webp", ".gif", ".bmp", ".tif", ".ppm", ".jp2", ".avif", ".txt", "")


def add_image(position: Place, number: int, random: np.random.Generator) -> tuple[str, str]:
    """Adds one mutated image to the input folder.

    Args:
        position: where the case lies.
        number: makes the image's name its own.
        random: where the choices come from.

    Returns:
        The image's path below the input folder, and what is wrong with it.
    """
    seeds = sorted((position.seeds / "pictures").iterdir())
    way = chosen(
        random, [_damage] * 12 + [_lie] * 3 + [_misnamed, _odd_file, _odd_file, _odd_name, _bomb]
    )
    return way(position, f"p{number:04d}", chosen(random, seeds), random)


def _damage(position, name, seed, random):
    data, what = damaged(seed.read_bytes(), random)
    position.written(name + seed.suffix, data)
    return name + seed.suffix, f"{seed.name}: {what}"


def _lie(position, name, seed, random):
    """A header that claims another size, its checksum right."""
    data = bytearray(seed.read_bytes())
    width, height = (int(random.choice([0, 1, 57, 2**14, 2**16 - 1])) for _ in range(2))
    if seed.suffix == ".png":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif seed.suffix == ".jpg":
        frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    elif seed.suffix == ".bmp":
        data[18:26] = struct.pack("<ii", width, -height)
    elif seed.suffix == ".gif":
        frame = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
        data[frame + 5 : frame + 9] = data[6:10] = struct.pack("<HH", width, height)
    elif seed.suffix == ".ppm":
        data = data.replace(b"72 56", b"%d %d" % (width, height), 1)
    else:
        return _damage(position, name, seed, random)
    position.written(name + seed.suffix, bytes(data))
    return name + seed.suffix, f"{seed.name}: claims {width} x {height}"


def _misnamed(position, name, seed, random):
    name += chosen(random, SUFFIXES)
    position.written(name, seed.read_bytes())
    return name, f"{seed.name} by another suffix"


def _odd_file(position, name, seed, random):
    kinds = "fifo", "folder", "loop", "device", "dangling", "empty", "text", "socket", "zeros"
    kind = chosen(random, kinds)
    path = position.inside / f"{name}.jpg"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("loop", "device", "dangling"):
        path.symlink_to({"loop": path.name, "device": "/dev/zero", "dangling": "no.jpg"}[kind])
    elif kind == "socket":
        # Bound by a relative path, since a socket's may only be short.
        before = pathlib.Path.cwd()
        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
        os.chdir(before)
    else:
        data = {"empty": b"", "text": chosen(random, TEXTS).encode(), "zeros": bytes(5000)}[kind]
        path.write_bytes(data)
    return path.name, kind


def _odd_name(position, name, seed, random):
    name += chosen(random, ("\n.", " \x1b[31m.", "鳥", "%s{}", "'\";", "\t", "." * 100)) + ".png"
    position.written(name, (position.seeds / "pictures" / "palette.png").read_bytes())
    return name, "an odd name"


def _bomb(position, name, seed, random):
    """A few kilobytes that unpack to as much as is allowed, or to more."""
    kind = chosen(random, BOMBS)[0]
    position.written(f"{name}.png", _png(*BOMBS[kind]))
    return f"{name}.png", f"bomb: {kind}"


# Side, bits and colour type of PNG.
BOMBS = {
    "grey of 16 bits, within the limit": (13_000, 16, 0),
    "colours, within the limit": (13_000, 8, 2),
    "colours, beyond the limit": (14_000, 8, 2),
    "bits, within the limit": (13_000, 1, 0),
    "palette with transparency, within the limit": (13_000, 8, 3),
}


@functools.cache
def _png(side: int, bits: int, colours: int) -> bytes:
    line = 1 + side * bits * {0: 1, 2: 3, 3: 1}[colours] // 8
    packer = zlib.compressobj(1)
    block = packer.compress(bytes(line * 1000))
    packed = block + b"".join(packer.compress(bytes(line * 1000)) for _ in range(side // 1000 - 1))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, colours, 0, 0, 0))]
    if colours == 3:
        chunks += [(b"PLTE", bytes(range(48))), (b"tRNS", bytes(range(16)))]
    chunks += [(b"IDAT", packed + packer.flush()), (b"IEND", b"")]
    stored = (
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(stored)
