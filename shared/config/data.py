"""``[data]`` and ``[partition]``: which records, and how they are dealt out to sites."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from shared.config.table import Table
from shared.results import Kind

PartitionRule = Literal["sites", "column", "iid", "dirichlet", "pathological", "quantity"]

Rates = Annotated[
    dict[str, Annotated[float, Field(ge=0, le=1)]],
    BeforeValidator(lambda given: {"all": given} if isinstance(given, int | float) else given),
]
"""A rate of each site; ``all`` stands for those that are not named, a number for all."""


class DataConfig(Table):
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


class PartitionConfig(Table):
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
