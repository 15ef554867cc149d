# SPDX-License-Identifier: Apache-2.0
"""A pack of nodes that needs numpy 1: ``np.float_`` and ``np.product`` are no more in numpy 2."""

import platform

import numpy as np


class Grain:
    """Adds the grain of a film to an image."""

    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "made_with")
    FUNCTION = "add"
    CATEGORY = "image/film"

    def __init__(self):
        self.films = 0

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "image": ("IMAGE",),
                "amount": ("FLOAT", {"default": 0.1, "min": 0.0, "max": 1.0}),
            }
        }

    def add(self, image, amount):
        self.films += 1
        generator = np.random.RandomState(self.films)
        noise = generator.normal(0, amount, np.product(image.shape)).astype(np.float_).reshape(image.shape)
        grainy = np.clip(image + noise, 0, 1).astype(np.float32)
        return grainy, f"numpy {np.__version__} on Python {platform.python_version()}"


NODE_CLASS_MAPPINGS = {"Grain": Grain}
NODE_DISPLAY_NAME_MAPPINGS = {"Grain": "Grain of a film"}
