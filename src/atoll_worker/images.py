# SPDX-License-Identifier: Apache-2.0
"""Images of PIL: their pixels as they are, and what is known of them. Nothing is encoded.

An image of a file's format (``PngImageFile`` and the like) arrives as a plain ``PIL.Image.Image``, of the frame it is
at. Of ``info``, what is plain crosses: numbers, text, bytes and tuples, lists and dicts of those.
"""

from __future__ import annotations

from .adapters import Unsupported
from .arrays import bytes_that_came, library
from .errors import DecodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Optional, Tuple

    from .arrays import Carrier, Reduced, Reducer

_PLAIN = (str, int, float, bool, bytes, type(None))


def _reduce_image(value: Any, carrier: Carrier) -> Reduced:
    try:
        value.load()
    except Exception as error:
        raise Unsupported(value, f"its pixels cannot be read: {type(error).__name__}: {error}") from None
    palette = None
    if value.mode in ("P", "PA"):
        kind = "RGBA" if value.palette is not None and "A" in value.palette.mode else "RGB"
        palette = (kind, bytes(value.im.getpalette(kind, kind)))
    data = _pixels(value)
    if len(data) < carrier.inline:
        stored: Any = data
    else:

        def fill(memory: memoryview) -> None:
            memory[:] = data

        stored = carrier.store(len(data), fill, raw=lambda: data)
    info = {key: plain for key, item in value.info.items() for plain in (_plain(item),) if plain is not _NOTHING}
    return restore_image, (value.mode, value.size, palette, info, stored)


def _pixels(value: Any) -> Any:
    """The pixels in a row, as ``tobytes`` gives them, but in one piece. It joins many, which takes six times as long
    for an image of 25 MB.
    """
    encoder_of = getattr(library("PIL.Image", "an image of PIL"), "_getencoder", None)
    nbytes = value.width * value.height * _PIXEL_BYTES.get(value.mode, 0)
    if encoder_of is not None and nbytes:
        encoder = encoder_of(value.mode, "raw", (value.mode,))
        encoder.setimage(value.im, (0, 0, *value.size))
        _, error, data = encoder.encode(nbytes)
        if error == 1 and len(data) == nbytes:  # 1: all is done
            return data
    return value.tobytes()


# Of the modes that most large images have: how many bytes one pixel has.
_PIXEL_BYTES = {"L": 1, "P": 1, "LA": 2, "RGB": 3, "RGBA": 4, "RGBX": 4, "CMYK": 4, "YCbCr": 3, "I": 4, "F": 4}

_NOTHING = object()


def _plain(value: Any) -> Any:
    """A value of ``info`` as it can cross, or ``_NOTHING``."""
    cls = type(value)
    if cls in _PLAIN:
        return value
    if cls is dict:
        return {key: plain for key, item in value.items() if type(key) in _PLAIN for plain in (_plain(item),)
                if plain is not _NOTHING}  # fmt: skip
    if cls in (tuple, list):
        return cls(plain for item in value for plain in (_plain(item),) if plain is not _NOTHING)
    if cls.__name__ == "IFDRational":
        return float(value)
    if issubclass(cls, (int, str, float)):
        return next(plain(value) for plain in (int, str, float) if issubclass(cls, plain))
    return _NOTHING


def restore_image(
    mode: str, size: Tuple[int, int], palette: Optional[Tuple[str, bytes]], info: Dict[Any, Any], buffer: Any
) -> Any:
    """An image of PIL. It is on the memory given where PIL stores the mode as it came, until it is written to."""
    module = library("PIL.Image", "an image of PIL")
    # Before anything is made of this size. No mode has less than a bit for a pixel.
    if min(size) < 0 or size[0] * size[1] > 8 * bytes_that_came(buffer).nbytes:
        raise DecodeError(f"an image of {size[0]:,} x {size[1]:,} pixels does not have {len(buffer):,} bytes")
    if not all(size):
        image = module.new(mode, size)
    else:
        image = module.frombuffer(mode, size, buffer, "raw", mode, 0, 1)
    if palette is not None:
        image.putpalette(palette[1], palette[0])
    image.info.update(info)
    return image


RESTORERS: Dict[str, Callable[..., Any]] = {"restore_image": restore_image}
BY_NAME: Dict[Tuple[str, str], Reducer] = {}


def reducer_of(cls: type) -> Optional[Reducer]:
    """For images and those of each file format."""
    is_image = any((base.__module__, base.__qualname__) == ("PIL.Image", "Image") for base in cls.__mro__)
    return _reduce_image if is_image else None
