"""Write ``docs/results.md`` and ``docs/results.schema.json`` from the schema itself.

``python -m simulations.results_doc`` writes both; a test holds them to the models.
"""

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from shared import results
from shared.metrics import METRICS
from shared.results import SCHEMA_VERSION, Results, json_schema

DOCS = Path(__file__).resolve().parents[1] / "docs"

_INTRODUCTION = """\
# results.json

Everything that a run measured, in one JSON object; `report.html` is made of it and nothing else.
Schema version {version}. The same as JSON Schema: [results.schema.json](results.schema.json).
This page is written by `python -m simulations.results_doc`.

Conventions: an interval (`low`, `high`) is the 95 % percentile bootstrap by patient, stretched for
few patients (`shared/metrics/bootstrap.py`), Wilson's in `calibration`, except in
`mean`, where it is a normal interval of the mean from the sites' own ones; differences are paired
on the same resamples; all metrics lie in 0..1. Where something could not be measured the number
is absent and `not_measured` says why. Times are in seconds, sizes in bytes, losses in nats.

## Models

| model | meaning |
|---|---|
"""

_MODELS = {
    "base": "the frozen encoder, untouched",
    "local": "this site training alone, with as many steps as the federation",
    "shared": "the federation's adapter",
    "personal": "shared plus the site's own adapter, as far as its method uses it",
    "centralised": "one adapter trained on all sites' data; simulation only",
    "oracle": "a reader who sees every finding; phantoms only",
}

_CHOICES = ("Model", "Metric", "Comparison", "Kind", "ParticipationState", "Tower")
"""Named choices of the schema."""


def document() -> str:
    """Return ``docs/results.md``."""
    parts = [_INTRODUCTION.format(version=SCHEMA_VERSION)]
    parts += [f"| `{name}` | {words} |\n" for name, words in _MODELS.items()]
    parts.append(
        "\n## Metrics\n\n| metric | name | better | chance | meaning |\n|---|---|---|---|---|\n"
    )
    parts += [
        f"| `{name}` | {info.label} | {info.direction} | {info.chance_words} | "
        f"{info.description} |\n"
        for name, info in METRICS.items()
    ]
    parts.append("\n## Words\n\n| name | one of |\n|---|---|\n")
    for name in _CHOICES:
        values = ", ".join(f"`{value}`" for value in get_args(getattr(results, name)))
        parts.append(f"| {name} | {values} |\n")
    for model in _reachable(Results, set()):
        parts.append(_section(model))
    return "".join(parts)


def schema() -> str:
    """Return ``docs/results.schema.json``."""
    return json.dumps(json_schema(), indent=1) + "\n"


def main() -> None:
    """Write both files."""
    DOCS.mkdir(exist_ok=True)
    (DOCS / "results.md").write_text(document(), encoding="utf-8")
    (DOCS / "results.schema.json").write_text(schema(), encoding="utf-8")


def _reachable(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    """Yield a model and all models in its fields, parents before children."""
    if model in seen:
        return
    seen.add(model)
    yield model
    for field in model.model_fields.values():
        for child in _models_in(field.annotation):
            yield from _reachable(child, seen)


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _section(model: type[BaseModel]) -> str:
    summary, words = _docstring(model)
    lines = [f"\n## {model.__name__}\n\n{summary}\n\n| field | type | meaning |\n|---|---|---|\n"]
    for name, field in model.model_fields.items():
        kind = _type_name(field.annotation).replace("|", "\\|")
        default = "" if field.is_required() else " Optional."
        lines.append(f"| `{name}` | {kind} | {words[name]}{default} |\n")
    return "".join(lines)


def _docstring(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """Return the text before ``Attributes:`` and the meaning of every attribute."""
    words: dict[str, str] = {}
    for parent in reversed(model.__mro__):
        attributes = inspect.cleandoc(parent.__doc__ or "").partition("Attributes:\n")[2]
        for entry in re.split(r"\n(?=\S)", textwrap.dedent(attributes)):
            name, _, meaning = entry.partition(":")
            if re.fullmatch(r"\w+", name.strip()):
                words[name.strip()] = " ".join(meaning.split()).replace("|", "\\|")
    summary = inspect.cleandoc(model.__doc__ or "").partition("\nAttributes:\n")[0]
    return " ".join(summary.replace("``", "`").split()), {
        name: meaning.replace("``", "`") for name, meaning in words.items()
    }


def _type_name(annotation: object) -> str:
    """Return a type as people read it, with the schema's own names for long choices."""
    alias = next((name for name in _CHOICES if annotation == getattr(results, name)), None)
    if alias:
        return f"[{alias}](#words)"
    arguments = get_args(annotation)
    origin = getattr(annotation, "__origin__", None)
    if not arguments:
        name = getattr(annotation, "__name__", str(annotation)).replace("NoneType", "null")
        linked = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        return f"[{name}](#{name.lower()})" if linked else name
    if origin is dict:
        return f"object: {_type_name(arguments[0])} to {_type_name(arguments[1])}"
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if all(isinstance(argument, str | int) for argument in arguments):
        return ", ".join(f"`{argument}`" for argument in arguments)
    return " or ".join(_type_name(argument) for argument in arguments)


if __name__ == "__main__":
    main()
