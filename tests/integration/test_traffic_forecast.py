"""What `consilia client check` forecasts of traffic, beside the bytes of real rounds."""

import pytest

from client.check.traffic import Sizes, forecast_traffic
from server.history import RunHistory
from shared.config import JobConfig

ROUNDS = 4
TOWERS = {"paired": ("image", "text"), "image": ("image",)}
RULES = {
    "altfold": {"fold_every": 2},
    "ffa": {"fold_every": 2},
    "fedavg": {},
    "fedex": {},
    "flora": {},
    "fedsa": {},
    "flexlora": {"tail": "fold"},
}
FIRST = ("altfold", "fedavg", "flora")
MORE = [rule for rule in RULES if rule not in FIRST]


@pytest.mark.parametrize("rule", [*FIRST, *(pytest.param(r, marks=pytest.mark.slow) for r in MORE)])
def test_within_a_tenth_of_real_rounds(federation_of, rule, tmp_path):
    """Where products are folded for every site, each tower has to have as many of them."""
    kinds = ("paired", "paired" if rule in ("fedex", "flora", "flexlora") else "image")
    federation = federation_of(kinds)
    tree = federation.job.model_dump(mode="json")
    tree |= {"rounds": ROUNDS, "aggregate": {"rule": rule, **RULES[rule]}}
    tree["train"] |= {"steps": 3}
    own = "own-factor" if rule == "fedsa" else "none"
    tree["personalize"] |= {"method": own, "steps": 0, "use": "always"}
    job = JobConfig.model_validate(tree)
    outcome = federation.run(tmp_path / "run", job=job)
    with RunHistory(f"sqlite:///{tmp_path / 'run' / 'history.sqlite'}") as history:
        [run] = [each.name for each in history.runs()]
        records = history.committed_rounds(run)
    for letter, kind in zip("ab", kinds, strict=True):
        site = f"{letter}-{kind}"
        sizes = Sizes(job, federation.encoder.layout, site, TOWERS[kind])
        found = forecast_traffic(sizes, members=2)
        for number, record in enumerate(records):
            [real] = [each for each in record.contributions if each.site == site]
            assert found.down[number] == pytest.approx(real.bytes_down, rel=0.1), (site, number)
            assert found.up[number] == pytest.approx(real.bytes_up, rel=0.1), (site, number)
        log = outcome.sites[site]
        assert found.total_down == pytest.approx(log.bytes_down, rel=0.1)
        assert found.total_up == pytest.approx(log.bytes_up, rel=0.1)
