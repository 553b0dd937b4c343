"""Documents: read strictly, one sentence for what is wrong, and old ones stay readable."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shared.errors import IdentityError
from shared.security.canonical import canonical
from shared.security.consortium import KIT_FORMS, SITE_FORMS, SitePart, read_kit, read_site_part
from shared.security.documents import read_document, write_document
from shared.security.node_keys import NodeKey
from shared.security.signing import SigningKey

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
KEY = SigningKey.new()
OLD_KIT = Path(__file__).parent / "kit-version-1.json"


def part_of(key=KEY, name="site-a", **changes):
    return SitePart(
        **{
            "name": name,
            "enrolment": "0" * 32,
            "signing_key": key.public,
            "node_key": NodeKey.new().public,
            "created": NOW,
        }
        | changes
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.site.json"
    path.write_bytes(write_document("site", 1, part_of(), KEY))
    return path


def change(path, **changes):
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | changes))


def sign_anew(path, content, key=KEY, version=1):
    signature = key.sign(canonical(f"site {version}", content)).hex()
    change(path, content=content, signature=signature, signer=key.public, version=version)


def refused(path):
    with pytest.raises(IdentityError) as caught:
        read_site_part(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def test_what_was_written_is_read(file):
    part = read_site_part(file)
    assert (part.name, part.signing_key, part.created) == ("site-a", KEY.public, NOW)


def test_a_file_that_is_not_there_cut_short_or_something_else(file, tmp_path):
    whole = file.read_bytes()
    assert "cut short" in refused(write(file, whole[: len(whole) // 2]))
    assert "cut short" in refused(write(file, b""))
    assert "cut short" in refused(write(file, whole.replace(b'"version"', b'"consilia"')))
    assert "not a file of consilia's" in refused(write(file, b"[1]"))
    assert "no such file" in refused(tmp_path / "nothing.json")
    assert "expected the public part" in refused(tmp_path)


def write(path, content):
    path.write_bytes(content)
    return path


def test_a_document_of_another_kind_is_named(file):
    change(file, consilia="kit")
    assert "is a site's kit, expected the public part of a site's identity" in refused(file)
    change(file, consilia=["kit"])
    assert "is another sort of file" in refused(file)


@pytest.mark.parametrize("version", [2, 0, "1", True, None, [1]])
def test_an_unknown_version_is_refused_and_named(file, version):
    change(file, version=version)
    text = refused(file)
    assert f"is of version {version!r}, this consilia reads version 1" in text
    assert "install the version" in text


def test_a_change_after_the_signature_is_found(file):
    content = json.loads(file.read_text())["content"]
    change(file, content=content | {"name": "site-b"})
    assert "changed after it was signed" in refused(file)
    change(file, content=content, signature="zz")
    assert "changed after it was signed" in refused(file)


def test_a_signature_of_one_kind_does_not_count_for_another(file):
    content = json.loads(file.read_text())["content"]
    change(file, signature=KEY.sign(canonical("kit 1", content)).hex())
    assert "changed after it was signed" in refused(file)


def test_nothing_unknown_is_ignored(file):
    content = json.loads(file.read_text())["content"]
    sign_anew(file, content | {"nicht": 1})
    assert "unknown key 'nicht'" in refused(file)
    sign_anew(file, {key: value for key, value in content.items() if key != "node_key"})
    assert "node_key is missing" in refused(file)
    sign_anew(file, content)
    change(file, more=1)
    assert "damaged" in refused(file)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "Site A"),
        ("name", "../../etc"),
        ("name", "a\nb"),
        ("name", "x" * 64),
        ("node_key", "ssh-ed25519 AAAA"),
        ("signing_key", "0" * 63),
        ("enrolment", ""),
        ("created", "2026-11-21T12:00:00"),
    ],
)
def test_a_value_out_of_form_is_refused_though_it_is_signed(file, key, value):
    content = json.loads(file.read_text())["content"]
    sign_anew(file, content | {key: value})
    assert key in refused(file)


def test_a_part_must_be_signed_by_the_key_that_it_names(file):
    other = SigningKey.new()
    sign_anew(file, json.loads(file.read_text())["content"], key=other)
    assert "signed by another key than it names" in refused(file)


def test_the_fingerprint_changes_with_name_and_keys_only():
    part = part_of()
    same = part.model_copy(update={"enrolment": "1" * 32, "created": datetime.now(UTC)})
    assert same.fingerprint == part.fingerprint
    for changed in (part_of(name="site-b", node_key=part.node_key), part_of()):
        assert changed.fingerprint != part.fingerprint


def test_a_kit_of_the_first_version_stays_readable():
    # Written on 2026-11-21 by the first version. If this fails, sites cannot upgrade: give the
    # form a new version, and keep the old one readable.
    kit = read_kit(OLD_KIT, NOW).content
    assert (kit.site, kit.consortium_name, kit.gateway, kit.port) == (
        "site-a",
        "demo",
        "gateway.example.org",
        443,
    )
    assert [member.name for member in kit.roster.members] == ["site-a"]
    assert sorted(KIT_FORMS) == sorted(SITE_FORMS) == [1]


def test_a_kit_is_not_read_as_something_else():
    with pytest.raises(IdentityError, match="expected a consortium's roster"):
        read_document(OLD_KIT, "roster", {})
