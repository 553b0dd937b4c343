"""How alike two records are by their findings."""

from torch import Tensor


def label_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine of 0 / 1 label vectors, shape (n, m); two normal records are alike (1).

    Wang et al., 2022 (MedCLIP), https://arxiv.org/abs/2210.10163.

    Args:
        first: (n, findings).
        second: (m, findings).
    """
    ones, others = first.sum(1), second.sum(1)
    normal = ((ones[:, None] == 0) & (others[None] == 0)).float()
    lengths = ones[:, None].clamp(min=1) * others[None].clamp(min=1)
    return (first @ second.T + normal) / lengths.sqrt()
