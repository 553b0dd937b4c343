"""Rounds on sums alone: the same bits, whoever drops out when, and nothing of a single site."""

import base64
import json
from pathlib import Path

import pytest

from server.provisioning.identity import coordinator_identity
from shared.errors import ConfigError, InterruptedRunError, QuorumError, StorageError
from shared.messages import decode_reply, decode_request, encode
from tests.server.secure_federation import (
    NAMES,
    STAGES,
    SecureSite,
    losing,
    secure_sites,
    secured,
    with_change,
)

RULES = {
    "altfold": {"rule": "altfold"},
    "ffa": {"rule": "ffa"},
    "fedavg": {"rule": "fedavg"},
    "fedavg-momentum": {"rule": "fedavg", "server_optimizer": "momentum"},
    "fedsa": {"rule": "fedsa", "fold_every": 0},
}


@pytest.mark.parametrize("rule", RULES)
def test_secure_aggregation_changes_no_bit(tmp_path, rule):
    tables = {"aggregate": RULES[rule]}
    if rule == "fedsa":
        tables["personalize"] = {"method": "own-factor"}
    outcomes = [
        secured(tmp_path / str(on), on=on, rounds=4, **tables).run() for on in (True, False)
    ]
    secure, plain = outcomes
    assert secure.shared.sha256() == plain.shared.sha256()
    assert secure.complete
    assert [cost.contributors for cost in secure.round_costs] == [5] * 4
    # Mean losses come out of the sums; a site's own are not told.
    assert [cost.loss for cost in secure.round_costs] == [1.0] * 4
    assert [cost.validation_loss for cost in secure.round_costs] == [3.0, 4.0, 5.0, 6.0]
    assert [point.round for point in secure.sites["east"].course] == [4]  # of the evaluation
    assert secure.sites["east"].gradient_norms == {"image": [0.0] * 4, "text": [0.0] * 4}
    assert secure.sites["east"].seconds["train"] > 0


@pytest.mark.parametrize("stage", STAGES)
def test_a_site_lost_at_any_stage_of_every_round_leaves_the_sum_over_the_others(tmp_path, stage):
    gone = [(NAMES[number], number + 1) for number in range(4)]
    run = secured(tmp_path / "secure", rounds=4)
    run.on_push = losing(*((site, stage, number, None) for site, number in gone))
    outcome = run.run()
    plain = secured(tmp_path / "plain", on=False, rounds=4)
    if stage in STAGES[:3]:
        plain.on_push = losing(*((site, "train", number, None) for site, number in gone))
    assert outcome.shared.sha256() == plain.run().shared.sha256()
    states = {site: [c.state for c in outcome.sites[site].participation] for site, _ in gone}
    for site, number in gone:
        expected = "missing" if stage in STAGES[:3] else "in"
        assert states[site][number - 1] == expected
    dropped = [e for e in run.events if e.kind == "site-dropped" and e.values["state"] == "missing"]
    assert [(e.site, e.round) for e in dropped] == gone  # told, although it is in the sum
    assert [e.values["attempt"] for e in run.events if e.kind == "round-started"] == [1] * 4


@pytest.mark.parametrize("stage", STAGES[:4])
def test_too_few_sites_abort_the_sum_and_the_round_is_repeated(tmp_path, stage):
    run = secured(tmp_path / "secure", rounds=2)
    run.on_push = losing(("up", stage, 2, None), ("west", stage, 2, None))
    outcome = run.run()
    plain = secured(tmp_path / "plain", on=False, rounds=2)
    plain.on_push = losing(("up", "train", 2, None), ("west", "train", 2, None))
    assert outcome.shared.sha256() == plain.run().shared.sha256()
    with run.history() as history:
        last = history.committed_rounds("run")[-1]
        assert (last.attempt, last.contributors) == (2, 3)
    failed = [e for e in run.events if e.kind == "round-failed"]
    assert [(e.round, e.values["reason"]) for e in failed] == [(2, "secure-too-few")]
    # Nobody saw a share of the session that came to nothing.
    asked = [(r.kind, r.attempt) for r in run.sites[0].seen if r.round == 2]
    assert ("secure-unmask", 1) not in asked


