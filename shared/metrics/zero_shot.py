"""Zero-shot scores of findings from prompts.

An image's score for a finding is ``e . (mean of positive prompts - mean of negative prompts)``,
after the positive and negative prompts of CheXzero (Tiu et al., 2022,
https://doi.org/10.1038/s41551-022-00936-9); the softmax over the two that the paper takes is a
monotone function of this margin, so ranks agree.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shared.metrics.bootstrap import Floats
from shared.metrics.retrieval import DECIMALS


def prompt_direction(positive: NDArray[np.floating], negative: NDArray[np.floating]) -> Floats:
    """Return mean positive minus mean negative prompt embedding, shape (d,).

    Args:
        positive: (a, d) unit embeddings of texts that assert the finding.
        negative: (b, d) unit embeddings of texts that deny it.
    """
    mean = positive.mean(0, dtype=np.float64) - negative.mean(0, dtype=np.float64)
    return np.asarray(mean, dtype=np.float64)


def margins(images: NDArray[np.floating], directions: Sequence[Floats]) -> Floats:
    """Return (n, findings) margins of unit image embeddings (n, d), rounded for ranking."""
    stacked = np.stack(list(directions), axis=1)
    return np.asarray(np.round(images.astype(np.float64) @ stacked, DECIMALS))
