"""What is compared: ``rule``, with how changes are combined and with a personalization if named.

``fedavg``, ``altfold+duet``, ``fedavg+trimmed-mean``, ``fedavg+median+finetune``: the names that a
job file takes in ``aggregate.rule``, ``aggregate.combine`` and ``personalize.method``.
"""

import difflib
from dataclasses import dataclass

from client.personalization import PERSONALIZATIONS
from server.aggregation import AGGREGATORS, COMBINERS
from shared.errors import ConfigError

SHARED_ONLY = "none"
"""Personalization of a method that names none: the shared adapter as it is."""

_IMPLIED = {"fedsa": "own-factor", "creamfl": "own-factor"}
"""Personalization of a method that names none, where the rule has no shared model."""

MEAN = "mean"
"""How changes are combined if a method does not say."""

REFERENCES = ("local", "centralised")
"""Rows of every table: each site alone, and one adapter trained on all sites' records."""


@dataclass(frozen=True)
class Method:
    """One way to get from the sites' records to the adapters that they use.

    Attributes:
        rule: Of aggregation, a key of ``AGGREGATORS``.
        personalization: A key of ``PERSONALIZATIONS``.
        combine: A key of ``COMBINERS``.
    """

    rule: str
    personalization: str = SHARED_ONLY
    combine: str = MEAN

    @property
    def implied(self) -> str:
        """The personalization of a method that names none."""
        return _IMPLIED.get(self.rule, SHARED_ONLY)

    @property
    def name(self) -> str:
        """The method as it is written on the command line."""
        parts = [self.rule]
        parts += [self.combine] if self.combine != MEAN else []
        parts += [self.personalization] if self.personalization != self.implied else []
        return "+".join(parts)

    @property
    def personal(self) -> bool:
        """Whether sites get adapters of their own."""
        return self.personalization != SHARED_ONLY

    @property
    def settings(self) -> dict[str, str]:
        """What the method sets in a job, by dotted key."""
        return {
            "aggregate.rule": self.rule,
            "aggregate.combine": self.combine,
            "personalize.method": self.personalization,
        }


def parse_methods(text: str) -> tuple[Method, ...]:
    """Read ``a,b+c,d``, in the order given, each once; references are there anyway.

    Raises:
        ConfigError: If nothing is named, or something that does not exist.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    methods = [parse_method(name) for name in names if name not in REFERENCES]
    if not methods:
        raise ConfigError(
            f"--methods {text!r}: expected at least one rule ({', '.join(sorted(AGGREGATORS))}), "
            "alone or with a personalization, such as fedavg,altfold+duet"
        )
    return tuple(dict.fromkeys(methods))


def parse_method(name: str) -> Method:
    """Read one method; what follows the rule may stand in either order.

    Raises:
        ConfigError: If a part does not exist, with the nearest that does.
    """
    rule, *parts = (part.strip() for part in name.split("+"))
    if rule not in AGGREGATORS:
        raise _unknown(name, "aggregation rule", rule, list(AGGREGATORS))
    found: dict[str, str] = {}
    for part in parts:
        kind = "combine" if part in COMBINERS else "personalization"
        if part not in COMBINERS and part not in PERSONALIZATIONS:
            raise _unknown(name, "personalization", part, [*PERSONALIZATIONS, *COMBINERS])
        if kind in found:
            raise ConfigError(
                f"--methods {name}: {found[kind]!r} and {part!r} are two of a kind; a method is "
                "a rule with at most one way to combine and one personalization"
            )
        found[kind] = part
    return Method(rule, **{"personalization": _IMPLIED.get(rule, SHARED_ONLY), **found})


def _unknown(name: str, what: str, given: str, valid: list[str]) -> ConfigError:
    near = difflib.get_close_matches(given, valid, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ConfigError(
        f"--methods {name}: unknown {what} {given!r}; expected one of {', '.join(valid)}{hint}"
    )
