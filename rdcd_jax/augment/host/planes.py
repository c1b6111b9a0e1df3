"""Images as three planes of small integers, on which NumPy works several times faster than Pillow on pixels."""

import numpy as np
from PIL import Image


def to_planes(image: Image.Image, dtype: type[np.integer]) -> np.ndarray:
    """[3, H, W] of an RGB image."""
    planes = [np.frombuffer(image.tobytes("raw", band), np.uint8) for band in "RGB"]
    return np.array(planes).reshape(3, image.height, image.width).astype(dtype)


def from_planes(planes: np.ndarray) -> Image.Image:
    """The RGB image of planes [3, H, W] with values 0 to 255."""
    return Image.merge("RGB", [Image.fromarray(plane) for plane in planes.astype(np.uint8)])
