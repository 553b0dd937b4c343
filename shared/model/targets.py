"""Which linear layers of a base carry an adapter."""

import difflib
import re
from collections.abc import Sequence

from torch import nn

from shared.adapter import Tower
from shared.errors import ConfigError

# Module paths of the CLIP family in transformers: CLIP, MetaCLIP 2, SigLIP and the image towers
# of all of them first, then the BERT-like text towers of AltCLIP and Chinese-CLIP.
GROUPS: dict[str, str] = {
    "attention": r"self_attn\.(q_proj|k_proj|v_proj|out_proj)"
    r"|attention\.self\.(query|key|value)|attention\.output\.dense",
    "mlp": r"layers\.\d+\.mlp\.(fc1|fc2)|layer\.\d+\.(intermediate|output)\.dense",
    "projection": r"visual_projection|text_projection",
}
_LAYER_NUMBER = re.compile(r"\.layers?\.(\d+)\.")


def tower_of_module(path: str) -> Tower:
    """Return the tower that a module path of a CLIP-family model belongs to."""
    return "text" if path.startswith(("text_model.", "text_projection")) else "image"


def find_targets(model: nn.Module, targets: Sequence[str], layers: str) -> list[str]:
    """Return the paths of the linear layers to adapt, image tower first, in layer order.

    Attention-pooling heads (SigLIP) stay frozen. ``top:N`` leaves all but the last N layers of
    each tower alone; projections stay in.

    Args:
        model: The base.
        targets: Groups of ``GROUPS`` or module names, such as ``q_proj``.
        layers: ``all``, ``top:N``, or a share of each tower's layers such as ``top:1/3``.

    Raises:
        ConfigError: A target that is not in the base, with the nearest that is.
    """
    linear = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".head" not in f".{path}"
    ]
    chosen: set[str] = set()
    for target in targets:
        found = _matching(linear, target)
        # SigLIP has no projection, which is not a mistake in a job that serves any base.
        if not found and target != "projection":
            names = sorted({*GROUPS, *(path.rsplit(".", 1)[-1] for path in linear)})
            near = difflib.get_close_matches(target, names, n=1, cutoff=0.0)
            raise ConfigError(
                f"lora.targets: {target!r} is not a linear layer of this base; "
                f"did you mean {near[0]!r}?"
            )
        chosen.update(found)
    kept = _top_layers(linear, chosen, layers)
    if not kept:
        raise ConfigError(f"lora.targets = {list(targets)}: no layer of this base is adapted")
    return sorted(kept, key=_natural)


def _matching(paths: Sequence[str], target: str) -> list[str]:
    pattern = GROUPS.get(target)
    if pattern is not None:
        return [path for path in paths if re.search(rf"(^|\.)({pattern})$", path)]
    return [path for path in paths if path == target or path.endswith(f".{target}")]


def _top_layers(paths: Sequence[str], chosen: set[str], layers: str) -> set[str]:
    if layers == "all":
        return chosen
    match = re.fullmatch(r"top:([1-9]\d*)(?:/([1-9]\d*))?", layers)
    if match is None or (match[2] and int(match[1]) > int(match[2])):
        raise ConfigError(
            f"lora.layers = {layers!r}: expected 'all', 'top:N' such as 'top:2', or a share of "
            "each tower such as 'top:1/3'"
        )
    depth: dict[Tower, int] = {"image": 0, "text": 0}
    for path in paths:
        number = _LAYER_NUMBER.search(path)
        if number:
            tower = tower_of_module(path)
            depth[tower] = max(depth[tower], int(number[1]) + 1)
    count, of = int(match[1]), int(match[2] or 0)
    kept = {tower: max(1, total * count // of) if of else count for tower, total in depth.items()}
    least = {tower: total - kept[tower] for tower, total in depth.items()}
    return {
        path
        for path in chosen
        if (number := _LAYER_NUMBER.search(path)) is None
        or int(number[1]) >= least[tower_of_module(path)]
    }


def _natural(path: str) -> tuple[bool, bool, list[tuple[int, str]]]:
    """Sort key: image before text, projections last, layer 10 after layer 9."""
    parts = [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]
    return tower_of_module(path) == "text", "projection" in path, parts
