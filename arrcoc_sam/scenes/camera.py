"""What a camera makes of a rich scene: light, shadows across, blur, noise, eight bits, JPEG."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, uniform_filter1d

from arrcoc_sam.scenes.textures import value_noise

__all__ = ["photograph_rich"]

Pixels = NDArray[np.float32]


def photograph_rich(rng: np.random.Generator, image: Pixels) -> NDArray[np.uint8]:
    """A (S, S, 3) picture in eight bits of RGB in about [0, 1]."""
    image = image * _light(rng, image.shape[0])[..., None]
    image = _blurred(rng, image)
    gain, offset = rng.uniform(0.75, 1.2), rng.uniform(-0.08, 0.08)
    cast = (1.0 + rng.normal(0.0, 0.05, 3)).astype(np.float32)
    image = (image - np.float32(0.5)) * (np.float32(gain) * cast) + np.float32(0.5 + offset)
    image = _noisy(rng, np.clip(image, 0.0, 1.0))
    pixels = np.clip(np.rint(image * np.float32(255.0)), 0, 255).astype(np.uint8)
    return _compressed(rng, pixels) if rng.random() < 0.7 else pixels


def _light(rng: np.random.Generator, size: int) -> Pixels:
    """Uneven light, a dark rim, and now and then a shadow that falls across."""
    light = 1.0 + rng.uniform(0.0, 0.3) * value_noise(rng, (size, size), 1, octaves=2)
    axis = np.linspace(-1.0, 1.0, size)
    x, y = axis[None, :], axis[:, None]
    if rng.random() < 0.4:
        light = light * (1.0 - rng.uniform(0.0, 0.35) * (x * x + y * y) / 2.0)
    if rng.random() < 0.25:
        angle, place = rng.uniform(0.0, 2 * np.pi), rng.uniform(-0.7, 0.7)
        across = x * np.cos(angle) + y * np.sin(angle) - place
        if rng.random() < 0.5:  # a band and not a half
            across = np.abs(across) - rng.uniform(0.1, 0.4)
        soft = rng.uniform(0.01, 0.2)
        light = light * (1.0 - rng.uniform(0.15, 0.5) * np.clip(across / soft + 0.5, 0.0, 1.0))
    return light.astype(np.float32)


def _blurred(rng: np.random.Generator, image: Pixels) -> Pixels:
    """Out of focus, or moved along rows or columns."""
    pixel = image.shape[0] / 256
    sigma = rng.uniform(0.0, 1.1) * pixel
    if rng.random() < 0.1:
        length = max(2, round(rng.uniform(2.0, 5.0) * pixel))
        return np.asarray(uniform_filter1d(image, length, axis=int(rng.integers(2))))
    if sigma <= 0.2:
        return image
    return np.asarray(gaussian_filter(image, (sigma, sigma, 0.0), truncate=3.0))


def _noisy(rng: np.random.Generator, image: Pixels) -> Pixels:
    """Noise of the sensor, stronger in the light; now and then in blotches, as small sensors have it."""
    size, strength = image.shape[0], np.float32(rng.uniform(0.0, 0.06) ** 1.3)
    grain = rng.random(image.shape, dtype=np.float32) + rng.random(image.shape, dtype=np.float32) - np.float32(1.0)
    noisy = image + strength * np.float32(2.4) * grain * (np.float32(0.4) + np.float32(0.6) * np.sqrt(image))
    if rng.random() < 0.2:
        blotches = rng.random((size // 3 + 1, size // 3 + 1, 3), dtype=np.float32) - np.float32(0.5)
        noisy = noisy + np.float32(0.08) * blotches.repeat(3, axis=0).repeat(3, axis=1)[:size, :size]
    return np.asarray(noisy)


def _compressed(rng: np.random.Generator, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Written as JPEG and read again."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=int(rng.integers(35, 96)), subsampling=int(rng.integers(3)))
    with Image.open(buffer) as image:
        return np.array(image)
