"""Runs that no one ran: results of every shape that the report must hold for."""

import base64
import io
import math
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from shared.results import (
    Aggregation,
    CalibrationBin,
    Comparison,
    CoursePoint,
    DatasetOrigin,
    Estimate,
    FindingScore,
    GalleryQuery,
    Kind,
    Metric,
    Model,
    ParticipationCell,
    Picture,
    Results,
    RoundCost,
    SiteResult,
    SplitCounts,
    Summary,
)

# name, description, kind, patients, then base, local, shared, personal, half-width (AUROC).
PHANTOMS: list[tuple[str, str, Kind, int, tuple[float, ...], float]] = [
    ("aldern", "university hospital", "paired", 1200, (0.68, 0.84, 0.85, 0.87), 0.021),
    ("dunmere", "emergency unit", "paired", 660, (0.66, 0.80, 0.81, 0.85), 0.029),
    ("brackwater", "district hospital", "paired", 410, (0.66, 0.77, 0.82, 0.84), 0.037),
    ("corvelle", "children\u2019s hospital", "paired", 100, (0.70, 0.73, 0.77, 0.77), 0.083),
    ("estrin", "two unlinked archives", "unpaired", 390, (0.67, 0.74, 0.81, 0.815), 0.041),
    ("fellgate", "screening unit", "image", 1530, (0.69, 0.828, 0.824, 0.836), 0.018),
    ("garnock", "radiology practice", "image", 210, (0.64, 0.70, 0.779, 0.781), 0.055),
    ("harrowby", "report archive", "text", 2260, (), 0.0),
]
PAIRS: dict[Comparison, tuple[int, int]] = {
    "personal_minus_local": (3, 1),
    "personal_minus_shared": (3, 2),
    "shared_minus_base": (2, 0),
    "personal_minus_base": (3, 0),
    "shared_minus_local": (2, 1),
}
ORDER: tuple[Model, ...] = ("base", "local", "shared", "personal")
RECALLS: tuple[Metric, ...] = tuple(
    f"{d}{k}" for d in ("", "i2t_", "t2i_") for k in ("r1", "r5", "r10")
)  # type: ignore[misc]


def estimate(value: float, half: float, n: int) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, n=n)


