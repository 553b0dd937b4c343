"""``[proxy]``: a public set, to distil on at the server or to exchange features of."""

import math
from collections.abc import Iterator
from typing import Annotated, Final

from pydantic import Field

from shared.config.aggregate import AggregateConfig
from shared.config.table import Table

_DISTILLED_RULES: Final = ("fedavg", "ffa", "altfold")
LEAST_PROXY_PAIRS: Final = 8
"""Least pairs of a public set to distil on, and least to validate on."""


class ProxyConfig(Table):
    """``[proxy]``: a public paired set.

    With ``aggregate.rule = 'creamfl'`` every site has it, and its features are what the sites
    exchange; with differential privacy every site has it, and takes its negatives from it; else
    the server distils on it. Without one there is neither.
    """

    folder: Annotated[str, Field(min_length=1)] | None = None
    """The set: a folder in the format of a site's data (docs/data.md), or its table."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """creamfl and differential privacy: expected sha256 of the set's files and texts; a site
    refuses another."""
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

    @property
    def named(self) -> bool:
        """Whether there is a set, or one that every site has is named by its content."""
        return self.active or self.sha256 is not None

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
