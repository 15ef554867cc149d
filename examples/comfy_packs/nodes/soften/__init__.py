# SPDX-License-Identifier: Apache-2.0
"""A pack of nodes that needs numpy 2: ``np.unstack`` came with 2.1."""

import platform

import numpy as np


class Soften:
    """Averages neighbours, as strongly as the model says, and has the model finish each image of the batch."""

    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "made_with")
    FUNCTION = "soften"
    CATEGORY = "image/film"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "model": ("MODEL",)}}

    def soften(self, image, model):
        for _ in range(model.strength):  # an attribute of an object that stays in the host
            image = (image + np.roll(image, 1, axis=1) + np.roll(image, 1, axis=2)) / np.float32(3)
        finished = np.stack([model.finish(one) for one in np.unstack(image)])  # and calls of its method
        return finished, f"numpy {np.__version__} on Python {platform.python_version()}"


NODE_CLASS_MAPPINGS = {"Soften": Soften}
NODE_DISPLAY_NAME_MAPPINGS = {"Soften": "Soften with a model"}
