"""The simulated sites: where their records lie and which folder each calls its own.

The same answer for the federation, the baselines' process and Flower's actors, worked out from
the run directory and the job alone.
"""

from pathlib import Path

from client.data.sources import find_sites
from client.settings import SiteSettings
from shared.config import JobConfig
from shared.errors import DataError
from simulations.phantoms.federation import write_federation

PHANTOM_FOLDER = "data"
CENTRALISED_FILE = Path("baselines") / "centralised.safetensors"
LOCAL_FILE = "local.safetensors"


def site_settings(run: Path, job: JobConfig) -> list[SiteSettings]:
    """Return every site of a run by name; phantoms are written if they are not there yet.

    Args:
        run: The run directory; sites keep their private state in ``sites/<name>``.
        job: The job.

    Raises:
        DataError: If no site is found, or a named one is missing.
    """
    data = job.data
    if data.folder is None:
        write_federation(
            run / PHANTOM_FOLDER, data.phantoms, seed=job.seed, sites=data.phantom_sites
        )
    folder = run / PHANTOM_FOLDER if data.folder is None else Path(data.folder)
    sources = find_sites(
        folder,
        site_column=data.site_column,
        columns=data.columns,
        image_only=data.image_only,
        text_only=data.text_only,
        only=data.sites,
    )
    if not sources:
        raise DataError(f"{folder}: no site found; expected site folders with a metadata table")
    return [
        SiteSettings(
            name=source.name,
            source=source,
            state=run / "sites" / source.name,
            references={
                "local": run / "sites" / source.name / LOCAL_FILE,
                "centralised": run / CENTRALISED_FILE,
            },
        )
        for source in sorted(sources, key=lambda source: source.name)
    ]
