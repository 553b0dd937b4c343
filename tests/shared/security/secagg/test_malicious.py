"""A coordinator that lies, sites that lie, and damage on the way: refused, or the exact sum.

(T-SA4, 5, 8)
"""

import dataclasses
import json

import numpy as np
import pytest
from pydantic import ValidationError

from shared.errors import SecureSumError
from shared.security.secagg.messages import (
    Advertisement,
    Agreement,
    Agreements,
    Delivery,
    Keys,
    Masked,
    Revealed,
    Sealed,
    Survivors,
)
from shared.security.secagg.session import Demands, Participant, Session, least_threshold
from shared.security.secagg.site import SiteSum, Stage
from tests.shared.security.secagg.sums import (
    Lab,
    dropping,
    key_of,
    names_of,
    raises_reason,
    session_of,
    sum_of,
)

FIRST = "site-00"


def flipped(content, place):
    changed = bytearray(content)
    changed[place] ^= 1
    return bytes(changed)


# --- both shares of one site -----------------------------------------------------------------


def test_a_second_answer_of_the_last_stage_is_refused():
    lab = Lab(session_of(5), between=dropping({"site-04": Stage.MASK})).until(Stage.REVEAL)
    part, question = lab.sites[FIRST], lab.questions[FIRST]
    part.reveal(question)
    raises_reason("secure-stage", lambda: part.reveal(question))
    assert part.stage is Stage.OVER


def test_both_shares_of_a_site_cannot_be_asked_for():
    # site-04's vector arrived. A coordinator that wants both its shares must say once that it
    # did and once that it did not; the site signs one of the two and is silent after.
    lab = Lab(session_of(5)).until(Stage.AGREE)
    part = lab.sites[FIRST]
    part.agree(Survivors((0, 1, 2, 3, 4)).encode(lab.session))
    raises_reason("secure-stage", lambda: part.agree(Survivors((0, 1, 2, 3)).encode(lab.session)))
    assert part.stage is Stage.OVER
    raises_reason("secure-stage", lambda: part.reveal(b""))


def test_other_survivors_for_other_sites_reveal_nothing():
    lab = Lab(session_of(6)).until(Stage.AGREE)
    told = {
        name: Survivors((0, 1, 2, 3, 4) if number < 3 else (0, 2, 3, 4, 5))
        for number, name in enumerate(names_of(6))
    }
    agreed = {}
    for place in (0, 1, 2, 3, 4, 5):
        name = names_of(6)[place]
        answer = lab.sites[name].agree(told[name].encode(lab.session))
        agreed[place] = Agreement.decode(answer, lab.session).signature
    asked = [set(range(6)), {0, 1, 2, 3, 4}, {0, 1, 2}, {2, 3, 4, 5}]
    for place, name in enumerate(names_of(6)):
        signatures = {p: agreed[p] for p in asked[place % 4]}
        question = Agreements(signatures).encode(lab.session)
        with pytest.raises(SecureSumError) as caught:
            lab.sites[name].reveal(question)
        assert caught.value.reason in {"secure-signature", "secure-too-few"}


@pytest.mark.parametrize(
    ("survivors", "reason"),
    [
        ((), "secure-too-few"),
        ((0, 1, 2, 3), "secure-too-few"),
        ((1, 2, 3, 4, 5), "secure-survivors"),  # without the site itself
        ((0, 1, 2, 3, 6), "secure-survivors"),  # one that sent no shares
    ],
)
def test_survivors_that_cannot_be_are_not_signed(survivors, reason):
    lab = Lab(session_of(7), between=dropping({"site-06": Stage.SHARE})).until(Stage.AGREE)
    question = Survivors(survivors).encode(lab.session)
    raises_reason(reason, lambda: lab.sites[FIRST].agree(question))
    assert lab.sites[FIRST].stage is Stage.OVER


# --- who takes part --------------------------------------------------------------------------


def demands(**changes):
    fields = {
        "site": FIRST,
        "key": key_of(FIRST).public,
        "consortium": "c" * 32,
        "roster": {name: (key_of(name).public,) for name in names_of(6)},
        "least_sites": 3,
    }
    return Demands(**{**fields, **changes})


def with_participants(named):
    participants = tuple(Participant(name=n, key=key_of(k).public) for n, k in sorted(named))
    count = len(participants)
    return session_of(3, participants=participants, threshold=least_threshold(count))


