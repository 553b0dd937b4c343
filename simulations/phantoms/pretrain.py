"""Train consilia-tiny on the public phantom corpus: ``python -m simulations.phantoms.pretrain``.

About twenty minutes on one core. The loss is multi-positive InfoNCE, plus facts read from the
pooled picture and the pooled text, plus a reconstruction of every patch from its token; the extra
heads are thrown away. InfoNCE alone sits at chance for long; with the heads it falls from the
beginning, and reconstruction keeps in the tokens what no label asks for.
"""

import argparse
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPModel

from simulations.phantoms.corpus import FACTS_PER_FINDING, Corpus, facts, public_corpus, word_list
from simulations.phantoms.studies import PUBLIC_FINDINGS
from simulations.phantoms.tiny_model import (
    PAD,
    PATCH,
    WIDTH,
    export,
    pixel_values,
    tiny_config,
    train_tokenizer,
)
from simulations.phantoms.zero_shot import evaluate, format_metrics

log = logging.getLogger(__name__)

SHIFT = 3  # pixels, either way
WARM_UP = 60
TEST_SIZE, TEST_SEED = 600, 990
MUON_LR, ADAMW_LR = 0.015, 0.003
MAX_SCALE = 50.0


@dataclass(frozen=True)
class Plan:
    """How long and on what to train.

    Attributes:
        studies: Size of the public corpus.
        pairs: Picture-text pairs to see in all.
        batch: Pairs in a step.
        minutes: Upper limit of training; the learning rate falls by whichever ends first.
        snapshot_minutes: Between exports of the model as it is.
        seed: Seed of corpus, weights and order.
    """

    studies: int = 32_768
    pairs: int = 200_000
    batch: int = 48
    minutes: float = 25.0
    snapshot_minutes: float = 6.0
    seed: int = 0

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return self.pairs // self.batch


class Student(nn.Module):
    """A CLIP with the training-only heads."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        fact_count = len(PUBLIC_FINDINGS) * FACTS_PER_FINDING
        self.clip = CLIPModel(tiny_config(vocabulary, channels=1))
        self.image_facts = nn.Linear(WIDTH, fact_count)
        self.text_facts = nn.Linear(WIDTH, fact_count)
        self.patches = nn.Linear(WIDTH, PATCH * PATCH)

    def loss(self, pixels: Tensor, tokens: Tensor, same_text: Tensor, truth: Tensor) -> Tensor:
        """The weighted sum of contrast, facts of both towers, and reconstruction."""
        clip = self.clip
        seen = clip.vision_model(pixel_values=pixels)
        read = clip.text_model(input_ids=tokens, attention_mask=(tokens != PAD).long())
        image = functional.normalize(clip.visual_projection(seen.pooler_output), dim=-1)
        text = functional.normalize(clip.text_projection(read.pooler_output), dim=-1)
        scale = clip.logit_scale.exp().clamp(max=MAX_SCALE)
        binary = functional.binary_cross_entropy_with_logits
        facts_seen = binary(self.image_facts(seen.pooler_output), truth)
        facts_read = binary(self.text_facts(read.pooler_output), truth)
        target = functional.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)
        drawn = functional.mse_loss(self.patches(seen.last_hidden_state[:, 1:]), target)
        contrast = multi_positive_nce(scale * image @ text.T, same_text)
        return contrast + 8 * facts_seen + 4 * facts_read + 0.5 * drawn

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the matrices of both encoders (about 1.5 times fewer steps), AdamW elsewhere."""
        encoders = (self.clip.vision_model.encoder, self.clip.text_model.encoder)
        matrices = [p for encoder in encoders for p in encoder.parameters() if p.ndim == 2]
        chosen = {id(matrix) for matrix in matrices}
        rest = [p for p in self.parameters() if id(p) not in chosen]
        return [
            torch.optim.Muon(matrices, lr=MUON_LR, momentum=0.95, weight_decay=0.02),
            torch.optim.AdamW(rest, lr=ADAMW_LR, betas=(0.9, 0.98), weight_decay=0.01),
        ]


