"""The whole product of options: each combination is refused in a sentence, or carries a round.

Every combination passes through the job's own checks. Of those that they let through, a sample in
which every value occurs is carried out by the command itself; in the slow one every two values
that go together occur together.
"""

import csv
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError
from rich.console import Console

from shared.config import (
    AggregateConfig,
    AggregationRule,
    AttackConfig,
    AttackKind,
    CombiningRule,
    DataConfig,
    EvaluateConfig,
    JobConfig,
    PartitionConfig,
    PartitionRule,
    PersonalizationMethod,
    PersonalizeConfig,
    PrivacyConfig,
    ProxyConfig,
    ServerOptimization,
    SimulationConfig,
    TrainConfig,
)
from simulations.simulate import simulate
from tests.integration.conftest import write_site

SITES = 6  # one more than multi-krum needs against one, so that the gate may refuse one
NAMES = [f"site-{number:02d}" for number in range(1, SITES + 1)]
HOSTILE = {"trimmed-mean": 1, "multi-krum": 1}
PARTITIONS = {
    "sites": {"noisy_pairs": 0.2},
    "column": {"column": "scanner"},
    "iid": {"sites": SITES, "missing_image": 0.2},
    "dirichlet": {"sites": SITES, "alpha": 5.0, "missing_text": {"site-03": 0.4}},
    "pathological": {"sites": SITES, "classes_per_site": 3},
    "quantity": {"sites": SITES, "kinds": {"paired": 0.5, "unpaired": 0.5}},
}
AT_THE_SERVER = {
    "rule": get_args(AggregationRule),
    "combine": get_args(CombiningRule),
    "server_optimizer": get_args(ServerOptimization),
    "fold_every": (None, 0, 1),
}
OPTIONS: Mapping[str, Sequence[object]] = {
    **AT_THE_SERVER,
    "method": get_args(PersonalizationMethod),
    "public": (False, True),
    "partition": get_args(PartitionRule),
    "balance": (0.0, 0.3),
    "attack": (None, *get_args(AttackKind)),
}
PLAIN = ("iid", 0.0, None)
"""Of the options that are about the sites: partition, balance and attack."""
REMEDIES = ("leave", "use ", "give ", "raise", "lower", "needs altfold or ffa")
Combination = tuple[object, ...]


class Tables:
    """Every table of a job by the values that make it: hundreds of tables, not a million."""

    def __init__(
        self,
        folder: str = "records",
        public: str = "public",
        privacy: PrivacyConfig = PrivacyConfig(),  # noqa: B008 - frozen
    ) -> None:
        self._aggregates = dict(self._at_the_server(privacy))
        self._by_option: dict[str, dict[object, BaseModel]] = {
            "personalize": {
                method: PersonalizeConfig(method=method, steps=1, rank=4)
                for method in OPTIONS["method"]
            },
            "proxy": {False: ProxyConfig(), True: ProxyConfig(folder=public)},
            "partition": {by: PartitionConfig(by=by, **more) for by, more in PARTITIONS.items()},
            "train": {
                balance: TrainConfig(steps=1, batch_size=16, shift_pixels=1, balance=balance)
                for balance in OPTIONS["balance"]
            },
            "attack": {
                kind: AttackConfig(sites={"site-02": kind} if kind else {})
                for kind in OPTIONS["attack"]
            },
        }
        self._same = {
            "data": DataConfig(folder=folder),
            "evaluate": EvaluateConfig(
                bootstrap=100, baselines=[], minimum_count=1, gallery_queries=0
            ),
            "simulation": SimulationConfig(workers=1, device="cpu"),
            "privacy": privacy,
        }

    @staticmethod
    def _at_the_server(privacy: PrivacyConfig) -> Iterator[tuple[Combination, AggregateConfig]]:
        for values in itertools.product(*AT_THE_SERVER.values()):
            given = {k: v for k, v in zip(AT_THE_SERVER, values, strict=True) if v is not None}
            hostile = HOSTILE.get(str(given["combine"]))
            given |= {"hostile": hostile} if hostile else {}
            given |= {"weighting": "equal"} if privacy.differential_privacy else {}
            yield values, AggregateConfig(**given)

    def job(self, chosen: Combination, **more: object) -> JobConfig:
        """Return the job of a combination; raises what its own checks raise."""
        rest = zip(self._by_option.items(), chosen[len(AT_THE_SERVER) :], strict=True)
        return JobConfig(
            name="x",
            rounds=1,
            aggregate=self._aggregates[chosen[: len(AT_THE_SERVER)]],
            **{table: made[value] for (table, made), value in rest},
            **self._same,
            **more,
        )

    def refusal(self, chosen: Combination) -> str | None:
        """Return the sentence that refuses a combination, ``None`` if none does."""
        try:
            self.job(chosen)
        except ValidationError as error:
            (problem,) = error.errors(include_url=False, include_input=False)
            return str(problem["msg"]).removeprefix("Value error, ")
        return None


def check_sentences(refusals: set[str]) -> None:
    for sentence in refusals:
        assert "\n" not in sentence
        assert not sentence.endswith(".")
        assert any(remedy in sentence for remedy in REMEDIES), sentence


