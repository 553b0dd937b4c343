"""Reading what people write: TOML files, and one line for what is wrong in them."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from shared.errors import ConfigError

_EXPECTED: Final[Mapping[str, str]] = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text in quotation marks",
    "list_type": 'a list, such as ["a", "b"]',
    "tuple_type": 'a list, such as ["a", "b"]',
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "path_type": "a path in quotation marks",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "literal_error": "{expected}",
}
"""pydantic's kinds of error, in words for the people who write the files."""

_LONGEST_SHOWN = 60


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Return a TOML file as nested tables.

    Args:
        path: The file.
        what: What it should be, for the message, such as ``job file``.

    Raises:
        ConfigError: One line that says why it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such {what}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; expected a {what} (TOML)") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or 'error'}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: byte {error.start + 1} is not UTF-8; expected a text file in UTF-8"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except (ValueError, RecursionError):  # numbers of thousands of digits, endless brackets
        raise ConfigError(f"{path}: not valid TOML: nested too deeply or too long") from None


def first_problem(error: ValidationError, root: type[BaseModel]) -> str:
    """Return one line for the first problem: key, what is wrong, the nearest valid key or value.

    Args:
        error: What pydantic found.
        root: The model that was asked for.
    """
    problem = error.errors()[0]
    location = [str(part) for part in problem["loc"]]
    key, kind = ".".join(location), problem["type"]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if kind == "extra_forbidden":
        table = ".".join(location[:-1])
        valid = list(_model_at(root, location[:-1]).model_fields)
        near = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.0)[0]
        where = f"in [{table}]" if table else "at the top level"
        return f"unknown key {_shown(location[-1])} {where}; did you mean {near!r}?{more}"
    if kind == "json_invalid":  # texts of the command line may hold bytes of any kind
        return "a text is not valid Unicode; expected UTF-8"
    if kind == "missing":
        return f"{key} is missing{more}"
    if kind not in _EXPECTED:
        message = problem["msg"].removeprefix("Value error, ")
        if kind == "value_error":  # our own sentence, about a whole table
            return f"[{key}] {message}{more}" if key else f"{message}{more}"
        return f"{key} = {_shown(problem['input'])}: {message[:1].lower() + message[1:]}{more}"
    expected = _EXPECTED[kind].format(**problem.get("ctx", {}))
    field = _field_at(root, location)
    if field is not None and field.description and kind == "string_pattern_mismatch":
        expected = field.description
    if kind == "literal_error":
        expected = expected.replace("True", "true").replace("False", "false")
        expected += _why(field, problem["input"])
    subject = f"{key} = {_shown(problem['input'])}" if key else _shown(problem["input"])
    return f"{subject}: expected {expected}{more}"


def _why(field: FieldInfo | None, given: object) -> str:
    """The nearest valid value, and what the field's description says about the others."""
    if field is None:
        return ""
    valid = [str(value) for value in _values(field.annotation)]
    near = difflib.get_close_matches(str(given), valid, n=1, cutoff=0.5)
    reason = f" ({field.description})" if field.description else ""
    return reason + (f"; did you mean {near[0]!r}?" if near else "")


def _values(annotation: Any) -> list[Any]:  # noqa: ANN401 - any type
    """The values of a Literal, also within a list or beside None."""
    found: list[Any] = []
    for part in get_args(annotation):
        found += _values(part) if get_args(part) else [part] if isinstance(part, str) else []
    return found


def _model_at(root: type[BaseModel], location: Sequence[str]) -> type[BaseModel]:
    model = root
    for part in location:
        field = model.model_fields.get(part)
        annotation = field.annotation if field else None
        possible = (annotation, *get_args(annotation))  # a table may be left out: ``Table | None``
        tables = [t for t in possible if isinstance(t, type) and issubclass(t, BaseModel)]
        if not tables:
            break
        model = tables[0]
    return model


def _field_at(root: type[BaseModel], location: Sequence[str]) -> FieldInfo | None:
    names = [part for part in location if not part.isdigit()]
    return _model_at(root, names[:-1]).model_fields.get(names[-1]) if names else None


def _shown(value: object) -> str:
    """A value as it stands in a file, on one line and not too long."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
