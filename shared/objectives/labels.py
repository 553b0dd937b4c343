"""How alike two records are by their findings."""

from torch import Tensor


def label_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine of 0 / 1 label vectors, (..., n, m); two normal records are alike (1).

    Wang et al., 2022 (MedCLIP), https://arxiv.org/abs/2210.10163.

    Args:
        first: (..., n, findings).
        second: (..., m, findings).
    """
    ones, others = first.sum(-1)[..., :, None], second.sum(-1)[..., None, :]
    normal = ((ones == 0) & (others == 0)).float()
    lengths = ones.clamp(min=1) * others.clamp(min=1)
    return (first @ second.mT + normal) / lengths.sqrt()
