"""Export: an adapter as a stock PEFT folder, or merged into a Hugging Face checkpoint.

After folding, an adapter's function is ``s (B_res A_res + B A)``, of higher rank than its
current factors. Stacking the factors and one small SVD gives the same product as one LoRA of
rank R with alpha = R (so that PEFT's scaling is 1), cut where the rest of the energy is below
what was asked for; what the cut loses is measured and reported.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from peft import LoraConfig as PeftConfig

from shared.adapter import (
    Adapter,
    AdapterLayout,
    Array,
    LayerShape,
    factor_name,
)
from shared.files import replace_folder
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView

ENERGY = 0.9999
_Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class ExportReport:
    """What an export contains.

    Attributes:
        rank: Rank R of the exported LoRA, the same for all layers.
        energy: Kept share of the squared Frobenius norm, of the layer that lost most.
        relative_error: Norm of what was cut over the norm of the whole update, all layers.
    """

    rank: int
    energy: float
    relative_error: float


def save_peft(
    folder: Path,
    encoder: DualEncoder,
    view: AdapterView,
    energy: float | None = ENERGY,
    record: Mapping[str, object] | None = None,
) -> ExportReport:
    """Write a folder that ``peft.PeftModel.from_pretrained(base, folder)`` opens.

    Args:
        folder: Replaced as a whole.
        encoder: The base that the adapter belongs to; it is not changed.
        view: The function to export: shared, or shared plus the personal adapter.
        energy: Least share of every layer's squared norm to keep; ``None`` cuts nothing but
            what is zero.
        record: What else ``consilia.json`` is to say.

    Returns:
        Rank and truncation loss; also written to ``consilia.json`` in the folder.

    Raises:
        StorageError: If the folder cannot be written.
    """
    stacks = {layer.module: _stack(layer, encoder.layout, view) for layer in encoder.layout.layers}
    spectra = {module: _decompose(b, a) for module, (b, a) in stacks.items()}
    rank = max(1, *(_rank(spectrum.values, energy) for spectrum in spectra.values()))
    tensors: dict[str, Array] = {}
    for layer in encoder.layout.layers:
        tensors |= spectra[layer.module].factors(layer, rank)
    report = _report(spectra, rank)
    config = PeftConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=[layer.module for layer in encoder.layout.layers],
        base_model_name_or_path=encoder.base_name,
        inference_mode=True,
    )
    note = {"base_sha256": encoder.base_sha256, **vars(report), **(record or {})}
    with replace_folder(folder) as new:
        config.save_pretrained(str(new))
        _sort_targets(new / "adapter_config.json")
        path = new / "adapter_model.safetensors"
        path.write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
        _write_note(new, note)
    return report


def save_merged(
    folder: Path,
    encoder: DualEncoder,
    view: AdapterView,
    record: Mapping[str, object] | None = None,
) -> None:
    """Write a Hugging Face checkpoint whose weights contain the adapter; nothing is cut.

    Tokenizer and image processor come along, so that the folder is complete, and
    ``consilia.json``, which says of which base it is, and what ``record`` says.

    Raises:
        StorageError: If the folder cannot be written.
    """
    from transformers import AutoModel  # noqa: PLC0415 - takes a second

    encoder.use(view)
    merged = AutoModel.from_pretrained(
        encoder.folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    with torch.no_grad():
        for layer in encoder.layout.layers:
            weight = merged.get_submodule(layer.module).weight
            weight.copy_(encoder.merged_weight(layer.module))
    with replace_folder(folder) as new:
        merged.save_pretrained(new)
        encoder.save_preprocessing(new)
        _write_note(new, {"base_sha256": encoder.base_sha256, **(record or {})})


def _write_note(folder: Path, note: Mapping[str, object]) -> None:
    (folder / "consilia.json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def _sort_targets(path: Path) -> None:
    """PEFT writes the targets in the order of a set, which differs from run to run."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["target_modules"] = sorted(tree["target_modules"])
    path.write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Spectrum:
    """SVD of one layer's update: left (m, k), singular values (k,), right (k, n)."""

    left: _Matrix
    values: _Matrix
    right: _Matrix

    def factors(self, layer: LayerShape, rank: int) -> dict[str, Array]:
        """Return B and A of the given rank, filled with zeros beyond what there is."""
        kept = min(rank, len(self.values))
        root = np.sqrt(self.values[:kept])
        b = np.zeros((layer.outputs, rank), dtype=np.float32)
        a = np.zeros((rank, layer.inputs), dtype=np.float32)
        b[:, :kept] = self.left[:, :kept] * root
        a[:kept] = root[:, None] * self.right[:kept]
        return {factor_name(layer.module, "A"): a, factor_name(layer.module, "B"): b}


def _stack(layer: LayerShape, layout: AdapterLayout, view: AdapterView) -> tuple[_Matrix, _Matrix]:
    """Return (B, A) whose product is all that the view adds to the layer's frozen weight."""
    lefts: list[_Matrix] = [np.zeros((layer.outputs, 0))]
    rights: list[_Matrix] = [np.zeros((0, layer.inputs))]

    def add(adapter: Adapter, weight: float) -> None:
        b = adapter.get(factor_name(layer.module, "B"))
        a = adapter.get(factor_name(layer.module, "A"))
        if b is not None and a is not None and weight:
            lefts.append(layout.scaling * weight * b.astype(np.float64))
            rights.append(a.astype(np.float64))

    if view.shared is not None:
        add(view.shared.residual, 1.0)
        add(view.shared.factors, 1.0)
    if view.personal is not None:
        add(view.personal, view.alpha.get(layer.tower, 0.0))
    return np.concatenate(lefts, axis=1), np.concatenate(rights, axis=0)


def _decompose(b: _Matrix, a: _Matrix) -> _Spectrum:
    """SVD of B A through the QR decompositions of its thin factors, never of (m, n)."""
    left_basis, left = np.linalg.qr(b)
    right_basis, right = np.linalg.qr(a.T)
    u, values, vh = np.linalg.svd(left @ right.T, full_matrices=False)
    return _Spectrum(left_basis @ u, values, vh @ right_basis.T)


def _rank(values: _Matrix, energy: float | None) -> int:
    """Return the least rank that keeps the energy; without one, all that is not rounding."""
    if not len(values) or values[0] == 0:
        return 0
    if energy is None:
        return int((values > values[0] * 1e-12).sum())
    shares = np.cumsum(values**2) / (values**2).sum()
    return min(len(values), int(np.searchsorted(shares, energy)) + 1)


def _report(spectra: dict[str, _Spectrum], rank: int) -> ExportReport:
    whole = {module: float((s.values**2).sum()) for module, s in spectra.items()}
    lost = {module: float((s.values[rank:] ** 2).sum()) for module, s in spectra.items()}
    worst = max((lost[module] / whole[module] for module in spectra if whole[module]), default=0.0)
    total = sum(whole.values())
    error = (sum(lost.values()) / total) ** 0.5 if total else 0.0
    return ExportReport(rank, 1.0 - worst, error)
