"""Adapters and their layout as files: ``layout.json`` and ``*.safetensors``.

The layout lets the coordinator check and aggregate factors without torch or the base. A
shared adapter is one safetensors file with the keys ``factors/<name>``, ``residual/<name>``
and, where a rule remembers something, ``state/<name>``; where sites exchange features of public
pairs, ``features/<tower>``. Its number of folds is in the file's metadata.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from shared.adapter import AdapterLayout, Array, LayerShape, SharedAdapter, Tower
from shared.errors import RunDirectoryError

_FORMAT = 1


class _Layer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    module: str
    tower: Tower
    outputs: int = Field(ge=1)
    inputs: int = Field(ge=1)


class _LayoutFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1]
    base_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rank: int = Field(ge=1)
    scaling: float = Field(gt=0)
    layers: list[_Layer] = Field(min_length=1)


def layout_bytes(layout: AdapterLayout, base_sha256: str) -> bytes:
    """Return the content of ``layout.json`` for a base."""
    tree = {
        "format": _FORMAT,
        "base_sha256": base_sha256,
        "rank": layout.rank,
        "scaling": layout.scaling,
        "layers": [asdict(layer) for layer in layout.layers],
    }
    return (json.dumps(tree, indent=1) + "\n").encode()


def load_layout(path: Path) -> tuple[AdapterLayout, str]:
    """Read a layout and the digest of the base it belongs to.

    Raises:
        RunDirectoryError: If the file is missing, damaged or of another format.
    """
    try:
        content = _LayoutFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RunDirectoryError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "file"
        raise RunDirectoryError(
            f"{path}: {where}: {problem['msg']}; expected a layout of format {_FORMAT} as "
            "written by `consilia simulate` or `consilia server submit`"
        ) from None
    layers = tuple(LayerShape(x.module, x.tower, x.outputs, x.inputs) for x in content.layers)
    return AdapterLayout(layers, content.rank, content.scaling), content.base_sha256


def adapter_bytes(shared: SharedAdapter) -> bytes:
    """Return a shared adapter as the content of a safetensors file."""
    tensors = {f"factors/{name}": array for name, array in shared.factors.items()}
    tensors |= {f"residual/{name}": array for name, array in shared.residual.items()}
    tensors |= {f"state/{name}": array for name, array in shared.state.items()}
    tensors |= {f"features/{name}": array for name, array in shared.features.items()}
    return safetensors.numpy.save(tensors, metadata={"folds": str(shared.folds)})


def load_adapter(path: Path) -> SharedAdapter:
    """Read a shared adapter.

    Raises:
        RunDirectoryError: If the file is missing, damaged or something else.
    """
    parts: dict[str, dict[str, Array]]
    parts = {"factors": {}, "residual": {}, "state": {}, "features": {}}
    try:
        with safe_open(path, framework="numpy") as file:
            folds = int((file.metadata() or {}).get("folds", "0"))
            for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
                part, _, name = key.partition("/")
                parts[part][name] = file.get_tensor(key)
    except FileNotFoundError:
        raise RunDirectoryError(f"{path}: no such adapter file") from None
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunDirectoryError(
            f"{path}: not a shared adapter ({type(error).__name__}); expected safetensors with "
            "the keys factors/<name> and residual/<name>"
        ) from None
    return SharedAdapter(
        parts["factors"], parts["residual"], folds, parts["state"], parts["features"]
    )
