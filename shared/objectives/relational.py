"""Relational distillation (REL): keep who is near whom, for records without label or pair.

Park et al., 2019, https://arxiv.org/abs/1904.05068, with the softmax of similarities of
Tung and Mori, 2019, https://arxiv.org/abs/1907.09682.
"""

import torch
from torch import Tensor


def relational(features: Tensor, teacher: Tensor, scale: float) -> Tensor:
    """Return KL(teacher's || student's) distribution over the other records, shape (n,) in nats.

    With fewer than three records there is nothing to compare, and the loss is zero.

    Args:
        features: L2-normalised features, shape (n, d).
        teacher: The teacher's features of the same records, shape (n, d); no gradient.
        scale: Inverse temperature of the encoder; the softmax uses twice its temperature, at
            most 0.2.
    """
    count = len(features)
    if count < 3:
        return features.new_zeros(count)
    sharpness = max(scale / 2, 5.0)
    own = torch.eye(count, dtype=torch.bool, device=features.device)
    student = (sharpness * features @ features.T).masked_fill(own, -torch.inf).log_softmax(1)
    goal = teacher.detach()
    wanted = (sharpness * goal @ goal.T).masked_fill(own, -torch.inf).log_softmax(1)
    gap = (wanted - student).masked_fill(own, 0.0)
    return (wanted.exp() * gap).sum(1)
