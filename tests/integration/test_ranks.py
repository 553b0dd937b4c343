"""Sites of smaller rank through whole runs: bytes, exactness, cohorts, resume, the command."""

import json

import numpy as np
import pytest

from client.together import answer_together
from shared.config import JobConfig
from shared.errors import InterruptedRunError
from shared.messages import decode_reply, decode_request
from simulations.grid import LocalGrid, Together

KINDS = ("paired", "paired", "image")
RANKS = {"a-paired": 1, "c-image": 2}  # of 4
RULES = {
    "fedavg": {"rule": "fedavg"},
    "ffa": {"rule": "ffa"},
    "altfold": {"rule": "altfold"},
    "flexlora": {"rule": "flexlora"},
    "flexlora, tail folded": {"rule": "flexlora", "tail": "fold"},
    "fedex": {"rule": "fedex"},
    "flora": {"rule": "flora"},
}
EXACT = ("ffa", "altfold", "flexlora, tail folded", "fedex", "flora")


@pytest.fixture(scope="module")
def federation(make_federation, tmp_path_factory):
    return make_federation(tmp_path_factory.mktemp("sites"), KINDS)


def job_of(base, aggregate, ranks=RANKS):
    tree = base.model_dump(mode="json", exclude={"aggregate"})
    tree["aggregate"] = aggregate
    tree["lora"]["ranks"] = ranks
    tree["personalize"]["method"] = "none"
    tree["train"]["steps"] = 2
    return JobConfig.model_validate(tree)


def in_one_cohort(agents):
    return LocalGrid(agents, Together(answer_together, dict.fromkeys(agents, 16), 99))


@pytest.mark.parametrize("name", RULES)
def test_every_rule_carries_sites_of_smaller_rank(federation, tmp_path, name):
    job, asked, answered = job_of(federation.job, RULES[name]), {}, {}

    def listen(pairs):
        answers = answer_together(pairs)
        for (_, body), answer in zip(pairs, answers, strict=True):
            request, tensors = decode_request(body)
            if request.kind == "train":
                asked[request.site, request.round] = len(body), tensors
                answered[request.site, request.round] = len(answer), decode_reply(answer)[1]
        return answers

    def grid(agents):
        return LocalGrid(agents, Together(listen, dict.fromkeys(agents, 16), 99))

    outcome = federation.run(tmp_path / "run", grid, job)
    assert outcome.complete
    if name in EXACT:
        assert outcome.relative_error == pytest.approx(0, abs=1e-5)
    for (site, _), (size, tensors) in answered.items():
        rank = RANKS.get(site, 4)
        assert {min(array.shape) for array in tensors.values()} == {rank}
        assert size < 4 * sum(array.size for array in tensors.values()) + 20_000
    for number in (1, 2):  # a paired site of rank 1 beside one of rank 4
        assert answered["a-paired", number][0] < answered["b-paired", number][0]
        if name in ("flexlora", "flexlora, tail folded", "flora"):
            assert asked["a-paired", number][0] < asked["b-paired", number][0]
    logs = outcome.sites
    assert logs["a-paired"].bytes_up < logs["b-paired"].bytes_up


@pytest.mark.parametrize("name", ["altfold", "flexlora", "flora"])
def test_a_cohort_and_a_resume_change_nothing(federation, tmp_path, name):
    job = job_of(federation.job, RULES[name])
    whole = federation.run(tmp_path / "whole", in_one_cohort, job).shared
    alone = federation.run(tmp_path / "alone", job=job).shared
    for factor, array in whole.factors.items():
        np.testing.assert_allclose(array, alone.factors[factor], atol=2e-4)

    def interrupt(event):
        if event.kind == "round-started" and event.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError):
        federation.run(tmp_path / "cut", in_one_cohort, job, interrupt)
    assert federation.run(tmp_path / "cut", in_one_cohort, job).shared.sha256() == whole.sha256()


def test_the_runs_rank_for_all_is_the_run_without_ranks(federation, tmp_path):
    plain, same = (job_of(federation.job, RULES["flexlora"], r) for r in ({}, {"b-paired": 4}))
    runs = [
        federation.run(tmp_path / str(n), in_one_cohort, job).shared.sha256()
        for n, job in enumerate((plain, same))
    ]
    assert runs[0] == runs[1]


@pytest.mark.slow
def test_the_command_carries_ranks_and_fedsa_out(command, federation, tmp_path):
    tree = federation.job.model_dump(mode="json", include={"model"})
    base = tree["model"]["base"]
    common = (
        f'[data]\nfolder = "{federation.data}"\n[model]\nbase = "{base}"\nprecision = "float32"\n'
        "[train]\nsteps = 2\nbatch_size = 16\n[evaluate]\nbaselines = []\nbootstrap = 100\n"
        "minimum_count = 1\n"
    )
    wanted = {
        "ranks": '[aggregate]\nrule = "flexlora"\n[lora]\nrank = 4\nranks = {a-paired = 1}\n'
        "[personalize]\nsteps = 2\n",
        "fedsa": '[aggregate]\nrule = "fedsa"\n[lora]\nrank = 4\n',
    }
    for name, text in wanted.items():
        job = tmp_path / f"{name}.toml"
        job.write_text(f'name = "{name}"\nrounds = 2\n{common}{text}')
        ended = command("simulate", job, "--out", tmp_path / "runs")
        assert ended.code == 0, ended.err
        results = json.loads((tmp_path / "runs" / f"{name}-1" / "results.json").read_text())
        sites = results["sites"]
        if name == "fedsa":
            assert results["personalization"] == "own-factor"
            assert results["aggregation"]["relative_error"] is None
            report = (tmp_path / "runs" / "fedsa-1" / "report.html").read_text()
            assert "not measured" in report
            for site in sites.values():
                assert site["metrics"]["shared"] == site["metrics"]["base"]
                assert site["metrics"]["personal"] != site["metrics"]["base"]
    refused = command(
        "simulate", tmp_path / "ranks.toml", "--out", tmp_path / "runs",
        "--set", "lora.ranks={nobody = 1}",
    )  # fmt: skip
    assert refused.code == 2
    assert "lora.ranks names 'nobody'; expected one of the sites: a-paired" in refused.line
