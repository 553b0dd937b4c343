"""``[aggregate]``: how adapters become one, and what goes with what."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from shared.adapter import Factor
from shared.config.table import Table

AggregationRule = Literal[
    "fedavg", "ffa", "altfold", "flexlora", "fedex", "flora", "creamfl", "fedsa"
]
CombiningRule = Literal[
    "mean", "trimmed-mean", "median", "geometric-median", "multi-krum", "clipped-mean"
]
ServerOptimization = Literal["none", "momentum", "adam", "yogi"]

_FOLDING_RULES: Final = ("altfold", "ffa")
OWN_MODELS: Final[Mapping[str, tuple[Factor, ...]]] = {"fedsa": ("B",), "creamfl": ("A", "B")}
"""Rules without a shared model, and the factors that every site trains and keeps to itself."""
_PRODUCT_RULES: Final = ("flexlora", "fedex", "flora")
"""They multiply each site's factors, so the server must see them one by one."""
_COUNTING_RULES: Final = ("trimmed-mean", "median", "multi-krum")
"""They count every site once, whatever it weighs."""
_MEANS: Final = ("mean", "clipped-mean")
"""Weighted means of the sites' changes."""
_LEAST_SITES: Final = {"trimmed-mean": 1, "multi-krum": 3}
"""Sites that a rule needs beyond twice the hostile ones."""


class AggregateConfig(Table):
    """``[aggregate]``: how adapters become one."""

    rule: AggregationRule = "altfold"
    """Which factors the sites train and what becomes of them; see docs/methods.md."""
    combine: CombiningRule = "mean"
    """fedavg, ffa, altfold and fedsa: how the sites' changes become one. All but ``mean`` withstand
    hostile or broken sites, and need every site's change."""
    hostile: Annotated[int, Field(ge=0)] = 0
    """trimmed-mean and multi-krum: how many hostile or broken sites to withstand, f; of those
    that trained a tower they need 2 f + 1 and 2 f + 3."""
    tail: Literal["drop", "fold"] = "drop"
    """flexlora: what becomes of the mean product beyond the rank, ``fold`` into the base."""
    fold_every: Annotated[int, Field(ge=0)] = 4
    """altfold and ffa: fold the adapter into the base every so many rounds; 0 never."""
    server_optimizer: ServerOptimization = "none"
    """fedavg, fedsa, and ffa without folding: what makes a step of the sites' common change."""
    server_learning_rate: Annotated[float, Field(gt=0)] = 1.0
    """Of that step: 1 is the change itself; adam and yogi 0.01 if not given."""
    weighting: Literal["sqrt", "size", "equal"] = "sqrt"
    """How much a site counts, by its training records in the tower."""
    max_weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """No site counts more than this share of a tower (as long as that can be met)."""
    clip_norm: Annotated[float, Field(gt=0)] = 16.0
    """A site's change is scaled down to this L2 norm before it leaves."""
    cohort: Annotated[int, Field(ge=1)] | None = None
    """Sites asked per round; all if not given."""
    over_select: Annotated[int, Field(ge=0)] = 0
    """Sites asked beyond the cohort; the round closes when enough have answered, so that its
    result depends on who was fast: with it a run does not repeat bit for bit."""
    quorum: Annotated[int, Field(ge=1)] | None = None
    """Least admitted replies; half of the cohort (rounded up) if not given."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """No site is waited for longer in a round. In a deployment one is given up earlier if it is
    not heard of for minutes, or needs several times what its earlier rounds let expect."""

    @model_validator(mode="before")
    @classmethod
    def _what_the_rule_implies(cls, values: object) -> object:
        # Written out, so that a job means the same after a trip through a file or a message.
        if isinstance(values, dict):
            if values.get("rule", "altfold") not in _FOLDING_RULES:
                values = {"fold_every": 0, **values}
            if values.get("combine") in _COUNTING_RULES:
                values = {"weighting": "equal", **values}
            if values.get("server_optimizer") in ("adam", "yogi"):
                values = {"server_learning_rate": 0.01, **values}
        return values

    @property
    def applies_the_mean(self) -> bool:
        """Whether the change that is applied is the weighted mean of the sites' changes."""
        plain = self.server_optimizer == "none" and self.server_learning_rate == 1.0
        return plain and self.combine == "mean"

    @property
    def private_factors(self) -> tuple[Factor, ...]:
        """The factors that every site trains and keeps to itself."""
        return OWN_MODELS.get(self.rule, ())

    @property
    def shares_features(self) -> bool:
        """Whether sites exchange features of the public set, and no factor at all."""
        return self.rule == "creamfl"

    @property
    def needs_every_change(self) -> bool:
        """Whether the server must see each site's change; else it needs their sum only."""
        return self.combine != "mean" or self.rule in _PRODUCT_RULES

    @property
    def least_sites(self) -> int:
        """How many sites the rule needs at least."""
        beyond = _LEAST_SITES.get(self.combine)
        return 1 if beyond is None else 2 * self.hostile + beyond

    def unsound(self) -> str | None:
        """Return why the options do not go together and what to do instead, or ``None``."""
        return next(_contradictions(self), None)


