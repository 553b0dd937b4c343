"""Membership inference: who was trained on, told from the losses under the adapter.

The score by the base's loss is that of Yeom et al., 2018, https://arxiv.org/abs/1709.01604, with
the untouched base as the reference of Watson et al., 2022, https://arxiv.org/abs/2111.08440. That
at a low rate of false alarms is what counts is from Carlini et al., 2022,
https://arxiv.org/abs/2112.03570. NumPy only.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import beta, norm, rankdata

Numbers = NDArray[np.float64]
Score = Literal["loss-drop", "calibrated"]

ALARMS = 0.01
"""Rate of false alarms at which the rate of true ones is told."""


@dataclass(frozen=True)
class Sides:
    """Unit features of pairs under one model.

    Attributes:
        image: (n, d).
        text: (n, d).
    """

    image: Numbers
    text: Numbers


@dataclass(frozen=True)
class Membership:
    """How well members are told from others.

    Attributes:
        auc: Probability that a member's score is above another's; 0.5 by guessing.
        low: Lower end of its interval.
        high: Upper end.
        hits: Rate of members found where a share ``ALARMS`` of the others is called a member.
        hits_low: Lower end of its interval, the threshold taken as given.
        hits_high: Upper end.
        members: How many there are.
        others: How many there are.
    """

    auc: float
    low: float
    high: float
    hits: float
    hits_low: float
    hits_high: float
    members: int
    others: int


def pair_losses(pairs: Sides, references: Sides, scale: float) -> Numbers:
    """Return the contrastive loss of every pair among references that no site has, (n,) in nats.

    Args:
        pairs: The canaries under a model.
        references: The references under the same model.
        scale: Inverse temperature.
    """
    own = scale * np.einsum("nd,nd->n", pairs.image, pairs.text)
    losses = np.zeros(len(own))
    for mine, theirs in ((pairs.image, references.text), (pairs.text, references.image)):
        among = np.concatenate([own[:, None], scale * mine @ theirs.T], 1)
        losses += 0.5 * (logsumexp(among, axis=1) - own)
    return losses


def standing(pairs: Sides, references: Sides) -> Numbers:
    """Return how far each pair's similarity stands out of those of its own two halves, (n,).

    In standard deviations: some pictures and some reports are like everything, and a large
    similarity says little of them.
    """
    own = np.einsum("nd,nd->n", pairs.image, pairs.text)
    among = np.concatenate([pairs.image @ references.text.T, pairs.text @ references.image.T], 1)
    return np.asarray((own - among.mean(1)) / (among.std(1) + 1e-12))


def scores(
    before: tuple[Sides, Sides], after: tuple[Sides, Sides], scale: float
) -> dict[Score, Numbers]:
    """Return what an attacker who has base and adapter holds against each pair, by score.

    Args:
        before: Canaries and references under the base.
        after: The same under the adapter.
        scale: Inverse temperature.
    """
    return {
        "loss-drop": pair_losses(*before, scale) - pair_losses(*after, scale),
        "calibrated": standing(*after) - standing(*before),
    }


def membership(members: Numbers, others: Numbers, confidence: float = 0.95) -> Membership:
    """Return how well scores tell members from others.

    The interval of the AUC is DeLong's (1988, https://doi.org/10.2307/2531595), that of the hits
    Clopper and Pearson's.

    Args:
        members: (n,) scores of those that were trained on.
        others: (m,) scores of those that were not.
        confidence: Of both intervals.

    Raises:
        ValueError: With fewer than two of either.
    """
    n, m = len(members), len(others)
    if min(n, m) < 2:
        raise ValueError(f"{n} members and {m} others; expected two or more of each")
    together = rankdata(np.concatenate([members, others]))
    of_members = (together[:n] - rankdata(members)) / m
    of_others = 1.0 - (together[n:] - rankdata(others)) / n
    auc = float(of_members.mean())
    spread = float(np.sqrt(of_members.var(ddof=1) / n + of_others.var(ddof=1) / m))
    wide = float(norm.ppf(0.5 + confidence / 2)) * spread
    allowed = int(ALARMS * m)  # of the others, that many may lie above the threshold
    threshold = np.sort(others)[m - 1 - allowed]
    hits = int((members > threshold).sum())
    tail = (1 - confidence) / 2
    return Membership(
        auc=auc,
        low=max(0.0, auc - wide),
        high=min(1.0, auc + wide),
        hits=hits / n,
        hits_low=float(beta.ppf(tail, hits, n - hits + 1)) if hits else 0.0,
        hits_high=float(beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0,
        members=n,
        others=m,
    )
