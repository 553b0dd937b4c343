"""Consent, policy, expiry and records that change while a run is under way (S19, S20, R23)."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import client.agent
import client.together
from client.agent import SiteAgent
from client.audit_check import verify
from client.consent import Consent
from client.data.load import load_site
from client.data.sources import SiteSource
from client.decisions import NOBODY, Party
from client.patience import PatientAgent
from client.permission import PermittedAgent
from client.policy import PolicyFile, simulation_policy
from client.settings import SiteSettings
from shared.adapter import SharedAdapter, factor_of
from shared.messages import Request, decode_reply, encode
from shared.model.encoder import DualEncoder
from shared.parts import PARTS, pack_parts, part_digests

POLICY = """
purpose = "retrieval of radiographs"
expires = {expires}
coordinators = ["any"]
base_sha256 = ["any"]
requests = ["any"]
rules = ["any"]
personalization = ["any"]
targets = ["any"]
metrics = ["auroc"]
max_rank = {rank}
minimum_patients = {patients}
minimum_cohort = 1
minimum_count = 1
data_changes = "{changes}"
"""


@pytest.fixture(scope="module")
def job(small_job):
    return small_job.model_copy(update={"rounds": 5})


@pytest.fixture(scope="module")
def encoder(job):
    return DualEncoder.load(job.model, job.lora)


@pytest.fixture(scope="module")
def start(encoder):
    rng = np.random.default_rng(0)
    return SharedAdapter(
        {
            name: (rng.normal(0, 0.2, shape) * (factor_of(name) == "A")).astype(np.float32)
            for name, shape in encoder.layout.shapes.items()
        }
    )


class Site:
    """A site on its disk: its policy's file, its table, its agent."""

    def __init__(self, folder, encoder):
        self.folder, self.encoder = folder, encoder
        self.table, self.policy = folder / "metadata.csv", folder / "policy.toml"
        self.table.write_text("file_name,text\n")
        self.write_policy()
        self.agent = self.start()

    def start(self, party=NOBODY):
        source = SiteSource("north", self.table, self.folder)
        settings = SiteSettings("north", source, self.folder / "state")
        policy = PolicyFile(self.policy)
        return SiteAgent(settings, policy, lambda _: self.encoder, party=party)

    def write_policy(self, expires='"never"', rank=8, patients=1, changes="refuse"):
        fields = {"expires": expires, "rank": rank, "patients": patients, "changes": changes}
        self.policy.write_text(POLICY.format(**fields))

    def withdraw(self, run=None):
        Consent.of(self.folder / "state").withdraw(run, "a test")

    @property
    def said(self):
        """What every line of the audit log is about."""
        log = self.folder / "state" / "audit.jsonl"
        verify(log)
        return [json.loads(line)["what"] for line in log.read_text().splitlines()]


@pytest.fixture
def site(tmp_path, encoder, site_of, monkeypatch):
    monkeypatch.setattr(
        client.agent, "load_site", lambda source, *_: site_of(source.name, "paired")
    )
    return Site(tmp_path, encoder)


@pytest.fixture
def ask(job, encoder, start):
    def make(kind="train", round_number=1, adapter=start, **changes):
        values = {
            "kind": kind,
            "run": "run",
            "round": 0 if kind == "describe" else round_number,
            "site": "" if kind == "describe" else "north",
            "base_sha256": encoder.base_sha256,
            "job_sha256": job.digest(),
            "job": job,
        }
        if kind != "describe":
            values |= {"parts": part_digests(adapter), "folds": adapter.folds}
        if kind == "train":
            values |= {"factors": ("B",), "weights": {"image": 3, "text": 2}, "scale": 2.0**16}
        tensors = {} if kind == "describe" else pack_parts(adapter, PARTS)
        return encode(Request(**{**values, **changes}), tensors)

    return make


@pytest.fixture
def while_training(monkeypatch):
    """Let something happen after a site has trained and before it releases."""

    def do(event):
        train = client.together.train_together

        def then(works):
            results = train(works)
            event()
            return results

        monkeypatch.setattr(client.together, "train_together", then)

    return do


def answer_of(agent, body):
    reply, tensors = decode_reply(agent.handle(body))
    assert reply.status == "ok" or tensors == {}
    return reply.reason or reply.status


def test_withdrawn_consent_refuses_the_next_task_of_any_kind(site, ask):
    assert answer_of(site.agent, ask()) == "ok"
    site.withdraw("run")
    for kind in ("describe", "train", "personalize", "evaluate"):
        assert answer_of(site.agent, ask(kind, round_number=2)) == "consent-withdrawn"
    assert answer_of(site.agent, ask(run="another")) == "ok"
    assert site.said[2:6] == ["refusal consent-withdrawn"] * 4


