"""The job file: one TOML that says everything a run does, read into a frozen ``JobConfig``.

The same file serves simulation and deployment. What a site owns (paths, device, policy)
is not in it. Unknown keys are refused with the nearest valid one; combinations that are
unsound are refused with a sentence that says why.
"""

import copy
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from shared.adapter import Factor
from shared.errors import ConfigError
from shared.results import Kind, Metric
from shared.toml_files import first_problem, read_toml

AggregationRule = Literal[
    "fedavg", "ffa", "altfold", "flexlora", "fedex", "flora", "creamfl", "fedsa"
]
CombiningRule = Literal[
    "mean", "trimmed-mean", "median", "geometric-median", "multi-krum", "clipped-mean"
]
ServerOptimization = Literal["none", "momentum", "adam", "yogi"]
PersonalizationMethod = Literal[
    "duet", "none", "finetune", "local", "ditto", "fedper", "feddat", "own-factor"
]
PartitionRule = Literal["sites", "column", "iid", "dirichlet", "pathological", "quantity"]
Engine = Literal["local", "flower"]
AttackKind = Literal["scale", "flip", "nan", "shape", "dtype", "weights", "stale"]
Precision = Literal["auto", "float32", "bfloat16"]

COMMAND_LINE: Final = "command line"
"""Stands for the job's file in messages about values that replace those of the file."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Rates = Annotated[
    dict[str, Annotated[float, Field(ge=0, le=1)]],
    BeforeValidator(lambda given: {"all": given} if isinstance(given, int | float) else given),
]
"""A rate of each site; ``all`` stands for those that are not named, a number for all."""


class DataConfig(_Table):
    """``[data]``: where the records are. Without ``folder`` the run makes phantoms."""

    folder: Annotated[str, Field(min_length=1)] | None = None
    """A folder of site folders, one site folder's table, or one table with a site column."""
    site_column: str | None = None
    """Column that names the site, when all sites are in one table."""
    columns: dict[str, str] = {}
    """Mapping from our names (file_name, text, labels, patient_id, split) to the table's."""
    phantoms: Literal["default", "conflict"] = "default"
    """Which synthetic federation to make when there is no folder."""
    phantom_sites: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """How many synthetic sites; the federation's own eight if not given."""
    sites: list[str] = []
    """Only these sites take part; empty means all."""
    image_only: list[str] = []
    """Sites whose texts are ignored."""
    text_only: list[str] = []
    """Sites whose images are ignored."""


