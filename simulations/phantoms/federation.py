"""The synthetic federations: which institutions there are, and their folders.

``DEFAULT`` is the world that consortia form for: small sites, findings that each of them sees a
handful of times, local conventions in a minority of the phrases. ``CONFLICT`` is the other world:
much data at every site and conventions everywhere, so that specialising pays and pooling does not.
How they were calibrated stands in ``simulations/jobs/*.toml``.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from shared.errors import ConfigError
from shared.files import replace_folder
from shared.seeding import derive_seed
from simulations.phantoms.scanner import Scanner
from simulations.phantoms.sites import PhantomSite
from simulations.phantoms.studies import BASE_RATES, NOVEL_FINDINGS
from simulations.phantoms.writer import write_site

Scenario = Literal["default", "conflict"]

UNIVERSITY = Scanner(gamma=(1.5, 2.0), contrast=(1.1, 1.3), noise=(0.02, 0.04), sharpen=2.0)
KLINIKUM = Scanner(
    gamma=(1.8, 2.6),
    contrast=(0.5, 0.7),
    noise=(0.03, 0.06),
    haze=(0.05, 0.2),
    collimation=0.9,
    marker=0.9,
)
INTENSIVE_CARE = Scanner(
    gamma=(0.6, 0.85),
    contrast=(0.6, 0.8),
    noise=(0.04, 0.07),
    blur=(1, 2),
    portable=1.0,
    haze=(0.0, 0.12),
)
VALLEY = Scanner(
    gamma=(0.6, 1.0),
    noise=(0.05, 0.09),
    native=40,
    blur=(0, 2),
    mirrored=True,
    marker=0.0,
    bias=-0.05,
)
SCREENING = Scanner(gamma=(0.5, 0.7), contrast=(1.2, 1.5), noise=(0.01, 0.02), sharpen=0.8)
MOBILE = Scanner(
    gamma=(0.6, 1.0),
    contrast=(0.6, 0.85),
    noise=(0.06, 0.1),
    native=32,
    grid=0.06,
    collimation=0.9,
    bias=0.1,
)
ARCHIVE = Scanner(gamma=(1.0, 1.4), blur=(1, 1), noise=(0.03, 0.06))
TRAUMA = Scanner(
    gamma=(0.5, 0.7),
    contrast=(0.6, 0.8),
    noise=(0.05, 0.09),
    portable=0.5,
    collimation=0.5,
    haze=(0.05, 0.2),
)


_DESCRIPTIONS = {
    "university": "university hospital",
    "klinikum": "German-speaking hospital",
    "intensive-care": "intensive care unit",
    "valley-clinic": "rural clinic",
    "screening": "screening unit",
    "mobile-unit": "mobile X-ray unit",
    "archive": "report archive",
    "trauma-centre": "trauma centre, unlinked",
}


def rates(novel: float = 0.0, **changes: float) -> Mapping[str, float]:
    """Return the base rates with every novel finding at ``novel``, and changes on top."""
    return {**BASE_RATES, **dict.fromkeys(NOVEL_FINDINGS, novel), **changes}


CONFLICT: tuple[PhantomSite, ...] = (
    PhantomSite(
        "university",
        "univ",
        960,
        "paired",
        UNIVERSITY,
        rates(nodule=0.2, pacemaker=0.15, hernia=0.1, cavity=0.04),
    ),
    PhantomSite(
        "klinikum",
        "german",
        480,
        "paired",
        KLINIKUM,
        rates(effusion=0.3, pacemaker=0.15, cavity=0.08),
    ),
    PhantomSite(
        "intensive-care",
        "icu",
        300,
        "paired",
        INTENSIVE_CARE,
        rates(
            effusion=0.35, edema=0.3, pneumothorax=0.2, catheter=0.45, nodule=0.02, atelectasis=0.25
        ),
    ),
    PhantomSite(
        "valley-clinic",
        "clinic",
        96,
        "paired",
        VALLEY,
        rates(consolidation=0.3, fracture=0.2, pneumothorax=0.05, hernia=0.1),
    ),
    PhantomSite(
        "screening",
        "std",
        640,
        "image",
        SCREENING,
        rates(
            effusion=0.08,
            pneumothorax=0.04,
            edema=0.04,
            nodule=0.35,
            cavity=0.2,
            consolidation=0.12,
        ),
    ),
    PhantomSite(
        "mobile-unit",
        "std",
        320,
        "image",
        MOBILE,
        rates(cavity=0.25, consolidation=0.3, fracture=0.15, effusion=0.2),
    ),
    PhantomSite(
        "archive",
        "archive",
        800,
        "text",
        ARCHIVE,
        rates(pacemaker=0.08, fracture=0.12, hernia=0.06, cavity=0.1, catheter=0.08),
    ),
    PhantomSite(
        "trauma-centre",
        "grades",
        480,
        "unpaired",
        TRAUMA,
        rates(fracture=0.4, pneumothorax=0.3, catheter=0.25, nodule=0.04),
    ),
)

# Sizes of the default, and how much of a site's language is its own convention.
_DEFAULT_SIZES = {
    "university": 240,
    "klinikum": 120,
    "intensive-care": 72,
    "valley-clinic": 24,
    "screening": 160,
    "mobile-unit": 80,
    "archive": 200,
    "trauma-centre": 120,
}
_DEFAULT_TEST_SIZE = 320  # twice the training records of most sites: tests are what is cheap here
_DEFAULT_NOVEL_RATE = 0.1
_DEFAULT_CONVENTION_RATE = 0.3

# All institutions of the default differ from the public corpus in the same way (darker, flatter,
# noisier films behind a grid), and from each other by a little: what one learns helps the others.
_COMMON = Scanner(
    gamma=(1.7, 2.3),
    contrast=(0.5, 0.7),
    noise=(0.04, 0.06),
    blur=(1, 2),
    haze=(0.05, 0.15),
    grid=0.05,
)
_DEFAULT_SCANNERS = {
    "university": replace(_COMMON, sharpen=1.0),
    "klinikum": replace(_COMMON, collimation=0.9, marker=0.9),
    "intensive-care": replace(_COMMON, portable=1.0),
    "valley-clinic": replace(_COMMON, native=48, mirrored=True, marker=0.0),
    "screening": replace(_COMMON, noise=(0.02, 0.04)),
    "mobile-unit": replace(_COMMON, native=48, collimation=0.9),
    "archive": _COMMON,
    "trauma-centre": replace(_COMMON, portable=0.5, collimation=0.5),
}

DEFAULT: tuple[PhantomSite, ...] = tuple(
    replace(
        site,
        size=_DEFAULT_SIZES[site.name],
        test_size=_DEFAULT_TEST_SIZE,
        scanner=_DEFAULT_SCANNERS[site.name],
        convention_rate=_DEFAULT_CONVENTION_RATE,
        rates={**site.rates, **dict.fromkeys(NOVEL_FINDINGS, _DEFAULT_NOVEL_RATE)},
    )
    for site in CONFLICT
)

FEDERATIONS: Mapping[Scenario, tuple[PhantomSite, ...]] = {
    "default": DEFAULT,
    "conflict": tuple(replace(site, convention_rate=1.0) for site in CONFLICT),
}


def phantom_sites(scenario: Scenario, count: int | None = None) -> list[PhantomSite]:
    """Return a federation's sites; beyond eight they repeat with a number in their name."""
    if scenario not in get_args(Scenario):
        raise ConfigError(f"phantoms: {scenario!r} is unknown; expected {get_args(Scenario)}")
    sites = FEDERATIONS[scenario]
    chosen = []
    for place in range(count or len(sites)):
        site, turn = sites[place % len(sites)], place // len(sites)
        site = replace(site, description=_DESCRIPTIONS[site.name])
        chosen.append(replace(site, name=f"{site.name}-{turn + 1}") if turn else site)
    return chosen


def write_federation(
    folder: Path, scenario: Scenario, *, seed: int, sites: int | None = None
) -> list[Path]:
    """Write a federation as one folder per site; sites that are already there are kept.

    Args:
        folder: Created if missing.
        scenario: Which federation.
        seed: The job's seed; every site derives its own from it.
        sites: How many sites; the scenario's own number if not given.

    Returns:
        The sites' folders.
    """
    folders = []
    for site in phantom_sites(scenario, sites):
        target = folder / site.name
        if not (target / "metadata.csv").exists():
            # Written beside and renamed, so that an interrupted run never leaves half a site.
            with replace_folder(target) as temporary:
                write_site(temporary, site, site_seed(seed, site.name))
        folders.append(target)
    return folders


def site_seed(seed: int, name: str) -> int:
    """Return the seed of one site's records."""
    return derive_seed(seed, "phantoms", name)