def test_a_site_that_leaves_between_two_attempts_is_not_counted_on(tmp_path):
    run = secured(tmp_path, rounds=1)

    def leaving(site, request):
        if request.kind != "secure-keys" or request.attempt > 1:
            return None
        run.grid.connected.discard(NAMES.index("south") + 1)
        return "lost" if site.name in {"up", "west"} else None

    run.on_push = leaving
    outcome = run.run()  # of the three that answered two are left, so all are asked again
    assert [cost.contributors for cost in outcome.round_costs] == [4]
    assert outcome.sites["south"].participation[0].reason == "not-connected"


def test_once_shares_may_be_out_only_the_very_same_sum_is_unmasked(tmp_path):
    run = secured(tmp_path / "secure", rounds=2)
    run.on_push = losing(("up", "secure-unmask", 1, 1), ("west", "secure-unmask", 1, 1))
    outcome = run.run()
    plain = secured(tmp_path / "plain", on=False, rounds=2).run()
    assert outcome.shared.sha256() == plain.shared.sha256()
    assert [c.contributors for c in outcome.round_costs] == [5, 5]
    assert not any(site.refused for site in run.sites)
    kept = json.loads((run.path / "secure" / "round-0001.json").read_text())
    assert kept["survivors"] == sorted(NAMES)


def test_a_round_that_cannot_be_unmasked_any_more_ends_the_run_with_the_reason(tmp_path):
    run = secured(tmp_path, rounds=2)
    run.on_push = losing(
        *((site, "secure-unmask", 1, 1) for site in ("up", "west")), ("up", "train", 1, None)
    )
    run.on_push = losing(
        ("up", "secure-unmask", 1, 1),
        ("west", "secure-unmask", 1, 1),
        ("west", "train", 1, 2),
        ("west", "train", 1, 3),
    )
    with pytest.raises(QuorumError, match=r"secure-too-few|secure-other-sum"):
        run.run()
    assert not any("secure-other-sum" in site.refused for site in run.sites)  # not even asked
    with run.history() as history:
        assert history.run("run").status == "failed"
        assert history.committed_rounds("run") == []


@pytest.mark.parametrize("kind", STAGES)
def test_a_coordinator_killed_at_any_stage_goes_on_with_the_same_bits(tmp_path, kind):
    run = secured(tmp_path / "secure", rounds=2)
    asked = []

    def killed(site, request):
        if request.kind == kind and request.round == 2:
            asked.append(site.name)
            if len(asked) == 3:  # some were asked, some not
                raise KeyboardInterrupt

    run.on_push = killed
    with pytest.raises(InterruptedRunError):
        run.run()
    run.on_push = None
    outcome = run.run()
    plain = secured(tmp_path / "plain", on=False, rounds=2).run()
    assert outcome.shared.sha256() == plain.shared.sha256()
    assert outcome.complete
    assert not any(site.refused for site in run.sites)


@pytest.mark.parametrize("kind", STAGES[1:])
def test_a_site_restarted_at_any_stage_is_out_of_the_session_only(tmp_path, kind):
    run = secured(tmp_path / "secure", rounds=2)

    def restarted(site, request):
        if (site.name, request.kind, request.round) == ("up", kind, 1):
            site.restart()

    run.on_push = restarted
    outcome = run.run()
    plain = secured(tmp_path / "plain", on=False, rounds=2)
    if kind in STAGES[:3]:
        plain.on_push = losing(("up", "train", 1, None))
    assert outcome.shared.sha256() == plain.run().shared.sha256()
    assert next(s for s in run.sites if s.name == "up").refused == ["secure-lost"]


def test_no_byte_at_the_coordinator_holds_a_sites_change(tmp_path):
    found = {}
    for on in (True, False):
        run = secured(tmp_path / str(on), on=on, rounds=2)
        run.run()
        seen = b"".join(b"".join(site.bytes_seen) for site in run.sites)
        files = [path for path in run.path.parent.rglob("*") if path.is_file()]
        stored = b"".join(path.read_bytes() for path in files if "disks" not in path.parts)
        found[on] = seen + stored
    sites = secure_sites(tmp_path / "again")
    secured(tmp_path / "again", sites, rounds=2).run()
    planted = {piece for site in sites for piece in site.planted if any(piece)}
    assert len(planted) == 2 * 3 * 5  # rounds, layers, sites
    pieces = {piece[start : start + 12] for piece in planted for start in range(0, 24, 4)}
    pieces = {piece for piece in pieces if len(piece) == 12 and all(piece[::4])}
    assert len(pieces) > 100
    assert not any(piece in found[True] for piece in pieces)
    assert all(piece in found[False] for piece in planted)  # so they would have been found


