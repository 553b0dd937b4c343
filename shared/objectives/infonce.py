"""Multi-positive InfoNCE with soft targets, for records that have an image and a text.

van den Oord et al., 2018, https://arxiv.org/abs/1807.03748; its symmetric form is CLIP's
(Radford et al., 2021, https://arxiv.org/abs/2103.00020). In reports false negatives are the
norm: many say "no acute finding". So records with the same text are each other's positives,
and records that share labels may be in part (kappa).
"""

import torch
from torch import Tensor

from shared.objectives.labels import label_similarity


def pair_targets(text_numbers: Tensor, labels: Tensor, labelled: Tensor, kappa: float) -> Tensor:
    """Return how much record j is a positive of record i, not normalised, shape (..., n, n).

    Args:
        text_numbers: (..., n) integers, equal where the texts are identical.
        labels: (..., n, findings) 0 / 1.
        labelled: (..., n) bool; an unlabelled record is similar to nobody.
        kappa: Weight of label similarity; 0 leaves identical texts only.
    """
    same = (text_numbers[..., :, None] == text_numbers[..., None, :]).float()
    if kappa == 0.0 or labels.shape[-1] == 0:
        return same
    known = (labelled[..., :, None] & labelled[..., None, :]).float()
    return torch.maximum(same, kappa * known * label_similarity(labels, labels))


def infonce(image: Tensor, text: Tensor, targets: Tensor, scale: float) -> Tensor:
    """Symmetric InfoNCE of every pair, against the pairs of the same batch; batches side by side.

    SigLIP bases are trained with this loss too: it needs their features only, and the
    constant that they add to every logit cancels in a softmax.

    Args:
        image: L2-normalised image features, shape (..., n, d).
        text: L2-normalised text features, shape (..., n, d); row i belongs to image i.
        targets: Positives, shape (..., n, n), each row and column with a positive sum.
        scale: Inverse temperature.

    Returns:
        Loss of every pair in nats, shape (..., n): the mean of both directions; ``log(n)`` at
        chance with one positive each.
    """
    logits = scale * image @ text.mT
    rows = targets / targets.sum(-1, keepdim=True)
    columns = targets.mT / targets.mT.sum(-1, keepdim=True)
    to_text = -(rows * logits.log_softmax(-1)).sum(-1)
    to_image = -(columns * logits.mT.log_softmax(-1)).sum(-1)
    return 0.5 * (to_text + to_image)
