"""Noise for whole sites: how much of it, over whom the sum is divided, and what is said of it."""

import json
import math

import numpy as np
import pytest
from fake_federation import LAYOUT, FakeSite, Federation, job_of, with_summary

import server.site_noise
from server.aggregation.linear import mean_change
from server.history import RunHistory
from server.planning import RoundPlan
from server.secure_session import Members
from server.site_noise import SiteNoise, check_sites, site_statement
from shared import fixedpoint
from shared.adapter import AdapterLayout, AdapterUpdate, LayerShape
from shared.errors import ConfigError, QuorumError, RunDirectoryError
from shared.privacy.accountant import Spend, epsilon, site_level_price
from shared.privacy.clipping import clip, l2_norm
from shared.privacy.noise import seeded
from shared.privacy.statement import NOT_COVERED_OF_SITES, Statement
from tests.server.secure_federation import CONSORTIUM, key_of, secure_sites

Z, C = 2.0, 0.5
SITE_LEVEL = {
    "differential_privacy": True,
    "mode": "site-level",
    "unit": "site",
    "noise_multiplier": Z,
    "clip_norm": C,
    "delta": 1e-3,
}
WIDE = AdapterLayout(
    layers=(LayerShape("v", "image", 400, 300), LayerShape("t", "text", 200, 350)),
    rank=64,
    scaling=1.0,
)
NAMES = ("a", "b", "c")
NOISE = SiteNoise(Z, C)


def plan_of(weights, scale):
    return RoundPlan(1, tuple(weights), weights, scale, 1, None, (), {})


def random_change(layout, towers, norm, seed):
    draws = np.random.default_rng(seed)
    change = {
        name: draws.standard_normal(layout.shapes[name]).astype(np.float32)
        for name in layout.names(("B",))
        if layout.towers[name] in towers
    }
    factor = norm / l2_norm(change)
    return {name: (values * factor).astype(np.float32) for name, values in change.items()}


def update_of(site, change, layout, scale):
    weights = {layout.towers[name]: 1 for name in change}
    return AdapterUpdate(site, weights, fixedpoint.encode(change, lambda _: 1, scale), scale, {})


def both(names=NAMES):
    return {name: {"image": 1, "text": 1} for name in names}


def noised_sum(weights, updates, layout=WIDE, draw=None, noise=NOISE):
    """Return the noised sum by factor: the mean that a rule would take, times its denominator."""
    scale = fixedpoint.choose_scale(len(weights), C, len(weights))
    sent = [update_of(site, change, layout, scale) for site, change in updates.items()]
    draws = {} if draw is None else {"draw": draw}
    update = noise.on(plan_of(weights, scale), layout, ("B",), iter(sent), **draws)
    mean = mean_change(layout, [update])
    assert update.site == ""
    return {n: v.astype(np.float64) * update.weights[layout.towers[n]] for n, v in mean.items()}


def flat(arrays):
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


def test_the_noise_on_the_sum_is_gaussian_with_z_times_the_norm():
    changes = {name: random_change(WIDE, ("image", "text"), C, k) for k, name in enumerate(NAMES)}
    total = sum(flat(change).astype(np.float64) for change in changes.values())
    for _ in range(2):
        noise = (flat(noised_sum(both(), changes)) - total) / (Z * C)
        assert noise.size == WIDE.entries(("B",)) == 64 * 600
        assert abs(noise.std() - 1) < 0.02
        assert abs(np.square(noise).sum() - noise.size) < 5 * math.sqrt(2 * noise.size)
        assert abs(noise.mean()) < 5 / math.sqrt(noise.size)
        for deviations, share in ((1, 0.3173), (2, 0.0455), (3, 0.0027)):
            assert np.mean(np.abs(noise) > deviations) == pytest.approx(share, abs=0.012)