def test_a_session_of_known_sites_is_taken():
    demands().check(session_of(5))
    demands(roster={n: ("f" * 64, key_of(n).public) for n in names_of(5)}).check(session_of(5))


@pytest.mark.parametrize(
    ("session", "wanted", "reason"),
    [
        (session_of(3), demands(least_sites=5), "secure-cohort"),
        (session_of(3, consortium="other"), demands(), "secure-consortium"),
        # Sybils: the coordinator's own sites around one real one.
        (
            with_participants([(FIRST, FIRST), ("sybil-1", "x"), ("sybil-2", "y")]),
            demands(),
            "secure-roster",
        ),
        # A known name with the coordinator's key.
        (
            with_participants([(FIRST, FIRST), ("site-01", "x"), ("site-02", "site-02")]),
            demands(),
            "secure-roster",
        ),
        # Without the site itself, or with another key for it.
        (
            with_participants([(n, n) for n in names_of(6)[1:]]),
            demands(),
            "secure-roster",
        ),
        (
            with_participants([(FIRST, "older"), ("site-01", "site-01"), ("site-02", "site-02")]),
            demands(roster=demands().roster | {FIRST: (key_of("older").public,)}),
            "secure-roster",
        ),
        # Two names of one site's.
        (session_of(4), demands(roster={}), "secure-roster"),
    ],
)
def test_a_session_of_others_is_refused_before_anything_is_done(session, wanted, reason):
    raises_reason(reason, lambda: wanted.check(session))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 1}, "expected 4 to 5 of 5 sites, got 1"),
        ({"threshold": 3}, "expected 4 to 5"),
        ({"threshold": 6}, "expected 4 to 5"),
        ({"participants": session_of(5).participants[:2]}, "at least 3"),
        ({"participants": session_of(5).participants[::-1]}, "in order"),
        ({"participants": session_of(4).participants[:1] * 4}, "once"),
        (
            {
                "participants": (
                    *session_of(4).participants,
                    Participant(name="twin", key=key_of(FIRST).public),
                )
            },
            "same key",
        ),
        ({"entries": 0}, "entries"),
        ({"entries": 2**29}, "entries"),
        ({"scale": 2.0**28}, "32-bit range"),
        ({"scale": float("nan")}, "scale"),
        ({"attempt": 0}, "attempt"),
        ({"protocol": 2}, "protocol"),
        ({"form": "x"}, "form"),
    ],
)
def test_there_is_no_unsound_session(changes, message):
    with pytest.raises(ValidationError, match=message):
        session_of(5, **changes)
    plain = session_of(5).model_dump(mode="json")
    changed = dict(changes)
    if "participants" in changed:
        changed["participants"] = [each.model_dump() for each in changed["participants"]]
    written = json.dumps({**plain, **changed}, sort_keys=True, separators=(",", ":")).encode()
    raises_reason("secure-session", lambda: Session.read(written))


def test_a_session_has_one_form_in_bytes():
    session = session_of(4)
    written = session.encode()
    assert Session.read(written) == session
    assert Session.read(written).digest == session.digest
    for other in (
        written + b" ",
        written.replace(b":", b": ", 1),
        written.replace(b'"attempt":1,', b'"attempt":1,"attempt":1,', 1),
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b" " * 300_000,
    ):
        raises_reason("secure-session", lambda other=other: Session.read(other))


def test_everything_that_matters_changes_the_sessions_number():
    first = session_of(5)
    changes = [
        {"consortium": "d" * 32},
        {"run": "run-2"},
        {"round": 4},
        {"attempt": 2},
        {"base": "5" * 64},
        {"job": "5" * 64},
        {"adapter": "5" * 64},
        {"form": "5" * 64},
        {"entries": 18},
        {"scale": 2.0**9},
        {"clip_norm": 8.0},
        {"total_weight": 6},
        {"threshold": 5},
        {"participants": session_of(6).participants[1:]},
    ]
    assert {name for each in changes for name in each} == set(Session.model_fields) - {"protocol"}
    digests = {session_of(5, **each).digest for each in changes} | {first.digest}
    assert len(digests) == len(changes) + 1


# --- messages of another session, swapped, or damaged ----------------------------------------


@pytest.mark.parametrize("stage", [Stage.SHARE, Stage.MASK, Stage.AGREE, Stage.REVEAL])
@pytest.mark.parametrize("changes", [{"attempt": 2}, {"round": 4}, {"run": "run-2"}])
def test_what_belongs_to_another_session_is_refused(stage, changes):
    older = Lab(session_of(4)).until(stage)
    lab = Lab(session_of(4, **changes)).until(stage)
    question = older.questions[FIRST]
    raises_reason("secure-message", lambda: lab.answer(stage, FIRST, question))
    replayed = older.answer(stage, FIRST, question)
    raises_reason("secure-message", lambda: lab.server.take(FIRST, replayed))