@pytest.fixture(scope="module")
def sound() -> list[Combination]:
    """What the checks let through.

    What is refused with plain sites is looked at with one other sort of sites only: options are
    refused one by one, so that another option never makes a refused one sound (the slow test
    looks at all of them).
    """
    tables, draws = Tables(), random.Random(0)
    *core, partition, balance, attack = OPTIONS.values()
    # Every two of these values once, which is half of their product.
    others = [
        (by, balance[(k + j) % 2], kind)
        for k, by in enumerate(partition)
        for j, kind in enumerate(attack)
    ]
    passed: list[Combination] = []
    refusals: dict[str, int] = {}
    for chosen in itertools.product(*core):
        if (why := tables.refusal((*chosen, *PLAIN))) is not None:
            refusals[why] = refusals.get(why, 0) + 1
            assert tables.refusal((*chosen, *draws.choice(others))) is not None
            continue
        for other in others:
            if (why := tables.refusal((*chosen, *other))) is None:
                passed.append((*chosen, *other))
            else:
                refusals[why] = refusals.get(why, 0) + 1
    check_sentences(set(refusals))
    assert sum(refusals.values()) > 8000
    return passed


def pairs_of(chosen: Combination) -> set[tuple[int, object, int, object]]:
    numbered = list(enumerate(chosen))
    return {(*one, *two) for one, two in itertools.combinations(numbered, 2)}


def values_of(chosen: Combination) -> set[tuple[int, object]]:
    return set(enumerate(chosen))


def covering(sound: list[Combination], parts_of, tries: int) -> list[Combination]:
    """Return combinations in which every part of any of them occurs, each the best of some."""
    draws = random.Random(1)
    missing = set().union(*map(parts_of, sound))
    found = []
    # Rules that go with little come first: what goes with much fills what is left.
    by_part: dict[object, list[Combination]] = {}
    for chosen in sound:
        for part in parts_of(chosen):
            by_part.setdefault(part, []).append(chosen)
    while missing:
        rarest = min(sorted(missing, key=repr), key=lambda part: len(by_part[part]))
        candidates = by_part[rarest]
        some = draws.sample(candidates, min(tries, len(candidates)))
        best = max(some, key=lambda chosen: len(parts_of(chosen) & missing))
        missing -= parts_of(best)
        found.append(best)
    return found


@pytest.fixture(scope="module")
def tables(site_of, tmp_path_factory) -> Tables:
    """Six sites of records with a column that deals them out anew, and a public set."""
    folder = tmp_path_factory.mktemp("product")
    for number, name in enumerate(NAMES):
        site = folder / "sites" / name
        write_site(site, site_of(name, counts=(32, 24, 24), seed=number))
        with (site / "metadata.csv").open(newline="") as table:
            head, *rows = csv.reader(table)
        with (site / "metadata.csv").open("w", newline="") as table:
            scanners = [NAMES[row % SITES] for row in range(len(rows))]
            more = [[*row, scanner] for row, scanner in zip(rows, scanners, strict=True)]
            csv.writer(table).writerows([[*head, "scanner"], *more])
    write_site(folder / "public", site_of("public", counts=(48, 8, 8), seed=40))
    return Tables(str(folder / "sites"), str(folder / "public"))


def carry_out(tables: Tables, chosen: Combination, run, small_job: JobConfig) -> None:
    """A round by the command itself, with its results."""
    job = tables.job(chosen, model=small_job.model, lora=small_job.lora)
    results = simulate(run, job, Console(quiet=True))
    assert results.rounds == 1
    refused = [
        name
        for name, site in results.sites.items()
        if site.participation and site.participation[0].state == "refused"
    ]
    assert refused in ([], ["site-02"] if job.attack.sites else [])
    assert results.status == ("finished-incomplete" if refused else "finished"), results.reason
    assert len(results.sites) == SITES
    assert all(site.metrics for site in results.sites.values())


def test_every_value_carries_a_round(sound, tables, tmp_path, small_job) -> None:
    chosen = covering(sound, values_of, 400)
    assert {name: {c[k] for c in chosen} for k, name in enumerate(OPTIONS)} == {
        name: set(values) for name, values in OPTIONS.items()
    }
    for number, combination in enumerate(chosen):
        carry_out(tables, combination, tmp_path / f"{number}", small_job)


def test_noise_for_whole_sites_goes_with_rules_that_are_made_of_the_mean_alone(sound) -> None:
    """Whatever goes together is refused in a sentence beside it, or made of the sum."""
    privacy = PrivacyConfig(
        differential_privacy=True, mode="site-level", unit="site", epsilon=8.0, clip_norm=16.0
    )
    tables, made, refusals = Tables(privacy=privacy), set(), set()
    core = {chosen[: -len(PLAIN)] for chosen in sound}
    for chosen in core:
        if (why := tables.refusal((*chosen, *PLAIN))) is None:
            made.add((chosen[0], chosen[1], chosen[len(AT_THE_SERVER) + 1]))
        else:
            refusals.add(why)
    assert made == {(rule, "mean", False) for rule in ("altfold", "ffa", "fedavg")}
    assert all("privacy.mode = 'site-level'" in why for why in refusals)
    check_sentences(refusals)


@pytest.mark.slow
def test_every_two_values_that_go_together_carry_a_round(
    sound, tables, tmp_path, small_job
) -> None:
    for number, combination in enumerate(covering(sound, pairs_of, 60)):
        carry_out(tables, combination, tmp_path / f"{number}", small_job)


@pytest.mark.slow
def test_another_option_makes_no_refused_combination_sound(sound) -> None:
    tables, at_the_server = Tables(), {chosen[: -len(PLAIN)] for chosen in sound}
    passed: set[Combination] = set()
    refusals: set[str] = set()
    for chosen in itertools.product(*OPTIONS.values()):
        if (why := tables.refusal(chosen)) is None:
            passed.add(chosen)
        else:
            refusals.add(why)
    assert passed >= set(sound)
    assert {chosen[: -len(PLAIN)] for chosen in passed} == at_the_server
    check_sentences(refusals)