def test_noise_is_drawn_anew_and_is_not_the_same_for_two_numbers():
    first, second = (flat(noised_sum(both(), {})) for _ in range(2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.03


def test_one_site_moves_the_sum_by_its_clipped_change_and_no_more():
    others = {name: random_change(WIDE, ("image", "text"), C, k) for k, name in enumerate("bc")}
    without = noised_sum(both(), others, draw=seeded(1))
    for norm in (0.1, 0.4, 40.0):
        change, clipped = clip(random_change(WIDE, ("image", "text"), norm, 9), C)
        assert clipped == (norm > C)
        moved = flat(noised_sum(both(), {"a": change, **others}, draw=seeded(1))) - flat(without)
        assert np.linalg.norm(moved) <= C * (1 + 1e-4)
        np.testing.assert_allclose(moved, flat(change), atol=2e-6)


def test_a_tower_is_divided_by_the_asked_sites_that_have_it_and_whoever_is_gone_is_zero():
    weights = {**both(("a", "b")), "c": {"image": 1}, "d": {"image": 1}}
    scale = fixedpoint.choose_scale(4, C, 4)
    came = [update_of("c", random_change(LAYOUT, ("image",), C, 3), LAYOUT, scale)]
    update = SiteNoise(Z, C).on(plan_of(weights, scale), LAYOUT, ("B",), iter(came))
    assert update.weights == {"image": 4, "text": 2}
    assert set(update.delta) == set(LAYOUT.names(("B",)))  # text as well, where nobody answered
    text = [name for name in update.delta if LAYOUT.towers[name] == "text"]
    assert all(np.asarray(update.delta[name]).any() for name in text)
    only_images = {name: {"image": 1} for name in "ab"}
    update = SiteNoise(Z, C).on(plan_of(only_images, scale), LAYOUT, ("B",), iter([]))
    assert update.weights == {"image": 2}
    assert {LAYOUT.towers[name] for name in update.delta} == {"image"}


def test_the_sum_of_all_sites_is_the_same_as_their_changes_one_by_one():
    """Secure aggregation gives one update, whose weights are those of all sites."""
    changes = {name: random_change(WIDE, ("image", "text"), C, k) for k, name in enumerate(NAMES)}
    scale = fixedpoint.choose_scale(3, C, 3)
    sent = [update_of(site, change, WIDE, scale) for site, change in changes.items()]
    delta = {
        name: np.sum([u.delta[name] for u in sent], axis=0, dtype=np.uint32)
        for name in sent[0].delta
    }
    total = AdapterUpdate("", {"image": 3, "text": 3}, delta, scale, {})
    plan = plan_of(both(), scale)
    one, many = (
        SiteNoise(Z, C).on(plan, WIDE, ("B",), iter(updates), seeded(4))
        for updates in ([total], sent)
    )
    assert one.weights == many.weights
    for name in one.delta:
        np.testing.assert_array_equal(one.delta[name], many.delta[name])


def test_no_noise_and_unequal_weights_are_mistakes():
    with pytest.raises(ValueError, match="expected both more than 0"):
        noised_sum(both(), {}, noise=SiteNoise(0.0, C))
    with pytest.raises(ValueError, match="weighs more than one"):
        noised_sum({"a": {"image": 2}}, {})


def job(**privacy):
    asked = {**SITE_LEVEL, **privacy}
    return job_of(rounds=3, privacy={k: v for k, v in asked.items() if v is not None})


def test_noise_is_made_for_the_epsilon_over_all_rounds():
    noise = SiteNoise.of(job(noise_multiplier=None, epsilon=3.0), LAYOUT)
    assert noise.clip == C
    spend = Spend(sampling=1, noise=noise.multiplier, steps=3, entries=1)
    assert 2.98 < epsilon([spend], 1e-3) <= 3.0
    assert SiteNoise.of(job(), LAYOUT) == SiteNoise(Z, C)


@pytest.mark.parametrize(
    ("privacy", "words"),
    [
        ({"noise_multiplier": 0.05}, "no finite epsilon holds over 3 rounds"),
        (
            {"noise_multiplier": None, "epsilon": 1e-4, "delta": 1e-12},
            "give a larger one, or fewer rounds",
        ),
        ({"noise_multiplier": 5e6}, "too much for a grid"),
    ],
)
def test_noise_that_promises_nothing_or_cannot_be_drawn_is_refused(privacy, words):
    with pytest.raises(ConfigError, match=words):
        SiteNoise.of(job(**privacy), LAYOUT)


def test_delta_must_be_below_one_in_the_number_of_sites():
    check_sites(job(delta=0.2), 4)
    with pytest.raises(ConfigError, match=r"with 5 sites: delta 0.2 .* one site's records"):
        check_sites(job(delta=0.2), 5)


# In rounds


def private(reply, tensors):
    """Say nothing beside the change, as a site does in such a job."""
    if reply.kind != "train":
        return reply, tensors
    nothing = {"loss": None, "validation_loss": None, "gradient_norms": {}, "discrepancy": {}}
    return with_summary(reply, clipped=False, **nothing), tensors


def federation(folder, names=("north", "east", "south", "west"), rounds=3, **tables):
    made = job_of(rounds=rounds, privacy=tables.pop("privacy", SITE_LEVEL), **tables)
    return Federation(
        folder / "run", made, sites=[FakeSite(name, change_reply=private) for name in names]
    )


def records_of(run):
    with run.history() as history:
        return history.committed_rounds("run")


@pytest.mark.parametrize(
    "aggregate",
    [
        {"rule": "altfold"},
        {"rule": "ffa", "fold_every": 0, "server_optimizer": "adam"},
        {"rule": "fedavg"},
    ],
    ids=lambda each: each["rule"],
)
def test_every_round_has_noise_and_a_statement(tmp_path, aggregate):
    runs = [federation(tmp_path / name, aggregate=aggregate) for name in ("one", "two")]
    outcomes = [run.run() for run in runs]
    assert len({outcome.shared.sha256() for outcome in outcomes}) == 2
    outcome = outcomes[0]
    assert outcome.relative_error is None  # neither exact nor measured
    records = records_of(runs[0])
    factors = [tuple(record.factors) for record in records]
    assert [record.means for record in records] == [
        {"noise": Z, "noise_sites": 4.0, "noise_numbers": float(LAYOUT.entries(each))}
        for each in factors
    ]
    claim = outcome.privacy.claim
    assert (claim.mode, claim.unit, claim.adjacency) == ("site-level", "site", "zero-out")
    assert (claim.steps, claim.units, claim.clip, claim.noise) == (3, 4, C, (Z,))
    spends = [Spend(sampling=1, noise=Z, steps=1, entries=LAYOUT.entries(each)) for each in factors]
    assert claim.epsilon == epsilon(spends, 1e-3)
    once = Spend(sampling=1, noise=Z, steps=3)
    assert claim.epsilon == pytest.approx(epsilon([once], 1e-3), rel=1e-6)
    assert claim.not_covered == NOT_COVERED_OF_SITES
    assert "sees the sites' changes and must be trusted" in claim.trust
    most = max(LAYOUT.entries(each) for each in factors)
    price = site_level_price(4, Z, 3, 1e-3, most)
    assert f"noise of {price.deviation:.3g} of the clipping norm" in claim.mechanism
    assert f"{price.noise_to_signal:.3g} times as long" in claim.mechanism
    text = outcome.privacy.text()
    assert "what one site sent in all rounds replaced by no change" in text
    assert "L2 norm 0.5 per site" in text


def without_noise(monkeypatch):
    monkeypatch.setattr(server.site_noise, "noised", lambda total, grid, draw: total)


def change_in_one_round(folder, on_push=None, **tables):
    run = federation(folder, rounds=1, aggregate={"rule": "ffa", "clip_norm": C}, **tables)
    run.on_push = on_push
    outcome = run.run()
    return {n: outcome.shared.factors[n] for n in LAYOUT.names(("B",))}, run


def test_but_for_the_noise_it_is_the_plain_mean(tmp_path, monkeypatch):
    plain = Federation(
        tmp_path / "plain" / "run",
        job_of(rounds=3, aggregate={"rule": "altfold", "clip_norm": C, "weighting": "equal"}),
    ).run()
    without_noise(monkeypatch)
    same = federation(tmp_path).run()
    for name, values in plain.shared.factors.items():
        np.testing.assert_allclose(same.shared.factors[name], values, atol=1e-6)


def test_a_site_that_drops_out_counts_as_no_change(tmp_path, monkeypatch):
    without_noise(monkeypatch)

    def lost(site, request):
        return "lost" if site.name == "east" and request.kind == "train" else None

    found, run = change_in_one_round(tmp_path / "four", lost)
    (record,) = records_of(run)
    assert (record.contributors, record.asked) == (3, 4)
    assert record.means["noise_sites"] == 4
    others = federation(
        tmp_path / "three", ("north", "south", "west"), 1, aggregate={"rule": "ffa"}
    ).run()
    for name, values in found.items():
        np.testing.assert_allclose(values, others.shared.factors[name] * 3 / 4, atol=1e-6)


def test_a_round_of_too_small_a_delta_asks_nobody(tmp_path):
    run = federation(tmp_path, privacy={**SITE_LEVEL, "delta": 0.25})
    with pytest.raises(ConfigError, match=r"with 4 sites: delta 0\.25"):
        run.run()
    assert not [r for site in run.sites for r in site.seen if r.kind == "train"]


def counted(monkeypatch):
    drawn = []
    original = server.site_noise.noised

    def noised(total, grid, draw):
        drawn.append(total.size)
        return original(total, grid, draw)

    monkeypatch.setattr(server.site_noise, "noised", noised)
    return drawn


def test_an_attempt_that_fails_gets_no_noise_and_costs_nothing(tmp_path, monkeypatch):
    drawn = counted(monkeypatch)
    run = federation(tmp_path, aggregate={"rule": "ffa", "quorum": 4})
    run.on_push = lambda site, request: (
        "lost" if (site.name, request.round) == ("east", 2) else None
    )
    with pytest.raises(QuorumError):
        run.run()
    assert len(drawn) == 1
    run.on_push = None
    outcome = run.run()
    assert len(drawn) == 3
    assert outcome.privacy.claim.steps == 3


class CrashError(BaseException):
    """As if the process had been killed."""


@pytest.mark.parametrize(("before", "noises"), [(True, 4), (False, 3)])
def test_a_resumed_run_draws_anew_for_rounds_that_do_not_count_only(
    tmp_path, monkeypatch, before, noises
):
    drawn = counted(monkeypatch)
    run, commit, calls = federation(tmp_path), RunHistory.record_round, []

    def record_round(self, name, record):
        calls.append(record)
        if len(calls) == 2 and before:
            raise CrashError
        commit(self, name, record)
        if len(calls) == 2:
            raise CrashError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunHistory, "record_round", record_round)
        with pytest.raises(CrashError):
            run.run()
    kept = [record.adapter_sha256 for record in records_of(run)]
    assert len(kept) == (1 if before else 2)
    lost = calls[1].adapter_sha256
    outcome = run.run()
    assert [r.adapter_sha256 for r in records_of(run)][: len(kept)] == kept
    assert (records_of(run)[1].adapter_sha256 == lost) == (not before)
    assert len(drawn) == noises
    assert outcome.privacy.claim.steps == 3
    if before:  # nobody was sent what came of the attempt that was lost
        assert lost not in json.dumps([e.values for e in run.events])
    assert run.run().shared.sha256() == outcome.shared.sha256()
    assert len(drawn) == noises


def test_a_damaged_round_is_not_done_again_with_other_noise(tmp_path):
    run = federation(tmp_path)
    run.run()
    (run.path / "checkpoints" / "round-0003" / "shared.safetensors").write_bytes(b"")
    with pytest.raises(RunDirectoryError, match=r"round-0003.* put the folder back from a copy"):
        run.run()
    assert len(records_of(run)) == 3


def test_secure_sums_get_the_same_noise_and_the_statement_says_who_saw_what(tmp_path, monkeypatch):
    privacy = {**SITE_LEVEL, "secure_aggregation": True}
    runs = []
    for name in ("noised", "clear"):
        sites = secure_sites(tmp_path / name, change_reply=private)
        keys = {site.name: key_of(site.name).public for site in sites}
        runs.append(
            Federation(
                tmp_path / name / "run",
                job_of(rounds=2, privacy=privacy),
                sites=sites,
                options={"members": Members(CONSORTIUM, keys.get)},
            )
        )
    outcome = runs[0].run()
    means = records_of(runs[0])[0].means
    assert (means["noise"], means["noise_sites"], means["clipped"]) == (Z, 5.0, 0.0)
    assert not {"loss", "validation_loss"} & means.keys()
    assert outcome.relative_error is None
    claim = outcome.privacy.claim
    assert "no site's own, and must be trusted" in claim.trust
    assert claim.units == 5
    without_noise(monkeypatch)
    clear = runs[1].run()
    names = tuple(site.name for site in runs[1].sites)
    one_by_one = federation(tmp_path / "plain", names, rounds=2).run()
    assert clear.shared.sha256() == one_by_one.shared.sha256()
    assert clear.shared.sha256() != outcome.shared.sha256()


def test_the_statement_is_made_of_what_the_rounds_had(tmp_path):
    run = federation(tmp_path)
    run.run()
    records = records_of(run)
    said = site_statement(run.job, records)
    assert Statement.read(json.loads(json.dumps(said.tree()))) == said
    less = site_statement(run.job, records[:2])
    assert less.claim.steps == 2
    assert less.claim.epsilon < said.claim.epsilon
    assert site_statement(run.job, []).claim is None
    assert site_statement(job_of(), records) is None
    records[1].means.clear()
    assert "does not say of every round" in site_statement(run.job, records).text()