def test_keys_of_an_earlier_attempt_cannot_be_played_again():
    older = Lab(session_of(4)).until(Stage.SHARE)
    lab = Lab(session_of(4, attempt=2)).until(Stage.SHARE)
    old = Keys.decode(older.questions[FIRST], older.session).advertisements
    new = Keys.decode(lab.questions[FIRST], lab.session).advertisements
    question = Keys({**new, 1: old[1]}).encode(lab.session)
    raises_reason("secure-signature", lambda: lab.sites[FIRST].share(question))


def changed_keys(change):
    """Hand FIRST other keys than were advertised."""
    lab = Lab(session_of(4)).until(Stage.SHARE)
    found = dict(Keys.decode(lab.questions[FIRST], lab.session).advertisements)
    change(found, lab)
    question = Keys(found).encode(lab.session)
    return lab, lambda: lab.sites[FIRST].share(question)


def swap_two(found, lab):
    one, other = found[1], found[2]
    found[1] = dataclasses.replace(other, site=1)
    found[2] = dataclasses.replace(one, site=2)


def replace_one(field):
    def change(found, lab):
        changed = flipped(getattr(found[1], field), 5)
        found[1] = dataclasses.replace(found[1], **{field: changed})

    return change


def sign_of_the_coordinators_own(found, lab):
    keys = bytes([9]) * 96
    signature = key_of("coordinator").sign(Advertisement.text(lab.session, 1, keys))
    found[1] = Advertisement.of_record(1, keys + signature)


def low_order(found, lab):
    """A site that joins in with the coordinator, and makes a secret that everybody knows."""
    keys = found[1].channel_key + bytes(32) + found[1].commitment
    signature = key_of("site-01").sign(Advertisement.text(lab.session, 1, keys))
    found[1] = Advertisement.of_record(1, keys + signature)


def same_key_twice(found, lab):
    keys = found[2].channel_key + found[1].mask_key + found[1].commitment
    signature = key_of("site-01").sign(Advertisement.text(lab.session, 1, keys))
    found[1] = Advertisement.of_record(1, keys + signature)


def without_own(found, lab):
    del found[0]


def other_own(found, lab):
    found[0] = dataclasses.replace(found[0], mask_key=bytes([7]) * 32)


def too_few(found, lab):
    del found[2], found[3]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (swap_two, "secure-signature"),
        (replace_one("channel_key"), "secure-signature"),
        (replace_one("mask_key"), "secure-signature"),
        (replace_one("commitment"), "secure-signature"),
        (replace_one("signature"), "secure-signature"),
        (sign_of_the_coordinators_own, "secure-keys"),  # channel and mask key are the same
        (low_order, "secure-keys"),
        (same_key_twice, "secure-keys"),
        (without_own, "secure-keys"),
        (other_own, "secure-keys"),
        (too_few, "secure-too-few"),
    ],
)
def test_keys_that_their_sites_did_not_advertise_end_the_session(change, reason):
    lab, act = changed_keys(change)
    raises_reason(reason, act)
    assert lab.sites[FIRST].stage is Stage.OVER
    assert lab.sites[FIRST]._secrets is None


def test_other_keys_for_other_sites_open_no_shares():
    # Both lists are rightly signed, but the sites do not have the same view.
    lab = Lab(session_of(6)).until(Stage.SHARE)
    everyone = Keys.decode(lab.questions[FIRST], lab.session).advertisements
    fewer = {place: each for place, each in everyone.items() if place != 5}
    sealed = {}
    for place in range(5):
        shown = everyone if place == 1 else fewer
        question = Keys(shown).encode(lab.session)
        sealed[place] = Sealed.decode(lab.sites[names_of(6)[place]].share(question), lab.session)
    delivery = Delivery(0, {place: sealed[place].shares[0] for place in range(1, 5)})
    vector = np.zeros(17, np.uint32)
    part = lab.sites[FIRST]
    raises_reason("secure-share", lambda: part.mask(delivery.encode(lab.session), vector))
    assert not vector.any()


