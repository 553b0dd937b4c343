"""Secure sums in memory: sites, a coordinator, drop-outs, and every byte between them."""

import hashlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.errors import SecureSumError
from shared.security.secagg.coordinator import CoordinatorSum
from shared.security.secagg.session import Participant, Session, least_threshold
from shared.security.secagg.site import SiteSum, Stage
from shared.security.signing import SigningKey

NEVER = Stage.OVER


@lru_cache
def key_of(name: str) -> SigningKey:
    """The long-term key of a site; always the same for one name."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


def names_of(count: int) -> list[str]:
    return [f"site-{number:02d}" for number in range(count)]


def session_of(count: int, entries: int = 17, **changes) -> Session:
    fields = {
        "consortium": "c" * 32,
        "run": "run-1",
        "round": 3,
        "attempt": 1,
        "base": "1" * 64,
        "job": "2" * 64,
        "adapter": "3" * 64,
        "form": "4" * 64,
        "entries": entries,
        "scale": 2.0**10,
        "clip_norm": 16.0,
        "total_weight": count,
        "threshold": least_threshold(count),
        "participants": tuple(
            Participant(name=name, key=key_of(name).public) for name in names_of(count)
        ),
    }
    return Session(**{**fields, **changes})


def vectors_of(session: Session, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        each.name: generator.integers(0, 2**32, session.entries, dtype=np.uint32)
        for each in session.participants
    }


def sum_of(vectors, names) -> np.ndarray:
    """The sum with whole numbers of Python's."""
    total = [0] * len(next(iter(vectors.values())))
    for name in names:
        total = [a + int(b) for a, b in zip(total, vectors[name], strict=True)]
    return np.array([each % 2**32 for each in total], np.uint32)


class Lab:
    """One session with all its sites, and a coordinator that can be told to lie.

    Args:
        session: The session.
        vectors: By site.
        randomness: Of every site.
        between: Changes a message on its way: stage, site, "down" or "up", message; ``None``
            keeps it from arriving.
    """

    def __init__(self, session, vectors=None, randomness=None, between=None):
        self.session = session
        self.vectors = vectors or vectors_of(session)
        extra = {} if randomness is None else {"randomness": randomness}
        self.sites = {
            each.name: SiteSum(session, each.name, key_of(each.name), **extra)
            for each in session.participants
        }
        self.server = CoordinatorSum(session)
        self.between: Callable = between or (lambda stage, site, way, message: message)
        self.questions = dict.fromkeys(self.sites, b"")
        self.seen: list[tuple[Stage, str, str, bytes]] = []
        self.refused: dict[str, str] = {}

    def answer(self, stage, name, question):
        site = self.sites[name]
        if stage is Stage.ADVERTISE:
            return site.advertise()
        if stage is Stage.SHARE:
            return site.share(question)
        if stage is Stage.MASK:
            return site.mask(question, self.vectors[name].copy())
        return site.agree(question) if stage is Stage.AGREE else site.reveal(question)

    def ask(self, stage, name):
        """Ask a site and hand its answer to the coordinator; note who refused and why."""
        question = self.between(stage, name, "down", self.questions[name])
        if question is None:
            return
        self.seen.append((stage, name, "down", question))
        try:
            answer = self.between(stage, name, "up", self.answer(stage, name, question))
        except SecureSumError as error:
            self.refused[name] = error.reason
            return
        if answer is None:
            return
        self.seen.append((stage, name, "up", answer))
        try:
            self.server.take(name, answer)
        except SecureSumError as error:
            self.refused[name] = f"server: {error.reason}"

    def step(self):
        """Carry one stage out."""
        stage = self.server.stage
        for name in list(self.questions):
            self.ask(stage, name)
        self.questions = self.server.close()

    def until(self, stage):
        while self.server.stage is not stage:
            self.step()
        return self

    def run(self):
        """Carry all stages out.

        Raises:
            SecureSumError: If the session ends with nothing.
        """
        self.until(Stage.OVER)
        return self.server.result()


def dropping(drops):
    """Make sites disappear from a stage on; a stage's number with a half loses its answer only."""

    def between(stage, site, way, message):
        gone = drops.get(site, NEVER)
        if stage > gone or (stage == gone and way == "down"):
            return None
        return message

    return between


def raises_reason(reason, act):
    """Assert that something is refused with a reason code."""
    with pytest.raises(SecureSumError) as caught:
        act()
    assert caught.value.reason == reason, str(caught.value)
