"""What holds sites with different encoders together: contrast with common features of public pairs.

CreamFL (Yu et al., 2023, https://arxiv.org/abs/2302.08888). *Inter-modal*: a site's feature of a
public item finds that item's counterpart among the common features of the other tower.
*Intra-modal*: it stays closer to the common feature of the item in its own tower than to where
the site itself put it before the round (MOON, Li et al., 2021, https://arxiv.org/abs/2103.16257).
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus


def inter_modal(features: Tensor, others: Tensor, items: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of finding every item's counterpart, (n,) in nats.

    Args:
        features: (n, d) L2-normalised, of a batch of the public items.
        others: (N, d) L2-normalised, common features of all items in the other tower.
        items: (n,) which of the N every feature is of.
        temperature: Of the softmax; the paper has 0.5.
    """
    logits = features @ others.T / temperature
    rows = torch.arange(len(features), device=features.device)
    return -logits.log_softmax(1)[rows, items]


def intra_modal(features: Tensor, common: Tensor, before: Tensor, temperature: float) -> Tensor:
    """Return how hard it is to tell the common feature from the site's own old one, (n,) in nats.

    Args:
        features: (n, d) L2-normalised, of a batch of the public items.
        common: (n, d) L2-normalised, common features of the same items in the same tower.
        before: (n, d) L2-normalised, what the site gave to them before the round.
        temperature: Of the softmax; the paper has 0.5.
    """
    nearer_to_old = (features * (before - common)).sum(1) / temperature
    return softplus(nearer_to_old)
