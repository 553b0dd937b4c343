"""Write requirements-NAME.lock for the container images: entries of requirements.lock, no others.

python scripts/lock_images.py [NAME ...]

An image holds what its programs import, so that little can be attacked in it and it is small; what
that is follows from ``IMAGES`` and from the metadata of the installed packages. Run by `make lock`.
"""

import importlib.metadata
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from lock_difference import entries
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]

COURIER = ("flwr", "grpcio", "cryptography", "pydantic", "typer", "rich", "safetensors", "numpy")
SERVER = (*COURIER, "sqlalchemy", "alembic", "psycopg[binary]", "Jinja2", "scipy", "dp-accounting")
BUILD = ("hatchling",)

APART = frozenset({"torch", "uv"})
"""torch is installed apart (scripts/setup, Dockerfile). uv is how Flower would install packages at
run time, which is switched off everywhere; an image has nothing that installs."""


def agent() -> tuple[str, ...]:
    """Return what the project depends on: an agent trains, and is the researcher's image too."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tuple(tomllib.load(file)["project"]["dependencies"])


IMAGES = {
    "build": BUILD,
    "courier": COURIER,
    "server": SERVER,
    "agent": agent(),
}


def closure(roots: Iterable[str]) -> set[str]:
    """Return the names of packages and of everything that they need, as installed here."""
    todo = [Requirement(root) for root in roots]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        key = (name, frozenset(wanted.extras))
        if key in seen or name == "uv":
            continue
        seen.add(key)
        for line in importlib.metadata.requires(wanted.name) or []:
            need = Requirement(line)
            extras = wanted.extras or {""}
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras):
                todo.append(need)
    return {name for name, _ in seen}


def lock(name: str, base: dict[str, str]) -> str:
    """Return the lock of an image.

    Args:
        name: One of ``IMAGES``.
        base: The entries of requirements.lock.
    """
    wanted = closure(IMAGES[name]) - APART
    missing = wanted - base.keys() - closure(["torch"])
    if missing:
        sys.exit(f"requirements.lock lacks {', '.join(sorted(missing))}; run `make lock` first")
    head = f"# Made by 'make lock'. Of requirements.lock, what the {name} image needs.\n"
    return head + "".join(text for each, text in base.items() if each in wanted)


def main() -> None:
    """Write the locks."""
    base = entries(str(ROOT / "requirements.lock"))
    for name in sys.argv[1:] or IMAGES:
        (ROOT / f"requirements-{name}.lock").write_text(lock(name, base), encoding="utf-8")


if __name__ == "__main__":
    main()