def deliveries(change):
    lab = Lab(session_of(5)).until(Stage.MASK)
    delivery = Delivery.decode(lab.questions[FIRST], lab.session)
    changed = change(dict(delivery.shares), lab)
    question = Delivery(0, changed).encode(lab.session)
    return lambda: lab.sites[FIRST].mask(question, np.zeros(17, np.uint32))


def swapped_senders(shares, lab):
    return {**shares, 1: shares[2], 2: shares[1]}


def for_another(shares, lab):
    return {**shares, 1: Delivery.decode(lab.questions["site-02"], lab.session).shares[1]}


def without_two(shares, lab):
    return {place: each for place, each in shares.items() if place > 2}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (swapped_senders, "secure-share"),
        (for_another, "secure-share"),
        (lambda shares, lab: {**shares, 1: flipped(shares[1], 0)}, "secure-share"),
        (lambda shares, lab: {**shares, 1: flipped(shares[1], -1)}, "secure-share"),
        (lambda shares, lab: {**shares, 0: shares[1]}, "secure-message"),
        (without_two, "secure-too-few"),
    ],
)
def test_shares_that_are_not_as_they_were_sealed_end_the_session(change, reason):
    raises_reason(reason, deliveries(change))


def test_shares_of_a_site_without_keys_are_refused():
    lab = Lab(session_of(6), between=dropping({"site-05": Stage.ADVERTISE})).until(Stage.MASK)
    shares = dict(Delivery.decode(lab.questions[FIRST], lab.session).shares)
    question = Delivery(0, {**shares, 5: shares[1]}).encode(lab.session)
    vector = np.zeros(17, np.uint32)
    raises_reason("secure-keys", lambda: lab.sites[FIRST].mask(question, vector))


def test_signatures_that_are_not_of_survivors_reveal_nothing():
    lab = Lab(session_of(6), between=dropping({"site-05": Stage.MASK})).until(Stage.REVEAL)
    found = Agreements.decode(lab.questions[FIRST], lab.session).signatures
    text = lab.sites[FIRST]._agreed
    for wrong in (
        {**found, 1: flipped(found[1], 3)},
        {**found, 1: found[2], 2: found[1]},
        {**found, 5: key_of("site-05").sign(text)},  # did not survive
        {**found, 1: key_of("coordinator").sign(text)},
    ):
        victim = Lab(session_of(6))
        # A site in the very same state, because one refusal ends it.
        victim.sites[FIRST].__dict__.update(vars(lab.sites[FIRST]))
        question = Agreements(wrong).encode(lab.session)
        raises_reason("secure-signature", lambda q=question, v=victim: v.sites[FIRST].reveal(q))


# --- sites that lie: left out, or found out, but never a wrong sum ---------------------------


def lying(stage, change, who=("site-01",)):
    def between(at, name, way, message):
        return change(message) if (at, way) == (stage, "up") and name in who else message

    return between


STARTS = {"magic": 0, "version": 4, "kind": 5, "session": 6, "session's end": 37, "place": 39}


@pytest.mark.parametrize("stage", [s for s in Stage if s is not Stage.OVER])
@pytest.mark.parametrize("field", STARTS)
def test_an_answer_with_a_wrong_beginning_is_none(stage, field):
    lab = Lab(session_of(5), between=lying(stage, lambda m: flipped(m, STARTS[field])))
    result = lab.run()
    assert lab.refused == {"site-01": "server: secure-message"}
    assert np.array_equal(result.total, sum_of(lab.vectors, result.survivors))
    assert ("site-01" in result.survivors) == (stage > Stage.MASK)


@pytest.mark.parametrize(
    ("stage", "change", "reason"),
    [
        *((Stage.ADVERTISE, lambda m, i=i: flipped(m, i), "signature") for i in (40, 72, 104, 136)),
        (Stage.ADVERTISE, lambda m: m + b"\0", "message"),
        (Stage.SHARE, lambda m: m[:-1], "message"),
        (Stage.SHARE, lambda m: flipped(m, 41), "message"),  # their number
        (Stage.SHARE, lambda m: flipped(m, 43), "message"),  # the first receiver
        (Stage.MASK, lambda m: m[:-4], "message"),
        (Stage.MASK, lambda m: m + bytes(4), "message"),
        (Stage.MASK, lambda m: flipped(m, 43), "message"),  # the length
        (Stage.AGREE, lambda m: flipped(m, 50), "signature"),
        (Stage.REVEAL, lambda m: flipped(m, 41), "message"),
        (Stage.REVEAL, lambda m: m[:-1], "message"),
    ],
)
def test_a_damaged_answer_is_none(stage, change, reason):
    lab = Lab(session_of(5), between=lying(stage, change))
    result = lab.run()
    assert lab.refused == {"site-01": f"server: secure-{reason}"}
    assert np.array_equal(result.total, sum_of(lab.vectors, result.survivors))


