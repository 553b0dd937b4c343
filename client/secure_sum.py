"""A site's side of secure sums: checks a session, answers its stages, and sums a change once.

One session is under way at a time, and only in memory: a site that was restarted has lost it, and
takes part again in the next attempt, with new keys. The same question gets the same answer again,
because messages get lost; another question at a stage that was answered ends the session.

A site's vector is summed once, whatever attempt or run asks for it (``client.summed_once``).
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from client.summed_once import SummedOnce
from shared.adapter import Tower
from shared.errors import SecureSumError
from shared.security.secagg.messages import Survivors
from shared.security.secagg.session import Demands, Session
from shared.security.secagg.shamir import Randomness
from shared.security.secagg.site import SiteSum, Stage
from shared.security.secagg.vector import SiteVector, VectorForm
from shared.security.signing import SigningKey

SECURE_REFUSALS: Final[Mapping[str, str]] = {
    "secure-session": "the session of secure aggregation is not sound, or not the request's",
    "secure-consortium": "the session of secure aggregation is another consortium's",
    "secure-cohort": "too few sites take part in secure aggregation for this site",
    "secure-tower": "too few sites of the sum train what this site trains",
    "secure-roster": "the session names a site or a key that is not on the site's roster",
    "secure-stage": "the site was asked out of turn, and the session is over",
    "secure-lost": "the site has no such session; it was restarted, or has another one",
    "secure-message": "a message of secure aggregation does not follow the protocol",
    "secure-keys": "the keys of secure aggregation cannot be used",
    "secure-signature": "a signature of secure aggregation is not right",
    "secure-share": "a share of secure aggregation is not right",
    "secure-survivors": "the site did not mask its change for the sites that are said to be left",
    "secure-too-few": "too few sites are left in the session of secure aggregation",
    "secure-noise": "the sum may have less noise than the site's patients are promised",
    "secure-form": "the change does not have the form of the session",
    "secure-range": "a weight or measure does not fit the session",
    "secure-other-sum": "the site unmasked another sum of this round before, and does so once",
}
"""The sentences that may leave a site, by reason code."""


@dataclass(frozen=True)
class Asked:
    """What the request says that a session comes with; the session must say the same.

    Attributes:
        run: Name of the run.
        round: Number of the round.
        attempt: Which attempt at it.
        base: sha256 of the base.
        job: sha256 of the job.
        adapter: sha256 of the parts that the site received (``shared.secure_round``).
        scale: Fixed-point steps per unit.
        clip_norm: The job's; the site clips to its own limit if that is lower.
        form: What the site's vector looks like.
        towers: What the site is to train, sorted.
        noise_shares: So many sites' noise is enough; 0 where sites add none together.
    """

    run: str
    round: int
    attempt: int
    base: str
    job: str
    adapter: str
    scale: float
    clip_norm: float
    form: VectorForm
    towers: tuple[Tower, ...] = ()
    noise_shares: int = 0

    def check(self, session: Session, site: str) -> None:
        """Raise unless the session is about this request to a site.

        Raises:
            SecureSumError: ``secure-session``, naming the first field that differs.
        """
        for name in ("run", "round", "attempt", "base", "job", "adapter", "scale", "clip_norm"):
            if getattr(session, name) != getattr(self, name):
                raise SecureSumError("secure-session", f"{name}: not that of the request")
        said = (session.form, session.entries, len(session.participants))
        if said != (self.form.digest, self.form.entries, self.form.sites):
            raise SecureSumError("secure-session", "form: not that of the site's own vector")
        if session.participants[session.place_of(site)].towers != self.towers:
            raise SecureSumError("secure-session", "towers: not those of the request")


@dataclass
class _UnderWay:
    """The session that is under way, and what was answered in it.

    Attributes:
        session: The session.
        form: Of the site's vector.
        site: Name of the site.
        part: The site in it.
        answers: By stage and digest of the question.
        survivors: Names of the sites that the site agreed upon.
    """

    session: Session
    form: VectorForm
    site: str
    part: SiteSum
    answers: dict[tuple[Stage, bytes], bytes] = field(default_factory=dict)
    survivors: tuple[str, ...] = ()


class SecureSums:
    """What a site does in secure sums; see the module's docstring.

    Args:
        key: The site's long-term key.
        demands: What it insists on; asked at every session, because rosters change.
        summed: Remembers what was summed.
        randomness: As in ``SiteSum``.
    """

    def __init__(
        self,
        key: SigningKey,
        demands: Callable[[], Demands],
        summed: SummedOnce,
        randomness: Randomness = os.urandom,
    ) -> None:
        self._key = key
        self._demands = demands
        self._summed = summed
        self._randomness = randomness
        self._under_way: _UnderWay | None = None

    def begin(self, content: bytes, asked: Asked) -> bytes:
        """Check a session, and return the site's keys for it; asked before any training.

        Args:
            content: The session (``Session.encode``).
            asked: The request that it came with.

        Raises:
            SecureSumError: With the reason why the site does not take part.
        """
        session = Session.read(content)
        demands = self._demands()
        demands.check(session)
        asked.check(session, demands.site)
        demands.check_noise(session, asked.noise_shares)
        if self._under_way is None or self._under_way.session != session:
            part = SiteSum(session, demands.site, self._key, self._randomness)
            self._under_way = _UnderWay(session, asked.form, demands.site, part)
        found = self._under_way
        return self._once(found, Stage.ADVERTISE, content, found.part.advertise)

    def confirm(self, digest: bytes, asked: Asked) -> None:
        """Raise unless the session is under way and about this request; asked before training.

        Args:
            digest: Of the session.
            asked: What the request to train says.

        Raises:
            SecureSumError: ``secure-lost``, or ``secure-session`` if the request differs.
        """
        found = self._known(digest)
        asked.check(found.session, found.site)

    def share(self, digest: bytes, keys: bytes) -> bytes:
        """Return the site's shares; see ``SiteSum.share``.

        Args:
            digest: Of the session.
            keys: The question of this stage.

        Raises:
            SecureSumError: With the reason; the session is over then.
        """
        found = self._known(digest)
        return self._once(found, Stage.SHARE, keys, lambda: found.part.share(keys))

    def mask(self, digest: bytes, delivery: bytes, train: Callable[[], SiteVector]) -> bytes:
        """Return the site's change, weights and measures under masks; see ``SiteSum.mask``.

        Args:
            digest: Of the session.
            delivery: The question of this stage.
            train: Gives what the site puts into the sum, clipped and in fixed point; called only
                if the question was not answered before.

        Raises:
            SecureSumError: With the reason, ``secure-other-sum`` if the site sent another vector
                for the same question; the session is over then.
            StorageError: If the vector cannot be noted; then it does not leave.
        """
        found = self._known(digest)

        def masked() -> bytes:
            of_site = train()
            if max(of_site.weights.values(), default=0) > found.session.total_weight:
                raise SecureSumError("secure-range", "the weight is larger than that of all sites")
            if tuple(sorted(of_site.weights)) != _own_towers(found):
                raise SecureSumError("secure-form", "other towers than the session says")
            vector = found.form.write(of_site)
            self._summed.put_in(found.session, vector)
            return found.part.mask(delivery, vector)

        return self._once(found, Stage.MASK, delivery, masked)

    def agree(self, digest: bytes, survivors: bytes) -> bytes:
        """Return the site's signature on the survivors; see ``SiteSum.agree``.

        Args:
            digest: Of the session.
            survivors: The question of this stage.

        Raises:
            SecureSumError: With the reason, ``secure-other-sum`` if the vector was unmasked with
                other sites, ``secure-tower`` if too few are left that train what this site does;
                the session is over then.
        """
        found = self._known(digest)

        def agreed() -> bytes:
            places = Survivors.decode(survivors, found.session).sites
            found.survivors = tuple(found.session.participants[place].name for place in places)
            found.session.check_towers(found.survivors)
            self._summed.check(found.session, found.survivors)
            return found.part.agree(survivors)

        return self._once(found, Stage.AGREE, survivors, agreed)

    def reveal(self, digest: bytes, agreements: bytes) -> bytes:
        """Return the shares that unmask the sum; see ``SiteSum.reveal``.

        Args:
            digest: Of the session.
            agreements: The question of this stage.

        Raises:
            SecureSumError: With the reason; the session is over then.
            StorageError: If it cannot be noted; then no share leaves.
        """
        found = self._known(digest)

        def revealed() -> bytes:
            answer = found.part.reveal(agreements)
            self._summed.unmask(found.session, found.survivors)
            return answer

        return self._once(found, Stage.REVEAL, agreements, revealed)

    def _once(
        self, found: _UnderWay, stage: Stage, question: bytes, answer: Callable[[], bytes]
    ) -> bytes:
        """Answer a stage, or give the answer again that the very same question got."""
        asked = stage, hashlib.sha256(question).digest()
        if asked not in found.answers:
            try:
                found.answers[asked] = answer()
            except BaseException:
                self._under_way = None
                raise
        return found.answers[asked]

    def _known(self, digest: bytes) -> _UnderWay:
        if self._under_way is None or self._under_way.session.digest != digest:
            raise SecureSumError(
                "secure-lost", "no such session here: the site was restarted, or has another one"
            )
        return self._under_way


def _own_towers(found: _UnderWay) -> tuple[Tower, ...]:
    return found.session.participants[found.session.place_of(found.site)].towers
