"""Read the picture of a DICOM file, and nothing else of it.

Only the tags below are read; what else the file holds (names, dates, ids) is never
parsed. No tag's value is logged or put into a message, and pydicom's own
warnings and log, which quote values, are silenced.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final, NoReturn

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi

from client.data.dicom_rules import DICOM_RULES, DicomTags, broken_rules
from client.data.images import Picture, check_size, refuse
from client.data.pixels import WindowShape, scaled, stretched, windowed
from shared.errors import DataError, DataProblem

TAGS: Final = (
    # May the file be used?
    "PatientIdentityRemoved", "BurnedInAnnotation", "Modality", "SOPClassUID",
    # How the pixels are stored
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames",
    "PixelPaddingValue", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    # What they mean
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "VOILUTSequence", "LUTDescriptor", "LUTData",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "PixelData",
)  # fmt: skip
"""The only tags that are read from a DICOM file, besides its transfer syntax."""

_MODES = {
    *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422"),
    *("YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"),
}
_WINDOW_SHAPES: dict[str, WindowShape] = {
    "LINEAR_EXACT": "LINEAR_EXACT",
    "SIGMOID": "SIGMOID",
}


def read_dicom(
    stream: BinaryIO, *, quick: bool = False, accept: tuple[str, ...] = ()
) -> tuple[Picture, Image.Image | None]:
    """Return what the file is and its picture in mode ``L`` or ``RGB``.

    Raises:
        DataError: With one problem per broken rule.
    """
    with _silence():
        try:
            dataset = pydicom.dcmread(stream, specific_tags=list(TAGS), stop_before_pixels=quick)
            kind = _kind_of(dataset)
            tags = _tags_of(dataset)
            frames = int(dataset.get("NumberOfFrames") or 1)
        except Exception as error:  # pydicom raises anything on a damaged file
            _refuse_damaged(error)
        broken = broken_rules(tags, accept)
        if broken:
            problems = [DataProblem(None, None, name, DICOM_RULES[name].message) for name in broken]
            raise DataError(f"DICOM: {', '.join(broken)}", problems)
        check_size(kind.width, kind.height)
        if frames > 1:
            refuse("image-animated", "more than one frame; keep the one that the text describes")
        if quick:
            return kind, None
        try:
            return kind, Image.fromarray(_eight_bit(dataset))
        except Exception as error:
            _refuse_undecodable(dataset, error)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep pydicom from warning and logging: it quotes the values that it finds wrong."""
    logger = logging.getLogger("pydicom")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def _kind_of(dataset: Dataset) -> Picture:
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if not rows or not columns:
        refuse("image-format", "a DICOM file without a picture (a report or a structured object)")
    mode = str(dataset.get("PhotometricInterpretation", "")).strip().upper()
    return Picture("DICOM", mode if mode in _MODES else "unknown", int(columns), int(rows))


def _tags_of(dataset: Dataset) -> DicomTags:
    def text(name: str) -> str:
        return str(dataset.get(name) or "").strip().upper()

    return DicomTags(
        identity_removed=text("PatientIdentityRemoved"),
        burned_in=text("BurnedInAnnotation"),
        modality=text("Modality"),
        sop_class=text("SOPClassUID"),
    )


def _refuse_damaged(error: Exception) -> NoReturn:
    if isinstance(error, DataError):
        raise error
    refuse(
        "image-unreadable",
        f"not a DICOM file, or truncated or damaged ({type(error).__name__}); copy it again",
    )


def _refuse_undecodable(dataset: Dataset, error: Exception) -> NoReturn:
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is not None and syntax.is_compressed and isinstance(error, RuntimeError):
        refuse(
            "dicom-compression",
            "compressed in a way that this installation cannot decode; convert the file to "
            "Explicit VR Little Endian",
        )
    _refuse_damaged(error)


def _eight_bit(dataset: Dataset) -> NDArray[np.uint8]:
    """The picture as a person sees it: (h, w) grey, dark is low, or (h, w, 3)."""
    stored = dataset.pixel_array
    mode = str(dataset.PhotometricInterpretation).strip().upper()
    if mode == "PALETTE COLOR":
        # Palettes of DICOM have 16-bit entries, those of 8 bit are in the low byte.
        colours = apply_color_lut(stored, dataset)
        return scaled(colours, 0, 255 if colours.dtype == np.uint8 else 65535)
    if stored.ndim == 3:
        return scaled(stored, 0, 2 ** int(dataset.BitsStored) - 1)
    if mode not in {"MONOCHROME1", "MONOCHROME2"}:
        raise ValueError("a picture of unknown colours")
    grey = _windowed(stored, dataset)
    return 255 - grey if mode == "MONOCHROME1" else grey


def _windowed(stored: NDArray[np.generic], dataset: Dataset) -> NDArray[np.uint8]:
    """Grey values by the file's window, else its table, else from the smallest to the largest."""
    values = apply_modality_lut(stored, dataset)
    center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if center is not None and width is not None and width >= 1:
        function = str(dataset.get("VOILUTFunction", "")).strip().upper()
        return windowed(values, center, width, _WINDOW_SHAPES.get(function, "LINEAR"))
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return scaled(apply_voi(values, dataset), 0, 2**bits - 1)
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    if bits <= 8 and not signed and values is stored:
        return scaled(stored, 0, 2**bits - 1)
    padding = dataset.get("PixelPaddingValue")
    return stretched(values, None if padding is None else stored != padding)


def _first(value: object) -> float | None:
    """The first of a tag's values as a number."""
    if value is None or value == "":
        return None
    if isinstance(value, list | tuple) or hasattr(value, "__getitem__"):
        values = list(value)  # type: ignore[call-overload]
        return float(values[0]) if values else None
    return float(value)  # type: ignore[arg-type]
