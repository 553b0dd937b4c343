"""What a site's validation records say of an adapter: sites with the same adapter at once."""

from collections.abc import Sequence

from client.batches import prepare
from client.data.records import SiteData
from client.encoding import encode_together
from client.losses import embed_prompts, held_out_losses
from client.prefix_cache import keep_prefixes
from shared.config import JobConfig
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView


def validation_loss(
    encoder: DualEncoder, data: SiteData, view: AdapterView, job: JobConfig
) -> float | None:
    """Return one site's loss; as ``validation_losses``."""
    return validation_losses(encoder, [data], view, job)[0]


def validation_losses(
    encoder: DualEncoder, sites: Sequence[SiteData], view: AdapterView, job: JobConfig
) -> list[float | None]:
    """Return every site's mean loss of its validation records under a view, in nats.

    Pairs count with InfoNCE against the site's own validation pairs, lone labelled records with
    their prompt loss; ``None`` for a site with neither. Validation sets are small, and are
    encoded side by side; beyond rounding, a site's loss does not depend on the others.

    Args:
        encoder: Left in the view.
        sites: Whose validation splits.
        view: The function that is measured.
        job: For ``[train]``.
    """
    encoder.use(view)
    prompts = [embed_prompts(encoder, data) for data in sites]
    splits = [prepare(encoder, data, "val") for data in sites]
    for split in splits:
        keep_prefixes(encoder, split, job, training=False)
    features = encode_together(encoder, [(split, split.everything) for split in splits])
    losses: list[float | None] = []
    for found, split, own in zip(features, splits, prompts, strict=True):
        kappa = job.train.label_similarity
        scores = held_out_losses(found, split, own, encoder.logit_scale, kappa)
        losses.append(float(scores.losses.mean()) if len(scores.losses) else None)
    return losses
