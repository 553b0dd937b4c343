"""Every byte of one session, fixed: no change of the protocol goes unnoticed (T-SA11).

All secrets come from SHA-256 of a counter, so whoever writes the protocol anew can compare. After
a change that is meant (and a new version number in it): ``python -m
tests.shared.security.secagg.test_transcript`` writes the file again.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from shared.security.secagg.session import Session
from shared.security.secagg.site import SiteSum, Stage
from tests.shared.security.secagg.sums import Lab, dropping, key_of, names_of, session_of, sum_of

TRANSCRIPT = Path(__file__).with_name("transcript-version-1.json")


def drawn_from(name):
    """Numbers that look drawn, and are always the same: SHA-256 of name and a counter."""
    counter = 0

    def randomness(size):
        nonlocal counter
        blocks = b""
        while len(blocks) < size:
            blocks += hashlib.sha256(f"{name} {counter}".encode()).digest()
            counter += 1
        return blocks[:size]

    return randomness


def transcript():
    """Four sites, of which the third disappears before its vector arrives."""
    session = session_of(4, entries=5)
    vectors = {
        name: (np.arange(5, dtype=np.uint32) + 1) * np.uint32(1000 + number)
        for number, name in enumerate(names_of(4))
    }
    lab = Lab(session, vectors, between=dropping({"site-02": Stage.MASK}))
    lab.sites = {name: SiteSum(session, name, key_of(name), drawn_from(name)) for name in lab.sites}
    result = lab.run()
    assert np.array_equal(result.total, sum_of(vectors, result.survivors))
    return {
        "session": session.encode().decode(),
        "digest": session.digest.hex(),
        "messages": [
            [stage.name.lower(), site, way, message.hex()]
            for stage, site, way, message in lab.seen
            if message
        ],
        "survivors": list(result.survivors),
        "total": [int(each) for each in result.total],
    }


def test_every_byte_is_as_it_was_written_down():
    kept = json.loads(TRANSCRIPT.read_text())
    now = transcript()
    assert now["session"] == kept["session"]
    assert now["digest"] == kept["digest"]
    for found, expected in zip(now["messages"], kept["messages"], strict=True):
        assert found == expected
    assert now == kept


def test_the_transcript_can_be_checked_without_the_code():
    kept = json.loads(TRANSCRIPT.read_text())
    said = b"consilia secure-sum session 1\n" + kept["session"].encode()
    assert hashlib.sha256(said).hexdigest() == kept["digest"]
    assert Session.read(kept["session"].encode()).threshold == 3
    assert kept["survivors"] == ["site-00", "site-01", "site-03"]
    assert kept["total"] == [3004, 6008, 9012, 12016, 15020]  # (1000 + 1001 + 1003) * 1 ... 5
    for _, _, _, message in kept["messages"]:
        assert message.startswith("4353554d01")  # CSUM, version 1
        assert message[12:76] == kept["digest"]


if __name__ == "__main__":
    TRANSCRIPT.write_text(json.dumps(transcript(), indent=1) + "\n")