def test_a_site_whose_roster_lacks_another_takes_no_part(tmp_path):
    sites = secure_sites(tmp_path / "secure")
    sites[0].knows = NAMES[:-1]
    sites[0].restart()
    run = secured(tmp_path / "secure", sites, rounds=2)
    outcome = run.run()
    plain = secured(tmp_path / "plain", on=False, rounds=2)
    plain.on_push = losing((NAMES[0], "train", None, None))
    assert outcome.shared.sha256() == plain.run().shared.sha256()
    cells = outcome.sites[NAMES[0]].participation
    assert [(cell.state, cell.reason) for cell in cells] == [("refused", "secure-roster")] * 2


def test_a_site_may_want_more_sites_in_the_sum_than_the_protocol_does(tmp_path):
    sites = secure_sites(tmp_path)
    sites[1].wants = {"least_summed": 5}
    sites[1].restart()
    run = secured(tmp_path, sites, rounds=1)
    assert run.run().sites[NAMES[1]].participation[0].reason == "secure-cohort"
    again = secure_sites(tmp_path / "again")
    again[1].wants = {"least_summed": 5}
    again[1].restart()
    run = secured(tmp_path / "again", again, rounds=1, aggregate={"quorum": 5})
    assert run.run().complete


def test_a_sum_that_honest_sites_cannot_have_made_is_not_applied(tmp_path):
    sites = secure_sites(tmp_path)
    sites[2].vector = lambda update: with_change(update, 2**30)
    run = secured(tmp_path, sites, rounds=2)
    with pytest.raises(QuorumError, match=r"norm-too-large|out-of-range"):
        run.run()
    with run.history() as history:
        assert history.committed_rounds("run") == []


def test_a_tower_of_two_sites_is_never_summed(tmp_path):
    sites = secure_sites(tmp_path)
    for site in sites[2:]:
        site.examples = {"image": 0, "text": 100}
    with pytest.raises(QuorumError, match="2 sites of the sum train the image tower"):
        secured(tmp_path, sites, rounds=1).run()
    assert not any(request.kind in STAGES for site in sites for request in site.seen)
    sites = secure_sites(tmp_path / "three")
    for site in sites[3:]:
        site.examples = {"image": 0, "text": 100}
    run = secured(tmp_path / "three", sites, rounds=2)
    run.on_push = losing((NAMES[0], "train", 1, 1))
    outcome = run.run()  # at first two of three would have been left
    assert outcome.complete
    with run.history() as history:
        assert [each.attempt for each in history.committed_rounds("run")] == [2, 1]


def test_a_lie_about_who_trains_what_is_noticed_by_the_site(tmp_path):
    sites = secure_sites(tmp_path)
    run = secured(tmp_path, sites, rounds=1)
    said = []

    class Liar(SecureSite):
        def handle(self, body):
            request, _ = decode_request(body)
            if request.kind == "secure-keys":
                said.append(json.loads(request.stage_message)["participants"])
            return super().handle(body)

    run.sites[0].__class__ = Liar
    run.run()
    assert [each["towers"] for each in said[0]] == [["image", "text"]] * 5


def test_without_a_consortium_or_with_two_sites_nothing_begins(tmp_path):
    run = secured(tmp_path, rounds=1)
    run.options = {}
    with pytest.raises(ConfigError, match="consilia server init"):
        run.run()
    assert coordinator_identity(Path(tmp_path)) is None
    few = secured(tmp_path / "few", secure_sites(tmp_path / "few", NAMES[:2]), rounds=1)
    with pytest.raises(QuorumError, match="2 sites are there, expected at least 3"):
        few.run()


