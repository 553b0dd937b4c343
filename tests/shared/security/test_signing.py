"""Keys of RFC 8032, fingerprints that people compare, and files that others must not read."""

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from shared.errors import IdentityError
from shared.security.canonical import canonical, read_json
from shared.security.comparison import compare
from shared.security.node_keys import NodeKey, is_node_key
from shared.security.private_files import write_secret
from shared.security.signing import SigningKey, fingerprint, same_fingerprint, verified

# RFC 8032, 7.1, TEST 2.
PRIVATE = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_signatures_are_those_of_rfc_8032():
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(PRIVATE)))
    assert key.public == PUBLIC
    assert key.sign(b"\x72").hex() == SIGNATURE
    assert verified(PUBLIC, b"\x72", bytes.fromhex(SIGNATURE))


@pytest.mark.parametrize(
    ("public", "message", "signature"),
    [
        (PUBLIC, b"\x73", SIGNATURE),
        ("00" * 32, b"\x72", SIGNATURE),
        ("short", b"\x72", SIGNATURE),
        (PUBLIC, b"\x72", "00" * 64),
        (PUBLIC, b"\x72", ""),
    ],
)
def test_nothing_else_is_verified(public, message, signature):
    assert not verified(public, message, bytes.fromhex(signature))


def test_canonical_bytes_can_be_written_by_hand():
    written = canonical("kit 1", {"b": [1, "ä"], "a": None})
    assert written == b'consilia kit 1\n{"a":null,"b":[1,"\\u00e4"]}'


@pytest.mark.parametrize("text", [b'{"a":1,"a":2}', b"{", b"\xff", b"[" * 100_000])
def test_json_that_says_something_twice_or_nothing_is_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        read_json(text)


def test_a_fingerprint_is_160_bits_in_groups_of_four():
    shown = fingerprint(b"abc")
    assert len(shown) == 39
    assert shown.count("-") == 7
    assert same_fingerprint(shown, shown.lower().replace("-", " "))
    assert not same_fingerprint(shown, fingerprint(b"abd"))


def test_keys_survive_their_files(tmp_path):
    for key, name in ((SigningKey.new(), "signing"), (NodeKey.new(), "node")):
        path = tmp_path / name
        write_secret(path, key.pem())
        assert path.stat().st_mode & 0o777 == 0o600
        again = SigningKey.load(path, "x") if name == "signing" else NodeKey.load(path)
        assert again.public == key.public
        assert key.public not in repr(key)
        assert "private=" not in repr(key)


def test_node_keys_are_of_the_curve_and_form_that_flower_takes(tmp_path):
    key = NodeKey.new()
    assert key.public.startswith("ecdsa-sha2-nistp384 ")
    assert is_node_key(key.public)
    # What flower-supernode and `flwr supernode register` do with them.
    private = load_ssh_private_key(key.pem(), None)
    assert isinstance(private.curve, ec.SECP384R1)
    assert load_ssh_public_key(key.public.encode()) == private.public_key()
    assert not is_node_key(key.public + " comment")
    assert not is_node_key("ssh-ed25519 AAAA")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_not_used(tmp_path, mode):
    path = tmp_path / "signing.key"
    write_secret(path, SigningKey.new().pem())
    path.chmod(mode)
    with pytest.raises(IdentityError, match=rf"signing\.key: .*mode {mode:04o}.*chmod 600"):
        SigningKey.load(path, "the site's signing key")


def test_a_key_that_is_missing_cut_short_or_of_another_sort_says_what_to_do(tmp_path):
    path = tmp_path / "signing.key"
    with pytest.raises(IdentityError, match=r"signing\.key: .*not there"):
        SigningKey.load(path, "the site's signing key")
    whole = SigningKey.new().pem()
    for content in (whole[:40], b"", whole.replace(b"PRIVATE", b"PUBLIC"), NodeKey.new().pem()):
        path.unlink(missing_ok=True)
        write_secret(path, content)
        with pytest.raises(IdentityError, match=r"expected the site's signing key.*put back"):
            SigningKey.load(path, "the site's signing key")
    path.unlink()
    write_secret(path, whole)
    with pytest.raises(IdentityError, match="expected the node's key"):
        NodeKey.load(path)


def test_nobody_is_trusted_whose_fingerprint_nobody_compared():
    found = fingerprint(b"file")
    compare(found, found.lower(), "the site")
    compare(found, None, "the site", ask=lambda question: "y" if found in question else "n")
    with pytest.raises(IdentityError, match="replaced"):
        compare(found, fingerprint(b"other"), "the site")
    with pytest.raises(IdentityError, match="not confirmed"):
        compare(found, None, "the site", ask=lambda _: "")
    with pytest.raises(IdentityError, match="--fingerprint"):
        compare(found, None, "the site")  # pytest is no terminal


def test_the_fingerprint_is_the_beginning_of_sha256():
    expected = base64.b32encode(hashlib.sha256(b"abc").digest()[:20]).decode()
    assert fingerprint(b"abc").replace("-", "") == expected
