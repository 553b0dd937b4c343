"""An encoder whose embeddings a reader can compute: pixels and texts *are* the vectors."""

import numpy as np
import torch
from torch.nn import functional

from client.data.records import Prompts, SiteData, Split
from shared.adapter import SharedAdapter
from shared.model.view import AdapterView
from shared.results import DatasetOrigin

SIZE = 6


class StubEncoder:
    """Image (1, 6, 1) is the vector of its pixels minus 100; a text lists its vector.

    ``view.shared.factors["w"]`` multiplies image vectors; the frozen base uses the identity.
    """

    device = "cpu"
    logit_scale = 4.0

    def __init__(self):
        self.weight = torch.eye(SIZE)
        self.embedded_images = 0
        self.embedded_texts = 0

    def use(self, view):
        plain = view.shared is None
        self.weight = torch.eye(SIZE) if plain else torch.from_numpy(view.shared.factors["w"])

    def encode_images(self, pixels):
        self.embedded_images += len(pixels)
        vectors = pixels.reshape(len(pixels), SIZE).float() - 100
        return functional.normalize(vectors @ self.weight.T, dim=1)

    def tokenize(self, texts):
        return torch.tensor([[float(word) for word in text.split()] for text in texts])

    def encode_texts(self, tokens):
        self.embedded_texts += len(tokens)
        return functional.normalize(tokens, dim=1)


def view_of(weight):
    return AdapterView(shared=SharedAdapter({"w": np.asarray(weight, dtype=np.float32)}))


def noisy_view(seed, amount):
    noise = np.random.default_rng(seed).normal(size=(SIZE, SIZE))
    return view_of(np.eye(SIZE) + amount * noise)


def one_hot(number):
    return " ".join("1" if place == number else "0" for place in range(SIZE))


def make_split(seed, count, *, findings=3, patients=None, spread=25):
    """Records of ``SIZE`` kinds; the text names the kind, finding f is present in kind f."""
    generator = np.random.default_rng(seed)
    kinds = np.arange(count) % SIZE
    vectors = 60 * np.eye(SIZE)[kinds] + generator.normal(0, spread, (count, SIZE))
    pixels = np.clip(vectors + 100, 0, 255).astype(np.uint8).reshape(count, 1, SIZE, 1)
    return Split(
        pixels=pixels,
        has_image=np.ones(count, bool),
        texts=tuple(one_hot(kind) for kind in kinds),
        has_text=np.ones(count, bool),
        labels=(kinds[:, None] == np.arange(findings)).astype(np.float32),
        labelled=np.ones(count, bool),
        patients=np.arange(count) // 2 if patients is None else np.asarray(patients),
    )


def make_site(test=None, *, count=60, origin="phantom", licence="", **splits):
    given = {"train": make_split(1, 60), "val": make_split(2, 40), **splits}
    names = ("edema", "effusion", "nodule")
    prompts = {
        name: Prompts((one_hot(number),), (" ".join(["0.1"] * SIZE),))
        for number, name in enumerate(names)
    }
    return SiteData(
        name="st-anna",
        findings=names,
        prompts=prompts,
        splits={**given, "test": make_split(3, count) if test is None else test},
        origin=DatasetOrigin(origin=origin, licence=licence),
    )
