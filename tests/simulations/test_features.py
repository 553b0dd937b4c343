"""Jobs whose sites exchange features: what goes together, and what is refused in one sentence."""

from pathlib import Path

import pytest

from shared.config import JobConfig, load_job
from shared.errors import ConfigError
from simulations.compare.methods import parse_methods
from simulations.compare.plan import make_plan

CREAMFL = {"aggregate": {"rule": "creamfl"}, "proxy": {"phantoms": 64}}


def job_of(**tables):
    tree = {"name": "x", **CREAMFL}
    for table, values in tables.items():
        tree[table] = {**tree.get(table, {}), **values}
    return JobConfig.model_validate(tree)


def test_what_the_rule_implies_is_written_out():
    job = job_of()
    assert job.aggregate.private_factors == ("A", "B")
    assert (job.personalize.method, job.personalize.use) == ("own-factor", "always")
    assert job.evaluate.baselines == ["local", "centralised"]
    assert job_of(model={"bases": {"north": "other"}}).evaluate.baselines == ["local"]
    assert not job.distils
    again = JobConfig.model_validate(job.model_dump(mode="json"))
    assert again == job
    assert again.digest() == job.digest()


def test_a_site_with_a_base_of_its_own_sees_a_job_with_that_base():
    job = job_of(model={"sha256": "0" * 64, "bases": {"north": "other"}})
    assert job.at("south") is job
    north = job.at("north")
    assert (north.model.base, north.model.bases, north.model.sha256) == ("other", {}, None)
    assert north.train == job.train


def test_digests_know_bases_and_set_but_not_where_the_set_lies():
    plain = job_of()
    assert job_of(model={"bases": {"north": "other"}}).digest() != plain.digest()
    assert job_of(proxy={"contrast": 0.25}).digest() != plain.digest()
    one, other = ({"phantoms": None, "folder": folder, "sha256": "0" * 64} for folder in "ab")
    assert job_of(proxy=one).digest() == job_of(proxy=other).digest()
    assert JobConfig(name="x").digest() == JobConfig(name="x", model={}).digest()


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"proxy": {"phantoms": None}}, "exchanges features of public pairs, and there are none"),
        ({"proxy": {"folder": "public"}}, "are two sets"),
        ({"proxy": {"steps": 20}}, "proxy.steps is about distillation at the server"),
        ({"proxy": {"held_out": 0.5}}, "proxy.held_out is about distillation"),
        ({"aggregate": {"combine": "median"}}, "is about changes of an adapter"),
        ({"aggregate": {"weighting": "size"}}, "weighting = 'size' is about changes"),
        ({"aggregate": {"clip_norm": 1.0}}, "clip_norm = 1.0 is about changes"),
        ({"aggregate": {"max_weight": 1.0}}, "max_weight = 1.0 is about changes"),
        ({"aggregate": {"server_learning_rate": 2.0}}, "is about changes of an adapter"),
        ({"aggregate": {"server_optimizer": "adam"}}, "leave"),
        ({"aggregate": {"fold_every": 2}}, "leave fold_every out"),
        ({"aggregate": {"tail": "fold"}}, "leave tail out"),
        ({"personalize": {"method": "duet"}}, "a site's model is its own A and B"),
        ({"personalize": {"method": "none"}}, "use 'own-factor'"),
        (
            {"evaluate": {"baselines": ["centralised"]}, "model": {"bases": {"north": "other"}}},
            "none fits all of model.bases",
        ),
        ({"attack": {"sites": {"north": "nan"}}}, "with creamfl none is sent"),
        ({"lora": {"ranks": {"north": 2}}, "data": {"sites": ["north"]}}, "leave lora.ranks out"),
        ({"aggregate": {"rule": "altfold"}, "model": {"bases": {"a": "b"}}}, "leave bases out"),
        ({"aggregate": {"rule": "altfold"}, "proxy": {"contrast": 1.0}}, "needs aggregate.rule"),
        ({"aggregate": {"rule": "altfold"}, "proxy": {"sha256": "0" * 64}}, "needs aggregate.rule"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(tables, words):
    with pytest.raises(ValueError, match="Value error") as refused:
        job_of(**tables)
    said = str(refused.value.errors()[0]["msg"])
    assert words in said
    assert "\n" not in said


def test_a_job_file_says_it_in_three_lines(tmp_path: Path):
    path = tmp_path / "job.toml"
    path.write_text(
        'name = "x"\n[aggregate]\nrule = "creamfl"\n[proxy]\nfolder = "public"\n'
        '[model]\nbases = {north = "other-clip"}\n'
    )
    assert load_job(path).at("north").model.base == "other-clip"


def test_a_comparison_has_one_base(tmp_path: Path):
    path = tmp_path / "job.toml"
    text = 'name = "x"\n[aggregate]\nrule = "creamfl"\n[proxy]\nphantoms = 64\n'
    path.write_text(text)
    methods = parse_methods("creamfl,altfold+duet")
    plan = make_plan(path, {}, methods, [0.001], 1, tmp_path / "out")
    rules = [task.job.aggregate.rule for task in plan.compared(dict.fromkeys(plan.rows, 0.001))]
    assert rules[:2] == ["creamfl", "altfold"]
    path.write_text(text + '[model]\nbases = {north = "other"}\n')
    with pytest.raises(ConfigError, match="which takes one base; leave bases out"):
        make_plan(path, {}, methods, [0.001], 1, tmp_path / "out")
