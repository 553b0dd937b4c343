"""``creamfl`` end to end: two backbones of other widths, and nothing but public features leaves."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from client.data.sources import find_sites
from client.policy import simulation_policy
from client.proxy import load_proxy
from client.service import SocketChannel, serve
from client.state import SiteState
from client.together import answer_together
from shared.config import JobConfig
from shared.errors import (
    ConfigError,
    DataError,
    InterruptedRunError,
    QuorumError,
    RunDirectoryError,
)
from shared.layout_file import load_adapter
from shared.messages import decode_reply, decode_request
from simulations import simulate as simulation
from simulations.grid import LocalGrid
from simulations.simulate import simulate
from tests.integration.conftest import write_site

ITEMS = 40
KINDS = {"a-clip": "paired", "b-siglip": "paired", "c-image": "image"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, site_of):
    """Three sites, and a public set that is none of theirs."""
    folder = tmp_path_factory.mktemp("creamfl")
    for number, (name, kind) in enumerate(KINDS.items()):
        write_site(folder / "sites" / name, site_of(name, kind, seed=number))
    write_site(folder / "public", site_of("public", counts=(24, 8, 8), seed=9))
    return folder


def job_of(folders, small_job, clip_folder, siglip_folder, **tables):
    tree = small_job.model_dump(mode="json", include={"name", "rounds", "lora", "train"})
    tree |= {
        "data": {"folder": str(folders / "sites")},
        "model": {
            "base": str(clip_folder),
            "precision": "float32",
            "bases": {"b-siglip": str(siglip_folder)},
        },
        "aggregate": {"rule": "creamfl"},
        "proxy": {"folder": str(folders / "public")},
        "evaluate": {"minimum_count": 1, "bootstrap": 100, "gallery_queries": 1},
        "simulation": {"device": "cpu", "workers": 1},
    }
    for table, values in tables.items():
        tree[table] = {**tree.get(table, {}), **values}
    return JobConfig.model_validate(tree)


@pytest.fixture(scope="module")
def make_job(folders, small_job, clip_folder, siglip_folder):
    return lambda **tables: job_of(folders, small_job, clip_folder, siglip_folder, **tables)


def quiet():
    return Console(quiet=True)


@pytest.fixture(scope="module")
def whole(make_job, tmp_path_factory):
    """A run, its results, and everything that was asked and answered."""
    run = tmp_path_factory.mktemp("whole") / "run"
    bodies = []

    def listen(asked):
        answers = answer_together(asked)
        bodies.extend(zip((body for _, body in asked), answers, strict=True))
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "answer_together", listen)
        results = simulate(run, make_job(), quiet())
    return run, results, bodies


def test_every_site_has_its_own_model_and_it_is_compared_with_training_alone(whole):
    _, results, _ = whole
    assert results.status == "finished"
    assert results.aggregation.rule == "creamfl"
    for name, site in results.sites.items():
        # There is no shared adapter, and no column for one.
        assert set(site.metrics) == {"base", "local", "personal"}, name
        assert "personal_minus_local" in site.differences
        assert set(site.in_use.values()) <= {"personal", "not trained"}
        assert site.metrics["personal"] != site.metrics["base"]
    assert "shared" not in results.mean.metrics
    assert "no site got an adapter" in results.facts["Shared adapter"]
    assert results.sites["c-image"].in_use == {"image": "personal", "text": "not trained"}


def test_nothing_but_features_of_the_public_set_leaves_a_site(whole):
    _, _, bodies = whole
    trained = set()
    for body, answer in bodies:
        request, sent = decode_request(body)
        reply, tensors = decode_reply(answer)
        assert reply.status == "ok"
        if request.kind != "train":
            assert not tensors
            continue
        trained.add((request.site, request.round))
        towers = {"image"} if request.site == "c-image" else {"image", "text"}
        assert set(tensors) == towers
        for values in tensors.values():
            assert values.shape == (ITEMS, 24)  # the width of the job's base, whatever the site's
            assert values.dtype == np.float16
            lengths = np.linalg.norm(values.astype(np.float64), axis=1)
            np.testing.assert_allclose(lengths, 1.0, atol=1e-3)
        # Neither does any adapter come to it.
        assert {name.split("/")[0] for name in sent} == {"features"}
    assert trained == {(site, number) for site in KINDS for number in (1, 2)}


def test_features_are_kept_with_every_round_and_move(whole):
    run, _, _ = whole
    first = load_adapter(run / "first-features.safetensors").features
    rounds = [
        load_adapter(run / "checkpoints" / f"round-{number:04}" / "shared.safetensors")
        for number in (1, 2)
    ]
    for shared in rounds:
        assert not shared.factors
        assert {name: values.shape for name, values in shared.features.items()} == {
            "image": (ITEMS, 24),
            "text": (ITEMS, 24),
        }
    moved = [np.abs(shared.features["image"] - first["image"]).max() for shared in rounds]
    assert min(moved) > 1e-3


def test_own_models_lie_at_the_sites_with_their_own_width(whole):
    run, _, _ = whole
    sizes = {}
    for name in KINDS:
        (path,) = (run / "sites" / name / "personal").glob("*.safetensors")
        own = SiteState(run / "sites" / name).load_personal(path.stem)
        projections = [n for n in own.adapter if "visual_projection" in n or "head" in n]
        sizes[name] = {own.adapter[n].shape for n in projections}
        assert all(alpha == 1.0 for alpha in own.alpha.values())
    assert sizes["a-clip"] != sizes["b-siglip"]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("round-started", marks=pytest.mark.slow),
        "round-committed",
        pytest.param("phase-started", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(whole, make_job, tmp_path, monkeypatch, kind):
    _, wanted, _ = whole
    stopped = []

    class Stopping(simulation.DeviceWatch):
        def __call__(self, event):
            super().__call__(event)
            if not stopped and event.kind == kind and event.round in {2, None}:
                stopped.append(event)
                raise KeyboardInterrupt

    monkeypatch.setattr(simulation, "DeviceWatch", Stopping)
    with pytest.raises(InterruptedRunError):
        simulate(tmp_path / "run", make_job(evaluate={"baselines": []}), quiet())
    job = simulation.RunStore.open(tmp_path / "run", lock=False).job
    resumed = simulate(tmp_path / "run", job, quiet())
    assert resumed.adapter_sha256 == wanted.adapter_sha256
    for name, site in wanted.sites.items():
        assert resumed.sites[name].metrics["personal"] == site.metrics["personal"]


def test_through_the_agents_sockets_it_is_the_same_exchange(
    whole, make_job, tmp_path, tmp_path_factory, monkeypatch
):
    run, _, _ = whole
    sockets = tmp_path_factory.mktemp("s")
    with ExitStack() as served:

        def outside(agents, _):
            for name, agent in agents.items():
                served.enter_context(serve(agent, sockets / name))
            return LocalGrid({name: SocketChannel(sockets / name) for name in agents})

        monkeypatch.setattr(simulation, "LocalGrid", outside)
        simulate(tmp_path / "run", make_job(evaluate={"baselines": []}), quiet())
    last = "checkpoints/round-0002/shared.safetensors"
    one, other = (load_adapter(folder / last).features for folder in (run, tmp_path / "run"))
    for tower, values in one.items():  # sites train alone there, in a cohort here
        np.testing.assert_allclose(other[tower], values, atol=2e-3)


def refused(make_job, tmp_path, error, **tables):
    with pytest.raises(error) as caught:
        simulate(tmp_path / "run", make_job(**tables), quiet())
    assert not (tmp_path / "run").exists()
    return str(caught.value)


def test_a_public_set_without_pairs_is_refused(make_job, site_of, tmp_path):
    write_site(tmp_path / "images", site_of("images", "image"))
    said = refused(make_job, tmp_path, DataError, proxy={"folder": str(tmp_path / "images")})
    assert "0 records have both an image and a text" in said


def test_a_public_set_that_is_a_sites_own_is_refused(make_job, folders, tmp_path):
    own = str(folders / "sites" / "a-clip")
    said = refused(make_job, tmp_path, ConfigError, proxy={"folder": own})
    assert "is the data of site a-clip" in said


def test_another_public_set_than_the_job_names_is_refused(make_job, tmp_path):
    said = refused(make_job, tmp_path, ConfigError, proxy={"sha256": "0" * 64})
    assert "the job expects 000" in said


def test_the_base_of_a_site_that_is_not_there_is_refused(make_job, tmp_path, siglip_folder):
    bases = {"d-nobody": str(siglip_folder)}
    said = refused(make_job, tmp_path, ConfigError, model={"bases": bases})
    assert "model.bases names 'd-nobody'; expected one of the sites: a-clip" in said


def test_a_site_whose_set_differs_is_left_out_and_told(make_job, site_of, tmp_path, monkeypatch):
    """The digest is of files and texts, so one changed text is another set."""
    write_site(tmp_path / "other", site_of("other", counts=(24, 8, 8), seed=10))
    (other,) = find_sites(tmp_path / "other")
    real = simulation.site_settings

    def settings(run, job):
        return [replace(s, proxy=other) if s.name == "b-siglip" else s for s in real(run, job)]

    monkeypatch.setattr(simulation, "site_settings", settings)
    monkeypatch.setattr(simulation, "PublicSets", lambda: load_proxy)
    results = simulate(tmp_path / "run", make_job(evaluate={"baselines": []}), quiet())
    assert results.status == "finished-incomplete"
    cells = results.sites["b-siglip"].participation
    assert {(cell.state, cell.reason) for cell in cells} == {("refused", "proxy-mismatch")}
    assert {c.state for c in results.sites["a-clip"].participation} == {"in"}


def test_a_policy_that_allows_no_features_lets_none_out(make_job, tmp_path, monkeypatch):
    strict = simulation_policy().model_copy(update={"features": False})
    monkeypatch.setattr(simulation, "simulation_policy", lambda: strict)
    with pytest.raises(QuorumError, match="policy-features"):
        simulate(tmp_path / "run", make_job(aggregate={"deadline_seconds": 1.0}), quiet())


def test_a_run_whose_set_was_changed_is_not_gone_on_with(make_job, site_of, tmp_path):
    write_site(tmp_path / "public", site_of("public", counts=(24, 8, 8), seed=9))
    job = make_job(proxy={"folder": str(tmp_path / "public")}, evaluate={"baselines": []})
    simulate(tmp_path / "run", job.model_copy(update={"rounds": 1}), quiet())
    table = tmp_path / "public" / "metadata.csv"
    table.write_text(table.read_text().replace("no finding", "no findings"))
    own = simulation.RunStore.open(tmp_path / "run", lock=False).job
    with pytest.raises(RunDirectoryError, match="the run began with"):
        simulate(tmp_path / "run", own, quiet())
