"""Gallery pictures: small WebP files inside the page."""

import base64
import io

import numpy as np
from PIL import Image

SIDE = 128
QUALITY = 74
MOST_BYTES = 6_000


def encode_picture(pixels: np.ndarray) -> str:
    """Return a picture as a data URI: WebP, 128 pixels on the longer side, at most 6 kB.

    Args:
        pixels: Grey (height, width) or colour (height, width, 3), ``uint8`` in 0..255 or
            floating point in 0..1.

    Raises:
        ValueError: If the array has another shape.
    """
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise ValueError(f"a picture is (height, width) or (height, width, 3), got {pixels.shape}")
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = np.nan_to_num(pixels).clip(0, 1) * 255
    image = Image.fromarray(np.squeeze(pixels).clip(0, 255).round().astype(np.uint8))
    scale = SIDE / max(image.size)
    fit = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(fit, Image.Resampling.LANCZOS)
    for quality in (QUALITY, 60, 45, 30, 15, 1):
        out = io.BytesIO()
        image.save(out, "WEBP", quality=quality, method=6)
        if len(out.getvalue()) <= MOST_BYTES:
            return _uri(out.getvalue())
    # Noise hardly compresses at all; half the side has a quarter of it.
    half = (max(1, fit[0] // 2), max(1, fit[1] // 2))
    out = io.BytesIO()
    image.resize(half, Image.Resampling.LANCZOS).save(out, "WEBP", quality=QUALITY, method=6)
    return _uri(out.getvalue())


def _uri(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode()
