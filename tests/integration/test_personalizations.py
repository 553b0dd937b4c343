"""Every way to personalize through a round of a small federation, and through a resume."""

import pytest

from client.personalization import PERSONALIZATIONS
from client.state import SiteState
from shared.adapter import adapter_sha256
from shared.config import JobConfig
from shared.errors import InterruptedRunError

LEARNING = [method for method in PERSONALIZATIONS if method not in ("none", "own-factor")]
"""The last is learned in the rounds: ``test_fedsa``."""


@pytest.fixture(scope="module")
def federation(make_federation, tmp_path_factory):
    return make_federation(tmp_path_factory.mktemp("sites"), ("paired", "image", "unpaired"))


def job_of(job: JobConfig, method: str) -> JobConfig:
    tree = job.model_dump(mode="json") | {"rounds": 1}
    tree["personalize"] |= {"method": method, "use": "always"}
    return JobConfig.model_validate(tree)


def personal_files(run, shared_sha256: str) -> dict[str, str]:
    """Digest of every site's own adapter, and how much of it is used."""
    found = {}
    for folder in sorted((run / "sites").iterdir()):
        stored = SiteState(folder).load_personal(shared_sha256)
        assert stored is not None
        assert set(stored.alpha.values()) == {1.0}
        found[folder.name] = adapter_sha256(stored.adapter)
    return found


@pytest.mark.parametrize("method", LEARNING)
def test_a_round_and_a_resume_end_with_the_same_own_adapters(federation, tmp_path, method) -> None:
    job = job_of(federation.job, method)
    whole = federation.run(tmp_path / "whole", job=job)
    assert whole.complete
    for evaluation in whole.evaluations.values():
        assert {"base", "shared", "personal"} <= set(evaluation.metrics)
        assert "personal" in evaluation.in_use.values()
    wanted = personal_files(tmp_path / "whole", whole.shared.sha256())
    assert len(set(wanted.values())) == 3

    def interrupt(event):
        if event.kind == "phase-started" and event.values["phase"] == "evaluate":
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError):
        federation.run(tmp_path / "cut", job=job, on_event=interrupt)
    kept = personal_files(tmp_path / "cut", whole.shared.sha256())
    assert kept == wanted
    resumed = federation.run(tmp_path / "cut", job=job)
    assert resumed.evaluations == whole.evaluations
    assert personal_files(tmp_path / "cut", whole.shared.sha256()) == wanted
