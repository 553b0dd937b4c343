"""The last step of a simulated run: gallery, oracle reader, results."""

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from client.data.records import SiteData
from client.evaluation import retrieval_metrics
from client.gallery import gallery, may_show
from client.settings import SiteSettings
from client.state import SiteState
from server.checkpoint import RunStore
from server.rounds import RunOutcome
from shared.config import JobConfig
from shared.metrics.bootstrap import estimate, resample
from shared.metrics.retrieval import retrieve
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView
from shared.results import Estimate, GalleryQuery, Metric, Model, Results, SiteEvaluation
from shared.seeding import derive_seed
from simulations.machine import encoder_for, peak_memory_bytes
from simulations.phantoms.federation import phantom_sites, site_seed
from simulations.phantoms.oracle import oracle_similarity
from simulations.phantoms.sites import PhantomSite, draw_records
from simulations.report.pictures import encode_picture
from simulations.results import RunFacts, build_results, write_results


def score_run(
    store: RunStore,
    settings: Sequence[SiteSettings],
    data: Mapping[str, SiteData],
    encoder: DualEncoder,
    outcome: RunOutcome,
    started: float,
) -> Results:
    """Put a finished run's results together and write ``results.json``.

    Args:
        store: The run directory.
        settings: All sites.
        data: Their records.
        encoder: Left in the last view used.
        outcome: Of the rounds and the closing phases.
        started: ``time.monotonic()`` when this process began with the run.
    """
    job = store.job
    queries, pictures = _gallery(job, settings, data, encoder, outcome)
    seconds = time.monotonic() - started
    facts = RunFacts(
        run=store.run,
        created=str(store.manifest["created"]),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        engine=job.simulation.engine,
        base_name=encoder.base_name,
        base_sha256=encoder.base_sha256,
        seconds=round(max(seconds, outcome.seconds), 1),
        seconds_by_part={"federation": round(outcome.seconds, 1)},
        peak_memory_bytes=peak_memory_bytes(),
        facts=_record(store),
    )
    results = build_results(_with_oracle(outcome, job), job, data, facts, queries, pictures)
    write_results(store.path, results)
    return results


def _record(store: RunStore) -> dict[str, str]:
    """Lines for the report's record: what is needed to repeat the run."""
    versions: Mapping[str, Any] = store.manifest.get("versions", {})
    return _own_models(store.job) | {
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Device": f"{store.manifest.get('device')}, {store.manifest.get('threads')} threads",
        "Command": f"consilia simulate {store.path.name}/job.toml",
        "Python": sys.version.split()[0],
    }


def _own_models(job: JobConfig) -> dict[str, str]:
    """Say so where there is no shared adapter, and which base each site started from."""
    if not job.aggregate.shares_features:
        return {}
    bases = "; ".join(f"{site}: {base}" for site, base in sorted(job.model.bases.items()))
    return {
        "Shared adapter": "none: the sites exchanged features of the public set, and no site got "
        "an adapter of another",
        **({"Bases of their own": bases} if bases else {}),
        "Public set": f"sha256 {job.proxy.sha256}",
    }


def _gallery(
    job: JobConfig,
    settings: Sequence[SiteSettings],
    data: Mapping[str, SiteData],
    encoder: DualEncoder,
    outcome: RunOutcome,
) -> tuple[list[GalleryQuery], dict[str, str]]:
    """Queries at the site with the most distinct test texts; a rule, not a choice."""
    shown = [site for site in settings if may_show(data[site.name].origin)]
    if not shown or not job.evaluate.gallery_queries:
        return [], {}
    paired = [site for site in shown if data[site.name].kind == "paired"] or shown
    site = max(paired, key=lambda site: len(set(data[site.name].splits["test"].texts)))
    encoder = encoder_for(job.at(site.name), str(encoder.device))  # the site's own
    personal = SiteState(site.state).load_personal(outcome.shared.sha256())
    views: dict[Model, AdapterView] = {"base": AdapterView()}
    if outcome.shared.factors:
        views["shared"] = AdapterView(outcome.shared)
    if personal is not None and job.personalize.method != "none":
        views["personal"] = AdapterView(outcome.shared, personal.adapter, personal.alpha)
    queries, pixels = gallery(
        encoder,
        data[site.name],
        views,
        job.evaluate.gallery_queries,
        derive_seed(job.seed, "gallery"),
    )
    return queries, {key: encode_picture(picture) for key, picture in pixels.items()}


def _with_oracle(outcome: RunOutcome, job: JobConfig) -> RunOutcome:
    """Add the oracle reader's retrieval to every phantom site's measures."""
    if job.data.folder is not None or job.partition.active:  # it reads the sites as generated
        return outcome
    for site in phantom_sites(job.data.phantoms, job.data.phantom_sites):
        measured = outcome.evaluations.get(site.name)
        if measured is not None and "r5" in measured.metrics.get("base", {}):
            outcome.evaluations[site.name] = _read_by_oracle(measured, site, job)
    return outcome


def _read_by_oracle(measured: SiteEvaluation, site: PhantomSite, job: JobConfig) -> SiteEvaluation:
    seed = site_seed(job.seed, site.name)
    scores, texts = oracle_similarity(site, seed)
    names = [r.study.patient for r in draw_records(site, seed) if r.split == "test"]
    patients = np.unique(names, return_inverse=True)[1].astype(np.int64)
    own = np.searchsorted(sorted(set(texts)), texts).astype(np.int64)
    draws = resample(patients, job.evaluate.bootstrap, derive_seed(job.seed, "oracle", site.name))
    # The scores themselves are the similarities: "images" are rows, "texts" the unit vectors.
    hits = retrieve(scores, np.eye(scores.shape[1]), own)
    weights = draws.of(patients)
    oracle: dict[Metric, Estimate] = {
        metric: estimate(row, len(draws.patients))
        for metric, row in retrieval_metrics(hits, weights).items()
    }
    return measured.model_copy(update={"metrics": {**measured.metrics, "oracle": oracle}})