class PartitionConfig(_Table):
    """``[partition]``: the records of all sites, dealt out anew to simulated sites."""

    by: PartitionRule = "sites"
    """How patients find their site; ``sites`` keeps the sites as they are (docs/data.md)."""
    sites: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """How many sites to make; not for ``sites`` and ``column``, where the records say it."""
    column: Annotated[str, Field(min_length=1)] | None = None
    """``column``: the column that names the site, ``data.site_column`` if not given.
    dirichlet and pathological: the column whose values are the classes; the labels if not given."""
    alpha: Annotated[float, Field(ge=1e-3, le=1e6)] = 0.5
    """dirichlet, and quantity with ``sizes = 'dirichlet'``: small is uneven, large is even."""
    min_size: Annotated[int, Field(ge=1)] = 2
    """Least training records of a site; what is drawn at random is drawn again if need be."""
    self_balancing: bool = False
    """dirichlet: a site that has more than its even share gets nothing of the classes to come."""
    classes_per_site: Annotated[int, Field(ge=1)] = 2
    """pathological: how many classes a site has."""
    assignment: Literal["random", "deterministic", "first-deterministic"] = "random"
    """pathological: which ones."""
    sizes: Literal["linear", "square", "exponential", "dirichlet"] = "linear"
    """quantity: how the size of a site grows with its number."""
    kinds: dict[Kind, Annotated[float, Field(ge=0, le=1)]] = {}
    """Shares of the sites that are paired, image, text and unpaired; they sum to 1."""
    missing_image: Rates = {}
    """Share of a site's pairs that lose their image: a number, or a table of sites and ``all``."""
    missing_text: Rates = {}
    """Share of a site's pairs that lose their text; of other pairs than ``missing_image``."""
    noisy_pairs: Rates = {}
    """Share of a site's pairs whose texts are exchanged with those of other patients."""
    keep_style: bool = True
    """Phantoms: every report in the style of the site it was drawn for; else all in one."""

    @property
    def active(self) -> bool:
        """Whether the simulated sites differ from those that were given."""
        return self != PartitionConfig()

    @model_validator(mode="after")
    def _options_are_used(self) -> Self:
        used = {"by", "min_size", "kinds", "missing_image", "missing_text", "noisy_pairs"}
        used |= {"keep_style", *_PARTITION_OPTIONS[self.by]}
        if self.by == "quantity" and self.sizes != "dirichlet":
            used.discard("alpha")
        for name, value in PartitionConfig.model_construct():
            if name not in used and getattr(self, name) != value:
                users = [by for by, options in _PARTITION_OPTIONS.items() if name in options]
                raise ValueError(
                    f"partition.{name} is not used by partition.by = '{self.by}', but by "
                    f"{' and '.join(users)}; leave it out"
                )
        if self.sites is None and "sites" in _PARTITION_OPTIONS[self.by]:
            raise ValueError(
                f"partition.by = '{self.by}' needs partition.sites, how many sites to make"
            )
        if self.kinds and abs(sum(self.kinds.values()) - 1) > 1e-6:
            raise ValueError(
                f"partition.kinds are shares of the sites and must sum to 1, not to "
                f"{sum(self.kinds.values()):g}"
            )
        for site in {*self.missing_image, *self.missing_text}:
            lost = rate_of(self.missing_image, site) + rate_of(self.missing_text, site)
            if lost > 1:
                raise ValueError(
                    f"partition.missing_image and missing_text of {site!r} sum to {lost:g}: a "
                    "pair can lose one of its sides only; expected at most 1"
                )
        return self


_PARTITION_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "sites": (),
    "column": ("column",),
    "iid": ("sites",),
    "dirichlet": ("sites", "column", "alpha", "self_balancing"),
    "pathological": ("sites", "column", "classes_per_site", "assignment"),
    "quantity": ("sites", "sizes", "alpha"),
}
"""What each partition needs to know, apart from what all take."""


def rate_of(rates: Mapping[str, float], site: str) -> float:
    """Return a site's rate: its own, else that of ``all``, else 0."""
    return rates.get(site, rates.get("all", 0.0))


class ModelConfig(_Table):
    """``[model]``: the frozen encoder that all sites start from."""

    base: Annotated[str, Field(min_length=1)] = "consilia-tiny"
    """``consilia-tiny``, a local folder, or a Hugging Face hub id of the CLIP family."""
    bases: dict[str, Annotated[str, Field(min_length=1)]] = {}
    """creamfl: sites that start from another base than ``base``, and which."""
    sha256: str | None = None
    """Expected sha256 of the base weights; the run refuses another."""
    precision: Precision = "auto"
    """Of frozen weights and activations; trained factors are always float32. ``auto``: bfloat16
    where the device is faster with it (GPUs, CPUs with AMX or AVX512-BF16)."""
    max_tokens: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Longest text in tokens; the base's own limit if not given."""
    compile: bool = False
    """Let torch compile norms and activations (``torch.compile``); plain CLIP models only. It takes
    minutes and changes results by rounding. Off: on CPUs a run does not earn that back, and on
    GPUs it was not measured."""


