"""``consilia client audit ...``, ``withdraw``, ``consent`` and ``policy`` as people type them."""

import json

import pytest

from client.audit import AuditLog
from client.audit_check import verify
from client.consent import Consent
from shared.errors import RefusedError

SITE = 'name = "north"\nstate = "state"\n[data]\ntable = "metadata.csv"\n'
POLICY = """
purpose = "retrieval of radiographs"
expires = "never"
coordinators = ["any"]
base_sha256 = ["any"]
requests = ["describe", "train", "evaluate"]
rules = ["altfold"]
personalization = ["none"]
targets = ["attention", "mlp"]
max_rank = 4
"""


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site.toml").write_text(SITE)
    (tmp_path / "policy.toml").write_text(POLICY)
    return tmp_path


@pytest.fixture
def log(site):
    log = AuditLog(site / "state" / "audit.jsonl")
    for number in (1, 2):
        log.append(run="run", round_number=number, what="approved train")
        log.append(run="run", round_number=number, what="update", body=b"body")
    return log


@pytest.fixture
def call(site, command):
    def run(*arguments, code=0):
        ended = command("client", *arguments, "--site", site)
        assert ended.code == code, ended
        return ended

    return run


def test_verify_prints_the_head_that_a_coordinator_keeps(call, log):
    said = call("audit", "verify").out
    assert "4 lines, the chain holds" in said
    assert f"Head 4:{log.head().sha256}" in said
    assert "not compared with the coordinator" in said
    told = json.loads(call("audit", "verify", "--anchor", f"4:{log.head().sha256}", "--json").out)
    assert told == {"site": "north", "lines": 4, "anchors": 1, "head": log.head().sha256}


def test_verify_names_the_first_bad_line(call, log):
    log.path.write_text(log.path.read_text().replace('"round":2', '"round":3', 1))
    assert "line 4 does not follow from line 3" in call("audit", "verify", code=2).err


def test_show_prints_lines_that_no_name_can_forge(call, log):
    log.append(run="evil\n9  2026  approved train", round_number=1, what="refusal policy-rank")
    said = call("audit", "show", "--last", 2).out.splitlines()
    assert len(said) == 2
    assert "update" in said[0]
    assert '"evil\\n9  2026  approved train"' in said[1]
    lines = json.loads(call("audit", "show", "--run", "run", "--json").out)["lines"]
    assert [line["seq"] for line in lines] == [1, 2, 3, 4]


def test_consent_is_withdrawn_and_given_again_and_both_are_in_the_log(call, site, log):
    consent = Consent.of(site / "state")
    consent.check("run")
    call("withdraw", "run", "--reason", "the ethics vote was withdrawn")
    with pytest.raises(RefusedError) as caught:
        consent.check("run")
    assert caught.value.reason == "consent-withdrawn"
    consent.check("another")
    call("consent", "run")
    consent.check("run")
    assert verify(log.path).lines == 6
    told = [json.loads(line) for line in log.path.read_text().splitlines()][-2:]
    assert [(line["what"], line["run"]) for line in told] == [
        ("consent withdrawn", "run"), ("consent given", "run"),
    ]  # fmt: skip
    assert told[0]["detail"] == {"reason": "the ethics vote was withdrawn"}
    assert log.head().seq == 4, "the agent's own count, until it writes"
    log.append(run="run", round_number=3, what="approved train")
    assert verify(log.path).lines == 7


def test_consent_to_every_run_is_given_again_to_every_run(call, site):
    call("withdraw", "--reason", "no more")
    with pytest.raises(RefusedError):
        Consent.of(site / "state").check("a run to come")
    assert "withdrawn from every run" in call("consent", "run", code=2).err
    call("consent")
    Consent.of(site / "state").check("a run to come")
    assert "is not withdrawn" in call("consent", code=2).err


def test_a_name_that_nobody_asked_for_is_told(call, log):
    assert "nobody has asked this site" in call("withdraw", "rum", "--reason", "x").out
    assert "nobody has asked" not in call("withdraw", "run", "--reason", "x").out


def test_a_withdrawal_without_a_reason_is_none(call, site):
    assert "--reason" in call("withdraw", "--reason", "", code=2).err
    Consent.of(site / "state").check("run")


def test_withdrawals_that_cannot_be_read_refuse_everything(site, caplog):
    (site / "state").mkdir()
    (site / "state" / "withdrawn.json").write_text("{")
    with pytest.raises(RefusedError):
        Consent.of(site / "state").check("run")
    assert "withdrawn.json" in caplog.text


def test_the_policy_is_shown_with_what_is_withdrawn(call):
    call("withdraw", "--reason", "x")
    said = call("policy").out
    assert "max_rank                        4" in said
    assert "Consent is withdrawn from every run" in said
    told = json.loads(call("policy", "--json").out)
    assert told["policy"]["expires"] == "never"
    assert told["withdrawn"] == ["every run"]


def test_a_policy_names_everything_that_it_does_not_allow_of_a_job(call, site):
    job = site / "job.toml"
    job.write_text('name = "j"\nrounds = 500\n[lora]\nrank = 8\n[aggregate]\nrule = "fedavg"\n')
    said = call("policy", job, code=2).out
    for field in (
        "aggregate.rule", "personalize.method", "lora.targets", "lora.rank", "rounds", "requests",
    ):  # fmt: skip
        assert f"\n{field}: " in f"\n{said}"
    told = json.loads(call("policy", job, "--json", code=2).out)
    assert not told["allowed"]
    assert {
        "reason": "policy-rounds",
        "field": "rounds",
        "message": "500, the site allows 100",
    } in (told["objections"])
    job.write_text(
        'name = "j"\n[lora]\nrank = 4\ntargets = ["mlp"]\n[personalize]\nmethod = "none"\n'
    )
    assert "The policy allows" in call("policy", job).out
