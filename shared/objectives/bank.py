"""Contrast with a bank: a pair against public pairs, so that no record's loss depends on another's.

InfoNCE with the rest of the batch as negatives changes every record's gradient with each record
that is added, which no clipping of single gradients bounds (Kong and Munoz Medina, 2023,
https://arxiv.org/abs/2310.03104). Against a bank that nobody's records are in, a record's loss is
a function of that record alone, and ordinary differentially private training is sound.
"""

import torch
from torch import Tensor


def bank_contrast(
    image: Tensor,
    text: Tensor,
    bank: tuple[Tensor, Tensor],
    positives: Tensor,
    scale: float,
) -> Tensor:
    """Return the loss of every pair in nats, (n,): the mean of both directions.

    Args:
        image: L2-normalised image features, shape (n, d).
        text: L2-normalised text features, shape (n, d); row i belongs to image i.
        bank: Image and text features of the public pairs, (m, d) each; no gradient.
        positives: How much public pair j is a positive of pair i, (n, m), from 0 to 1; the pair
            itself is one with weight 1.
        scale: Inverse temperature.
    """
    public_image, public_text = (features.detach() for features in bank)
    own = (image * text).sum(1, keepdim=True)
    to_text = scale * torch.cat([own, image @ public_text.T], 1)
    to_image = scale * torch.cat([own, text @ public_image.T], 1)
    weights = torch.cat([torch.ones_like(own), positives], 1)
    weights = weights / weights.sum(1, keepdim=True)
    both = to_text.log_softmax(1) + to_image.log_softmax(1)
    return -0.5 * (weights * both).sum(1)
