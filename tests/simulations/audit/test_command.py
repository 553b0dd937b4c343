"""``consilia audit`` and the gate of ``consilia export``, as they are typed."""

import json

import pytest

from server.job_text import to_toml
from shared.privacy.statement import Statement
from simulations.audit.results import AUDIT, AuditReport, read_audit, write_audit
from simulations.simulate import simulate

SMALL = ("--canaries", "24", "--gradients", "200", "--records", "3")


@pytest.fixture(scope="module")
def run(make_job, tmp_path_factory, quiet):
    """A short run with differential privacy and secure aggregation."""
    train = {"steps": 3, "batch_size": 16, "learning_rate": 0.002}
    privacy = {"secure_aggregation": True}
    out = tmp_path_factory.mktemp("runs") / "private"
    simulate(out, make_job(epsilon=8.0, train=train, rounds=2, privacy=privacy), quiet)
    return out


def test_help_says_what_it_does(command):
    ended = command("audit", "--help")
    assert ended.code == 0
    assert "consilia audit runs/default-1" in ended.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "neither a run's folder nor a job file"),
        (["nowhere", "--write", "no-page.md"], "expected a page"),
        (["nowhere", "--canaries", "2"], "--canaries"),
    ],
)
def test_bad_input_is_one_line(command, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    ended = command("audit", *arguments)
    assert ended.code == 2
    assert said in ended.err


def test_a_run_is_audited_told_and_exported(command, run, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n<!-- audit: begin -->\n<!-- audit: end -->\n")
    ended = command("audit", run, *SMALL, "--write", page)
    assert ended.code == 0, ended.err
    assert f"Next     open the report; consilia export {run} --to DIR" in ended.out
    report = read_audit(run)
    assert report.status == "passed"
    assert report.records == "own"
    assert {each.protection for each in report.membership} == {
        "as the job says", "without privacy"
    }  # fmt: skip
    assert {each.what for each in report.bounds} == {"the run", "one step"}
    assert report.run_bound.claimed == pytest.approx(report.epsilon, rel=1e-3)
    assert {each.way for each in report.inversion} >= {"alone", "masked", "noised"}
    results = json.loads((run / "results.json").read_text())
    manifest = json.loads((run / "manifest.json").read_text())
    for name, site in results["sites"].items():
        assert site["privacy"]["claim"]["audit_bound"] == report.run_bound.bound
        claim = Statement.read(manifest["privacy"][name]).claim
        assert claim.audit_bound == report.run_bound.bound
    assert "epsilon is at least" in (run / "report.html").read_text()
    report_page = (run / "report.html").read_text()
    assert "24 phantom patients" in report_page
    assert report_page.count('<th scope="row">Membership, by loss under adapter and base</th>') == 2
    assert "<td>the same, masked for the secure sum</td>" in report_page
    assert "| membership, by" in page.read_text()

    ended = command("export", run, "--to", tmp_path / "new")
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "new" / "consilia.json").read_text())["audit"] == "passed"


@pytest.mark.parametrize(
    ("lora", "left_out", "found"),
    [
        ({"layers": "top:1"}, "tokens of the report: the first layer of the text tower", True),
        ({"targets": ["attention"]}, "inversion: vision_model.encoder.layers", False),
    ],
    ids=["top layers", "attention"],
)
def test_what_an_adapter_does_not_show_is_named(command, make_job, tmp_path, lora, left_out, found):
    job = tmp_path / "job.toml"
    train = {"steps": 2, "batch_size": 16}
    job.write_text(to_toml(make_job(epsilon=8.0, train=train, rounds=1, lora=lora)))
    ended = command("audit", job, *SMALL, "--out", tmp_path / "audits")
    assert ended.code == 0, ended.err
    report = read_audit(next((tmp_path / "audits").iterdir()))
    (named,) = [each for each in report.not_run if each.startswith(left_out)]
    assert "carries no adapter" in named
    assert bool(report.inversion) == found
    assert all(each.tokens is None for each in report.inversion)


def test_a_job_whose_sites_add_the_noise_together_is_audited(command, make_job, tmp_path):
    job = tmp_path / "job.toml"
    privacy = {"mode": "distributed", "secure_aggregation": True}
    wanted = make_job(
        epsilon=8.0, privacy=privacy, rounds=4, train={"steps": 1},
        aggregate={"rule": "ffa", "fold_every": 0, "server_optimizer": "adam", "clip_norm": 1.0},
    )  # fmt: skip
    job.write_text(to_toml(wanted))
    ended = command("audit", job, *SMALL, "--out", tmp_path / "audits")
    assert ended.code == 0, ended.err
    report = read_audit(next((tmp_path / "audits").iterdir()))
    assert report.status == "passed"
    assert {each.steps for each in report.bounds if each.what == "the run"} == {4}
    assert report.epsilon <= 8.0


def test_a_run_that_failed_is_exported_with_a_reason_only(command, run, tmp_path):
    sound = read_audit(run)
    bounds = tuple(each.model_copy(update={"bound": 99.0}) for each in sound.bounds)
    write_audit(run, AuditReport(**{**dict(sound), "bounds": bounds}))
    ended = command("export", run, "--to", tmp_path / "new")
    assert ended.code == 1
    assert "its audit failed" in ended.line
    assert not (tmp_path / "new").exists()
    reason = ("--despite-audit", "only synthetic patients")
    ended = command("export", run, "--to", tmp_path / "new", *reason)
    assert ended.code == 0, ended.err
    note = json.loads((tmp_path / "new" / "consilia.json").read_text())
    assert note["exported_because"] == "only synthetic patients"
    assert "only synthetic patients" in (run / "audit-overrides.json").read_text()
    (run / AUDIT).unlink()
    ended = command("export", run, "--to", tmp_path / "again")
    assert ended.code == 0
    assert "was never audited" in ended.out
