"""Contrastive relational distillation (CRD): rank the other side's records as the teacher does.

Yang et al., 2024 (CLIP-KD), https://arxiv.org/abs/2307.12732, for records that have an image and
a text; the square of the temperature is Hinton et al.'s, 2015, https://arxiv.org/abs/1503.02531.
"""

from torch import Tensor


def crd(
    image: Tensor,
    text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    scale: float,
    temperature: float = 2.0,
) -> Tensor:
    """Return KL(teacher's || student's) answers of every pair in nats, both directions, (n,).

    The answers are the softmax of a record's similarities with the other side of the batch.

    Args:
        image: L2-normalised image features, shape (n, d).
        text: L2-normalised text features, shape (n, d); row i belongs to image i.
        teacher_image: The teacher's, shape (n, e); no gradient.
        teacher_text: The teacher's, shape (n, e); no gradient.
        scale: Inverse temperature of the encoder.
        temperature: In units of the encoder's; larger looks at more than the nearest.
    """
    mine = scale / temperature * image @ text.T
    wanted = (scale / temperature * teacher_image @ teacher_text.T).detach()
    gaps = _divergence(wanted, mine) + _divergence(wanted.T, mine.T)
    return 0.5 * temperature**2 * gaps


def _divergence(wanted: Tensor, given: Tensor) -> Tensor:
    """Return KL between the softmaxes of two rows of logits, (n,)."""
    log_wanted, log_given = wanted.log_softmax(1), given.log_softmax(1)
    return (log_wanted.exp() * (log_wanted - log_given)).sum(1)
