"""What the coordinator sees looks like noise, and no weakness of Flower's masks is in ours.

Flower 1.41 folds the seed of a mask into 32 bits and feeds a Mersenne Twister with it; of a
pairwise seed only 28 bits vary, so a coordinator finds it by trying (flwrlabs/flower #7522).
(T-SA2, 3, 6, 7, 12)
"""

import copy
import itertools
import os
import pickle
from collections import Counter

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB
from scipy.stats import chi2

from shared.security.secagg import coordinator, keys, shamir, site
from shared.security.secagg.keys import (
    KEY_BYTES,
    Channel,
    KeyPair,
    commitment,
    own_mask_key,
    pair_mask_key,
)
from shared.security.secagg.masks import Mask, apply_masks
from shared.security.secagg.shamir import SHARE_BYTES, combine, split
from shared.security.secagg.site import Stage
from tests.shared.security.secagg.sums import Lab, dropping, names_of, session_of

VIEW = bytes(range(32))


def keystream(key, entries):
    vector = np.zeros(entries, np.uint32)
    apply_masks(vector, [Mask(key, added=True)])
    return vector


def block_cipher(key):
    """AES itself, to compare with: block by block, without a mode."""
    return Cipher(AES256(key), ECB()).encryptor()  # noqa: S305


def flower_fold(seed):
    """How Flower makes a seed of 32 bits (secagg/secaggplus: pseudo_rand_gen)."""
    folded = 0
    for start in range(0, len(seed), 4):
        folded ^= int.from_bytes(seed[start : start + 4], "little")
    return folded


def p_value(content):
    """Of the chi-square test that all byte values are equally likely."""
    counts = np.bincount(np.frombuffer(content, np.uint8), minlength=256)
    expected = len(content) / 256
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), 255))


def test_the_keystream_is_aes_256_in_counter_mode():
    # FIPS 197 with a key and a block of zeros.
    assert keystream(bytes(32), 4).astype("<u4").tobytes().hex() == (
        "dc95c078a2408989ad48a21492842087"
    )
    key, blocks = bytes(range(32)), 20_000  # over more than one piece
    counters = b"".join(number.to_bytes(16, "big") for number in range(blocks))
    expected = block_cipher(key).update(counters)
    assert keystream(key, 4 * blocks).astype("<u4").tobytes() == expected


def test_masks_are_added_and_taken_modulo_two_to_the_32():
    key = os.urandom(32)
    vector = np.arange(50_000, dtype=np.uint32)
    apply_masks(vector, [Mask(key, added=True)])
    assert np.array_equal(vector, np.arange(50_000, dtype=np.uint32) + keystream(key, 50_000))
    apply_masks(vector, [Mask(key, added=False)])
    assert np.array_equal(vector, np.arange(50_000, dtype=np.uint32))


