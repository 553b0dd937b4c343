"""Load a site's records into arrays; what is loaded has passed every rule."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.data.check import checked
from client.data.entries import Entry
from client.data.inspection import Inspection, inspect_site
from client.data.records import SiteData, Split, SplitName
from client.data.sources import SiteSource
from shared.errors import DataError

ToPixels = Callable[[Image.Image], NDArray[np.uint8]]
_SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


def load_site(source: SiteSource, to_pixels: ToPixels) -> SiteData:
    """Check and load a site; every picture is decoded once.

    Args:
        source: The site.
        to_pixels: Turns a picture in mode ``L`` or ``RGB`` into uint8 of shape
            (size, size) or (size, size, 3), the same size for all.

    Returns:
        The records in the table's order; pictures have one channel if ``to_pixels`` gave
        two-dimensional arrays for all of them, else three.

    Raises:
        DataError: If a rule is broken; carries every error that was found.
    """
    pixels: dict[int, NDArray[np.uint8]] = {}

    def keep(entry: Entry, image: Image.Image) -> None:
        pixels[entry.row] = to_pixels(image)

    site = inspect_site(source, visit=keep)
    errors = checked(site).errors
    if errors:
        raise DataError(
            f"site {source.name!r}: {len(errors)} problem{'s' if len(errors) > 1 else ''} in "
            f"its data; the first: {_in_words(errors[0].where, errors[0].column)}"
            f"{errors[0].message} [{errors[0].rule}]",
            errors,
        )
    if not pixels:
        # A site of texts still has the pictures' shape, so that all sites look alike.
        template = to_pixels(Image.new("L", (64, 64)))
    else:
        template = max(pixels.values(), key=np.ndim)
    shape = (*template.shape[:2], 3 if template.ndim == 3 else 1)
    numbers = {person: n for n, person in enumerate(dict.fromkeys(e.person for e in site.entries))}
    return SiteData(
        name=source.name,
        findings=site.findings,
        prompts=site.prompts,
        splits={
            split: _split(site, site.in_split(split), pixels, shape, numbers) for split in _SPLITS
        },
        origin=site.origin,
    )


def _in_words(row: int | None, column: str | None) -> str:
    places = [f"row {row}"] if row is not None else []
    places += [f"column {column!r}"] if column is not None else []
    return f"{', '.join(places)}: " if places else ""


def _split(
    site: Inspection,
    entries: Sequence[Entry],
    pixels: dict[int, NDArray[np.uint8]],
    shape: tuple[int, ...],
    numbers: dict[str, int],
) -> Split:
    texts = tuple(entry.text.strip() for entry in entries)
    pictures = np.zeros((len(entries), *shape), np.uint8)
    labels = np.zeros((len(entries), len(site.findings)), np.float32)
    columns = {name: column for column, name in enumerate(site.findings)}
    for index, entry in enumerate(entries):
        picture = pixels.pop(entry.row, None)
        if picture is not None:
            # A grey picture beside coloured ones gets three equal channels.
            pictures[index] = picture if picture.ndim == 3 else picture[:, :, np.newaxis]
        for name in entry.findings or ():
            labels[index, columns[name]] = 1
    return Split(
        pixels=pictures,
        has_image=np.array([entry.row in site.pictures for entry in entries], np.bool_),
        texts=texts,
        has_text=np.array([bool(text) for text in texts], np.bool_),
        labels=labels,
        labelled=np.array([entry.findings is not None for entry in entries], np.bool_),
        patients=np.array([numbers[entry.person] for entry in entries], np.int64),
    )
