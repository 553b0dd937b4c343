"""Binary cross-entropy against prompts, for labelled records of one tower.

A record without its counterpart still learns to lie on the right side of "there is X" and
"there is no X", as the frozen received model embeds them (Zhou et al., 2022,
https://arxiv.org/abs/2109.01134, learn prompts; here the prompts stand and the tower learns).
"""

import torch
from torch import Tensor


def prompt_loss(
    features: Tensor, directions: Tensor, prior: Tensor, labels: Tensor, scale: float
) -> Tensor:
    """Return the loss of every record in nats, summed over findings, shape (n,).

    Args:
        features: L2-normalised image or text features, shape (n, d).
        directions: Per finding, mean positive minus mean negative prompt, shape (findings, d).
        prior: Logit of each finding's prevalence at the site, shape (findings,), so that
            features that say nothing predict the prevalence.
        labels: (n, findings) 0 / 1.
        scale: Inverse temperature.
    """
    logits = scale * features @ directions.T + prior
    return torch.nn.functional.binary_cross_entropy_with_logits(
        logits, labels, reduction="none"
    ).sum(1)


def prevalence_logit(labels: Tensor) -> Tensor:
    """Return the logit of each finding's prevalence, kept within 1 % and 99 %."""
    share = labels.mean(0).clamp(0.01, 0.99)
    return (share / (1 - share)).log()