def picture(seed: int) -> str:
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray((rng.random((9, 9)) * 255).astype("uint8")).resize(
        (128, 128), Image.Resampling.BICUBIC
    )
    out = io.BytesIO()
    smooth.save(out, "WEBP", quality=74)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def calibration_bins(n: int, tilt: float) -> list[CalibrationBin]:
    rows = []
    for k in range(8):
        p, count = (k + 0.5) / 8, max(6, n // (4 + k))
        observed = min(1.0, max(0.0, p + tilt * (0.5 - p)))
        half = 1.96 * math.sqrt(0.25 / count)
        rows.append(
            CalibrationBin(
                predicted=p,
                observed=observed,
                n=count,
                low=max(0.0, observed - half),
                high=min(1.0, observed + half),
            )
        )
    return rows


def site(
    name: str,
    description: str,
    kind: Kind,
    patients: int,
    levels: tuple[float, ...],
    half: float,
    *,
    metric: Metric = "auroc",
    rounds: int = 20,
    ece: float | None = None,
) -> SiteResult:
    linked, seen = kind == "paired", bool(levels)
    metrics: dict[Model, dict[Metric, Estimate]] = {}
    for model, value in zip(ORDER, levels, strict=False):
        rows: dict[Metric, Estimate] = {metric: estimate(value, half, patients)}
        if linked:
            rows |= {
                r: estimate(value * (0.3 + 0.02 * i), half, patients)
                for i, r in enumerate(RECALLS)
                if r != metric
            }
        if ece is not None:
            rows["ece"] = estimate(ece, min(0.01, ece / 2), patients)
        metrics[model] = rows
    differences: dict[Comparison, dict[Metric, Estimate]] = {
        key: {
            metric: estimate(
                levels[new] - levels[old],
                half * (0.75 - 0.1 * (key == "personal_minus_shared")),
                patients,
            )
        }
        for key, (new, old) in PAIRS.items()
        if seen
    }
    why: dict[Metric, str] = {}
    if not seen:
        why = dict.fromkeys(
            (metric, "ece", "r5"),
            "no images at this site" if kind == "text" else "no labels at this site",
        )
    elif not linked:
        why = {
            "r5": {"unpaired": "images and reports are not linked", "image": "no reports"}.get(
                kind, "no images"
            )
        }
    cells = [ParticipationCell(state="in", seconds=12.0 + len(name)) for _ in range(rounds)]
    course = [
        CoursePoint(
            round=r, loss=3.1 - 0.9 * (1 - math.exp(-r / 5)) + 0.02 * math.sin(3.0 * r + len(name))
        )
        for r in range(rounds + 1)
    ]
    count = SplitCounts(
        images=patients * 2,
        texts=patients * 2,
        pairs=patients * 2 if linked else 0,
        patients=patients,
    )
    quarter = SplitCounts(
        images=patients // 2, texts=patients // 2, pairs=0, patients=patients // 4
    )
    return SiteResult(
        kind=kind,
        description=description,
        pairs=count.pairs,
        splits={"train": count, "val": quarter, "test": count},
        metrics=metrics,
        not_measured=why,
        differences=differences,
        in_use={
            "image": "not trained" if kind == "text" else "personal" if half < 0.05 else "shared",
            "text": "not trained" if kind == "image" else "personal" if half < 0.03 else "shared",
        },
        gallery_texts=patients if linked else 0,
        gallery_images=patients * 2 if linked else 0,
        findings=[
            FindingScore(
                finding=f,
                positives=max(3, patients // 9),
                auroc={
                    m: estimate(v, half * 2, patients) for m, v in zip(ORDER, levels, strict=False)
                },
            )
            for f in ("effusion", "nodule")
        ]
        if seen and metric == "auroc"
        else [],
        calibration=calibration_bins(patients, ece * 2) if ece is not None else [],
        calibrated_model="personal" if ece is not None else None,
        course=course if linked else [],
        participation=cells,
        seconds={
            "train": 20.0 + len(name) * 3,
            "transfer": 1.2,
            "wait": 9.0,
            "personalize": 6.0,
            "evaluate": 3.0,
        },
        bytes_up=rounds * 1_310_000,
        bytes_down=rounds * 1_310_000,
        peak_memory_bytes=310_000_000,
        **tower_norms(kind, name, rounds),  # type: ignore[arg-type]
    )


def tower_norms(kind: Kind, name: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Both towers' gradients fade, the image tower's more slowly: its lead grows."""
    image = [2.0 * math.exp(-r / 40) + len(name) / 9 for r in range(rounds)]
    text = [1.5 * math.exp(-r / 15) + len(name) / 30 for r in range(rounds)]
    none = [0.0] * rounds
    if kind == "text":
        return {"gradient_norms": {"image": none, "text": text}, "discrepancy": {}}
    if kind == "image":
        return {"gradient_norms": {"image": image, "text": none}, "discrepancy": {}}
    lead = [a / b for a, b in zip(image, text, strict=True)]
    return {
        "gradient_norms": {"image": image, "text": text},
        "discrepancy": {"image": lead, "text": [1 / ratio for ratio in lead]},
    }


def build(sites: dict[str, SiteResult], **more: object) -> Results:
    rounds = int(more.pop("rounds", 20))  # type: ignore[call-overload]
    values: dict[str, object] = {
        "name": "phantoms",
        "run": "phantoms-2026-11-18-2031",
        "created": "2026-11-18T20:31:00+00:00",
        "finished": "2026-11-18T20:36:12+00:00",
        "status": "finished",
        "exit_code": 0,
        "engine": "local",
        "adapter_sha256": "d08e" * 16,
        "base_sha256": "5f2c" * 16,
        "base_name": "consilia-tiny",
        "job_sha256": "91d0" * 16,
        "rounds": rounds,
        "rounds_planned": rounds,
        "seconds": 312.4,
        "bytes_up": rounds * 8 * 1_310_000,
        "bytes_down": rounds * 8 * 1_310_000,
        "peak_memory_bytes": 910_000_000,
        "main_metric": "auroc",
        "seed": 7,
        "aggregation": Aggregation(
            rule="altfold", rank=8, folds=4, relative_error=3.2e-7, clipped=0
        ),
        "origin": DatasetOrigin(origin="phantom", licence="CC0"),
        "sites": sites,
        "mean": Summary(metrics={}),
        "worst": Summary(metrics={}),
        "round_costs": [
            RoundCost(round=r, seconds=14.0, bytes_up=1, bytes_down=1, contributors=8, asked=8)
            for r in range(1, rounds + 1)
        ],
        "facts": {"Python": "3.11.7"},
    }
    return Results.model_validate(values | more)


def with_cells(results: Results, changes: dict[str, dict[int, ParticipationCell]]) -> Results:
    sites = dict(results.sites)
    for name, cells in changes.items():
        row = list(sites[name].participation)
        for r, cell in cells.items():
            row[r - 1] = cell
        sites[name] = sites[name].model_copy(update={"participation": row})
    return results.model_copy(update={"sites": sites})


def phantom() -> Results:
    errors = {
        "aldern": 0.031,
        "dunmere": 0.058,
        "brackwater": 0.044,
        "corvelle": 0.121,
        "estrin": 0.052,
        "fellgate": 0.027,
        "garnock": 0.083,
    }
    sites = {row[0].capitalize(): site(*row, ece=errors.get(row[0])) for row in PHANTOMS}
    central = {
        n: s.model_copy(
            update={
                "metrics": s.metrics
                | {
                    "centralised": {
                        "auroc": estimate(s.metrics["personal"]["auroc"].value + 0.01, 0.02, 100)
                    },
                    "oracle": {"auroc": estimate(0.99, 0.005, 100)},
                }
            }
        )
        for n, s in sites.items()
        if s.metrics
    }
    pictures = {f"p{i}": picture(i) for i in range(20)}
    gallery = [
        GalleryQuery(
            site=where,
            quarter=q,
            text=text,
            first_match={"shared": q * q, "personal": q},  # type: ignore[arg-type]
            found={
                m: [
                    Picture(image=f"p{(5 * q + i + j) % 20}", match=(i + j + q) % 3 == 0)
                    for i in range(5)
                ]
                for j, m in enumerate(("shared", "personal"))
            },
        )
        for q, (where, text) in enumerate(
            [
                ("Aldern", "Small rounded opacity in the left mid zone. No effusion."),
                ("Dunmere", "Pacing unit over the right chest."),
                ("Brackwater", "Blunted right costophrenic angle, moderate fluid."),
                ("Corvelle", "Thin peripheral lucency on the left, no shift."),
            ],
            1,
        )
    ]
    return build(sites | central, gallery=gallery, pictures=pictures)


def lossy() -> Results:
    late = ParticipationCell(state="late", reason="after-forecast", seconds=90.0)
    gone = ParticipationCell(state="missing", reason="deadline", done="Round closed with 7 sites")
    bad = ParticipationCell(state="refused", reason="signed-for-another-round")
    idle = ParticipationCell(state="idle")
    changed = with_cells(
        phantom(),
        {
            "Dunmere": {7: late, 12: late, 13: late, 14: gone, 20: gone},
            "Garnock": {9: bad},
            "Harrowby": {1: idle, 2: idle},
        },
    )
    return changed.model_copy(
        update={"status": "finished-incomplete", "exit_code": 3, "resumed_rounds": [11]}
    )


def many(count: int, rounds: int) -> Results:
    rng = np.random.default_rng(3)
    kinds: list[Kind] = ["paired", "paired", "unpaired", "image", "text"]
    sites = {}
    for k in range(count):
        kind = kinds[k % 5]
        levels = (
            ()
            if kind == "text"
            else tuple(float(0.7 + d + rng.normal(0, 0.02)) for d in (0, 0.05, 0.07, 0.09))
        )
        row = site(
            f"s{k}",
            f"hospital {k}",
            kind,
            30 + 13 * k,
            levels,
            0.03 + 0.3 / (k + 5),
            rounds=rounds,
            ece=0.05 if levels else None,
        )
        sites[f"Site {k + 1:02d}"] = row
    return build(sites, rounds=rounds)


def real() -> Results:
    rng = np.random.default_rng(5)
    names = [
        "athens",
        "bologna",
        "coimbra",
        "dresden",
        "evora",
        "florence",
        "ghent",
        "hannover",
        "izmir",
        "jena",
    ]
    sites = {}
    for k, name in enumerate(names):
        n = [40, 33, 21, 17, 12, 9, 7, 30, 4, 1][k]
        if name == "hannover":
            sites[name] = site(name, "", "image", n, (), 0.0, metric="r5", rounds=5)
            continue
        levels = tuple(
            float(np.clip(v + rng.normal(0, 0.05), 0, 1)) for v in (0.2, 0.25, 0.3, 0.33)
        )
        sites[name] = site(
            name,
            "",
            "paired",
            n,
            levels,
            0.9 / math.sqrt(n) if n > 1 else 0.0,
            metric="r5",
            rounds=5,
        )
        sites[name] = sites[name].model_copy(
            update={
                "not_measured": {"auroc": "no labels at this site", "ece": "no labels at this site"}
            }
        )
    return build(
        sites,
        rounds=5,
        main_metric="r5",
        origin=DatasetOrigin(origin="public", licence="CC BY 4.0"),
        name="cxr-sites",
    )


def private() -> Results:
    results = phantom()
    small = site("k", "clinic", "paired", 17, (0.6, 0.7, 0.72, 0.75), 0.05, ece=0.07)
    sites = {**results.sites, "Kestrel": small}
    return results.model_copy(update={"sites": sites, "origin": DatasetOrigin(origin="private")})


def failed() -> Results:
    sites = {
        name: s.model_copy(
            update={
                "participation": [],
                "metrics": {},
                "differences": {},
                "calibration": [],
                "course": [],
                "findings": [],
                "not_measured": {},
                "seconds": {},
                "bytes_up": 0,
                "calibrated_model": None,
            }
        )
        for name, s in phantom().sites.items()
    }
    return build(
        sites,
        rounds=0,
        rounds_planned=20,
        status="failed",
        exit_code=1,
        reason="the loss is not finite at Aldern",
        bytes_up=0,
        bytes_down=0,
    )


def unmeasured() -> Results:
    base = phantom()
    sites = {
        n: s.model_copy(
            update={
                "metrics": {},
                "differences": {},
                "calibration": [],
                "calibrated_model": None,
                "findings": [],
                "not_measured": {"auroc": "no labels at this site"},
            }
        )
        for n, s in base.sites.items()
    }
    return base.model_copy(update={"sites": sites, "gallery": [], "pictures": {}})


def some(names: tuple[str, ...], rounds: int = 20) -> Results:
    rows = {row[0].capitalize(): site(*row, rounds=rounds, ece=0.03) for row in PHANTOMS}
    return build({name: rows[name] for name in names}, rounds=rounds)


def clean() -> Results:
    """A run on which no rule fires but those that always do."""
    rows = [("a", 1000), ("b", 900), ("c", 800), ("d", 700), ("e", 600)]
    sites = {n: site(n, "", "paired", p, (0.6, 0.7, 0.8, 0.9), 0.02, ece=0.03) for n, p in rows}
    central = {
        n: s.model_copy(
            update={"metrics": s.metrics | {"centralised": {"auroc": estimate(0.91, 0.02, 100)}}}
        )
        for n, s in sites.items()
    }
    return build(central)


def hostile() -> Results:
    base = phantom()
    sites = {
        ("<script>alert(1)</script>" if n == "Aldern" else n): s for n, s in base.sites.items()
    }
    return base.model_copy(
        update={"sites": sites, "gallery": [q for q in base.gallery if q.site != "Aldern"]}
    )


RUNS: dict[str, Callable[[], Results]] = {
    "phantom": phantom,
    "lossy": lossy,
    "real": real,
    "private": private,
    "failed": failed,
    "unmeasured": unmeasured,
    "clean": clean,
    "hostile": hostile,
    "one": lambda: some(("Aldern",)),
    "two": lambda: some(("Aldern", "Harrowby")),
    "text-only": lambda: some(("Harrowby",)),
    "one-round": lambda: some(tuple(r[0].capitalize() for r in PHANTOMS), 1),
    "two-hundred": lambda: many(12, 200),
    "largest": lambda: many(60, 200),
}


@pytest.fixture(scope="session")
def runs() -> dict[str, Results]:
    """Every synthetic run, by name."""
    return {name: make() for name, make in RUNS.items()}