def test_every_bit_of_a_key_changes_the_whole_mask():
    key = os.urandom(32)
    first = keystream(key, 1024)
    for bit in range(256):
        other = bytearray(key)
        other[bit // 8] ^= 1 << (bit % 8)
        differing = np.unpackbits((first ^ keystream(bytes(other), 1024)).view(np.uint8))
        assert 0.47 < differing.mean() < 0.53


def test_a_hundred_thousand_keys_give_as_many_masks():
    keys_of = (number.to_bytes(32, "little") for number in range(100_000))
    begins = {block_cipher(key).update(bytes(16)) for key in keys_of}
    assert len(begins) == 100_000


def test_seeds_that_flower_takes_for_the_same_give_unrelated_masks():
    one = os.urandom(32)
    other = one[4:8] + one[:4] + one[8:]
    assert flower_fold(one) == flower_fold(other)  # with Flower they are the same mask
    stream, crossed = keystream(one, 4096), keystream(other, 4096)
    assert (stream != crossed).all() or np.count_nonzero(stream == crossed) < 3
    assert abs(np.corrcoef(stream.astype(float), crossed.astype(float))[0, 1]) < 0.1


def keys_in_use(monkeypatch, sessions, count=6):
    """Return the keys of all masks that sites really apply, by the derivation they came from."""
    found = {"own": [], "pair": []}

    def own(*given):
        found["own"].append(own_mask_key(*given))
        return found["own"][-1]

    def pair(*given):
        found["pair"].append(pair_mask_key(*given))
        return found["pair"][-1]

    monkeypatch.setattr(site, "own_mask_key", own)
    monkeypatch.setattr(site, "pair_mask_key", pair)
    applied = []

    def apply(vector, masks):
        applied.extend(mask.key for mask in masks)
        apply_masks(vector, masks)

    monkeypatch.setattr(site, "apply_masks", apply)
    for attempt in range(1, sessions + 1):
        Lab(session_of(count, attempt=attempt)).run()
    assert sorted(applied) == sorted(found["own"] + found["pair"])
    return found


def test_all_256_bits_of_every_seed_vary(monkeypatch):
    found = keys_in_use(monkeypatch, sessions=10)
    for sort, expected in (("own", 60), ("pair", 150)):
        distinct = set(found[sort])
        assert len(distinct) == expected  # a pair's two sites have one key
        assert {len(key) for key in distinct} == {32}
        bits = np.unpackbits(np.array([list(key) for key in distinct], np.uint8), axis=1)
        assert bits.shape == (expected, 256)
        share = bits.mean(axis=0)
        assert share.min() > 0.2  # Flower's bit 7 of every byte is 0 and others are folded
        assert share.max() < 0.8
        folds = {flower_fold(key) for key in distinct}
        assert np.bitwise_or.reduce(np.array(list(folds), np.uint64)) == 2**32 - 1


def test_a_mask_whose_beginning_is_known_says_nothing_of_itself_or_of_others(monkeypatch):
    found = keys_in_use(monkeypatch, sessions=2)
    masks = [keystream(key, 4096) for key in sorted({*found["own"], *found["pair"]})]
    blocks = Counter(block.tobytes() for mask in masks for block in mask.reshape(-1, 4))
    assert max(blocks.values()) == 1  # no 16 bytes come again, within a mask or between masks
    for mask in masks:
        known, hidden = mask[:2048].astype(float), mask[2048:].astype(float)
        assert abs(np.corrcoef(known, hidden)[0, 1]) < 0.11


def test_the_secret_behind_a_mask_is_drawn_in_full():
    drawn = []

    def randomness(size):
        drawn.append(size)
        return os.urandom(size)

    Lab(session_of(3), randomness=randomness).run()
    # Two private keys and a seed of 32 bytes a site, and twice threshold - 1 coefficients.
    assert Counter(drawn) == {KEY_BYTES: 9, SHARE_BYTES: 12}


def test_derivations_differ_by_purpose_place_and_view():
    one, other = KeyPair.new(os.urandom), KeyPair.new(os.urandom)
    seed, other_view = os.urandom(32), VIEW[:-1] + b"x"
    derived = [
        commitment(seed, VIEW, 1),
        own_mask_key(seed, VIEW, 1),
        own_mask_key(seed, VIEW, 2),
        own_mask_key(seed, other_view, 1),
        pair_mask_key(one.secret_with(other.public), 1, 2, VIEW),
        pair_mask_key(one.secret_with(other.public), 1, 3, VIEW),
        pair_mask_key(one.secret_with(other.public), 1, 2, other_view),
    ]
    assert len(set(derived)) == len(derived)
    assert pair_mask_key(other.secret_with(one.public), 2, 1, VIEW) == derived[4]
    shares = keys.Shares(os.urandom(66), os.urandom(66))
    there = Channel(1, 2, VIEW, VIEW).seal(one, other.public, shares)
    back = Channel(2, 1, VIEW, VIEW).seal(other, one.public, shares)
    assert there[:132] != back[:132]  # the two ways between two sites have two keys
    assert Channel(1, 2, VIEW, VIEW).open(other, one.public, there) == shares


def test_what_the_coordinator_sees_is_noise_whatever_the_vector_is():
    entries = 250_000
    session = session_of(3, entries, scale=1.0)
    for value in (0, 0xFFFFFFFF):
        vectors = {name: np.full(entries, value, np.uint32) for name in names_of(3)}
        lab = Lab(session, vectors).until(Stage.AGREE)
        sent = [m for stage, _, way, m in lab.seen if (stage, way) == (Stage.MASK, "up")]
        assert len(sent) == 3
        for message in sent:
            assert 1e-6 < p_value(message[44:]) < 1 - 1e-6
    # The very test finds a vector that is not masked.
    assert p_value(vectors["site-00"].tobytes()) < 1e-9


def test_no_message_holds_a_vector_a_weight_or_a_secret(monkeypatch):
    secrets = []
    new, halves = KeyPair.of.__func__, site.split

    def of(cls, private):
        secrets.append(private)
        return new(cls, private)

    def splitting(secret, *given):
        secrets.append(secret)
        return halves(secret, *given)

    monkeypatch.setattr(KeyPair, "of", classmethod(of))
    monkeypatch.setattr(site, "split", splitting)
    marker = 0xC0FFEE11
    session = session_of(5, entries=64)
    vectors = {name: np.full(64, marker, np.uint32) for name in names_of(5)}
    lab = Lab(session, vectors, between=dropping({"site-03": Stage.MASK}))
    lab.run()
    seen = b"".join(message for *_, message in lab.seen)
    assert len(secrets) > 15
    for secret in secrets:
        assert len(secret) == 32
        assert secret not in seen
    for written in (marker.to_bytes(4, "little"), marker.to_bytes(4, "big"), str(marker).encode()):
        assert written not in seen


def test_shares_in_the_open_are_of_one_secret_only():
    lab = Lab(session_of(5), between=dropping({"site-03": Stage.MASK}))
    lab.run()
    revealed = lab.server._revealed
    for owner in range(5):
        own = [each.own_masks[owner] for each in revealed.values() if owner in each.own_masks]
        keys_of = [each.mask_keys[owner] for each in revealed.values() if owner in each.mask_keys]
        assert bool(own) != bool(keys_of)
        assert bool(keys_of) == (owner == 3)


def test_fewer_shares_than_the_threshold_give_nothing():
    secret = os.urandom(32)
    shares = split(secret, range(1, 8), 5, os.urandom)
    for chosen in itertools.combinations(shares, 5):
        assert combine({point: shares[point] for point in chosen}, 5) == secret
    for count in (0, 1, 4, 6):
        with pytest.raises(ValueError, match="expected 5 shares"):
            combine(dict(list(shares.items())[:count]), 5)
    # Taken for enough, they give another number, nearly always one that is no secret.
    with pytest.raises(ValueError, match="do not belong together"):
        combine(dict(list(shares.items())[:4]), 4)


def test_what_is_no_share_or_no_set_of_points_is_refused():
    shares = split(bytes(32), [1, 2, 3], 2, os.urandom)
    for wrong in (shares[1][:65], b"\xff" * 66):
        with pytest.raises(ValueError, match="not a share"):
            combine({1: wrong, 2: shares[2]}, 2)
    for secret, points, threshold in (
        (bytes(31), [1, 2], 2),
        (bytes(32), [1, 2], 3),
        (bytes(32), [0, 1], 2),
        (bytes(32), [1, 1], 2),
        (bytes(32), [1, 2], 0),
    ):
        with pytest.raises(ValueError, match="expected"):
            split(secret, points, threshold, os.urandom)


@pytest.mark.parametrize("prime", [3, 7])
def test_shares_below_the_threshold_are_uniform_in_a_small_field(monkeypatch, prime):
    monkeypatch.setattr(shamir, "PRIME", prime)
    points = range(1, min(prime, 5))
    for secret in range(prime):
        seen = Counter()
        for coefficients in itertools.product(range(prime), repeat=2):
            drawn = iter(coefficients)
            shares = split(
                secret.to_bytes(32, "big"),
                [*points, prime + 1],
                3,
                lambda size, drawn=drawn: next(drawn).to_bytes(size, "big"),
            )
            seen[shares[1][-1], shares[2][-1]] += 1
        assert len(seen) == prime**2  # whatever the secret, any two shares are equally likely
        assert set(seen.values()) == {1}


def test_coefficients_beyond_the_prime_are_drawn_again():
    drawn = iter([b"\xff" * 66, bytes(66)])
    shares = split(bytes([0] * 31 + [5]), [1, 2], 2, lambda size: next(drawn))
    assert shares[1][-1] == shares[2][-1] == 5


def test_every_attempt_has_keys_and_masks_of_its_own():
    blocks = []
    for attempt in (1, 1, 2):  # also where a coordinator repeats an attempt's number
        lab = Lab(session_of(4, entries=1024, attempt=attempt)).until(Stage.REVEAL)
        seen = {
            m[i : i + 16] for *_, way, m in lab.seen if way == "up" for i in range(40, 4000, 16)
        }
        blocks.append({block for block in seen if len(block) == 16})
    assert all(len(each) > 500 for each in blocks)
    assert not blocks[0] & blocks[1]
    assert not blocks[0] & blocks[2]


def test_a_site_in_a_session_is_never_stored_or_copied():
    part = Lab(session_of(3)).until(Stage.MASK).sites["site-00"]
    for store in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="never stored"):
            store(part)


def test_nothing_secret_is_shown():
    lab = Lab(session_of(3)).until(Stage.MASK)
    part = lab.sites["site-00"]
    private = [part._secrets.channel.private, part._secrets.masks.private, part._secrets.seed]
    private += [share for each in part._shares.values() for share in (each.own_mask, each.mask_key)]
    shown = repr(part) + repr(part._secrets) + repr(part._shares) + repr(Mask(private[2], True))
    for secret in private:
        assert repr(secret) not in shown
        assert secret.hex() not in shown


def test_secrets_are_dropped_when_they_are_not_needed_any_more():
    lab = Lab(session_of(3)).until(Stage.AGREE)
    assert all(part._secrets is None for part in lab.sites.values())
    lab.run()
    assert all(part._shares == {} for part in lab.sites.values())
    assert coordinator.Stage is site.Stage
