"""The job file: one TOML that says everything a run does, read into a frozen ``JobConfig``.

The same file serves simulation and deployment. What a site owns (paths, device, policy)
is not in it. Unknown keys are refused with the nearest valid one; combinations that are
unsound are refused with a sentence that says why.
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import ConfigError
from shared.results import Metric
from shared.toml_files import first_problem, read_toml

AggregationRule = Literal["fedavg", "ffa", "altfold"]
PersonalizationMethod = Literal["duet", "none"]
Engine = Literal["local", "flower"]
Precision = Literal["auto", "float32", "bfloat16"]

COMMAND_LINE: Final = "command line"
"""Stands for the job's file in messages about values that replace those of the file."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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


class ModelConfig(_Table):
    """``[model]``: the frozen encoder that all sites start from."""

    base: Annotated[str, Field(min_length=1)] = "consilia-tiny"
    """``consilia-tiny``, a local folder, or a Hugging Face hub id of the CLIP family."""
    sha256: str | None = None
    """Expected sha256 of the base weights; the run refuses another."""
    precision: Precision = "auto"
    """Of frozen weights and activations; trained factors are always float32. ``auto``: bfloat16
    where the device is faster with it (GPUs, CPUs with AMX or AVX512-BF16)."""
    max_tokens: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Longest text in tokens; the base's own limit if not given."""


class LoraConfig(_Table):
    """``[lora]``: low-rank adapters (Hu et al., 2021, https://arxiv.org/abs/2106.09685)."""

    rank: Annotated[int, Field(ge=1, le=256)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    targets: list[str] = ["attention", "mlp", "projection"]
    """Groups (attention, mlp, projection) or module names such as ``q_proj``."""
    layers: str = "all"
    """``all``; ``top:N``: only the N last layers of each tower; ``top:1/3``: that share of them."""

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


class AggregateConfig(_Table):
    """``[aggregate]``: how adapters become one."""

    rule: AggregationRule = "altfold"
    fold_every: Annotated[int, Field(ge=0)] = 4
    """altfold and ffa: fold the adapter into the base every so many rounds; 0 never."""
    server_learning_rate: Annotated[float, Field(gt=0)] = 1.0
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
    def _fedavg_never_folds(cls, values: object) -> object:
        # Written out, so that a job means the same after a trip through a file or a message.
        if isinstance(values, dict) and values.get("rule") == "fedavg":
            return {"fold_every": 0, **values}
        return values


class PersonalizeConfig(_Table):
    """``[personalize]``: the adapter that never leaves a site."""

    method: PersonalizationMethod = "duet"
    rank: Annotated[int, Field(ge=1, le=256)] = 8
    steps: Annotated[int, Field(ge=0)] = 60
    """Optimiser steps of the fit on the finished shared adapter."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-3
    distill: Annotated[float, Field(ge=0)] = 0.1
    """Lambda_P: weight of the feature distillation from shared to personal."""
    grid_from: Annotated[int, Field(ge=1)] = 200
    """From so many validation pairs on, alpha is chosen from 0, 1/4, 1/2, 3/4, 1."""


class PrivacyConfig(_Table):
    """``[privacy]``: there is no differential privacy yet, and a job may not ask for it."""

    differential_privacy: Annotated[
        Literal[False], Field(description="there is none yet, so no job may ask for it")
    ] = False


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
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    train: TrainConfig = TrainConfig()
    aggregate: AggregateConfig = AggregateConfig()
    personalize: PersonalizeConfig = PersonalizeConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    simulation: SimulationConfig = SimulationConfig()

    @model_validator(mode="after")
    def _sound(self) -> Self:
        rule, fold = self.aggregate.rule, self.aggregate.fold_every
        if rule == "fedavg" and fold:
            raise ValueError(
                "aggregate.fold_every needs altfold or ffa: fedavg trains both factors, so "
                "their product is not the mean of the sites' products and must not be folded"
            )
        both = set(self.data.image_only) & set(self.data.text_only)
        if both:
            raise ValueError(f"data: {sorted(both)[0]} is both image_only and text_only")
        cohort, quorum = self.aggregate.cohort, self.aggregate.quorum
        if cohort is not None and quorum is not None and quorum > cohort:
            raise ValueError(f"aggregate.quorum = {quorum} can never be met by cohort = {cohort}")
        return self

    def digest(self) -> str:
        """Return the sha256 of everything that decides the numbers.

        Where the data lie and which engine carries the messages are left out, so that a
        job keeps its digest between a simulation and a deployment.
        """
        content = self.model_dump(mode="json", exclude={"simulation": True, "data": {"folder"}})
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
