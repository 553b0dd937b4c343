"""``[privacy]``: what a run promises to patients, and which jobs cannot promise it."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field

from shared.config.site_level import unsound_site_level
from shared.config.table import Table
from shared.privacy.objections import GROUP_SENSITIVITY, PrivacyPlan, objections

if TYPE_CHECKING:
    from shared.config.job import JobConfig


class PrivacyConfig(Table):
    """``[privacy]``: differential privacy for the patients of every site; off by default.

    Sites train with DP-SGD: each patient is drawn by a coin of its own in every step, the gradient
    of all of a patient's records is cut to one norm, and noise is added to the sum. Negatives are
    the pairs of the public set in ``[proxy]``, so that no record's loss depends on another's; or
    those of a few other patients, and then their common gradient is cut and the noise doubled.
    """

    differential_privacy: bool = False
    mode: Literal["local", "distributed", "site-level"] = "local"
    """Who adds noise for whom: each site for its patients (``local``); all sites together for all
    patients, in one masked sum per step (``distributed``); the coordinator for whole sites
    (``site-level``)."""
    unit: Literal["patient", "record", "site"] = "patient"
    """What is hidden: patients, or with ``site-level`` noise what a whole site sent."""
    objective: Literal["separable", "grouped", "in-batch"] = "separable"
    """What a record's loss depends on: on itself and public pairs (``separable``); on the patients
    of one group, which is cut as a whole and gets twice the noise (``grouped``); or on everybody
    who was drawn, which cannot be clipped."""
    group_size: Annotated[int, Field(ge=2, le=1024)] = 8
    """grouped: patients that a group is expected to have."""
    sampling: Literal["poisson", "shuffled"] = "poisson"
    """How the patients of a step are chosen; only ``poisson`` is what the accountant counts."""
    sampling_rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    """q, the probability with which a patient takes part in a step."""
    epsilon: Annotated[float, Field(gt=0)] | None = None
    """Most that the whole run may spend; the noise is made for it. A site may allow less."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Probability with which the bound may fail; below one in the number of patients."""
    noise_multiplier: Annotated[float, Field(ge=0)] | None = None
    """Standard deviation of the noise over ``clip_norm``, instead of what ``epsilon`` asks for."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """C: the gradient of one patient's records, over all trained factors, is cut to this L2
    norm; with ``site-level`` noise a site's whole change of a round."""
    noise_shares: Annotated[int, Field(ge=2)] = 2
    """distributed: k, so many sites' shares of the noise are enough. Every site adds 1 / sqrt(k) of
    it, and takes part in sums only that are over more sites than k, whoever drops out. More shares
    are less noise and more trust: that k of the sites in every sum are honest."""
    secure_aggregation: bool = False
    """The coordinator gets the sum of the sites' changes, and no site's own."""

    @property
    def noised_together(self) -> bool:
        """Whether a round is one sum of clipped gradients that all sites add noise to."""
        return self.differential_privacy and self.mode == "distributed"

    @property
    def for_sites(self) -> bool:
        """Whether whole sites are hidden, by noise of the coordinator; patients get no promise."""
        return self.differential_privacy and self.mode == "site-level"

    @property
    def for_patients(self) -> bool:
        """Whether the sites train with noise for their patients."""
        return self.differential_privacy and not self.for_sites


_PLAIN: Final = "differential_privacy"
_SECURE: Final = "secure_aggregation"

_GROUPED: Final = "grouped"

_FIELDS: Final = {
    "unit-record": "privacy.unit",
    "unit-site": "privacy.unit",
    "in-batch": "privacy.objective",
    "shuffled": "privacy.sampling",
    "no-noise": "privacy.noise_multiplier",
    "delta": "privacy.delta",
    "exact-weights": "aggregate.weighting",
    "teacher-personal": "aggregate.rule",
    "no-secure-aggregation": "privacy.secure_aggregation",
}
"""Which field of a job an objection to its plan is about."""


def privacy_fields_left_out(config: PrivacyConfig) -> set[str]:
    """Return what a job's digest leaves out: everything, where there is no privacy to speak of."""
    secure = set() if config.secure_aggregation else {_SECURE}
    if config.mode == "local":
        secure |= {"mode"}
    if config.mode != "distributed":
        secure |= {"noise_shares"}
    if not config.differential_privacy:
        return set(PrivacyConfig.model_fields) - {_PLAIN, _SECURE} | secure
    return secure if config.objective == _GROUPED else {"group_size"} | secure


def implied_by(privacy: Mapping[str, Any], aggregate: object) -> dict[str, dict[str, Any]]:
    """Return what differential privacy asks of a job's other tables, where they do not say.

    Args:
        privacy: The table ``[privacy]`` of a job with differential privacy, as it was read.
        aggregate: The table ``[aggregate]`` as it was read, if there is one.
    """
    mode, norm = privacy.get("mode", "local"), PrivacyConfig.model_fields["clip_norm"].default
    implied: dict[str, dict[str, Any]] = {"aggregate": {"weighting": "equal"}}
    if mode != "local":
        implied["aggregate"]["clip_norm"] = privacy.get("clip_norm", norm)
    if mode != "site-level":
        implied["model"] = {"precision": "float32"}
    if mode == "distributed":
        # One sum a step: the optimiser is the server's, and one factor has half of the noise.
        rule = aggregate.get("rule", "ffa") if isinstance(aggregate, dict) else "ffa"
        implied["aggregate"] |= {"rule": rule}
        if rule == "ffa":
            implied["aggregate"] |= {"fold_every": 0, "server_optimizer": "adam"}
        implied["train"] = {"steps": 1}
    return implied


