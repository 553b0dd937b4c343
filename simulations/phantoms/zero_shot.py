"""Zero-shot metrics of a CLIP on a phantom corpus."""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPModel

from simulations.phantoms.corpus import Corpus
from simulations.phantoms.grammar import prompts
from simulations.phantoms.retrieval import auroc, recall
from simulations.phantoms.studies import FINDINGS, PUBLIC_FINDINGS
from simulations.phantoms.texture import Array
from simulations.phantoms.tiny_model import PAD, pixel_values

CHUNK = 256


@torch.no_grad()
def embed_pictures(model: CLIPModel, pictures: Array) -> Tensor:
    """Unit embeddings of grey pictures (n, 96, 96); works for one and for three channels."""
    channels = model.vision_model.embeddings.patch_embedding.in_channels
    features = []
    for start in range(0, len(pictures), CHUNK):
        pixels = pixel_values(pictures[start : start + CHUNK]).expand(-1, channels, -1, -1)
        pooled = model.vision_model(pixel_values=pixels).pooler_output
        features.append(functional.normalize(model.visual_projection(pooled), dim=-1))
    return torch.cat(features)


@torch.no_grad()
def embed_texts(model: CLIPModel, tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Unit embeddings of texts."""
    features = []
    for start in range(0, len(texts), CHUNK):
        encodings = tokenizer.encode_batch(list(texts[start : start + CHUNK]))
        rows = [torch.tensor(encoding.ids) for encoding in encodings]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
        pooled = model.text_model(
            input_ids=tokens, attention_mask=(tokens != PAD).long()
        ).pooler_output
        features.append(functional.normalize(model.text_projection(pooled), dim=-1))
    return torch.cat(features)


def evaluate(
    model: CLIPModel, tokenizer: Tokenizer, corpus: Corpus, style: str = "std"
) -> dict[str, float]:
    """Retrieval by text identity, and AUROC of each finding against prompts in ``style``."""
    images = embed_pictures(model, corpus.pictures)
    texts = embed_texts(model, tokenizer, sorted(set(corpus.texts)))
    metrics = recall((images @ texts.T).numpy(), corpus.texts)
    sides = prompts(style)
    for column, name in enumerate(FINDINGS):
        positive = embed_texts(model, tokenizer, sides[name]["positive"]).mean(0)
        negative = embed_texts(model, tokenizer, sides[name]["negative"]).mean(0)
        scores = (images @ (positive - negative)).numpy()
        metrics[f"auroc/{name}"] = auroc(scores, corpus.labels[:, column])
    public = [metrics[f"auroc/{name}"] for name in PUBLIC_FINDINGS]
    metrics["auroc"] = sum(public) / len(public)
    return metrics


def format_metrics(metrics: dict[str, float]) -> str:
    """One line of the metrics that matter."""
    names = ("recall@1", "recall@5", "auroc", *(f"auroc/{name}" for name in PUBLIC_FINDINGS))
    return " ".join(f"{name} {metrics[name]:.3f}" for name in names)