def test_an_update_that_is_being_trained_is_not_released_once_consent_is_withdrawn(
    site, ask, while_training
):
    while_training(site.withdraw)
    reply, tensors = decode_reply(site.agent.handle(ask()))
    assert (reply.status, reply.reason, tensors) == ("refused", "consent-withdrawn", {})
    assert reply.summary is None
    assert site.said == ["approved train", "refusal consent-withdrawn"]
    assert not (site.folder / "state" / "answer").exists()


def test_measures_are_not_released_once_consent_is_withdrawn(site, ask, monkeypatch):
    evaluate = client.agent.evaluate_site

    def then(*arguments):
        site.withdraw()
        return evaluate(*arguments)

    monkeypatch.setattr(client.agent, "evaluate_site", then)
    reply, _ = decode_reply(site.agent.handle(ask("evaluate")))
    assert (reply.reason, reply.evaluation) == ("consent-withdrawn", None)


def test_an_answer_that_is_ready_is_not_given_once_consent_is_withdrawn(site, ask):
    agent = PermittedAgent(PatientAgent(site.agent, "north", 60.0), site.agent.objection)
    assert answer_of(agent, ask()) == "ok"
    assert answer_of(agent, ask()) == "ok"
    site.withdraw()
    assert answer_of(agent, ask()) == "consent-withdrawn"
    assert site.said == ["approved train", "update", "refusal consent-withdrawn"]


def test_whoever_waits_for_a_task_hears_of_the_withdrawal_at_once(site, ask, while_training):
    heard = []
    agent = PermittedAgent(PatientAgent(site.agent, "north", 60.0), site.agent.objection)

    def then():
        site.withdraw()
        heard.append(answer_of(agent, ask()))

    while_training(then)
    assert answer_of(agent, ask()) == "consent-withdrawn"
    assert heard == ["consent-withdrawn"]
    assert "update" not in site.said


def test_a_policy_that_expires_while_a_site_trains_keeps_the_update_back(site, ask, while_training):
    assert answer_of(site.agent, ask()) == "ok"
    while_training(lambda: site.write_policy(expires="2020-01-01"))
    assert answer_of(site.agent, ask(round_number=2)) == "policy-expired"
    assert answer_of(site.agent, ask(round_number=3)) == "policy-expired"
    assert site.said[2:] == ["approved train", "refusal policy-expired", "refusal policy-expired"]


def test_a_changed_policy_counts_without_a_restart(site, ask):
    assert answer_of(site.agent, ask()) == "ok"
    site.write_policy(rank=1)
    assert answer_of(site.agent, ask(round_number=2)) == "policy-rank"
    site.policy.write_text("max_rank = ")
    assert answer_of(site.agent, ask(round_number=3)) == "policy-unreadable"
    site.write_policy()
    assert answer_of(site.agent, ask(round_number=4)) == "ok"


def test_an_adapter_in_the_place_of_the_base_is_refused_before_the_training(
    site, ask, start, monkeypatch
):
    monkeypatch.setattr(client.together, "train_together", lambda _: pytest.fail("trained"))
    huge = {n: a + 50 * (factor_of(n) == "B") for n, a in start.factors.items()}
    trap = SharedAdapter({name: array.astype(np.float32) for name, array in huge.items()})
    assert answer_of(site.agent, ask(adapter=trap)) == "policy-adapter"
    assert site.said == ["refusal policy-adapter"]


def test_a_forbidden_job_is_answered_with_every_field_before_a_record_is_opened(
    site, ask, monkeypatch
):
    monkeypatch.setattr(client.agent, "load_site", lambda *_: pytest.fail("opened"))
    text = POLICY.format(expires='"never"', rank=1, patients=1, changes="refuse")
    text = text.replace('targets = ["any"]', 'targets = ["mlp"]').replace(
        'rules = ["any"]', "max_steps = 1"
    )
    site.policy.write_text(text)
    reply, _ = decode_reply(site.agent.handle(ask("describe")))
    assert (reply.status, reply.reason) == ("refused", "policy-rule")
    assert reply.objections == {
        "policy-rule": ("aggregate.rule",),
        "policy-targets": ("lora.targets",),
        "policy-steps": ("train.steps", "personalize.steps"),
        "policy-rank": ("lora.rank", "personalize.rank"),
    }
    log = site.folder / "state" / "audit.jsonl"
    told = json.loads(log.read_text())["detail"]["objections"]
    assert told["policy-steps"] == ["train.steps", "personalize.steps"]


