"""A federation whose every word is signed: the same bits, and no forged word counts."""

import hashlib
from datetime import UTC, datetime

import pytest
from fake_federation import FakeSite, Federation, job_of

from client.provisioning.joining import begin, join
from client.signed_agent import SignedAgent
from server.provisioning.admission import admit, revoke
from server.provisioning.founding import found
from server.signed_post import CoordinatorIdentity
from shared.errors import QuorumError
from shared.messages import Reply, decode_request, encode, halves
from shared.security.claims import body_digest, signature_of, split_signed
from shared.security.signing import SigningKey
from shared.versions import PROTOCOL

NOW = datetime.now(UTC)
NAMES = ("north", "east", "south", "west")
JOB = job_of(rounds=3)


class SignedSite:
    """A fake site behind a real ``SignedAgent``; ``tamper`` is the courier."""

    def __init__(self, folder, home, name, admitted=True):
        keys = begin(home, name, NOW)
        self.site = FakeSite(name)
        self.name = name
        self.refused = []
        if admitted:
            identity = join(home, admit(folder, keys.part, NOW).kit, NOW)
            self.key = keys.load_signing()
            self.agent = SignedAgent(self.site, self.refuse, identity, home / "asked.json")
        self.tamper = lambda request, content, answer: answer
        self.answers = {}

    def refuse(self, request, reason):
        self.refused.append(reason)
        return encode(
            Reply(
                kind=request.kind,
                run=request.run,
                round=request.round,
                attempt=request.attempt,
                site=self.name,
                status="refused",
                reason=reason,
            )
        )

    def handle(self, content):
        request, _ = decode_request(split_signed(content)[1])
        answer = self.agent.handle(content)
        self.answers[request.kind, request.round] = answer
        return self.tamper(request, content, answer)


@pytest.fixture
def folder(tmp_path):
    return found(tmp_path / "coordinator", "demo", ["gateway.example.org"], 443, NOW)


@pytest.fixture
def sites(tmp_path, folder):
    return {name: SignedSite(folder, tmp_path / name, name) for name in NAMES}


@pytest.fixture
def federation(tmp_path, folder):
    def make(sites):
        identity = CoordinatorIdentity(folder.key, folder.signing_keys)
        options = {"identity": identity}
        return Federation(tmp_path / "run", JOB, sites=list(sites), options=options)

    return make


def cell(outcome, site, round_number):
    found = outcome.sites[site].participation[round_number - 1]
    return found.state, found.reason


def test_signed_or_not_a_run_ends_with_the_same_bits(tmp_path, federation, sites):
    signed = federation(sites.values()).run()
    plain = Federation(tmp_path / "plain" / "run", JOB, names=NAMES).run()
    assert signed.complete
    assert signed.shared.sha256() == plain.shared.sha256()
    assert not any(site.refused for site in sites.values())


def resigned(who, answer, **changes):
    """The same body, signed by somebody for something else."""
    signed, body = split_signed(answer)
    return signature_of("reply", signed.claim.model_copy(update=changes), who.key) + body


FORGERIES = {  # every field by itself: tests/shared/security/test_claims.py
    "reply-unsigned": lambda sites, answer: split_signed(answer)[1],
    "reply-round": lambda sites, answer: sites["north"].answers["train", 1],
    "reply-body": lambda sites, answer: answer[: -len(split_signed(answer)[1])] + swapped(answer),
    "reply-signature": lambda sites, answer: resigned(sites["south"], answer),
    "reply-site": lambda sites, answer: resigned(sites["north"], answer, site="south"),
    "reply-run": lambda sites, answer: resigned(sites["north"], answer, run="another"),
}


def swapped(answer):
    """A body with one bit turned in its last number."""
    header, rest = halves(split_signed(answer)[1])
    return header + rest[:-1] + bytes([rest[-1] ^ 1])


@pytest.mark.parametrize("reason", sorted(FORGERIES))
def test_a_forged_reply_is_left_out_with_its_reason_and_the_run_goes_on(federation, sites, reason):
    def tamper(request, content, answer):
        forge = FORGERIES[reason]
        return forge(sites, answer) if (request.kind, request.round) == ("train", 2) else answer

    sites["north"].tamper = tamper
    outcome = federation(sites.values()).run()
    assert cell(outcome, "north", 2) == ("refused", reason)
    assert [cell(outcome, "north", n)[0] for n in (1, 3)] == ["in"] * 2
    assert cell(outcome, "south", 2) == ("in", None)


