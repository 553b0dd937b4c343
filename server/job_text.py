"""A job as a TOML file that ``shared.config.load_job`` reads back to the same job."""

import json
from collections.abc import Mapping
from typing import Any

from shared.config import JobConfig


def to_toml(job: JobConfig) -> str:
    """Return a job file with every value written out; values that are not set are left out."""
    tree = job.model_dump(mode="json", exclude_none=True)
    plain = {key: value for key, value in tree.items() if not isinstance(value, dict)}
    lines = _entries(plain)
    for table, entries in tree.items():
        if isinstance(entries, dict):
            lines += ["", f"[{table}]", *_entries(entries)]
    return "\n".join(lines) + "\n"


def _entries(values: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in values.items()]


def _value(value: Any) -> str:  # noqa: ANN401 - any value of a job
    if isinstance(value, dict):
        inner = ", ".join(f"{_string(key)} = {_value(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, str):
        return _string(value)
    # TOML writes numbers and truth values as JSON does, with one exception: 1e-05 is both.
    return json.dumps(value)


def _string(text: str) -> str:
    # JSON's escapes are valid in TOML's basic strings, except for DEL, which TOML forbids.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