def multi_positive_nce(logits: Tensor, positive: Tensor) -> Tensor:
    """Symmetric InfoNCE in which every pair of equal texts is a positive."""
    to_text = positive / positive.sum(1, keepdim=True)
    to_image = positive.T / positive.T.sum(1, keepdim=True)
    forward = (to_text * logits.log_softmax(1)).sum(1).mean()
    backward = (to_image * logits.T.log_softmax(1)).sum(1).mean()
    return -0.5 * (forward + backward)


def batches(
    corpus: Corpus, tokenizer: Tokenizer, plan: Plan
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Endless shuffled batches of shifted pictures, tokens, equal-text masks and facts."""
    tokens = [torch.tensor(encoding.ids) for encoding in tokenizer.encode_batch(corpus.texts)]
    truth = torch.from_numpy(facts(corpus.studies))
    identity = torch.from_numpy(np.unique(np.array(corpus.texts), return_inverse=True)[1])
    rng = np.random.default_rng([plan.seed, 1])
    while True:
        order = rng.permutation(len(tokens))
        for start in range(0, len(order) - plan.batch + 1, plan.batch):
            rows = order[start : start + plan.batch]
            shift = [int(pixels) for pixels in rng.integers(-SHIFT, SHIFT + 1, 2)]
            pixels = torch.roll(pixel_values(corpus.pictures[rows]), shift, (2, 3))
            padded = nn.utils.rnn.pad_sequence([tokens[row] for row in rows], batch_first=True)
            ids = identity[rows]
            yield pixels, padded, (ids[:, None] == ids[None]).float(), truth[rows]


def pretrain(plan: Plan, out: Path) -> CLIPModel:
    """Train and export; the folder is usable from the first snapshot on."""
    torch.manual_seed(plan.seed)
    started = time.monotonic()
    corpus = public_corpus(plan.studies, 10 + plan.seed)
    tokenizer = train_tokenizer(corpus.texts + word_list())
    test = public_corpus(TEST_SIZE, TEST_SEED, styles=["std"])
    student = Student(tokenizer.get_vocab_size())
    size = sum(parameter.numel() for parameter in student.clip.parameters())
    log.info("corpus %.0f s, %d parameters", time.monotonic() - started, size)
    optimizers = student.optimizers()
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    begun = saved = time.monotonic()
    for step, batch in enumerate(batches(corpus, tokenizer, plan)):
        elapsed = (time.monotonic() - begun) / 60
        progress = max(step / plan.steps, elapsed / plan.minutes)
        if progress >= 1:
            break
        factor = min(1.0, (step + 1) / WARM_UP) * max(0.01, min(1.0, 1.6 * (1 - progress)))
        for optimizer, rates in zip(optimizers, base, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        loss = student.loss(*batch)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 100 == 0:
            log.info("%d/%d %.1f min loss %.3f", step, plan.steps, elapsed, loss.item())
        if time.monotonic() - saved > plan.snapshot_minutes * 60:
            saved = time.monotonic()
            _snapshot(student, tokenizer, test, out)
    _snapshot(student, tokenizer, test, out)
    log.info("total %.1f min", (time.monotonic() - started) / 60)
    return student.clip


def _snapshot(student: Student, tokenizer: Tokenizer, test: Corpus, out: Path) -> None:
    student.eval()
    log.info("%s", format_metrics(evaluate(student.clip, tokenizer, test)))
    export(student.clip, tokenizer, out)
    student.train()


def main() -> None:
    """Read the command line and train."""
    plan = Plan()
    parser = argparse.ArgumentParser(description="Train consilia-tiny on the public corpus.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=plan.minutes)
    parser.add_argument("--pairs", type=int, default=plan.pairs)
    parser.add_argument("--studies", type=int, default=plan.studies)
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    chosen = Plan(
        studies=options.studies,
        pairs=options.pairs,
        minutes=options.minutes,
        seed=options.seed,
    )
    pretrain(chosen, options.out)


if __name__ == "__main__":
    main()
