"""The job file: one TOML that says everything a run does, read into a frozen ``JobConfig``.

The same file serves simulation and deployment. What a site owns (paths, device, policy)
is not in it. Unknown keys are refused with the nearest valid one; combinations that are
unsound are refused with a sentence that says why.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import Field, ValidationError, model_validator

from shared.config.aggregate import _MEANS, OWN_MODELS, AggregateConfig
from shared.config.data import DataConfig, PartitionConfig
from shared.config.model import LoraConfig, ModelConfig
from shared.config.privacy import (
    PrivacyConfig,
    implied_by,
    privacy_fields_left_out,
    unsound_privacy,
)
from shared.config.proxy import ProxyConfig
from shared.config.run import AttackConfig, EvaluateConfig, SimulationConfig
from shared.config.secure import unsound_secure_aggregation
from shared.config.table import Table
from shared.config.train import PersonalizeConfig, TrainConfig
from shared.errors import ConfigError
from shared.toml_files import first_problem, read_toml

COMMAND_LINE: Final = "command line"
"""Stands for the job's file in messages about values that replace those of the file."""


class JobConfig(Table):
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
            if rule in OWN_MODELS and isinstance(own, dict):
                own = {"method": "own-factor", "use": "always", **own}
                values = {**values, "personalize": own}
            model, scored = values.get("model"), values.get("evaluate", {})
            if isinstance(model, dict) and model.get("bases") and isinstance(scored, dict):
                # No adapter fits all bases, so that none could be trained on all records.
                values = {**values, "evaluate": {"baselines": ["local"], **scored}}
            values = _what_privacy_implies(values)
        return values

    @model_validator(mode="after")
    def _sound(self) -> Self:
        unsound = next(unsound_privacy(self), None) or self.aggregate.unsound()
        unsound = unsound or self._unsound_beside_the_rule()
        unsound = unsound or next(unsound_secure_aggregation(self), None)
        if not unsound and not self.privacy.for_patients:
            unsound = self.proxy.unsound(self.aggregate)
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
        return self.proxy.active and not self.sites_have_public_set

    @property
    def sites_have_public_set(self) -> bool:
        """Whether every site has the public set: to exchange features of, or for negatives."""
        return self.aggregate.shares_features or self.privacy.for_patients

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
        left_out["proxy"] = {"folder"} if self.proxy.named else True
        left_out["privacy"] = privacy_fields_left_out(self.privacy)
        if not self.model.bases:
            left_out["model"] = {"bases"}
        content = self.model_dump(mode="json", exclude=left_out)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _what_privacy_implies(values: dict[str, Any]) -> dict[str, Any]:
    """Return the tables of a job with what differential privacy asks of those that do not say."""
    privacy = values.get("privacy")
    if not isinstance(privacy, dict) or privacy.get("differential_privacy") is not True:
        return values
    for table, implied in implied_by(privacy, values.get("aggregate", {})).items():
        given = values.get(table, {})
        if isinstance(given, dict):
            values = {**values, table: {**implied, **given}}
    return values


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
