"""Image preparation in two halves: to small uint8 once at load time, to floats batch by batch.

Together they equal the checkpoint's own image processor (its Pillow backend; torchvision is
not needed). A grey picture stays one channel in memory.
"""

import hashlib
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import BaseModelError


class PixelPipeline:
    """The checkpoint's preprocessor_config.json, split at the uint8 picture.

    Attributes:
        size: (height, width) of every picture.
    """

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        """Read preprocessor_config.json.

        Args:
            folder: The checkpoint.
            size: (height, width) that the image tower expects.

        Raises:
            BaseModelError: If the file is missing, or does not give pictures of that size.
        """
        from transformers import AutoImageProcessor  # noqa: PLC0415 - takes a second

        try:
            self.processor: Any = AutoImageProcessor.from_pretrained(
                folder, backend="pil", local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise BaseModelError(
                f"{folder}: preprocessor_config.json is missing or cannot be used "
                f"({type(error).__name__}); expected the image processor of the checkpoint"
            ) from None
        self.size = size
        self._direct = self._can_be_direct()
        for probe in ((37, 61), (61, 37)):
            shape = self.to_pixels(PIL.Image.new("L", probe)).shape
            if shape != size:
                raise BaseModelError(
                    f"{folder}: preprocessor_config.json makes pictures of {shape[0]} x "
                    f"{shape[1]} pixels, the image tower expects {size[0]} x {size[1]}"
                )
        self._factor, self._offset = self._affine()

    @cached_property
    def sha256(self) -> str:
        """Digest of all that ``to_pixels`` depends on; names prepared pictures that are kept."""
        facts = (self.processor.to_json_string(), self.size, version("transformers"))
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def to_pixels(self, image: PIL.Image.Image) -> NDArray[np.uint8]:
        """Resize and crop: (h, w) for a grey picture (mode L), else (h, w, 3)."""
        if image.mode != "L":
            image = image.convert("RGB")
        return self._resized(image) if self._direct else self._processed(image)

    def _processed(self, image: PIL.Image.Image) -> NDArray[np.uint8]:
        pixels = self.processor(
            [image],
            do_convert_rgb=False,
            do_rescale=False,
            do_normalize=False,
            return_tensors="np",
        )["pixel_values"][0]
        picture = np.asarray(pixels).clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(picture[0] if len(picture) == 1 else np.moveaxis(picture, 0, 2))

    def _resized(self, image: PIL.Image.Image) -> NDArray[np.uint8]:
        """The same by Pillow alone; the processor takes ten times as long around it."""
        height, width = self.size
        if self.processor.do_resize:
            wanted, edge = (width, height), self.processor.size.shortest_edge
            if edge:
                short, long = sorted(image.size)
                other = int(edge * long / short)
                wanted = (edge, other) if image.width <= image.height else (other, edge)
            if image.size != wanted:
                image = image.resize(wanted, self.processor.resample)
        if image.size != self.size[::-1]:
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        return np.array(image)

    def _can_be_direct(self) -> bool:
        """Try both ways on noise of every orientation, parity, scale and mode; equal or not."""
        if self.processor.do_resize and self.processor.size.longest_edge:
            return False  # a limit that no probe may reach
        rng = np.random.default_rng(0)
        height, width = self.size
        shapes = [(37, 61), (61, 37), (height, width), (2 * height + 1, 2 * width + 4)]
        shapes += [(height + 7, 3 * width), (3 * height + 2, width + 1), (height, width + 5)]
        for shape in shapes:
            for channels in ((), (3,)):
                noise = rng.integers(0, 256, (*shape, *channels), dtype=np.uint8)
                image = PIL.Image.fromarray(noise)
                if not np.array_equal(self._resized(image), self._processed(image)):
                    return False
        return True

    def to_values(self, pixels: Tensor) -> Tensor:
        """Rescale and normalise: (b, h, w, 1 or 3) uint8 to (b, 3, h, w) float32."""
        factor = self._factor.to(pixels.device)
        offset = self._offset.to(pixels.device)
        return torch.addcmul(offset, pixels.permute(0, 3, 1, 2).float(), factor)

    def _affine(self) -> tuple[Tensor, Tensor]:
        """Return factor and offset per channel, shape (1, 3, 1, 1), of x * factor + offset."""
        processor = self.processor
        scale = processor.rescale_factor if processor.do_rescale else 1.0
        mean, std = [0.0], [1.0]
        if processor.do_normalize:
            mean, std = processor.image_mean, processor.image_std
        spread = torch.tensor(std, dtype=torch.float64).expand(3)
        factor = scale / spread
        offset = -torch.tensor(mean, dtype=torch.float64).expand(3) / spread
        shape = (1, 3, 1, 1)
        return factor.float().reshape(shape), offset.float().reshape(shape)