def test_a_signature_that_cannot_be_read_does_not_count(federation, sites):
    sites["north"].tamper = lambda request, content, answer: (
        answer[:60] if request.kind == "train" and request.round == 2 else answer
    )
    assert cell(federation(sites.values()).run(), "north", 2) == ("refused", "reply-signature")


def test_who_is_not_in_the_roster_takes_no_part(tmp_path, federation, folder, sites):
    stranger = SignedSite(folder, tmp_path / "stranger", "stranger", admitted=False)
    stranger.key = SigningKey.new()

    def handle(content):
        signed, body = split_signed(content)
        reply = stranger.site.handle(body)
        header, rest = halves(reply)
        digest = body_digest(header, hashlib.sha256(rest).digest())
        claim = signed.claim.model_copy(update={"site": "stranger", "body": digest})
        return signature_of("reply", claim, stranger.key) + reply

    stranger.handle = handle
    run = federation([*sites.values(), stranger])
    outcome = run.run()
    assert not [c for c in outcome.evaluations if c == "stranger"]
    dropped = [e for e in run.events if e.kind == "site-dropped"]
    assert {e.values["reason"] for e in dropped} == {"reply-signature"}
    assert all(cell(outcome, name, 3) == ("in", None) for name in NAMES)


def test_a_member_cannot_speak_for_another(federation, sites):
    """The node of ``west`` says that it is ``north``, with the key of ``west``."""
    sites["west"].site.name = "north"
    run = federation([sites["west"], sites["east"], sites["south"]])
    run.run()
    assert {e.site for e in run.events if e.kind == "site-described"} == {"east", "south"}
    dropped = [e for e in run.events if e.kind == "site-dropped"]
    assert {e.values["reason"] for e in dropped} == {"reply-signature"}


def test_a_site_that_is_revoked_in_the_middle_counts_no_more(federation, folder, sites):
    def tamper(request, content, answer):
        if (request.kind, request.round) == ("train", 2):
            revoke(folder, "north", datetime.now(UTC))
        return answer

    sites["north"].tamper = tamper
    outcome = federation(sites.values()).run()
    assert [cell(outcome, "north", n) for n in (1, 2, 3)] == [
        ("in", None),
        ("refused", "reply-signature"),
        ("refused", "reply-signature"),
    ]
    assert cell(outcome, "south", 3) == ("in", None)


def test_a_coordinator_that_is_not_the_pinned_one_is_refused_by_every_site(
    tmp_path, federation, sites
):
    other = found(tmp_path / "other", "demo", ["x.example.org"], 443, NOW)
    run = federation(sites.values())
    run.options["identity"] = CoordinatorIdentity(other.key, lambda site: [sites[site].key.public])
    with pytest.raises(QuorumError):
        run.run()
    assert {reason for site in sites.values() for reason in site.refused} == {"request-signature"}
    assert not any(site.site.seen for site in sites.values())


def other_version(version):
    """What a site says, unsigned, that cannot read a request."""
    told = Reply(kind="describe", run="", round=0, attempt=1, site="north", status="refused")
    body = encode(told.model_copy(update={"reason": "version", "program": "7.1.0"}))
    return b"CONS" + bytes([version]) + body[5:]


@pytest.mark.parametrize("version", [9, PROTOCOL], ids=["major", "the site says so"])
@pytest.mark.parametrize("kind", ["describe", "train"])
def test_a_site_of_another_version_is_named_though_it_cannot_sign(federation, sites, version, kind):
    sites["north"].tamper = lambda request, content, answer: (
        other_version(version) if request.kind == kind else answer
    )
    run = federation(sites.values())
    outcome = run.run()
    dropped = [e for e in run.events if e.kind == "site-dropped"]
    assert {e.values["reason"] for e in dropped} == {"version"}
    assert "consilia 7.1.0" in dropped[0].values["about"][0]
    assert all(cell(outcome, name, 3) == ("in", None) for name in ("south", "east", "west"))


def test_the_same_signed_answer_twice_counts_once(federation, sites):
    run = federation(sites.values())
    run.on_push = lambda site, request: (
        "twice" if (site.name, request.kind, request.round) == ("east", "train", 2) else None
    )
    outcome = run.run()
    assert outcome.complete
    late = [e for e in run.events if e.kind == "late-reply"]
    assert [(e.site, e.values["reason"]) for e in late] == [("east", "duplicate")]
