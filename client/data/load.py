"""Load a site's records into arrays; what is loaded has passed every rule."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.data.check import checked
from client.data.entries import Entry
from client.data.images import NOTHING_KNOWN, Picture
from client.data.inspection import Inspection, read_rows, with_pictures
from client.data.pixel_cache import KeptPixels, fingerprint, open_cache
from client.data.pixel_rows import PixelRows
from client.data.records import SiteData, Split, SplitName
from client.data.sources import SiteSource
from shared.errors import DataError

ToPixels = Callable[[Image.Image], NDArray[np.uint8]]
_SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


def load_site(
    source: SiteSource, to_pixels: ToPixels, cache: Path | None = None, preprocessing: str = ""
) -> SiteData:
    """Check and load a site; every picture is decoded once, with a cache once for good.

    Args:
        source: The site.
        to_pixels: Turns a picture in mode ``L`` or ``RGB`` into uint8 of shape
            (size, size) or (size, size, 3), the same size for all.
        cache: A folder that the site owns, for the prepared pictures; they are mapped from
            there. If it cannot be written they stay in memory, and the log says so.
        preprocessing: Stands for what ``to_pixels`` does: differs where that may differ.

    Returns:
        The records in the table's order; pictures have one channel if ``to_pixels`` gave
        two-dimensional arrays for all of them, else three. The cache changes no value.

    Raises:
        DataError: If a rule is broken; carries every error that was found.
        StorageError: If the pictures fit neither into the cache nor into memory.
    """
    return load_inspected(source, to_pixels, cache, preprocessing)[0]


def load_inspected(
    source: SiteSource, to_pixels: ToPixels, cache: Path | None = None, preprocessing: str = ""
) -> tuple[SiteData, Inspection]:
    """Load a site, and return what was found out about its files as well; see ``load_site``."""
    if cache is not None and not preprocessing:
        raise ValueError("preprocessing: a cache has to know how its pictures were prepared")
    site = read_rows(source)
    order = [entry for split in _SPLITS for entry in site.in_split(split)]
    places = {entry.row: place for place, entry in enumerate(order)}
    made_by = fingerprint(preprocessing, source.accept) if cache is not None else ""
    kept = open_cache(cache, made_by) if cache is not None else None
    with PixelRows(len(order), cache, made_by) as rows:

        def prepare(entry: Entry, picture: Picture, image: Image.Image) -> None:
            if entry.row in places:
                rows.put(places[entry.row], to_pixels(image), picture)

        site = with_pictures(site, known=kept.pictures if kept else NOTHING_KNOWN, visit=prepare)
        _refuse_errors(site)
        pictures = {places[row]: picture for row, picture in site.pictures.items()}
        pixels = _all_pixels(pictures, kept, rows) if pictures else _none(len(order), to_pixels)
    return _site_data(site, pixels), site


def _refuse_errors(site: Inspection) -> None:
    errors = checked(site).errors
    if errors:
        raise DataError(
            f"site {site.source.name!r}: {len(errors)} problem{'s' if len(errors) > 1 else ''} in "
            f"its data; the first: {_in_words(errors[0].where, errors[0].column)}"
            f"{errors[0].message} [{errors[0].rule}]",
            errors,
        )


def _all_pixels(
    pictures: Mapping[int, Picture], kept: KeptPixels | None, rows: PixelRows
) -> NDArray[np.uint8]:
    """Return the cache's rows as they are, or fill the new ones with what need not be decoded."""
    if kept is not None:
        digests = {place: picture.digest for place, picture in pictures.items()}
        if kept.layout == tuple(digests.get(place, "") for place in range(rows.count)):
            return kept.array
        for place, picture in pictures.items():
            if picture.digest in kept.pictures:
                rows.put(place, kept.pixels(picture.digest), picture)
    return rows.finish()


def _none(count: int, to_pixels: ToPixels) -> NDArray[np.uint8]:
    """A site of texts still has the pictures' shape, so that all sites look alike."""
    template = to_pixels(Image.new("L", (64, 64)))
    return np.zeros((count, *template.shape[:2], 3 if template.ndim == 3 else 1), np.uint8)


def _in_words(row: int | None, column: str | None) -> str:
    places = [f"row {row}"] if row is not None else []
    places += [f"column {column!r}"] if column is not None else []
    return f"{', '.join(places)}: " if places else ""


def _site_data(site: Inspection, pixels: NDArray[np.uint8]) -> SiteData:
    """Put together what was read; ``pixels`` has the rows of the splits one after the other."""
    ids = {entry.person: entry.patient for entry in site.entries}  # in the table's order
    numbers = {person: number for number, person in enumerate(ids)}
    splits: dict[SplitName, Split] = {}
    start = 0
    for name in _SPLITS:
        entries = site.in_split(name)
        splits[name] = _split(site, entries, pixels[start : start + len(entries)], numbers)
        start += len(entries)
    return SiteData(
        name=site.source.name,
        findings=site.findings,
        prompts=site.prompts,
        splits=splits,
        origin=site.origin,
        pictures_sha256=_digest_of(site),
        people=tuple(ids.values()),
    )


def _digest_of(site: Inspection) -> str:
    digests = " ".join(site.pictures[row].digest for row in sorted(site.pictures))
    return hashlib.sha256(digests.encode()).hexdigest()


def _split(
    site: Inspection,
    entries: Sequence[Entry],
    pixels: NDArray[np.uint8],
    numbers: Mapping[str, int],
) -> Split:
    texts = tuple(entry.text.strip() for entry in entries)
    labels = np.zeros((len(entries), len(site.findings)), np.float32)
    columns = {name: column for column, name in enumerate(site.findings)}
    for index, entry in enumerate(entries):
        for name in entry.findings or ():
            labels[index, columns[name]] = 1
    return Split(
        pixels=pixels,
        has_image=np.array([entry.row in site.pictures for entry in entries], np.bool_),
        texts=texts,
        has_text=np.array([bool(text) for text in texts], np.bool_),
        labels=labels,
        labelled=np.array([entry.findings is not None for entry in entries], np.bool_),
        patients=np.array([numbers[entry.person] for entry in entries], np.int64),
    )
