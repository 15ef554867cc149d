# SPDX-License-Identifier: Apache-2.0
# /// script
# requires-python = ">=3.9,<3.13"
# dependencies = ["opencv-python-headless==4.8.1.78", "numpy==1.26.4"]
# ///
"""What OpenCV 4.8 sees in a photograph. Its wheel was built against numpy 1, and does not import with numpy 2."""

import cv2
import numpy

from atoll_worker import expose


@expose
def versions() -> dict:
    """Versions of what really runs here."""
    import platform

    return {"python": platform.python_version(), "numpy": numpy.__version__, "opencv": cv2.__version__}


@expose
def edges(image: numpy.ndarray, low: float = 110.0, high: float = 240.0) -> numpy.ndarray:
    """The outlines of a photograph, drawn over a darkened copy of it.

    Args:
        image: [height, width, 3] uint8, RGB.
        low, high: thresholds of the Canny edge detector.

    Returns:
        an image of the same shape and type.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    outline = cv2.Canny(cv2.GaussianBlur(grey, (5, 5), 0), low, high)
    drawn = (image * 0.35).astype(numpy.uint8)
    drawn[cv2.dilate(outline, numpy.ones((2, 2), numpy.uint8)) > 0] = (255, 214, 64)
    return drawn


@expose
def side_by_side(pictures: list, captions: list, gap: int = 16) -> bytes:
    """Pictures in a row with a caption under each, as the bytes of a PNG file.

    Args:
        pictures: images of one shape, [height, width, 3] uint8, RGB.
        captions: a text for each.
        gap: pixels between and around them.
    """
    height, width, _ = pictures[0].shape
    strip = 44
    row = numpy.full((height + strip + 2 * gap, len(pictures) * (width + gap) + gap, 3), 250, numpy.uint8)
    for index, (picture, caption) in enumerate(zip(pictures, captions)):
        left = gap + index * (width + gap)
        row[gap : gap + height, left : left + width] = picture
        cv2.putText(
            row, caption, (left, gap + height + 28), cv2.FONT_HERSHEY_SIMPLEX, 0.62, (40, 40, 40), 1, cv2.LINE_AA
        )
    done, png = cv2.imencode(".png", cv2.cvtColor(row, cv2.COLOR_RGB2BGR))
    assert done
    return png.tobytes()
