"""Which models a site scores, and which of its adapters each tower uses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from client.received import check_fits
from client.state import StoredPersonal
from shared.adapter import TOWERS, AdapterLayout, SharedAdapter, Tower
from shared.config import JobConfig
from shared.errors import RunDirectoryError, StorageError
from shared.layout_file import load_adapter
from shared.model.view import AdapterView
from shared.results import Model


def views_of(
    shared: SharedAdapter,
    stored: StoredPersonal | None,
    references: Mapping[Model, Path],
    layout: AdapterLayout,
    job: JobConfig,
) -> dict[Model, AdapterView]:
    """Return every model that is there to be scored.

    Args:
        shared: The federation's adapter; without factors it is not scored.
        stored: The site's own, if it was fitted on that.
        references: Files of further adapters; those that are not there are left out.
        layout: Of the site's encoder.
        job: The job.

    Raises:
        StorageError: If a reference is damaged.
        AdapterMismatchError: If one does not fit the encoder.
    """
    views: dict[Model, AdapterView] = {"base": AdapterView()}
    for model, path in references.items():
        if path.exists():
            reference = _load_reference(path)
            check_fits(layout, reference)
            views[model] = AdapterView(shared=reference)
    if shared.factors:
        views["shared"] = AdapterView(shared=shared)
    if stored is not None and job.personalize.method != "none":
        views["personal"] = AdapterView(shared, stored.adapter, stored.alpha)
    return views


def towers_in_use(
    trained: tuple[Tower, ...], alpha: Mapping[Tower, float]
) -> dict[Tower, Literal["personal", "shared", "not trained"]]:
    """Return which adapter each tower of a site uses.

    Args:
        trained: Towers that the site has records for.
        alpha: Mixing weight of the personal adapter per tower.
    """
    use: dict[Tower, Literal["personal", "shared", "not trained"]] = {}
    for tower in TOWERS:
        if tower not in trained:
            use[tower] = "not trained"
        else:
            use[tower] = "personal" if alpha.get(tower, 0.0) > 0 else "shared"
    return use


def _load_reference(path: Path) -> SharedAdapter:
    try:
        return load_adapter(path)
    except RunDirectoryError as error:
        raise StorageError(str(error)) from error
