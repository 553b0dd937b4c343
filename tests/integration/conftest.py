"""A real federation of tiny sites in one process: folders on disk, real encoder, real rounds."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from client.agent import SiteAgent
from client.data.records import SiteData
from client.data.sources import find_sites
from client.policy import simulation_policy
from client.settings import SiteSettings
from server.app import run_job
from server.checkpoint import RunStore
from server.events import Event
from server.history import RunHistory
from server.rounds import RunOutcome
from shared.config import JobConfig
from shared.model.encoder import DualEncoder
from simulations.grid import LocalGrid


def write_patients(
    folder: Path, site_of: Callable[..., SiteData], kinds: Mapping[str, str]
) -> None:
    """Write sites with two records to a patient, and a public set that is none of theirs.

    Args:
        folder: Gets ``sites`` and ``public``.
        site_of: The fixture.
        kinds: Of every site, by name.
    """
    for number, (name, kind) in enumerate(kinds.items()):
        data = site_of(name, kind, counts=(48, 16, 16), seed=number)
        splits = {n: replace(s, patients=s.patients // 2) for n, s in data.splits.items()}
        write_site(folder / "sites" / name, replace(data, splits=splits))
    write_site(folder / "public", site_of("public", counts=(24, 8, 8), seed=9))


def write_site(folder: Path, data: SiteData) -> None:
    """Write records as a site folder: pictures, ``metadata.csv`` and ``prompts.json``."""
    folder.mkdir(parents=True)
    rows = []
    for name, split in data.splits.items():
        for row in range(len(split)):
            file = f"{name}-{row}.png" if split.has_image[row] else ""
            if file:
                pixels = split.pixels[row]
                Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(
                    folder / file
                )
            present = [f for f, on in zip(data.findings, split.labels[row], strict=True) if on]
            labels = ";".join(present) or "none"
            patient = f"{name}-{split.patients[row]}"
            rows.append((file, split.texts[row], labels, patient, name))
    with (folder / "metadata.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["file_name", "text", "labels", "patient_id", "split"])
        writer.writerows(rows)
    prompts = {
        finding: {"positive": list(p.positive), "negative": list(p.negative)}
        for finding, p in data.prompts.items()
    }
    (folder / "prompts.json").write_text(json.dumps(prompts))
    (folder / "dataset.json").write_text(json.dumps({"origin": "phantom"}))


@dataclass
class Federation:
    """A job, its sites' folders and one encoder; ``run`` carries the job out somewhere new."""

    job: JobConfig
    data: Path
    encoder: DualEncoder

    def settings(self, run: Path) -> list[SiteSettings]:
        """The sites; their private folders are in the run's ``sites``."""
        return [
            SiteSettings(source.name, source, run / "sites" / source.name)
            for source in find_sites(self.data)
        ]

    def agents(self, run: Path) -> dict[str, SiteAgent]:
        """An agent per site, all with the one encoder."""
        return {
            site.name: SiteAgent(site, simulation_policy(), lambda _: self.encoder)
            for site in self.settings(run)
        }

    def run(
        self,
        run: Path,
        grid_of: Callable[[Mapping[str, SiteAgent]], LocalGrid] = LocalGrid,
        job: JobConfig | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> RunOutcome:
        """Carry the job out, or go on with it."""
        job = job or self.job
        base = self.encoder.base_sha256
        start = RunStore.open if (run / "manifest.json").exists() else None
        store = start(run) if start else RunStore.create(run, job, base_sha256=base)
        with (
            store,
            RunHistory(f"sqlite:///{run / 'history.sqlite'}") as history,
            grid_of(self.agents(run)) as grid,
        ):
            return run_job(grid, job, store, history, self.encoder.layout, base, on_event=on_event)


@pytest.fixture(scope="session")
def integration_job(small_job: JobConfig) -> JobConfig:
    """Two rounds on the small checkpoint, every number measured."""
    tree = small_job.model_dump(mode="json")
    tree["evaluate"] |= {"minimum_count": 1, "bootstrap": 100}
    tree["aggregate"] |= {"fold_every": 1}
    return JobConfig.model_validate(tree)


@pytest.fixture(scope="session")
def integration_encoder(integration_job: JobConfig) -> DualEncoder:
    """The small encoder, once for all tests of this folder."""
    job = integration_job
    return DualEncoder.load(job.model, job.lora)


@pytest.fixture(scope="session")
def make_federation(
    integration_job: JobConfig,
    integration_encoder: DualEncoder,
    site_of: Callable[..., SiteData],
) -> Callable[..., Federation]:
    """Make a federation in a folder, of sites of the given kinds, such as ("paired", "image")."""

    def make(folder: Path, kinds: Sequence[str] = ("paired", "image", "text")) -> Federation:
        for number, kind in enumerate(kinds):
            name = f"{'abcdefgh'[number]}-{kind}"
            write_site(folder / "data" / name, site_of(name, kind, seed=number))
        return Federation(integration_job, folder / "data", integration_encoder)

    return make


@pytest.fixture
def federation_of(
    make_federation: Callable[..., Federation], tmp_path: Path
) -> Callable[..., Federation]:
    """``make_federation`` in the test's own folder."""
    return partial(make_federation, tmp_path)
