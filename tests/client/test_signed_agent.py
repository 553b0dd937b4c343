"""A site answers its own coordinator only, and every refusal is in its audit log."""

import hashlib
import json
from datetime import UTC, datetime

import numpy as np
import pytest

from client.agent import SiteAgent
from client.audit_check import verify
from client.data.sources import SiteSource
from client.policy import SitePolicy
from client.provisioning.folder import SiteIdentity
from client.provisioning.joining import begin, join
from client.release import REFUSALS
from client.settings import SiteSettings
from client.signed_agent import STALE, SignedAgent, signed
from server.provisioning.admission import admit
from server.provisioning.founding import found
from shared.config import parse_job
from shared.errors import IdentityError
from shared.messages import Reply, Request, decode_reply, encode, halves
from shared.security.claims import Claim, objection, signature_of, split_signed
from shared.security.signing import SigningKey
from shared.signed import claim_of

NOW = datetime.now(UTC)
JOB = parse_job({"name": "toy", "rounds": 5})


class Inner:
    """The agent behind: counts what reaches it."""

    def __init__(self):
        self.bodies = []

    def handle(self, body):
        self.bodies.append(body)
        if not body.startswith(b"CONS"):
            return b"refused"
        return encode(Reply(kind="train", run="r", round=1, attempt=1, site="site-a"))


@pytest.fixture
def folder(tmp_path):
    return found(tmp_path / "coordinator", "demo", ["gateway.example.org"], 443, NOW)


@pytest.fixture
def settings(tmp_path):
    source = SiteSource("site-a", tmp_path / "metadata.csv", tmp_path)
    return SiteSettings("site-a", source, tmp_path / "site" / "state")


@pytest.fixture
def inner():
    return Inner()


@pytest.fixture
def identity(tmp_path, folder):
    home = tmp_path / "site"
    return join(home, admit(folder, begin(home, "site-a", NOW).part, NOW).kit, NOW)


@pytest.fixture
def agent(tmp_path, settings, inner, identity):
    real = SiteAgent(settings, SitePolicy(), lambda _: None)
    return SignedAgent(inner, real.refuse, identity, tmp_path / "asked.json")


def request_of(**changes):
    return Request(
        **{
            "kind": "train",
            "run": "r",
            "round": 1,
            "site": "site-a",
            "base_sha256": "b" * 64,
            "job_sha256": JOB.digest(),
            "job": JOB,
        }
        | changes
    )


def claim(request, body):
    header, rest = halves(body)
    return claim_of(request, request.site, header, hashlib.sha256(rest).digest())


def sign(request, key, **changes):
    body = encode(request)
    return signature_of("request", claim(request, body).model_copy(update=changes), key) + body


def reason_of(answer):
    reply, _ = decode_reply(split_signed(answer)[1])
    return reply.status, reply.reason


def test_a_signed_request_is_answered_and_the_answer_is_signed(folder, agent, inner, identity):
    request = request_of()
    answer = agent.handle(sign(request, folder.key))
    assert inner.bodies == [encode(request)]
    signed, body = split_signed(answer)
    header, rest = halves(body)
    expected = claim_of(request, "site-a", header, hashlib.sha256(rest).digest())
    key = identity.keys_in_use().part.signing_key
    assert objection("reply", signed, expected, [key]) is None
    assert decode_reply(body)[0].status == "ok"


OTHERS = {
    "request-unsigned": lambda key: encode(request_of()),
    "request-signature": lambda key: sign(request_of(), SigningKey.new()),
    "request-round": lambda key: sign(request_of(), key, round=2),
    "request-run": lambda key: sign(request_of(), key, run="another"),
    "request-attempt": lambda key: sign(request_of(), key, attempt=9),
    "request-site": lambda key: sign(request_of(), key, site="site-b"),
    "request-base": lambda key: sign(request_of(), key, base="0" * 64),
    "request-job": lambda key: sign(request_of(), key, job="0" * 64),
    "request-protocol": lambda key: sign(request_of(), key, protocol=1),
    "request-body": lambda key: with_other_adapter(sign(request_of(), key)),
}


def with_other_adapter(content):
    """The signature and header of one request, with the enclosure of another."""
    before = content[: -len(split_signed(content)[1])]
    header, _ = halves(encode(request_of()))
    other = encode(request_of(), {"A/x": np.ones((2, 2), np.float32)})
    return before + header + halves(other)[1]


@pytest.mark.parametrize("reason", sorted(OTHERS))
def test_any_other_request_is_refused_signed_and_noted(folder, agent, inner, settings, reason):
    answer = agent.handle(OTHERS[reason](folder.key))
    assert inner.bodies == []
    assert reason_of(answer) == ("refused", reason)
    assert split_signed(answer)[0] is not None
    assert REFUSALS[reason] == decode_reply(split_signed(answer)[1])[0].detail
    log = settings.state / "audit.jsonl"
    assert verify(log).lines == 1
    assert json.loads(log.read_text())["what"] == f"refusal {reason}"


def test_every_reason_has_a_sentence():
    fields = {f"request-{name}" for name in Claim.model_fields}
    assert fields | {"request-unsigned", "request-signature", STALE} <= set(REFUSALS)


def test_a_recorded_request_cannot_be_played_again(folder, agent, inner):
    first = sign(request_of(round=1), folder.key)
    agent.handle(first)
    agent.handle(first)  # nobody heard the answer: the agent behind gives it again
    agent.handle(sign(request_of(round=2), folder.key))
    assert len(inner.bodies) == 3
    assert reason_of(agent.handle(first)) == ("refused", STALE)
    assert len(inner.bodies) == 3
    again = request_of(kind="evaluate", round=1)
    agent.handle(sign(again, folder.key))
    assert len(inner.bodies) == 4


def test_a_refused_request_is_not_remembered_as_asked(folder, agent, inner):
    """Otherwise anybody at the socket could keep the site from its next rounds."""
    agent.handle(sign(request_of(round=1, attempt=9), SigningKey.new()))
    agent.handle(sign(request_of(round=1), folder.key))
    assert len(inner.bodies) == 1


@pytest.mark.parametrize("content", [b"", b"CSIG\x01", b"CSIG\x01\x00\x00\x00\x00", b"junk" * 50])
def test_what_is_no_request_at_all_goes_to_the_agents_own_refusal(agent, inner, content):
    assert agent.handle(content) == b"refused"


def test_a_site_that_has_not_joined_has_no_signed_agent(tmp_path, inner):
    home = tmp_path / "new"
    begin(home, "site-a", NOW)
    with pytest.raises(IdentityError, match="has not joined"):
        SignedAgent(inner, lambda *_: b"", SiteIdentity.open(home), tmp_path / "asked.json")


def test_a_folder_decides_whether_a_site_signs(tmp_path, folder, inner, identity):
    def made(home, name):
        return signed(inner, lambda *_: b"", home, name, tmp_path / "asked.json")

    assert made(tmp_path / "trial", "site-a") is inner
    assert isinstance(made(tmp_path / "site", "site-a"), SignedAgent)
    with pytest.raises(
        IdentityError, match=r"identity of site site-a, and site\.toml names site-b"
    ):
        made(tmp_path / "site", "site-b")
    begin(tmp_path / "new", "site-c", NOW)
    with pytest.raises(IdentityError, match="has not joined"):
        made(tmp_path / "new", "site-c")
