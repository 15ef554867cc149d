# SPDX-License-Identifier: Apache-2.0
# /// script
# requires-python = ">=3.11"
# dependencies = ["scikit-learn>=1.7", "numpy>=2", "pillow"]
# ///
"""The colours of a photograph, by a current scikit-learn, which is used with numpy 2."""

import numpy
import sklearn
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_image

from atoll_worker import Service, expose


@expose
def versions() -> dict:
    """Versions of what really runs here."""
    import platform

    return {"python": platform.python_version(), "numpy": numpy.__version__, "scikit-learn": sklearn.__version__}


@expose
def photograph(name: str = "china.jpg") -> numpy.ndarray:
    """A photograph that scikit-learn ships: [height, width, 3] uint8, RGB."""
    return numpy.array(load_sample_image(name))


class Palette(Service):
    """Holds what is made once per worker: here, the random numbers that pick the pixels to learn from."""

    def setup(self) -> None:
        self.random = numpy.random.default_rng(7)

    @expose
    def reduce(self, image: numpy.ndarray, colours: int = 6) -> dict:
        """A photograph in a few colours only.

        Args:
            image: [height, width, 3] uint8, RGB.
            colours: how many.

        Returns:
            ``image``: the same shape and type; ``palette``: the colours as hexadecimal text, most frequent first.
        """
        pixels = image.reshape(-1, 3).astype(numpy.float32)
        sample = pixels[self.random.choice(len(pixels), size=min(4000, len(pixels)), replace=False)]
        model = KMeans(n_clusters=colours, n_init=2, random_state=7).fit(sample)
        labels = model.predict(pixels)
        centres = model.cluster_centers_.clip(0, 255).astype(numpy.uint8)
        order = numpy.bincount(labels, minlength=colours).argsort()[::-1]
        return {
            "image": centres[labels].reshape(image.shape),
            "palette": ["#" + bytes(centres[index]).hex() for index in order],
        }
