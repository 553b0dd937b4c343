"""Decode a picture into 8 bit, grey or RGB; refuse by rule what cannot or must not be used.

PNG, JPEG, WebP, GIF, BMP and TIFF go through Pillow, DICOM through pydicom
(``client.data.dicom``). What a file is, its content says, not its name.
"""

import hashlib
import io
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final, NoReturn

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from client.data.pixels import stretched
from shared.errors import DataError, DataProblem

LARGEST_PIXELS: Final = 64_000_000
"""Most pixels (width times height) that are decoded."""
SMALLEST_SIDE: Final = 16
"""Fewest pixels in width and height."""
LARGEST_BYTES: Final = 512 * 2**20
"""Largest file that is read."""

# Only these decoders run on a site's files; Pillow has others that call external programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_DICOM_ENDINGS = {".dcm", ".dicom"}
_DEEP_GREY = {"I", "I;16", "I;16L", "I;16B", "I;16N", "F"}
_GREY = {"1", "L", "LA", "La"}
_WITH_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}


@dataclass(frozen=True)
class Picture:
    """What is known of an image file.

    Attributes:
        format: Such as ``PNG`` or ``DICOM``.
        mode: As stored, such as ``L``, ``I;16``, ``CMYK``, ``MONOCHROME1``.
        width: Pixels.
        height: Pixels.
        digest: sha256 of the file; empty if only the header was read.
        blank: All pixels are the same.
    """

    format: str
    mode: str
    width: int
    height: int
    digest: str = ""
    blank: bool = False


NOTHING_KNOWN: Final[Mapping[str, Picture]] = MappingProxyType({})


def refuse(rule: str, message: str) -> NoReturn:
    """Raise the error of one broken rule; row and column are added by the caller.

    Raises:
        DataError: Always.
    """
    raise DataError(f"{rule}: {message}", [DataProblem(None, None, rule, message)]) from None


def read_picture(
    path: Path,
    *,
    quick: bool = False,
    accept: tuple[str, ...] = (),
    known: Mapping[str, Picture] = NOTHING_KNOWN,
) -> tuple[Picture, Image.Image | None]:
    """Read an image file.

    Args:
        path: The file.
        quick: Read the header only; no image is returned, and damage inside is not seen.
        accept: Names of DICOM rules that the site's policy overrides.
        known: Pictures that need not be decoded again, by digest of the file.

    Returns:
        What the file is, and the image in mode ``L`` or ``RGB`` if it was decoded.

    Raises:
        DataError: With one problem per broken rule, without row and column.
    """
    with _open(path, quick=quick) as stream:
        start = stream.read(132)
        stream.seek(0)
        is_dicom = start[128:] == b"DICM" or path.suffix.lower() in _DICOM_ENDINGS
        digest = "" if quick else hashlib.sha256(stream.read()).hexdigest()
        found = known.get(digest)
        # A known picture under a name that ends like DICOM is none, and has to be refused.
        if found is not None and is_dicom == (found.format == "DICOM"):
            return found, None
        stream.seek(0)
        if is_dicom:
            # pydicom takes a third of a second to import; only sites with DICOM pay for it.
            from client.data.dicom import read_dicom  # noqa: PLC0415

            kind, image = read_dicom(stream, quick=quick, accept=accept)
        else:
            kind, image = _read_ordinary(stream, quick=quick)
    if image is None:
        return kind, None
    return replace(kind, digest=digest, blank=_is_blank(image)), image


def check_size(width: int, height: int) -> None:
    """Refuse what is too large to decode or too small to show anything.

    Raises:
        DataError: ``image-too-large`` or ``image-too-small``.
    """
    if width * height > LARGEST_PIXELS:
        refuse(
            "image-too-large",
            f"{width} x {height} pixels; expected at most {LARGEST_PIXELS // 10**6} million "
            "(scale it down)",
        )
    if min(width, height) < SMALLEST_SIDE:
        refuse(
            "image-too-small",
            f"{width} x {height} pixels; expected at least {SMALLEST_SIDE} in each direction",
        )


def _open(path: Path, *, quick: bool) -> BinaryIO:
    """Open a file; unless only its header is wanted, read it once and for all."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            refuse("image-missing", "expected a regular file, found something else")
        if status.st_size > LARGEST_BYTES:
            refuse("image-too-large", f"the file is over {LARGEST_BYTES // 2**20} MiB")
        if not status.st_size:
            refuse("image-empty", "the file has 0 bytes; copy it again")
        return path.open("rb") if quick else io.BytesIO(path.read_bytes())
    except FileNotFoundError:
        refuse("image-missing", "no such file in the site's folder")
    except OSError as error:
        refuse("image-unreadable", f"the file cannot be opened: {error.strerror or 'error'}")


def _read_ordinary(stream: BinaryIO, *, quick: bool) -> tuple[Picture, Image.Image | None]:
    try:
        with warnings.catch_warnings():
            # Our own, lower limit on pixels follows; Pillow's warning would come first.
            warnings.simplefilter("ignore")
            image = Image.open(stream, formats=_FORMATS)
            animated = bool(getattr(image, "is_animated", False))
    except Image.DecompressionBombError:
        refuse(
            "image-too-large",
            f"far more than {LARGEST_PIXELS // 10**6} million pixels (scale it down)",
        )
    except UnidentifiedImageError:
        refuse(
            "image-format",
            "not an image that can be read; expected PNG, JPEG, DICOM, TIFF, WebP, BMP or GIF",
        )
    except Exception as error:  # decoders raise anything on a damaged file
        _refuse_damaged(error)
    check_size(image.width, image.height)
    if animated:
        refuse("image-animated", "more than one frame; keep the one that the text describes")
    kind = Picture(image.format or "", image.mode, image.width, image.height)
    if quick:
        return kind, None
    try:
        if image.format == "PNG":
            # Loading a PNG does not compare its checksums; verifying does, and uses it up.
            image.verify()
            stream.seek(0)
            image = Image.open(stream, formats=("PNG",))
        image.load()
        return kind, _eight_bit(image)
    except Exception as error:
        _refuse_damaged(error)


def _refuse_damaged(error: Exception) -> NoReturn:
    if isinstance(error, DataError):
        raise error
    # The decoder's own words may quote the file; its kind of error does not.
    refuse("image-unreadable", f"truncated or damaged ({type(error).__name__}); copy it again")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Any mode of Pillow to ``L`` or ``RGB``: deep grey is stretched, alpha put on black."""
    image = ImageOps.exif_transpose(image)
    if image.mode in _DEEP_GREY:
        return Image.fromarray(stretched(np.asarray(image)))
    grey = image.mode in _GREY
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        layer = image.convert("RGBA")
        black = Image.new("RGBA", layer.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, layer)
    return image.convert("L" if grey else "RGB")


def _is_blank(image: Image.Image) -> bool:
    """Tell whether all pixels are the same."""
    bands = image.split() if image.mode == "RGB" else (image,)
    return all(low == high for low, high in (band.getextrema() for band in bands))