def plan_of(job: "JobConfig", noise: float | None = None) -> PrivacyPlan:
    """Return how a job trains with differential privacy, as far as the job decides it.

    Args:
        job: With differential privacy.
        noise: The multiplier in use, if it is known already.
    """
    config = job.privacy
    asked = config.noise_multiplier if noise is None else noise
    grouped = config.objective == _GROUPED
    if config.for_sites:
        return PrivacyPlan(
            mode=config.mode,
            unit=config.unit,
            adjacency="zero-out",
            patients=1,
            objective="in-batch",
            clipped="site",
            clip=config.clip_norm,
            noise=1.0 if asked is None else asked,
            sampling="all",
            rate=1.0,
            delta=config.delta,
            minimum_patients=1,
            secure_aggregation=config.secure_aggregation,
        )
    return PrivacyPlan(
        mode=config.mode,
        unit=config.unit,
        patients=1,
        objective="separable" if config.objective == "separable" else "in-batch",
        clipped="group" if grouped else "patient",
        grouping="own-draw" if grouped else "none",
        sensitivity=GROUP_SENSITIVITY if grouped else 1.0,
        clip=config.clip_norm,
        noise=1.0 if asked is None else asked,
        sampling=config.sampling,
        rate=config.sampling_rate,
        delta=config.delta,
        bank="public",
        teacher_has_personal=bool(job.aggregate.private_factors),
        exact_weights=job.aggregate.weighting != "equal",
        minimum_patients=1,
        secure_aggregation=config.secure_aggregation,
        sites=config.noise_shares,
    )


def unsound_privacy(job: "JobConfig") -> Iterator[str]:
    """Yield why a job's privacy would not hold, or is not carried out, with what to do."""
    config = job.privacy
    if not config.differential_privacy:
        for name, value in PrivacyConfig():
            if name != _SECURE and getattr(config, name) != value:
                yield (
                    f"privacy.{name} says nothing without privacy.differential_privacy = true; "
                    "set that, or leave it out"
                )
        return
    if config.epsilon is None and config.noise_multiplier is None:
        yield (
            "privacy.epsilon: differential privacy needs an amount; give epsilon, the most that "
            "the run may spend, or noise_multiplier"
        )
    if config.epsilon is not None and config.noise_multiplier is not None:
        yield (
            "privacy.epsilon and privacy.noise_multiplier: each follows from the other; leave one "
            "of them out"
        )
    if config.objective != _GROUPED and "group_size" in config.model_fields_set:
        default = PrivacyConfig.model_fields["group_size"].default
        if config.group_size != default:
            yield (
                "privacy.group_size is about groups of patients, and privacy.objective = "
                f"'{config.objective}' makes none; use objective = 'grouped', or leave it out"
            )
    yield from _beside_the_mode(job)
    for objection in objections(plan_of(job)):
        yield f"{_FIELDS.get(objection.code, 'privacy')}: {objection.why}"
    yield from unsound_site_level(job) if config.for_sites else _beside_other_tables(job)


def _beside_the_mode(job: "JobConfig") -> Iterator[str]:
    config = job.privacy
    if config.mode != "distributed":
        if config.noise_shares != PrivacyConfig.model_fields["noise_shares"].default:
            yield (
                f"privacy.noise_shares is about noise that sites add together, and privacy.mode = "
                f"'{config.mode}' has none; use mode = 'distributed', or leave it out"
            )
        return
    if job.train.steps != 1:
        yield (
            "train.steps: with privacy.mode = 'distributed' a round is one step over all sites, "
            "whose noise is for one sum; leave steps out, and let rounds be the number of steps"
        )
    if job.aggregate.clip_norm != config.clip_norm:
        yield (
            "aggregate.clip_norm: with privacy.mode = 'distributed' no change leaves that it could "
            "clip; leave it out (privacy.clip_norm is for patients)"
        )
    if job.train.proximal:
        yield (
            "train.proximal: with privacy.mode = 'distributed' sites take no steps that it could "
            "hold back; leave it out"
        )


def _beside_other_tables(job: "JobConfig") -> Iterator[str]:
    train, lora = job.train, job.lora
    if not job.proxy.named:
        yield (
            "proxy.folder: with differential privacy the negatives of a record are the pairs of a "
            "public set, and there is none; give proxy.folder, in simulations of phantoms "
            "proxy.phantoms, or for sites that have it proxy.sha256"
        )
    if train.steps is None:
        yield (
            "train.epochs: how many steps that makes depends on the number of records, which is "
            "the patients' own; give train.steps"
        )
    if train.balance:
        yield (
            "train.balance compares the towers' gradients before there is noise on them; leave it "
            "out with differential privacy"
        )
    if job.proxy.folder is not None and job.proxy.phantoms is not None:
        yield "proxy.folder and proxy.phantoms are two sets; leave one of them out"
    if job.model.precision != "float32":
        yield (
            f"model.precision = '{job.model.precision}' may round a gradient by what "
            "else is in the batch, so that one patient changes those of others; use 'float32' with "
            "differential privacy"
        )
    if lora.ranks:
        yield (
            "lora.ranks: sites of smaller rank are not trained with differential privacy; leave "
            "it out"
        )