def _contradictions(config: AggregateConfig) -> Iterator[str]:
    """Yield what does not go together, each with its reason and its remedy."""
    yield from _beside_the_rule(config)
    yield from _beside_the_combining(config)
    if config.cohort is not None and config.quorum is not None and config.quorum > config.cohort:
        yield f"aggregate.quorum = {config.quorum} can never be met by cohort = {config.cohort}"


def _beside_the_rule(config: AggregateConfig) -> Iterator[str]:
    rule, combine = config.rule, config.combine
    if config.fold_every and rule == "fedavg":
        yield (
            "aggregate.fold_every needs altfold or ffa: fedavg trains both factors, so "
            "their product is not the mean of the sites' products and must not be folded"
        )
    if config.fold_every and rule == "fedsa":
        yield (
            "aggregate.fold_every needs altfold or ffa: fedsa has no product that all sites share "
            "and that could move into the base; leave fold_every out"
        )
    elif config.fold_every and rule not in _FOLDING_RULES:
        yield (
            f"aggregate.fold_every needs altfold or ffa: {rule} has its own way with the base; "
            "leave fold_every out"
        )
    if config.shares_features:
        yield from _beside_features(config)
    if config.tail == "fold" and rule != "flexlora":
        yield (f"aggregate.tail = 'fold' needs flexlora: {rule} cuts no tail off; leave tail out")
    if rule in _PRODUCT_RULES and combine != "mean":
        yield (
            f"aggregate.combine = '{combine}' needs altfold, ffa or fedavg: {rule} is made of the "
            "mean of the sites' products, which one hostile site can move anywhere; use altfold"
        )
    if rule in _PRODUCT_RULES and config.server_learning_rate != 1.0:
        yield (
            f"aggregate.server_learning_rate needs altfold, ffa or fedavg: {rule} puts the mean "
            "of the sites' products in place of the old one and takes no step; leave it out"
        )
    steady = rule in ("ffa", "fedavg", "fedsa") and not config.fold_every
    if config.server_optimizer != "none" and not steady:
        yield (
            f"aggregate.server_optimizer = '{config.server_optimizer}' needs fedavg, fedsa, or ffa "
            "with fold_every = 0: other rules turn or replace the factors, so that what is "
            "remembered of a coordinate would belong to another; leave it out"
        )


def _beside_features(config: AggregateConfig) -> Iterator[str]:
    """Options that are about changes of an adapter, where none is sent."""
    for name in ("combine", "server_learning_rate", "weighting", "max_weight", "clip_norm"):
        value = getattr(config, name)
        if value != AggregateConfig.model_fields[name].default:
            yield (
                f"aggregate.{name} = {value!r} is about changes of an adapter, and with creamfl "
                "none is sent: features count by how well they tell the public pairs apart; leave "
                f"{name} out, or use a rule that shares an adapter"
            )


def _beside_the_combining(config: AggregateConfig) -> Iterator[str]:
    combine, hostile = config.combine, config.hostile
    if combine in _COUNTING_RULES and config.weighting != "equal":
        yield (
            f"aggregate.weighting must be 'equal' with combine = '{combine}', which counts every "
            "site once; or use 'geometric-median', which weighs sites"
        )
    if combine in _LEAST_SITES:
        if not hostile:
            yield (
                f"aggregate.combine = '{combine}' with hostile = 0 would leave nobody out; give "
                "aggregate.hostile, the number of sites that may be hostile or broken"
            )
        least = config.least_sites
        for key, number in (("cohort", config.cohort), ("quorum", config.quorum)):
            if number is not None and number < least:
                yield (
                    f"aggregate.{key} = {number} is too few for combine = '{combine}', which "
                    f"needs {least} sites to withstand hostile = {hostile}; raise {key} or lower "
                    "hostile"
                )
    elif hostile:
        yield (
            f"aggregate.hostile needs trimmed-mean or multi-krum: combine = '{combine}' does not "
            "ask how many sites are hostile; leave it out"
        )
