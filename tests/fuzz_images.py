"""Inputs of the fuzzer for the reader of image files: PNG and JPEG, and mutations of both."""

import importlib
import io
import zlib

import numpy as np
from fuzz_mutations import noise

# Marks of JPEG that are worth to insert: another image, tables, scans, restarts, metadata.
MARKS = [b"\xff" + bytes([mark]) for mark in (*range(0xC0, 0xE3), 0xEE, 0xFE, 0x01)]
CHUNKS = b"IHDR IDAT IEND PLTE tRNS zTXt iTXt tEXt iCCP gAMA acTL fcTL fdAT eXIf pHYs".split()
SIDES = 0, 1, 5, 6, 7, 1024, 1025, 60_000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF


class ImageFile:
    """A file whose image must have 6 x 7 pixels: an input is a file."""

    modules = "minicnn.data.image_files", "minicnn.files", "PIL"  # where branches are counted

    def __init__(self, folder):
        # Not at the top: the command has it instrumented as it is imported.
        self._read_images = importlib.import_module("minicnn.data.image_files").read_images
        self.paths = [folder / "any.png"]
        self._seeds = list(_seeds())

    def seeds(self):
        return self._seeds

    def mutate(self, content, random):
        if random.random() < 0.3:
            return noise(content, random)
        if content[:4] == b"\x89PNG":
            return _mutate_png(content, random)
        place, size = random.randrange(len(content) + 1), random.randrange(1, 9)
        mark = random.choice(MARKS) + random.choice((b"", b"\0\2", b"\0\x0b", b"\xff\xff"))
        return content[:place] + mark + content[place + random.choice((0, len(mark), size)) :]

    def read(self, content):
        """Read an input, and check the result's type and size."""
        self.paths[0].write_bytes(content)
        images = self._read_images(self.paths, (6, 7))
        assert images.dtype == "uint8" and images.shape in ((1, 6, 7), (1, 6, 7, 3))


def _seeds():
    from PIL import Image  # noqa: PLC0415

    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (6, 7, 4), np.uint8)
    pixels[..., 3] = 255
    grey, colour = pixels[..., 0], pixels[..., :3]
    deep = grey.astype(np.uint16) * 257
    palette = Image.fromarray(grey % 4)
    palette.putpalette([9, 9, 9, 1, 2, 3, 255, 255, 255, 4, 5, 6])
    for image in (grey, colour, pixels, pixels[..., 2:], grey > 99, deep, palette):
        yield _encoded(image, "PNG")
    for image in (grey, colour):
        for options in ({}, {"progressive": True}, {"quality": 20, "subsampling": 2}):
            yield _encoded(image, "JPEG", **options)


def _encoded(image, kind, **options):
    from PIL import Image  # noqa: PLC0415

    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _mutate_png(content, random):
    """A PNG after a change of a chunk, whose checksum is then right."""
    chunks, place = [], 8
    while place + 12 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        chunks.append([content[place + 4 : place + 8], content[place + 8 : end]])
        place = end + 4
    i = random.randrange(len(chunks) + 1) if chunks else 0
    name, body = chunks[i] if i < len(chunks) else (random.choice(CHUNKS), b"")
    match random.randrange(8):
        case 0:
            chunks[i : i + 1] = []
        case 1:
            chunks[i:i] = [[random.choice(CHUNKS), random.randbytes(random.randrange(30))]]
        case 2:
            chunks[i:i] = [[random.choice(CHUNKS), zlib.compress(bytes(random.choice(SIDES[:8])))]]
        case 3:
            chunks[i : i + 1] = [[name, body], [name, body]]
        case 4 if body:  # a word of the header, or of anything else
            at = random.randrange(0, len(body), 4)
            body = body[:at] + random.choice(SIDES).to_bytes(4, "big") + body[at + 4 :]
            chunks[i : i + 1] = [[name, body]]
        case 5 if name == b"IHDR" and len(body) == 13:  # depth, colours, methods
            at = random.randrange(8, 13)
            value = bytes([random.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))])
            chunks[i : i + 1] = [[name, body[:at] + value + body[at + 1 :]]]
        case 6 if name == b"IDAT":
            chunks[i : i + 1] = [[name, zlib.compress(random.randbytes(random.randrange(300)))]]
        case _:
            chunks[i : i + 1] = [[name, noise(body, random)]]
    return content[:8] + b"".join(
        len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
        for name, body in chunks
    )