def test_one_tampered_share_is_found_and_left_out():
    for byte in (100, -1):  # of an own mask, of a key
        lab = Lab(
            session_of(8),
            between=lambda at, name, way, message, byte=byte: (
                None
                if (at, name) == (Stage.MASK, "site-07")
                else flipped(message, byte)
                if (at, name, way) == (Stage.REVEAL, "site-01", "up")
                else message
            ),
        )
        result = lab.run()
        assert result.suspects == ("site-01",)
        assert np.array_equal(result.total, sum_of(lab.vectors, names_of(8)[:7]))


def test_tampered_shares_that_cannot_be_left_out_end_the_session():
    # Two of them, or one where every share is needed.
    for count, who in ((8, ("site-01", "site-02")), (3, ("site-01",))):
        lab = Lab(session_of(count), between=lying(Stage.REVEAL, lambda m: flipped(m, 100), who))
        raises_reason("secure-share", lab.run)
        raises_reason("secure-stage", lab.server.result)


def test_a_site_that_shares_another_secret_than_its_mask_ends_the_session():
    lab = Lab(session_of(5)).until(Stage.SHARE)
    part = lab.sites["site-01"]
    part._secrets.seed = bytes(32)  # not what it committed to
    raises_reason("secure-share", lab.run)


def test_a_site_that_names_another_is_refused():
    lab = Lab(session_of(4))
    raises_reason(
        "secure-message", lambda: lab.server.take(FIRST, lab.sites["site-01"].advertise())
    )


def test_a_site_with_anothers_keys_is_refused():
    lab = Lab(session_of(4))
    answer = lab.sites[FIRST].advertise()
    lab.server.take(FIRST, answer)
    taken = Advertisement.decode(answer, lab.session)
    key = key_of("site-01")
    keys = bytes([5]) * 32 + taken.mask_key + bytes(32)
    copied = Advertisement.of_record(1, keys + key.sign(Advertisement.text(lab.session, 1, keys)))
    raises_reason("secure-keys", lambda: lab.server.take("site-01", copied.encode(lab.session)))


def test_a_site_that_reveals_other_shares_is_refused():
    lab = Lab(session_of(5), between=dropping({"site-04": Stage.MASK})).until(Stage.REVEAL)
    answer = lab.sites[FIRST].reveal(lab.questions.pop(FIRST))
    found = Revealed.decode(answer, lab.session)
    share = next(iter(found.own_masks.values()))
    for own_masks, mask_keys in (
        ({p: s for p, s in found.own_masks.items() if p != 2}, found.mask_keys),
        (found.own_masks, {}),
        ({**found.own_masks, 4: share}, {}),
        ({}, {**found.own_masks, **found.mask_keys}),
    ):
        wrong = Revealed(0, own_masks, mask_keys).encode(lab.session)
        raises_reason("secure-message", lambda wrong=wrong: lab.server.take(FIRST, wrong))
    both = Revealed(0, {**found.own_masks, 4: share}, found.mask_keys).encode(lab.session)
    raises_reason("secure-message", lambda: lab.server.take(FIRST, both))
    lab.server.take(FIRST, answer)
    assert np.array_equal(lab.run().total, sum_of(lab.vectors, names_of(5)[:4]))


def test_questions_out_of_turn_end_the_session():
    for call in ("share", "agree", "reveal"):
        part = SiteSum(session_of(3), FIRST, key_of(FIRST))
        raises_reason("secure-stage", lambda part=part, call=call: getattr(part, call)(b""))
        raises_reason("secure-stage", part.advertise)


def test_keys_are_advertised_once():
    part = SiteSum(session_of(3), FIRST, key_of(FIRST))
    part.advertise()
    raises_reason("secure-stage", part.advertise)
    assert part.stage is Stage.OVER


def test_a_masked_vector_cannot_be_taken_for_another_sites():
    lab = Lab(session_of(4)).until(Stage.MASK)
    answer = lab.answer(Stage.MASK, FIRST, lab.questions.pop(FIRST))
    vector = Masked.decode(answer, lab.session).vector
    raises_reason("secure-message", lambda: lab.server.take("site-01", answer))
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1
