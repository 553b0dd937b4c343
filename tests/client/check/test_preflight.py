"""The command on a real small site: what it says, how it ends, and what it never says."""

import json
import re

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.provisioning.folder import FOLDER
from shared.files import held


@pytest.fixture
def check(lab):
    """Run the command; return its exit code and findings by name."""

    def run(*arguments, offline=True):
        options = ["check", "--config", str(lab.config), "--job", str(lab.job), "--json"]
        options += [*arguments, *(["--offline"] if offline else [])]
        ended = CliRunner().invoke(app, options)
        tree = json.loads(ended.stdout)
        return ended.exit_code, {each["name"]: each for each in tree["findings"]}, tree

    return run


def test_a_site_that_is_ready(check, lab):
    code, found, tree = check(offline=False)
    assert {name: each for name, each in found.items() if each["state"] == "fail"} == {}
    assert code == 0
    assert tree["ok"]
    assert tree["site"] == "north"
    assert "localhost" in found["kit"]["found"]
    assert found["certificate"]["state"] == found["coordinator"]["state"] == "ok"
    assert "train 24 images, 24 texts, 24 pairs, 24 patients" in found["data"]["found"]
    costs = tree["forecast"]
    assert costs["round_seconds"] > 5
    assert costs["run_seconds"] > 4 * costs["round_seconds"]
    assert costs["memory_bytes"] > 10**8
    assert len(costs["traffic"]["down"]) == 4
    assert "a job that names the digest" in found["base"]["expected"]


def test_nothing_of_a_record_is_said(check, lab):
    """Texts, file names and patients stay where they are, also where they are wrong."""
    table = lab.home / "data" / "metadata.csv"
    lines = table.read_text().splitlines()
    cells = lines[3].split(",")
    lines[3] = ",".join(["film-missing.png", *cells[1:]])
    table.write_text("\n".join(lines) + "\n")
    code, found, tree = check()
    assert code == 2
    assert found["data"]["state"] == "fail"
    assert tree["problems"][0]["where"] == 4
    said = json.dumps(tree)
    for secret in ("film-", "person-", "square", "no finding"):
        assert secret not in said


def test_offline_says_so_and_asks_nobody(check, lab):
    code, found, _ = check()
    assert code == 0
    assert "--offline" in found["network"]["found"]
    assert not {"certificate", "clock", "outbound port"} & found.keys()
    assert lab.gateway.asked == []


def test_every_finding_says_what_to_do(check, lab):
    lab.policy(rules='["ffa"]')
    _, found, _ = check()
    for each in found.values():
        assert (each["state"] == "ok") == (each["do"] == "")


def test_a_site_file_that_is_wrong_is_one_line(check, lab):
    lab.site(polcy="1")
    code, found, _ = check()
    assert code == 2
    assert "polcy" in found["site file"]["found"]
    assert found["data"]["found"] == "not checked: the site file cannot be used"
    assert found["kit"]["state"] == "ok"


def test_a_site_that_has_not_joined(check, lab):
    (lab.home / FOLDER / "kit.json").unlink()
    code, found, _ = check(offline=False)
    assert code == 2
    assert "has not joined" in found["kit"]["found"]
    assert "client join KIT" in found["kit"]["do"]
    assert found["clock"]["found"] == "not checked: the site has not joined a consortium"


def test_keys_that_others_can_read(check, lab):
    [key] = (lab.home / FOLDER).rglob("signing.key")
    key.chmod(0o644)
    code, found, _ = check()
    assert code == 2
    assert "chmod 600" in found["keys"]["found"]


def test_a_kit_of_another_consortium(check, lab, tmp_path):
    """Its kit laid in by hand, and the gateway that this machine reaches is the first one's."""
    from client.provisioning.joining import begin, join
    from server.provisioning.admission import admit
    from server.provisioning.founding import found as founded

    now = lab.folder.consortium.created
    other = founded(tmp_path / "other", "elsewhere", ["localhost"], lab.gateway.port, now)
    keys = begin(tmp_path / "guest", "north", now)
    join(tmp_path / "guest", admit(other, keys.part, now).kit, now)
    mine = lab.home / FOLDER
    kit = (tmp_path / "guest" / FOLDER / "kit.json").read_bytes()
    (mine / "kit.json").write_bytes(kit)
    code, found, _ = check(offline=False)
    assert code == 2
    assert "not the authority that the kit pins" in found["kit"]["found"]
    assert found["keys"]["state"] == "fail"
    assert found["certificate"]["state"] == "fail"
    assert "the consortium demo" in found["certificate"]["found"]


def test_the_name_of_another_site(check, lab):
    text = lab.config.read_text().replace('"north"', '"south"')
    lab.config.write_text(text)
    _, found, _ = check()
    assert "the kit is for site north, and site.toml names south" in found["kit"]["found"]