def test_an_approval_names_the_policy_and_its_purpose(site, ask):
    site.agent.handle(ask())
    log = site.folder / "state" / "audit.jsonl"
    approved = json.loads(log.read_text().splitlines()[0])
    assert approved["detail"]["purpose"] == "retrieval of radiographs"
    assert approved["detail"]["policy_sha256"] == PolicyFile(site.policy).current().digest()


def test_another_coordinators_key_is_refused_and_a_named_one_is_not(site, ask):
    key, party = "a" * 64, Party("a" * 64, 3)
    agent = site.start(party)
    text = site.policy.read_text()
    site.policy.write_text(text.replace('coordinators = ["any"]', f'coordinators = ["{"b" * 64}"]'))
    assert answer_of(agent, ask()) == "policy-coordinator"
    site.policy.write_text(text.replace('coordinators = ["any"]', f'coordinators = ["{key}"]'))
    assert answer_of(agent, ask()) == "ok"


def test_a_site_with_too_few_patients_does_not_train(site, ask, site_of):
    patients = site_of("north", "paired").splits["train"].counts().patients
    site.write_policy(patients=patients + 1)
    assert answer_of(site.agent, ask()) == "policy-patients"
    assert answer_of(site.agent, ask("describe")) == "ok"
    site.write_policy(patients=patients)
    assert answer_of(site.agent, ask()) == "ok"


def test_every_reply_carries_the_log_as_it_was_and_the_log_still_has_it(site, ask):
    bodies = [ask("describe"), ask(), ask("personalize"), ask("evaluate"), ask(round_number=9)]
    replies = [decode_reply(site.agent.handle(body))[0] for body in bodies]
    anchors = [reply.anchor for reply in replies]
    # Each is the approval before the reply's own line; a refusal comes after the line before.
    assert [anchor.seq for anchor in anchors] == [1, 3, 5, 7, 8]
    log = site.folder / "state" / "audit.jsonl"
    assert verify(log, anchors).lines == 9


# --- records that change


def changed(site, text="file_name,text\nx,y\n"):
    site.table.write_text(text)


def test_records_that_change_within_a_run_are_refused(site, ask):
    assert answer_of(site.agent, ask()) == "ok"
    changed(site)
    assert answer_of(site.agent, ask(round_number=2)) == "data-changed"
    assert answer_of(site.agent, ask("evaluate")) == "data-changed"
    assert answer_of(site.start(), ask(round_number=2)) == "data-changed", "after a restart, too"
    assert answer_of(site.agent, ask(run="another")) == "ok"
    changed(site, "file_name,text\n")
    assert answer_of(site.agent, ask(round_number=2)) == "ok"


def test_records_that_change_are_recorded_once_where_the_policy_says_so(site, ask, monkeypatch):
    site.write_policy(changes="record")
    loads = []
    load = client.agent.load_site
    monkeypatch.setattr(client.agent, "load_site", lambda *a: loads.append(1) or load(*a))
    assert answer_of(site.agent, ask()) == "ok"
    changed(site)
    for number in (2, 3):
        assert answer_of(site.agent, ask(round_number=number)) == "ok"
    assert site.said.count("data-changed") == 1
    assert len(loads) == 2, "the site trains on what the log says it does"


def test_a_picture_that_changes_between_restarts_is_noticed(site, ask, site_of, monkeypatch):
    assert answer_of(site.agent, ask()) == "ok"
    other = replace(site_of("north", "paired"), pictures_sha256="another picture")
    monkeypatch.setattr(client.agent, "load_site", lambda *_: other)
    assert answer_of(site.start(), ask(round_number=2)) == "data-changed"


def test_the_digest_of_a_sites_pictures_is_that_of_their_files(tmp_path):
    def digest():
        source = SiteSource("north", tmp_path / "metadata.csv", tmp_path)
        return load_site(source, lambda picture: np.asarray(picture.resize((4, 4)))).pictures_sha256

    rows = [f"{n}.png,text {n},p{n},train\n" for n in range(3)]
    (tmp_path / "metadata.csv").write_text("file_name,text,patient_id,split\n" + "".join(rows))
    for number in range(3):
        picture = Image.new("L", (20, 20), number)
        picture.putpixel((0, 0), 99)
        picture.save(tmp_path / f"{number}.png")
    before = digest()
    assert digest() == before
    picture.putpixel((1, 1), 88)
    picture.save(tmp_path / "2.png")
    assert digest() != before


def test_a_simulated_site_records_and_refuses_nothing():
    assert simulation_policy().data_changes == "record"
