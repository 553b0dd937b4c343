"""How many bytes go to and from a site, by the aggregation rule and the adapter's layout.

What travels are the parts of the shared adapter that are new to the site, four bytes a number,
and back the change of the factors that it trained, as many. Folded products (the residual) are
sent when they change, and their rank grows up to the layer's. The job rides along in JSON.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from shared.adapter import FACTORS, AdapterLayout, Factor, Tower, factor_name
from shared.config import AggregateConfig, AggregationRule, JobConfig
from shared.messages import Reply, Request, TrainSummary, encode_header
from shared.parts import PARTS

_NUMBER = 4
_HALF_NUMBER = 2
_SIGNED: Final = 370
"""Bytes of a signature with what it is for."""
_DIGEST: Final = "0" * 64

Growth = Callable[[AggregateConfig, int, int, int], int]
"""(options, rank, sites, round) to columns of the residual that a round begins with."""


@dataclass(frozen=True)
class RuleTraffic:
    """What a rule sends; rounds count from 1.

    Attributes:
        new: Factors that are others than in the round before.
        sent: Factors whose change a site sends.
        after: Factors that the last round changed.
        residual: Columns of the folded products.
        narrow: Whether a site of smaller rank is sent its own columns only.
    """

    new: Callable[[AggregateConfig, int], tuple[Factor, ...]]
    sent: Callable[[AggregateConfig, int], tuple[Factor, ...]]
    after: tuple[Factor, ...]
    residual: Growth
    narrow: bool = False


def _both(_config: AggregateConfig, _round: int) -> tuple[Factor, ...]:
    return FACTORS


def _only_a(_config: AggregateConfig, _round: int) -> tuple[Factor, ...]:
    return ("A",)


def _only_b(_config: AggregateConfig, _round: int) -> tuple[Factor, ...]:
    return ("B",)


def _in_turn(config: AggregateConfig, number: int) -> tuple[Factor, ...]:
    every = config.fold_every
    position = (number - 1) % every if every else number - 1
    return ("A",) if position % 2 else ("B",)


def _new_a_at_folds(config: AggregateConfig, number: int) -> tuple[Factor, ...]:
    return FACTORS if _folds(config, number) > _folds(config, number - 1) else ("B",)


def _folds(config: AggregateConfig, number: int) -> int:
    return (number - 1) // config.fold_every if config.fold_every else 0


def _nothing(_config: AggregateConfig, _rank: int, _sites: int, _round: int) -> int:
    return 0


def _by_folds(config: AggregateConfig, rank: int, _sites: int, number: int) -> int:
    return rank * _folds(config, number)


def _by_sites(_config: AggregateConfig, rank: int, sites: int, number: int) -> int:
    return rank * sites * (number - 1)


def _beyond_the_mean(_config: AggregateConfig, rank: int, sites: int, number: int) -> int:
    return rank * (sites - 1) * (number - 1)


def _tail(config: AggregateConfig, rank: int, sites: int, number: int) -> int:
    # The mean and what is taken off it, both rounded, so that none of their columns vanish.
    return rank * (sites + 1) * (number - 1) if config.tail == "fold" else 0


RULES: Final[Mapping[AggregationRule, RuleTraffic]] = {
    "fedavg": RuleTraffic(_both, _both, FACTORS, _nothing),
    "ffa": RuleTraffic(_new_a_at_folds, _only_b, ("B",), _by_folds),
    "altfold": RuleTraffic(_both, _in_turn, FACTORS, _by_folds),
    "flexlora": RuleTraffic(_both, _both, FACTORS, _tail, narrow=True),
    "fedex": RuleTraffic(_both, _both, FACTORS, _beyond_the_mean),
    "flora": RuleTraffic(_only_a, _both, (), _by_sites, narrow=True),
    "fedsa": RuleTraffic(_only_a, _only_a, ("A",), _nothing),
}
"""All rules that share an adapter; the other one, creamfl, shares features."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of a run, for one site.

    Attributes:
        down: To the site, by round.
        up: From the site, by round.
        closing_down: To the site after the last round.
        closing_up: From the site after the last round.
        held: Most bytes of the shared adapter that the site keeps on its disk.
    """

    down: Sequence[int]
    up: Sequence[int]
    closing_down: int
    closing_up: int
    held: int

    @property
    def largest(self) -> int:
        """Bytes of the largest message."""
        return max(*self.down, *self.up, self.closing_down)

    @property
    def total_down(self) -> int:
        """Bytes to the site."""
        return sum(self.down) + self.closing_down

    @property
    def total_up(self) -> int:
        """Bytes from the site."""
        return sum(self.up) + self.closing_up


@dataclass(frozen=True)
class Sizes:
    """Sizes of the pieces of messages.

    Attributes:
        job: The job.
        layout: Of the encoder.
        site: Its name.
        towers: Those that it trains.
    """

    job: JobConfig
    layout: AdapterLayout
    site: str
    towers: Sequence[Tower]

    def factors(self, kinds: Sequence[Factor], rank: int) -> int:
        """Return the bytes of factors on their way to the site."""
        return sum(_part(self.layout, kind, f"{kind}/", rank) for kind in kinds)

    def residual(self, columns: int) -> int:
        """Return the bytes of folded products."""
        if not columns:
            return 0
        both = (_part(self.layout, kind, "residual/", columns) for kind in FACTORS)
        return sum(both)

    def change(self, kinds: Sequence[Factor]) -> int:
        """Return the bytes of the change that the site sends."""
        rank = self.job.lora.rank_of(self.site)
        layers = tuple(each for each in self.layout.layers if each.tower in self.towers)
        mine = AdapterLayout(layers, rank, self.layout.scaling)
        return sum(_part(mine, kind, "", rank) for kind in kinds)

    @cached_property
    def request(self) -> int:
        """Bytes of a request without an adapter."""
        request = Request(
            kind="train",
            run=f"{self.job.name}-0000",
            round=self.job.rounds,
            site=self.site,
            base_sha256=_DIGEST,
            job_sha256=_DIGEST,
            factors=FACTORS,
            weights=dict.fromkeys(self.towers, 65535),
            seed=2**62,
            parts=dict.fromkeys(PARTS[:3], _DIGEST),
            job=self.job,
        )
        return _SIGNED + len(encode_header(request)) + len(self.job.model_dump_json())

    @cached_property
    def reply(self) -> int:
        """Bytes of a reply without a change."""
        norms = dict.fromkeys(self.towers, 0.1234567)
        reply = Reply(
            kind="train",
            run=f"{self.job.name}-0000",
            round=self.job.rounds,
            attempt=1,
            site=self.site,
            holds=dict.fromkeys(PARTS[:3], _DIGEST),
            weights=dict.fromkeys(self.towers, 65535),
            summary=TrainSummary(loss=1.234567, gradient_norms=norms, discrepancy=norms, steps=9),
        )
        return _SIGNED + len(encode_header(reply))


def forecast_traffic(sizes: Sizes, members: int) -> Traffic:
    """Return the bytes of a run.

    Args:
        sizes: Of the pieces.
        members: Sites of a round that train a tower; some rules send more the more there are.
    """
    job, layout = sizes.job, sizes.layout
    config = job.aggregate
    rule = RULES[config.rule]
    rank = sizes.job.lora.rank_of(sizes.site) if rule.narrow else layout.rank
    columns = [rule.residual(config, layout.rank, members, n) for n in range(1, job.rounds + 2)]
    most = max(min(layer.outputs, layer.inputs) for layer in layout.layers)
    residuals = {count: sizes.residual(count) for count in {min(each, most) for each in columns}}
    folded = [residuals[min(each, most)] for each in columns]
    down, up = [], []
    for number in range(1, job.rounds + 1):
        new = FACTORS if number == 1 else rule.new(config, number)
        grew = number > 1 and columns[number - 1] > columns[number - 2]
        grown = folded[number - 1] if grew else 0
        down.append(sizes.request + sizes.factors(new, rank) + grown)
        up.append(sizes.reply + sizes.change(rule.sent(config, number)))
    after = rule.sent(config, job.rounds) if config.rule == "altfold" else rule.after
    last = sizes.factors(after, layout.rank)
    # altfold and ffa fold before a round, the others after it.
    if config.rule not in ("altfold", "ffa") and columns[-1] > columns[-2]:
        last += folded[-1]
    held = sizes.factors(FACTORS, layout.rank) + max(folded)
    return _with_phases(sizes, down, up, last, held)


def forecast_features(sizes: Sizes, items: int, width: int) -> Traffic:
    """Return the bytes of a run whose sites exchange features of public pairs.

    Args:
        sizes: Of the pieces; there is no adapter among them.
        items: Public pairs.
        width: Of a feature.
    """
    rounds = sizes.job.rounds
    common = 2 * items * width * _NUMBER
    own = len(sizes.towers) * items * width * _HALF_NUMBER
    down, up = [sizes.request + common] * rounds, [sizes.reply + own] * rounds
    return _with_phases(sizes, down, up, common, common)


def _with_phases(
    sizes: Sizes, down: Sequence[int], up: Sequence[int], last: int, held: int
) -> Traffic:
    """Add the questions before the first round and after the last."""
    phases = 2 if sizes.job.personalize.method == "none" else 3
    closing_down = phases * sizes.request + last
    return Traffic(down, up, closing_down, phases * sizes.reply, held)


def _part(layout: AdapterLayout, kind: Factor, before: str, rank: int) -> int:
    """Return the bytes of one sort of factor as safetensors, of at most each layer's own rank."""
    numbers, header = 0, {}
    for layer in layout.layers:
        columns = min(rank, layer.outputs, layer.inputs) if before == "residual/" else rank
        shape = (columns, layer.inputs) if kind == "A" else (layer.outputs, columns)
        begin, numbers = numbers, numbers + _NUMBER * shape[0] * shape[1]
        header[before + factor_name(layer.module, kind)] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": (begin, numbers),
        }
    return numbers + len(json.dumps(header, separators=(",", ":")))
