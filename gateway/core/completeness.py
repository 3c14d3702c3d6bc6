"""Pillow's PNG and JPEG decoders, with a check of what they leave unchecked: that the data reach the last pixel.

Pillow accepts a stream that ends properly but too early, and leaves the rest of the image black. Here the last pixel to
be decoded is marked beforehand and must have been overwritten. Since the image may have the mark's very colour there, a
mark that remains is tried again with its inverse.
"""

from __future__ import annotations

import io

from PIL import ImageFile, JpegImagePlugin, PngImagePlugin

from gateway.core.jpeg_segments import Jpeg
from gateway.errors import UndecodableImage

# One mark for each of the two tries, as unlike black, white and grey as a byte can be.
_MARKS = (0x5B, 0xA4)
# All-ones codes stand for nothing in JPEG. The decoder reads ahead by 8 bytes, so as many follow the last scan; each
# block that is missing takes more than four of them.
_AHEAD = b"\xff\x00" * 8
_END = b"\xff\xd9"
# Adam7 (W3C PNG, section 8.1): first column and row of each pass, and their steps.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class _Marked(ImageFile.ImageFile):
    """A decoder that marks the pixel `last` of an otherwise black image before it decodes."""

    last: tuple[int, int] | None = None
    mark = 0

    def load_prepare(self) -> None:
        super().load_prepare()
        if self.last is not None:
            self.im.putpixel(self.last, self._ink())

    def reached(self) -> bool:
        """Whether the marked pixel has been overwritten, with another colour."""
        return self.last is None or self.im.getpixel(self.last) != self._ink()

    def _ink(self) -> int | tuple[int, ...]:
        if self.mode == "1":
            return 255 * (self.mark & 1)
        bands = len(self.getbands())
        return self.mark if bands == 1 else (self.mark,) * bands


class _Png(_Marked, PngImagePlugin.PngImageFile):
    def load_prepare(self) -> None:
        # Reached when a file's rows are about to be decoded, and never before its header is read.
        self.last = _last_of_png(*self.size, interlaced=bool(self.info.get("interlace")))
        super().load_prepare()


class _Jpeg(_Marked, JpegImagePlugin.JpegImageFile):
    """Reads a file without its end marker. Where rows are decoded in order, all must be decoded before it is added."""

    sequential = False
    whole = True

    def load_prepare(self) -> None:
        self.last = (self.width - 1, self.height - 1) if self.sequential else None
        self._rest = [_END, _AHEAD] if self.sequential else []
        super().load_prepare()

    def load_read(self, read_bytes: int) -> bytes:
        if self.fp is not None and (found := self.fp.read(read_bytes)):
            return found
        if len(self._rest) == 1:
            self.whole = self.reached()
        return self._rest.pop() if self._rest else b""


def load_png(data: bytes, raw_mode: str | None = None) -> ImageFile.ImageFile:
    """The pixels of a PNG file; `raw_mode` is Pillow's name of another way to read the same samples."""
    for mark in _MARKS:
        image = _Png(io.BytesIO(data))
        image.mark = mark
        if raw_mode is not None:
            image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
        image.load()
        if image.reached():
            return image
    raise UndecodableImage("the data end before the image does")


def load_jpeg(jpeg: Jpeg, enough: tuple[int, int] | None = None) -> ImageFile.ImageFile:
    """The pixels of a JPEG file; where rows are decoded in order, every row must be there.

    With `enough` (width, height), at the smallest of 1, 1/2, 1/4 and 1/8 of the size that is whole and has as many
    pixels a side: libjpeg then computes no others.
    """
    for mark in _MARKS:
        image = _Jpeg(io.BytesIO(jpeg.file if jpeg.sequential else jpeg.file + _END))
        if image.size != jpeg.size:
            raise UndecodableImage("JPEG of more than one size")
        if enough is not None:
            image.draft(None, _fraction(image.size, enough))
        image.mark, image.sequential = mark, jpeg.sequential
        image.load()
        if image.whole:
            return image
    raise UndecodableImage("the data end before the image does")


def _fraction(size: tuple[int, int], enough: tuple[int, int]) -> tuple[int, int]:
    """`size` divided by 8, 4 or 2 where that leaves no rest and `enough`, else as it is.

    With a rest the last pixel would stand for fewer than the others, and the image would be shifted against them.
    """
    width, height = size
    for by in (8, 4, 2):
        if width % by == height % by == 0 and width // by >= enough[0] and height // by >= enough[1]:
            return width // by, height // by
    return size


def _last_of_png(width: int, height: int, *, interlaced: bool) -> tuple[int, int]:
    """(x, y) of the pixel that is decoded last."""
    if not interlaced:
        return width - 1, height - 1
    x, y, step_x, step_y = next(p for p in reversed(_PASSES) if p[0] < width and p[1] < height)
    return (width - 1 - x) // step_x * step_x + x, (height - 1 - y) // step_y * step_y + y
