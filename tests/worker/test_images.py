# SPDX-License-Identifier: Apache-2.0
"""Images of PIL cross: every mode, palettes, and what is known of them; nothing is encoded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageSequence

from atoll_worker import images
from atoll_worker.arrays import array_reducer_of
from atoll_worker.errors import DecodeError
from atoll_worker.values import Decoder, Encoder

from .carriers import HOST, WORKER, Recording, buffers_of, passed, refusal

MODES = [
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "F",
    "LA",
    "PA",
    "RGBX",
    "La",
    "RGBa",
    "I;16",
]


def filled(mode: str, size: tuple[int, int]) -> Any:
    """An image whose pixels differ."""
    image = Image.new(mode, size)
    data = bytes(index * 7 % 256 for index in range(len(image.tobytes())))
    image.frombytes(data)
    if mode in ("P", "PA"):
        image.putpalette(bytes(range(256)) * 3)
    return image


@pytest.mark.parametrize("mode", MODES)
def test_every_mode(mode: str) -> None:
    """Pixels, size, palette; and it may be written to."""
    for size in [(5, 3), (1, 1), (200, 100), (0, 0), (3, 0)]:
        for decoder in (HOST, WORKER):
            check_mode(mode, size, decoder)


def check_mode(mode: str, size: tuple[int, int], decoder: Decoder) -> None:
    """That such an image arrives as it was."""
    sent = filled(mode, size) if all(size) else Image.new(mode, size)
    before = sent.tobytes()
    arrived = passed([sent], decoder)[0]
    assert type(arrived) is Image.Image
    assert (arrived.mode, arrived.size) == (mode, size)
    assert arrived.tobytes() == before
    assert arrived.getpalette() == sent.getpalette()
    if all(size):
        other = (0,) * len(arrived.getbands()) if len(arrived.getbands()) > 1 else 0
        arrived.putpixel((0, 0), other)
        assert arrived.getpixel((0, 0)) == other
        assert sent.tobytes() == before


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_palettes(mode: str) -> None:
    """With transparency in the palette, with few colours, with one colour that is transparent."""
    image = filled("P", (4, 4))
    image.putpalette([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], mode)
    image.info["transparency"] = 2
    arrived = passed(image)
    assert arrived.getpalette("RGBA") == image.getpalette("RGBA")
    assert arrived.info == image.info
    assert arrived.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()


def test_images_of_files(tmp_path: Path) -> None:
    """Opened but not read yet, of the frame that it is at, and with its description."""
    image = filled("RGB", (40, 30))
    exif = Image.Exif()
    exif[0x010E] = "described"
    for form in ("png", "jpeg", "tiff", "gif"):
        file = tmp_path / f"image.{form}"
        image.save(file, dpi=(72, 72), exif=exif)
        with Image.open(file) as opened:
            arrived = passed(opened)
            assert type(arrived) is Image.Image
            assert arrived.tobytes() == opened.tobytes()
            if form in ("png", "jpeg"):
                assert arrived.info["exif"] == opened.info["exif"]
                assert arrived.getexif()[0x010E] == "described"
            if form != "gif":
                assert arrived.info["dpi"] == pytest.approx((72, 72), abs=0.1)
    frames = [filled("P", (8, 8)).rotate(90 * turn) for turn in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "moving.gif") as moving:
        for frame in ImageSequence.Iterator(moving):
            assert passed(frame).convert("RGB").tobytes() == frame.convert("RGB").tobytes()


def test_what_is_known_of_them() -> None:
    """What is plain crosses; what is not is left out."""

    class Text(str):
        __slots__ = ()

    image = filled("L", (2, 2))
    image.info.update(
        dpi=(72, 72.5), name="x", icc_profile=b"\0" * 10, deep={"a": [1, None]}, odd=object(), text=Text("t")
    )
    info = passed(image).info
    assert info == {"dpi": (72, 72.5), "name": "x", "icc_profile": b"\0" * 10, "deep": {"a": [1, None]}, "text": "t"}
    assert type(info["text"]) is str


def test_pixels_beside_the_payload() -> None:
    """Large ones are stored once, and read where they lie if PIL can."""
    image = filled("RGBA", (400, 300))
    encoder = Encoder()
    payload = encoder.encode(image)
    (buffer,) = buffers_of(encoder)
    assert buffer == image.tobytes()
    arrived = WORKER.decode(payload, [buffer])
    buffer[0] ^= 255
    assert arrived.tobytes() == buffer
    carrier = Recording()
    reducer = array_reducer_of(Image.Image)
    assert reducer is not None
    reducer(image, carrier)
    assert carrier.stored == [bytearray(image.tobytes())]


def test_pixels_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``tobytes`` has them, also where this version of PIL has no such encoder."""
    for mode, nbytes in images._PIXEL_BYTES.items():
        image = filled(mode, (333, 111))
        assert images._pixels(image) == image.tobytes()
        assert len(image.tobytes()) == 333 * 111 * nbytes
    monkeypatch.setattr(images, "library", lambda name, what: object())
    assert images._pixels(image) == image.tobytes()


def test_a_file_that_is_broken(tmp_path: Path) -> None:
    """What PIL says of it is in the error."""
    stream = io.BytesIO()
    filled("RGB", (100, 100)).save(stream, "png")
    with Image.open(io.BytesIO(stream.getvalue()[:200])) as broken:
        assert "its pixels cannot be read: " in refusal(broken)


def test_pixels_that_do_not_fit() -> None:
    """Fewer than the size needs are an error of decoding."""
    encoder = Encoder()
    payload = encoder.encode(filled("RGB", (400, 300)))
    (buffer,) = buffers_of(encoder)
    for decoder in (HOST, WORKER):
        with pytest.raises(DecodeError):
            decoder.decode(payload, [buffer[:100]])
