"""The page on privacy names every objection, and its table of the policy is one."""

import re
import tomllib
from pathlib import Path

from client.privacy_policy import PrivacyPolicy
from client.release import REFUSALS
from shared.config import parse_job
from shared.privacy.accountant import Spend, noise_for, site_level_price
from shared.privacy.objections import _RULES
from shared.privacy.statement import NO_CLAIM, NOT_COVERED

PAGE = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text()


def test_every_objection_has_its_row():
    table = PAGE.split("## What is refused")[1].split("## ")[0]
    rows = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([a-z-]+)`", rows)) == {code for code, _, _ in _RULES}


def test_the_table_of_the_policy_can_be_used_as_it_stands():
    budget = PAGE.split("## The budget is the site's")[1]
    example = budget.split("```toml\n")[1].split("```")[0]
    table = tomllib.loads(example)["privacy"]
    assert PrivacyPolicy.model_validate(table).population == "chest-2026"
    assert set(table) == set(PrivacyPolicy.model_fields)


def test_every_refusal_about_privacy_is_explained():
    codes = {code for code in REFUSALS if code.startswith("privacy-")}
    assert codes == {f"privacy-{what}" for what in ("plan", "budget", "ledger", "population")}
    assert all(f"`{code}`" in PAGE for code in codes)


def test_the_price_of_hiding_a_site_is_the_one_that_is_printed():
    price = site_level_price(sites=10, noise=8, rounds=50, delta=1e-5, entries=250_000)
    assert f"epsilon is {price.epsilon:.1f}" in PAGE
    assert f"{price.deviation:g} of a whole change" in PAGE
    assert f"noise is {price.noise_to_signal:g} times longer" in PAGE


def test_the_table_of_that_price_is_what_the_accountant_says():
    table = PAGE.split("### Site-level noise")[1].split("## What is refused")[0]
    rows = [line for line in table.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == 4
    for row in rows:
        numbers, rounds, z, *ratios = (cell.replace(" ", "") for cell in row.split("|")[1:-1])
        plan = Spend(sampling=1, noise=1, steps=int(rounds), entries=int(numbers))
        noise = noise_for(8.0, 1e-4, plan)
        assert f"{noise:.3g}" == z
        for sites, ratio in zip((10, 100, 1000), ratios, strict=True):
            price = site_level_price(sites, noise, int(rounds), 1e-4, int(numbers))
            assert f"{price.noise_to_signal:.3g}" == ratio


def test_the_example_of_site_level_noise_is_a_job():
    example = PAGE.split("### Site-level noise")[1].split("```toml\n")[1].split("```")[0]
    job = parse_job({"name": "x", **tomllib.loads(example)})
    assert job.privacy.for_sites


def test_the_words_for_no_claim_are_the_same():
    assert f"`{NO_CLAIM}`" in PAGE
    assert any("personal adapters" in text for text in NOT_COVERED)
