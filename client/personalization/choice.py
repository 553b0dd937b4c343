"""How much of the own adapter a site uses: nothing, unless it wins on held-out records."""

import itertools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from client.batches import prepare
from client.data.records import SiteData
from client.encoding import Features, encode_all
from client.losses import HeldOut, PromptSet, embed_prompts, held_out_losses
from client.personalization.base import Alpha
from client.prefix_cache import keep_prefixes
from shared.adapter import Adapter, SharedAdapter
from shared.config import JobConfig
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView

_COARSE = (0.0, 1.0)
_FINE = (0.0, 0.25, 0.5, 0.75, 1.0)


def choose_alpha(
    encoder: DualEncoder,
    data: SiteData,
    prompts: PromptSet | None,
    shared: SharedAdapter,
    adapter: Adapter,
    job: JobConfig,
) -> tuple[Alpha, dict[str, float]]:
    """Score every mixture on the validation split and pick by the one-standard-error rule.

    Towers that the site does not have, and for which its adapter says something all the same
    (``local``), follow the one that it has.

    Returns:
        Alpha per tower, and the mean losses in nats that ``Personalized`` tells.
    """
    val = prepare(encoder, data, "val")
    keep_prefixes(encoder, val, job, training=False)
    towers = data.towers
    always = job.personalize.use == "always"
    fine = len(val.everything.pairs) >= job.personalize.grid_from and not always
    followers = sorted({encoder.layout.tower_of(name) for name in adapter} - set(towers))
    views = {
        value: AdapterView(shared, adapter, dict.fromkeys((*towers, *followers), value))
        for value in (_FINE if fine else _COARSE)
    }
    scored = _score(encoder, data, prompts, views, job)
    losses = {combination: found.losses for combination, found in scored.items()}
    nothing, everything = (0.0,) * len(towers), (1.0,) * len(towers)
    rows = scored[nothing].rows
    best = everything
    if not always:
        best = choose_by_standard_error(losses, nothing, val.split.patients[rows])
    validation = {
        name: float(losses[combination].mean())
        for name, combination in (("shared", nothing), ("personal", everything), ("chosen", best))
        if len(rows)
    }
    alpha = dict(zip(towers, best, strict=True))
    return alpha | dict.fromkeys(followers, best[0]), validation


def _score(
    encoder: DualEncoder,
    data: SiteData,
    prompts: PromptSet | None,
    views: Mapping[float, AdapterView],
    job: JobConfig,
) -> dict[tuple[float, ...], HeldOut]:
    """Return the losses of the validation records under every mixture, by alpha per tower."""
    val, towers = prepare(encoder, data, "val"), data.towers
    by_alpha: dict[float, Features] = {}
    asked: dict[float, PromptSet | None] = {}
    for value, view in views.items():
        encoder.use(view)
        by_alpha[value] = encode_all(encoder, val, val.everything)
        # With a tower that the site does not have, its prompts change, too.
        follows = set(view.alpha) - set(towers)
        asked[value] = embed_prompts(encoder, data) if follows else prompts
    scored: dict[tuple[float, ...], HeldOut] = {}
    for combination in itertools.product(views, repeat=len(towers)):
        of_tower = dict(zip(towers, combination, strict=True))
        mixed = Features(
            by_alpha[of_tower.get("image", 0.0)].image, by_alpha[of_tower.get("text", 0.0)].text
        )
        kappa, words = job.train.label_similarity, asked[combination[0]]
        scored[combination] = held_out_losses(mixed, val, words, encoder.logit_scale, kappa)
    return scored


def choose_by_standard_error(
    losses: Mapping[tuple[float, ...], NDArray[np.float64]],
    reference: tuple[float, ...],
    patients: NDArray[np.int64],
) -> tuple[float, ...]:
    """Return the candidate of least mean loss among those that beat the reference clearly.

    Clearly: by more than one standard error of the mean paired difference, over patients,
    since records of one patient are not independent (Breiman et al., 1984, chapter 3, for the
    one-standard-error rule). A difference that is not finite never wins.

    Args:
        losses: Per candidate, the loss of every held-out record.
        reference: The candidate that is kept if nothing wins.
        patients: Patient of every record.
    """
    _, patient = np.unique(patients, return_inverse=True)
    count = int(patient.max()) + 1 if len(patient) else 0
    best, least = reference, np.inf
    for candidate, found in losses.items():
        if candidate == reference or count < 2:
            continue
        gain = np.bincount(patient, losses[reference] - found) / np.bincount(patient)
        error = gain.std(ddof=1) / np.sqrt(count)
        if gain.mean() > error and found.mean() < least:
            best, least = candidate, float(found.mean())
    return best
