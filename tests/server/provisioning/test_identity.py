"""A coordinator signs if its folder holds a consortium; one that cannot be used stops it."""

from datetime import UTC, datetime

import pytest

from client.provisioning.joining import begin
from server.provisioning.admission import admit, revoke
from server.provisioning.founding import found
from server.provisioning.identity import coordinator_identity
from shared.errors import IdentityError

NOW = datetime.now(UTC)


def test_a_folder_decides_whether_a_coordinator_signs(tmp_path):
    home = tmp_path / "coordinator"
    assert coordinator_identity(home) is None
    folder = found(home, "demo", ["gateway.example.org"], 443, NOW)
    part = begin(tmp_path / "site", "site-a", NOW).part
    identity = coordinator_identity(home)
    assert identity.key.public == folder.key.public
    assert identity.keys_of("site-a") == ()
    admit(folder, part, NOW)
    assert identity.keys_of("site-a") == (part.signing_key,)
    revoke(folder, "site-a", datetime.now(UTC))
    assert identity.keys_of("site-a") == ()


def test_a_consortium_that_cannot_be_used_is_not_taken_for_none(tmp_path):
    home = tmp_path / "coordinator"
    folder = found(home, "demo", ["gateway.example.org"], 443, NOW)
    for path in (folder.paths.roster, folder.paths.consortium, folder.paths.coordinator_key):
        before = path.read_bytes()
        path.write_bytes(before[:30])
        with pytest.raises(IdentityError, match="cut short"):
            coordinator_identity(home)
        path.write_bytes(before)
    coordinator_identity(home)
