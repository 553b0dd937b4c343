"""Semantic matching of images and texts that are not pairs, by their labels.

Wang et al., 2022 (MedCLIP), https://arxiv.org/abs/2210.10163: the targets of the softmax over
the texts of a batch are the softmax of label similarity, and the other way round.
"""

from torch import Tensor

from shared.objectives.labels import label_similarity

TARGET_TEMPERATURE = 0.2


def matching(
    image: Tensor, text: Tensor, image_labels: Tensor, text_labels: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of every image and of every text in nats, (n,) and (m,).

    Args:
        image: L2-normalised image features, shape (n, d).
        text: L2-normalised text features, shape (m, d), of other records.
        image_labels: (n, findings) 0 / 1.
        text_labels: (m, findings) 0 / 1.
        scale: Inverse temperature.
    """
    logits = scale * image @ text.T
    likeness = label_similarity(image_labels, text_labels) / TARGET_TEMPERATURE
    to_text = -(likeness.softmax(1) * logits.log_softmax(1)).sum(1)
    to_image = -(likeness.T.softmax(1) * logits.T.log_softmax(1)).sum(1)
    return to_text, to_image
