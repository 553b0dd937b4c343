"""Feature distillation (FD): stay where the teacher puts a record.

The plain squared distance, which did best in CLIP-KD (Yang et al., 2024,
https://arxiv.org/abs/2307.12732). It anchors a tower that trains without the other one, and
carries the shared model into the personal one. Teacher and student share one space here, so
the distance means something.
"""

from torch import Tensor


def anchor(features: Tensor, teacher: Tensor) -> Tensor:
    """Return half the squared distance of every record, shape (n,); 0 to 2 for unit vectors.

    Args:
        features: L2-normalised features, shape (n, d).
        teacher: The teacher's features of the same records, shape (n, d); no gradient.
    """
    return 0.5 * (features - teacher.detach()).square().sum(1)
