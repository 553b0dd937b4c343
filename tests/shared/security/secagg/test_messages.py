"""One content, one form in bytes; anything else is refused without a fault."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from shared.security.secagg.site import SiteSum, Stage
from tests.shared.security.secagg.sums import Lab, dropping, key_of, raises_reason, session_of

SESSION = session_of(5)
SORTS = (
    *(Advertisement, Keys, Sealed, Delivery, Masked, Survivors),
    *(Agreement, Agreements, Revealed),
)


def real_messages():
    lab = Lab(SESSION, between=dropping({"site-04": Stage.MASK}))
    lab.run()
    return [message for *_, message in lab.seen if message]


REAL = real_messages()


def sort_of(message):
    return SORTS[message[5] - 1]


def test_every_sort_of_message_comes_back_as_it_was_and_says_its_length():
    assert {sort_of(message) for message in REAL} == set(SORTS)
    sizes = {}
    for message in REAL:
        found = sort_of(message).decode(message, SESSION)
        assert found.encode(SESSION) == message
        sizes.setdefault(sort_of(message).__name__, set()).add(len(message))
    # 5 sites, 4 of them at the end, 17 entries; written out by hand.
    assert sizes == {
        "Advertisement": {38 + 2 + 160},
        "Keys": {38 + 2 + 5 * 162},
        "Sealed": {38 + 2 + 2 + 4 * 150},
        "Delivery": {38 + 2 + 2 + 4 * 150},
        "Masked": {38 + 2 + 4 + 17 * 4},
        "Survivors": {38 + 2 + 4 * 2},
        "Agreement": {38 + 2 + 64},
        "Agreements": {38 + 2 + 4 * 66},
        "Revealed": {38 + 2 + 2 + 4 * 68 + 2 + 68},
    }


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(REAL), st.data())
def test_changed_bytes_are_refused_or_mean_something_else(message, data):
    place = data.draw(st.integers(0, len(message) - 1))
    size = data.draw(st.integers(0, 3))
    changed = message[:place] + data.draw(st.binary(max_size=4)) + message[place + size :]
    for sort in SORTS:
        try:
            found = sort.decode(changed, SESSION)
        except SecureSumError as error:
            assert error.reason == "secure-message"  # noqa: PT017 - else it is looked at
        else:
            assert found.encode(SESSION) == changed  # no two forms mean the same


@given(st.binary(max_size=200))
def test_noise_is_no_message(content):
    for sort in SORTS:
        raises_reason("secure-message", lambda sort=sort: sort.decode(content, SESSION))


def test_what_is_cut_short_is_refused_at_every_length():
    for message in {m[5]: m for m in REAL}.values():
        for length in range(len(message)):
            cut = message[:length]
            raises_reason("secure-message", lambda c=cut, m=message: sort_of(m).decode(c, SESSION))


def test_records_stand_once_in_order_and_belong_to_participants():
    begin = Survivors(()).encode(SESSION)[:38]

    def survivors(*numbers):
        return begin + b"".join(number.to_bytes(2, "big") for number in numbers)

    assert Survivors.decode(survivors(2, 0, 4), SESSION).sites == (0, 4)
    for wrong in ((2, 4, 0), (2, 1, 1), (1, 5), (6, 0, 1, 2, 3, 4, 5), (65535, 1), (1,)):
        content = survivors(*wrong)
        raises_reason("secure-message", lambda c=content: Survivors.decode(c, SESSION))


def test_a_count_that_lies_costs_no_memory():
    begin = Masked(0, np.zeros(17, np.uint32)).encode(SESSION)[:40]
    content = begin + (2**32 - 1).to_bytes(4, "big") + bytes(68)
    raises_reason("secure-message", lambda: Masked.decode(content, SESSION))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(REAL), st.binary(max_size=60), st.integers(0, 700))
def test_whatever_a_site_is_asked_it_answers_or_ends_the_session(message, noise, place):
    asked = message[:place] + noise + message[place + len(noise) :]
    for stage in (Stage.SHARE, Stage.MASK, Stage.AGREE, Stage.REVEAL):
        part = SiteSum(SESSION, "site-00", key_of("site-00"))
        part.advertise()
        part._stage = stage
        act = {
            Stage.SHARE: part.share,
            Stage.MASK: lambda q, part=part: part.mask(q, np.zeros(17, np.uint32)),
            Stage.AGREE: part.agree,
            Stage.REVEAL: part.reveal,
        }[stage]
        with pytest.raises(SecureSumError):
            act(asked)
        assert part.stage is Stage.OVER
