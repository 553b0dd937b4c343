"""Where a site's key comes from: one place, never beside what it opens, never shown."""

import os
import stat

import pytest

import client.site_key
from client.settings import load_agent
from client.site_key import KeySource, Passphrase, handed_passphrase, typed_passphrase
from shared.errors import ConfigError, IdentityError

SITE = 'name = "north"\nstate = "state"\n[data]\ntable = "metadata.csv"\n'
WORDS = "five words to open it"


def settings_of(tmp_path, table):
    path = tmp_path / "site.toml"
    path.write_text(SITE + table)
    return load_agent(path)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ('key_file = "keys/site.key"', "the key in {home}/keys/site.key"),
        ('passphrase = "ask"', "a passphrase"),
        ('passphrase = "fd:3"', "a passphrase"),
        ('credential = "consilia"', "systemd's credential consilia"),
    ],
)
def test_a_site_file_names_one_key(tmp_path, line, shown):
    settings = settings_of(tmp_path, f"[sealing]\n{line}\n")
    assert settings.sealing.shown == shown.format(home=tmp_path)
    assert settings.sealing.line.startswith(line.split(" ", maxsplit=1)[0])
    assert settings.site.pixels is None


def test_a_site_file_without_the_table_is_as_before(tmp_path):
    settings = settings_of(tmp_path, "")
    assert settings.sealing is None
    assert settings.site.pixels == tmp_path / "state" / "pixels"


def test_prepared_pictures_may_stay_on_an_encrypted_disk(tmp_path):
    settings = settings_of(tmp_path, '[sealing]\ncredential = "c"\npictures = "disk"\n')
    assert settings.site.pixels == tmp_path / "state" / "pixels"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("[sealing]\n", "0 keys are named; expected exactly one"),
        ('[sealing]\ncredential = "c"\npassphrase = "ask"\n', "2 keys are named"),
        ('[sealing]\nkey_file = "state/site.key"\n', "is inside of the state"),
        (f'[sealing]\npassphrase = "{WORDS}"\n', "expected ask or fd:N"),
        ('[sealing]\npassphrase = "fd:0"\n', "expected ask or fd:N"),
        ('[sealing]\npassphrase = "fd:2"\n', "expected ask or fd:N"),
        ('[sealing]\ncredential = "../c"\n', "sealing.credential"),
        ('[sealing]\ncredental = "c"\n', "did you mean 'credential'"),
        ('[sealing]\ncredential = "c"\npictures = "sealed"\n', "sealing.pictures"),
    ],
)
def test_a_wrong_table_is_one_line_that_shows_no_passphrase(tmp_path, table, says):
    with pytest.raises(ConfigError, match="sealing") as caught:
        settings_of(tmp_path, table)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert WORDS not in str(caught.value)


def test_a_link_into_the_state_is_inside_of_the_state(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "keys").symlink_to(tmp_path / "state")
    with pytest.raises(ConfigError, match="is inside of the state"):
        settings_of(tmp_path, '[sealing]\nkey_file = "keys/site.key"\n')


def test_a_key_file_is_made_once_and_private(tmp_path):
    source = KeySource(key_file=tmp_path / "site.key")
    with pytest.raises(IdentityError, match="is not there"):
        source.had("north").key(b"")
    made = source.had("north", new=True).key(b"")
    assert source.had("north", new=True).key(b"") == source.had("north").key(b"") == made
    assert stat.S_IMODE((tmp_path / "site.key").stat().st_mode) == 0o600
    assert made.hex() not in repr(source) + source.shown + source.line


def handed(content):
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    return reader


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\nmore\n"])
def test_a_passphrase_through_a_file_descriptor_is_its_first_line(end):
    descriptor = handed(WORDS.encode() + end)
    assert handed_passphrase(descriptor) == Passphrase(WORDS)
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(descriptor)  # nobody else reads it


def test_what_is_no_passphrase_is_refused_without_showing_it():
    with pytest.raises(IdentityError, match="cannot be read"):
        handed_passphrase(handed(b"\xff\xfe secret"))
    with pytest.raises(IdentityError, match="cannot be read"):
        handed_passphrase(987)
    with pytest.raises(IdentityError, match="0 characters"):
        handed_passphrase(handed(b"")).key(b"salt" * 8)


def test_a_passphrase_is_asked_for_at_a_terminal_only(monkeypatch):
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115, PTH123
    with pytest.raises(IdentityError, match=r"no terminal.*fd:3"):
        typed_passphrase("Passphrase of north")


def test_a_new_passphrase_is_asked_for_twice(monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    answers = iter([WORDS, WORDS + " ", WORDS, WORDS, WORDS])
    asked = []
    monkeypatch.setattr(
        client.site_key.getpass, "getpass", lambda what: (asked.append(what), next(answers))[1]
    )
    source = KeySource(passphrase="ask")  # noqa: S106 - how, not which
    with pytest.raises(IdentityError, match="differ"):
        source.had("north", new=True)
    assert source.had("north", new=True) == Passphrase(WORDS)
    assert source.had("north") == Passphrase(WORDS)
    assert asked[-1] == "Passphrase of north: "
    assert WORDS not in repr(source.had) + "".join(asked)