def test_modes_that_let_others_in(check, lab):
    (lab.home / "policy.toml").chmod(0o666)
    (lab.home / "state").chmod(0o755)
    code, found, _ = check()
    assert code == 2
    modes = found["file modes"]
    assert "policy.toml has mode 0666" in modes["found"]
    assert re.search(r"chmod go-w \S+policy\.toml; chmod 700 \S+state", modes["do"])


def test_missing_data(check, lab):
    (lab.home / "data" / "metadata.csv").unlink()
    code, found, _ = check()
    assert code == 2
    assert found["data"]["state"] == "fail"
    assert found["training step"]["found"] == "not checked: the records cannot be used"
    assert found["base"]["state"] == "warn"  # the rest is looked at all the same


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("rules", '["ffa"]', "aggregate.rule"),
        ("personalization", '["none"]', "personalize.method"),
        ("targets", '["attention"]', "lora.targets"),
        ("max_rounds", "3", "rounds"),
        ("max_steps", "3", "train.steps"),
        ("max_rank", "2", "lora.rank"),
        ("minimum_patients", "25", "data"),
        ("requests", '["describe"]', "requests"),
        ("coordinators", f'["{"0" * 64}"]', "coordinator"),
        ("minimum_cohort", "2", "roster"),
    ],
)
def test_a_job_that_the_policy_forbids(check, lab, monkeypatch, key, value, field):
    monkeypatch.setattr("client.check.subject.measure", _no_time)
    lab.policy(**{key: value})
    code, found, _ = check()
    assert code == 2
    assert found["policy and job"]["state"] == "fail"
    assert f"{field}: " in found["policy and job"]["found"]


def test_every_field_that_is_forbidden_is_named(check, lab, monkeypatch):
    monkeypatch.setattr("client.check.subject.measure", _no_time)
    lab.policy(rules='["ffa"]', max_rank="2", max_rounds="1")
    found = check()[1]["policy and job"]["found"]
    assert all(field in found for field in ("aggregate.rule", "lora.rank", "rounds: 4"))


@pytest.mark.parametrize(
    ("expires", "state", "words"),
    [('"2020-01-31"', "fail", "expired on 2020-01-31"), ('"never"', "ok", "rules altfold")],
)
def test_a_policys_last_day(check, lab, monkeypatch, expires, state, words):
    monkeypatch.setattr("client.check.subject.measure", _no_time)
    lab.policy(expires=expires)
    policy = check()[1]["policy"]
    assert policy["state"] == state
    assert words in policy["found"]


def test_a_policy_that_cannot_be_read(check, lab):
    lab.policy(max_rnds="3")
    code, found, _ = check()
    assert code == 2
    assert "max_rnds" in found["policy"]["found"]
    assert found["training step"]["state"] == "ok"  # what it costs can be told all the same


def test_a_base_with_another_digest(check, lab, clip_folder, monkeypatch):
    monkeypatch.setattr("client.check.subject.measure", _no_time)
    lab.job.write_text(lab.job.read_text().replace("[model]", f'[model]\nsha256 = "{"1" * 64}"'))
    code, found, _ = check()
    assert code == 2
    assert "1" * 64 in found["base"]["expected"]
    lab.write_job(clip_folder)
    lab.policy(base_sha256=f'["{"2" * 64}"]')
    _, found, _ = check()
    assert found["base"]["state"] == "fail"
    assert "base_sha256" in found["base"]["expected"]


def test_a_base_that_is_not_here(check, lab):
    lab.config.write_text(re.sub(r'base = ".*"', 'base = "nowhere"', lab.config.read_text()))
    code, found, _ = check()
    assert code == 2
    assert found["base"]["state"] == "fail"
    assert found["encoder"]["found"] == "not checked: the base cannot be used"
    assert found["data"]["state"] in ("ok", "warn")  # records are read without it


def test_another_agent_on_the_same_state(check, lab, monkeypatch):
    monkeypatch.setattr("client.check.subject.measure", _no_time)
    with held(lab.home / "state", "taken"):
        code, found, _ = check()
    assert code == 2
    assert "not at this site's socket" in found["agent"]["found"]


def test_the_default_job_is_named_as_such(lab):
    ended = CliRunner().invoke(app, ["check", "--config", str(lab.config), "--offline"])
    (line,) = [each for each in ended.stdout.splitlines() if each[5:].startswith("job: ")]
    assert line.startswith("warn job: none given, so the defaults of a job file are taken: 10")


def test_lines_for_logs_are_one_each(lab):
    arguments = ["check", "--config", str(lab.config), "--job", str(lab.job), "--offline"]
    lines = CliRunner().invoke(app, arguments).stdout.splitlines()
    assert all(re.match(r"(ok|warn|fail) +\S", line) for line in lines[:-1])
    assert lines[-1].startswith("ready: 0 to mend")


def _no_time(*_arguments):
    from shared.errors import TrainingError

    raise TrainingError("test", "not measured in this test")