class LoraConfig(_Table):
    """``[lora]``: low-rank adapters (Hu et al., 2021, https://arxiv.org/abs/2106.09685)."""

    rank: Annotated[int, Field(ge=1, le=256)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    targets: list[str] = ["attention", "mlp", "projection"]
    """Groups (attention, mlp, projection) or module names such as ``q_proj``."""
    layers: str = "all"
    """``all``; ``top:N``: only the N last layers of each tower; ``top:1/3``: that share of them."""
    ranks: dict[str, Annotated[int, Field(ge=1, le=256)]] = {}
    """Ranks of sites that train fewer than ``rank`` columns, by site (docs/methods.md)."""

    @model_validator(mode="after")
    def _no_rank_above(self) -> Self:
        for site, rank in self.ranks.items():
            if rank > self.rank:
                raise ValueError(
                    f"lora.ranks gives {site!r} rank {rank}, more than lora.rank = {self.rank}; "
                    "raise lora.rank, the largest of all, or give the site a smaller one"
                )
        return self

    def rank_of(self, site: str) -> int:
        """Return how many columns a site trains."""
        return self.ranks.get(site, self.rank)

    @property
    def scaling(self) -> float:
        """``alpha / rank``, the factor s in W0 + s B A."""
        return self.alpha / self.rank


class TrainConfig(_Table):
    """``[train]``: what a site does in one round."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-3
    batch_size: Annotated[int, Field(ge=2, le=65536)] = 32
    steps: Annotated[int, Field(ge=1)] | None = 8
    """Optimiser steps a round; or ``epochs``."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 2
    schedule: Literal["constant", "cosine"] = "cosine"
    """Of the learning rate over all rounds of the run; a warm-up starts every round."""
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    shift_pixels: Annotated[int, Field(ge=0)] = 2
    """Images are shifted at random by up to this many pixels."""
    label_similarity: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Kappa of the soft InfoNCE targets: weight of records that share labels; 0 is CLIP with
    identical texts as positives."""
    anchor: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the anchor that keeps a lone tower in the frozen other one's space."""
    proximal: Annotated[float, Field(ge=0)] = 0.0
    """FedProx: mu / 2 times the squared distance to the received factors."""
    balance: Annotated[float, Field(ge=0, le=10)] = 0.0
    """OGM-GE: a of the factor 1 - tanh(a rho) on the steps of the tower whose gradient norm is rho
    times the other one's, rho > 1; 0 leaves both alone, the paper uses 0.1 to 0.8."""
    prefix_cache_mb: Annotated[int, Field(ge=0)] = 512
    """MB (2**20 bytes) of memory in which a process keeps what layers below the first adapted one
    (``lora.layers = 'top:N'``) give, over all its sites; 0 computes it in every step. Pictures
    need ``shift_pixels = 0``. It changes no result beyond rounding."""

    @model_validator(mode="before")
    @classmethod
    def _epochs_replace_steps(cls, data: Any) -> Any:  # noqa: ANN401 - whatever was read
        if isinstance(data, dict) and data.get("epochs") is not None:
            return {"steps": None, **data}
        return data

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs, not both and not neither")
        return self


_FOLDING_RULES: Final = ("altfold", "ffa")
_DISTILLED_RULES: Final = ("fedavg", "ffa", "altfold")
_OWN_MODELS: Final[Mapping[str, tuple[Factor, ...]]] = {"fedsa": ("B",), "creamfl": ("A", "B")}
"""Rules without a shared model, and the factors that every site trains and keeps to itself."""
_PRODUCT_RULES: Final = ("flexlora", "fedex", "flora")
"""They multiply each site's factors, so the server must see them one by one."""
_COUNTING_RULES: Final = ("trimmed-mean", "median", "multi-krum")
"""They count every site once, whatever it weighs."""
_MEANS: Final = ("mean", "clipped-mean")
"""Weighted means of the sites' changes."""
_LEAST_SITES: Final = {"trimmed-mean": 1, "multi-krum": 3}
"""Sites that a rule needs beyond twice the hostile ones."""


class AggregateConfig(_Table):
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
    """Sites asked beyond the cohort; the round closes when enough have answered."""
    quorum: Annotated[int, Field(ge=1)] | None = None
    """Least admitted replies; half of the cohort (rounded up) if not given."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 3600.0

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
        return _OWN_MODELS.get(self.rule, ())

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


class PersonalizeConfig(_Table):
    """``[personalize]``: the adapter that never leaves a site (docs/personalization.md)."""

    method: PersonalizationMethod = "duet"
    rank: Annotated[int, Field(ge=1, le=256)] = 8
    """Of duet and local; the others go on from the shared factors and have their rank."""
    steps: Annotated[int, Field(ge=0)] = 60
    """Optimiser steps of the fit on the finished shared adapter; 0 uses that as it is. Not of
    own-factor, which the rounds have trained."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-3
    distill: Annotated[float, Field(ge=0)] = 0.1
    """duet: lambda_P, weight of the feature distillation from shared to personal."""
    proximal: Annotated[float, Field(ge=0)] = 1.0
    """ditto: mu / 2 times the squared distance to the shared factors; 0 is finetune."""
    use: Literal["if-better", "always"] = "if-better"
    """Of the own adapter: in a tower where it beats the shared one on the site's validation
    records, or always, as in papers that do not look."""
    grid_from: Annotated[int, Field(ge=1)] = 200
    """From so many validation pairs on, alpha is chosen from 0, 1/4, 1/2, 3/4, 1."""

    @property
    def fits(self) -> bool:
        """Whether the method gives sites something of their own."""
        return self.method != "none" and (self.steps > 0 or self.method == "own-factor")


class PrivacyConfig(_Table):
    """``[privacy]``: there is no differential privacy yet, and a job may not ask for it."""

    differential_privacy: Annotated[
        Literal[False], Field(description="there is none yet, so no job may ask for it")
    ] = False


LEAST_PROXY_PAIRS: Final = 8
"""Least pairs of a public set to distil on, and least to validate on."""


class ProxyConfig(_Table):
    """``[proxy]``: a public paired set.

    With ``aggregate.rule = 'creamfl'`` every site has it, and its features are what the sites
    exchange; else the server distils on it. Without one there is neither.
    """

    folder: Annotated[str, Field(min_length=1)] | None = None
    """The set: a folder in the format of a site's data (docs/data.md), or its table."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """creamfl: expected sha256 of the set's files and texts; a site refuses another."""
    phantoms: Annotated[int, Field(ge=16, le=100_000)] | None = None
    """So many synthetic pairs instead, of patients that no synthetic site has."""
    every: Annotated[int, Field(ge=1)] = 1
    """Distil after every so many rounds."""
    steps: Annotated[int, Field(ge=1, le=100_000)] = 50
    """Optimiser steps, of ``train.batch_size`` pairs."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the sites' weights per pair: small leaves the best site alone, large is their mean."""
    contrast: Annotated[float, Field(ge=0)] = 0.5
    """creamfl: how much the contrast with the common features counts in a site's loss."""
    contrast_temperature: Annotated[float, Field(gt=0)] = 0.5
    """creamfl: of that contrast; small tells near items apart."""
    weight: Annotated[float, Field(ge=0)] = 0.5
    """Lambda: how much staying with the aggregated adapter counts, beside the ensemble's 1."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the pairs, by patient, that decides whether the distilled adapter is taken."""

    @property
    def active(self) -> bool:
        """Whether there is a set."""
        return self.folder is not None or self.phantoms is not None

    def unsound(self, aggregate: AggregateConfig) -> str | None:
        """Return why this does not go with the aggregation and what to do, or ``None``."""
        if aggregate.shares_features:
            checks = _for_features(self)
        else:
            checks = (
                _beside_the_aggregation(self, aggregate) if self.active else _without_a_set(self)
            )
        return next(checks, None)


def _without_a_set(config: ProxyConfig) -> Iterator[str]:
    for name, value in ProxyConfig():
        if getattr(config, name) != value:
            yield (
                f"proxy.{name} has no pairs to work on; give proxy.folder, or in simulations of "
                "phantoms proxy.phantoms, or leave [proxy] out"
            )


_TWO_SETS: Final = "proxy.folder and proxy.phantoms are two sets; leave one of them out"


def _for_features(config: ProxyConfig) -> Iterator[str]:
    if not config.active:
        yield (
            "aggregate.rule = 'creamfl' exchanges features of public pairs, and there are none; "
            "give proxy.folder, or in simulations of phantoms proxy.phantoms"
        )
    if config.folder is not None and config.phantoms is not None:
        yield _TWO_SETS
    for name in ("every", "steps", "learning_rate", "weight", "held_out"):
        if getattr(config, name) != ProxyConfig.model_fields[name].default:
            yield (
                f"proxy.{name} is about distillation at the server, which creamfl does not do: it "
                "has no model there; leave it out"
            )


def _beside_the_aggregation(config: ProxyConfig, aggregate: AggregateConfig) -> Iterator[str]:
    smaller = min(config.held_out, 1 - config.held_out)
    if config.folder is not None and config.phantoms is not None:
        yield _TWO_SETS
    for name in ("sha256", "contrast", "contrast_temperature"):
        if getattr(config, name) != ProxyConfig.model_fields[name].default:
            yield f"proxy.{name} needs aggregate.rule = 'creamfl'; leave it out"
    if config.phantoms is not None and config.phantoms * smaller < LEAST_PROXY_PAIRS:
        yield (
            f"proxy.phantoms = {config.phantoms} with held_out = {config.held_out:g} leaves too "
            "few pairs to distil or to validate on; give at least "
            f"{math.ceil(LEAST_PROXY_PAIRS / smaller)}"
        )
    if aggregate.rule not in _DISTILLED_RULES:
        yield (
            f"[proxy] needs fedavg, ffa or altfold: what {aggregate.rule} makes of the sites' "
            "factors is not an adapter that they trained, so a step of the server on it would "
            "undo what the rule promises; use one of those or leave [proxy] out"
        )
    if aggregate.combine != "mean":
        yield (
            "[proxy] learns from every site's adapter, those that aggregate.combine = "
            f"'{aggregate.combine}' is to withstand as well; leave one of the two out"
        )


class EvaluateConfig(_Table):
    """``[evaluate]``: how runs are scored; fixed before the run."""

    main: Metric = "auroc"
    """The measure of the report's first question."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """Least absolute difference that is called better or worse."""
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 1000
    baselines: list[Literal["local", "centralised"]] = ["local", "centralised"]
    gallery_queries: Annotated[int, Field(ge=0, le=12)] = 4
    minimum_count: Annotated[int, Field(ge=1)] = 20


class AttackConfig(_Table):
    """``[attack]``: simulated sites that send something else than what they trained."""

    sites: dict[str, AttackKind] = {}
    """Kind of attack by site: scale, flip, nan, shape, dtype, weights or stale."""


class SimulationConfig(_Table):
    """``[simulation]``: one machine that plays all sites."""

    engine: Engine = "local"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1)] = 1
    """Threads per process; part of what makes results repeat bit for bit."""
    samples_at_once: Annotated[int, Field(ge=1)] | None = None
    """Training samples of one step, over all sites of a cohort; by the device and its free memory
    if not given. 1 trains one site after the other."""
    workers: Annotated[int, Field(ge=1)] = 2
    """Processes: with two or more, the baselines train beside the federation."""


class JobConfig(_Table):
    """A job: everything that decides a run's numbers, apart from the data and the machine."""

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=64,
            pattern=r"^[A-Za-z0-9][\w.-]*$",
            description="letters, digits, _ . and -, beginning with a letter or digit",
        ),
    ]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 10
    data: DataConfig = DataConfig()
    partition: PartitionConfig = PartitionConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    train: TrainConfig = TrainConfig()
    aggregate: AggregateConfig = AggregateConfig()
    personalize: PersonalizeConfig = PersonalizeConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    proxy: ProxyConfig = ProxyConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    attack: AttackConfig = AttackConfig()
    simulation: SimulationConfig = SimulationConfig()

    @model_validator(mode="before")
    @classmethod
    def _what_the_rule_implies(cls, values: object) -> object:
        if isinstance(values, dict):
            aggregate, own = values.get("aggregate"), values.get("personalize", {})
            rule = aggregate.get("rule") if isinstance(aggregate, dict) else None
            if rule in _OWN_MODELS and isinstance(own, dict):
                own = {"method": "own-factor", "use": "always", **own}
                values = {**values, "personalize": own}
            model, scored = values.get("model"), values.get("evaluate", {})
            if isinstance(model, dict) and model.get("bases") and isinstance(scored, dict):
                # No adapter fits all bases, so that none could be trained on all records.
                values = {**values, "evaluate": {"baselines": ["local"], **scored}}
        return values

    @model_validator(mode="after")
    def _sound(self) -> Self:
        unsound = self.aggregate.unsound() or self._unsound_beside_the_rule()
        unsound = unsound or self.proxy.unsound(self.aggregate)
        if unsound:
            raise ValueError(unsound)
        if self.proxy.phantoms is not None and self.data.folder is not None:
            raise ValueError(
                "proxy.phantoms makes synthetic pairs, and data.folder holds records of your own; "
                "give proxy.folder, a public set that is like them"
            )
        projections = [target for target in self.lora.targets if "projection" in target]
        if self.personalize.method == "fedper" and not projections:
            raise ValueError(
                "personalize.method = 'fedper' makes the projections a site's own, and "
                "lora.targets adapts none; add 'projection' or use 'finetune'"
            )
        strangers = sorted(set(self.lora.ranks) - set(self.data.sites))
        if self.data.sites and strangers:
            raise ValueError(
                f"lora.ranks names {strangers[0]!r}, which is not among data.sites: "
                f"{', '.join(self.data.sites)}"
            )
        if self.partition.active:
            given = [k for k in ("sites", "image_only", "text_only") if getattr(self.data, k)]
            if given:
                raise ValueError(
                    f"data.{given[0]} names sites as they are, and [partition] makes others; leave "
                    "it out (partition.kinds makes sites of one modality)"
                )
            column = self.partition.column or self.data.site_column
            if self.partition.by == "column" and not column:
                raise ValueError("partition.by = 'column' needs partition.column")
        if self.attack.sites and self.simulation.engine == "flower":
            raise ValueError("attack needs simulation.engine = 'local', which plays the attackers")
        both = set(self.data.image_only) & set(self.data.text_only)
        if both:
            raise ValueError(f"data: {sorted(both)[0]} is both image_only and text_only")
        return self

    def _unsound_beside_the_rule(self) -> str | None:
        """Return why the rule does not go with what other tables say, or ``None``."""
        method, private = self.personalize.method, self.aggregate.private_factors
        if private and method != "own-factor":
            own = "its own A and B" if "A" in private else "the shared A with its own B"
            return (
                f"personalize.method = '{method}' starts from the shared model, and aggregate.rule "
                f"= '{self.aggregate.rule}' has none: a site's model is {own}; use 'own-factor' "
                "or leave method out"
            )
        if method == "own-factor" and not private:
            return (
                "personalize.method = 'own-factor' needs aggregate.rule = 'fedsa' or 'creamfl': "
                f"with '{self.aggregate.rule}' no site keeps a factor to itself; use another method"
            )
        return next(self._unsound_beside_features(), None) or self._unsound_with_ranks()

    def _unsound_with_ranks(self) -> str | None:
        """Return why sites of smaller rank do not go with the aggregation, or ``None``."""
        rule, combine = self.aggregate.rule, self.aggregate.combine
        if all(rank == self.lora.rank for rank in self.lora.ranks.values()):
            return None
        if self.aggregate.private_factors:
            return (
                f"lora.ranks does not go with {rule}: sites keep factors to themselves, so no mean "
                "of products makes up for what a site does not train; use another rule, such as "
                "flexlora, or leave lora.ranks out"
            )
        if combine not in _MEANS:
            return (
                f"lora.ranks does not go with aggregate.combine = '{combine}': columns that a site "
                "does not train would count as its wish to leave them as they are; use 'mean' or "
                "'clipped-mean', or leave lora.ranks out"
            )
        return None

    def _unsound_beside_features(self) -> Iterator[str]:
        features = self.aggregate.shares_features
        if self.model.bases and not features:
            yield (
                "model.bases needs aggregate.rule = 'creamfl': with "
                f"'{self.aggregate.rule}' all sites train one adapter, which fits one base only; "
                "leave bases out"
            )
        if self.model.bases and "centralised" in self.evaluate.baselines:
            yield (
                "evaluate.baselines: 'centralised' trains one adapter on all records, and none "
                "fits all of model.bases; leave it out"
            )
        if features and self.attack.sites:
            yield (
                "attack.sites change what a site sends of an adapter, and with creamfl none is "
                "sent; leave [attack] out, or use a rule that shares an adapter"
            )

    def at(self, site: str) -> Self:
        """Return the job as a site sees it: with the base that it starts from."""
        base = self.model.bases.get(site)
        if base is None:
            return self
        own = self.model.model_copy(update={"base": base, "bases": {}, "sha256": None})
        return self.model_copy(update={"model": own})

    @property
    def distils(self) -> bool:
        """Whether the server distils on a public set."""
        return self.proxy.active and not self.aggregate.shares_features

    def digest(self) -> str:
        """Return the sha256 of everything that decides the numbers.

        Where the data lie and which engine carries the messages are left out, so that a
        job keeps its digest between a simulation and a deployment.
        """
        # Without a partition or a proxy set a job keeps the digest from before there were any.
        left_out: dict[str, bool | set[str]] = {"simulation": True, "data": {"folder"}}
        if not self.partition.active:
            left_out["partition"] = True
        if not self.lora.ranks:
            left_out["lora"] = {"ranks"}
        left_out["proxy"] = {"folder"} if self.proxy.active else True
        if not self.model.bases:
            left_out["model"] = {"bases"}
        content = self.model_dump(mode="json", exclude=left_out)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def load_job(path: Path, overrides: Mapping[str, Any] | None = None) -> JobConfig:
    """Read a job file.

    Args:
        path: A TOML file.
        overrides: Values by dotted key, such as ``{"aggregate.rule": "ffa"}``; ``None``
            values are ignored.

    Raises:
        ConfigError: One line: file, key, what was expected, and the nearest valid key.
    """
    return parse_job(read_toml(path, "job file"), source=str(path), overrides=overrides)


def parse_job(
    tree: Mapping[str, Any], source: str = "job", overrides: Mapping[str, Any] | None = None
) -> JobConfig:
    """Validate a job given as nested tables; see ``load_job``."""
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    merged: dict[str, Any] = copy.deepcopy(dict(tree))
    for dotted, value in given.items():
        table = merged
        *parents, key = dotted.split(".")
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{COMMAND_LINE}: {dotted}: {parent} is a key, not a table")
        table[key] = value
    try:
        # As JSON, because there pydantic is strict about types and still takes tables for models.
        return JobConfig.model_validate_json(json.dumps(merged, default=str), strict=True)
    except ValidationError as error:
        location = error.errors()[0]["loc"]
        key = ".".join(str(part) for part in location)
        asked = any(f"{o}.".startswith(f"{key}.") or key.startswith(f"{o}.") for o in given)
        where = COMMAND_LINE if location and asked else source
        raise ConfigError(f"{where}: {first_problem(error, JobConfig)}") from None