def test_a_damaged_first_plan_stops_the_run(tmp_path):
    run = secured(tmp_path, rounds=2)

    def killed(site, request):
        if (request.round, request.kind) == (2, "secure-agree"):
            raise KeyboardInterrupt

    run.on_push = killed
    with pytest.raises(InterruptedRunError):
        run.run()
    (run.path / "secure" / "round-0002.json").write_bytes(b"{")
    run.on_push = None
    with pytest.raises(StorageError, match="first attempt at round 2"):
        run.run()


# --- whoever does not keep the protocol ------------------------------------------------------


def asked_of(site, kind, number):
    """What a site was asked at a stage of a round, as bytes."""
    bodies = site.bytes_seen[::2]
    return next(
        body
        for body in bodies
        if (decode_request(body)[0].kind, decode_request(body)[0].round) == (kind, number)
    )


def again(site, body, **changes):
    """Ask a site once more; return the reason why it refuses, if it does."""
    request, tensors = decode_request(body)
    answer = site.handle(encode(request.model_copy(update=changes), dict(tensors)))
    reply = decode_reply(answer)[0]
    return reply.reason if reply.status == "refused" else reply.status


def test_replayed_requests_of_any_stage_give_nothing_new(tmp_path):
    run = secured(tmp_path, rounds=2)
    run.run()
    site = run.sites[0]
    first = {kind: asked_of(site, kind, 1) for kind in STAGES}
    last = {kind: asked_of(site, kind, 2) for kind in STAGES}
    given = list(site.bytes_seen)
    # The session of round 2 is the one that is over: the very same question, the same answer.
    assert again(site, last["secure-unmask"]) == "ok"
    assert site.bytes_seen[-1] in given
    # Of the round before nothing is left.
    for kind in STAGES[1:]:
        assert again(site, first[kind]) == "secure-lost"
    # Its session begins anew, with other keys, and what was said in it before does not fit.
    assert again(site, first["secure-keys"]) == "ok"
    assert site.bytes_seen[-1] not in given
    assert again(site, first["secure-shares"]) == "secure-keys"


def test_a_second_request_to_unmask_ends_the_session(tmp_path):
    run = secured(tmp_path, rounds=1)
    run.on_push = losing((NAMES[4], "secure-agree", 1, None))
    run.run()
    site = run.sites[0]
    body = asked_of(site, "secure-unmask", 1)
    question = decode_request(body)[0].stage_message
    other = base64.b64encode(question[:-1] + bytes([question[-1] ^ 1])).decode()
    assert again(site, body, stage=other) == "secure-stage"
    assert again(site, body) == "secure-lost"  # not even the first one is answered any more


def test_other_survivors_than_it_agreed_upon_get_no_share_of_a_site(tmp_path):
    """Who is said to have survived decides which of two shares a site gives; it says so once."""
    run = secured(tmp_path, rounds=1)
    lies = []

    def lying(site, request):
        if request.kind == "secure-unmask" and site.name == NAMES[0] and not lies:
            body = asked_of(site, "secure-agree", 1)
            message = decode_request(body)[0].stage_message
            # The last of five is said to be lost, so that its other share would be given.
            fewer = message[:38] + (4).to_bytes(2, "big") + message[40:48]
            lies.append(again(site, body, stage=base64.b64encode(fewer).decode()))

    run.on_push = lying
    outcome = run.run()
    assert lies == ["secure-stage"]
    assert outcome.sites[NAMES[0]].participation[0].state == "in"  # the others unmasked it
    assert run.sites[0].refused == ["secure-stage", "secure-lost"]


def test_a_share_that_was_tampered_with_is_found_and_its_site_named(tmp_path):
    plain = secured(tmp_path / "plain", on=False, rounds=1).run()
    for liars, reason in ((1, None), (2, "secure-share")):
        sites = secure_sites(tmp_path / str(liars))
        for site in sites[:liars]:
            site.change_message = tampered
        run = secured(tmp_path / str(liars), sites, rounds=1)
        if reason:
            with pytest.raises(QuorumError, match=reason):
                run.run()
            continue
        assert run.run().shared.sha256() == plain.shared.sha256()
        told = [e for e in run.events if e.kind == "site-dropped"]
        assert [(e.site, e.values["reason"]) for e in told] == [(NAMES[0], "secure-share")]


def tampered(kind, message):
    """A site that gives out shares that are none."""
    return message[:-8] + bytes(8) if kind == "secure-unmask" else message
