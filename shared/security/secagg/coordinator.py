"""The coordinator's part in one session: takes the sites' answers, and at last takes off the masks.

At every stage sites may drop out. An answer that is not right counts as none, and the site that
gave it is out of the session. With at least ``threshold`` sites left the session goes on; with
fewer it ends with nothing, and the round is repeated. What comes out is the exact sum over the
sites whose masked vectors arrived: what the shares give back is checked against what the sites
signed, so a wrong share never makes a wrong sum.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.errors import SecureSumError
from shared.security.secagg.keys import KeyPair, commitment, own_mask_key, pair_mask_key
from shared.security.secagg.masks import Mask, apply_masks
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
from shared.security.secagg.session import Session
from shared.security.secagg.shamir import combine
from shared.security.secagg.site import Stage
from shared.security.signing import verified


@dataclass(frozen=True)
class SecureTotal:
    """What a session gave.

    Attributes:
        total: (entries,) sum of the survivors' vectors modulo 2**32.
        survivors: Names of the sites in it, sorted.
        suspects: Names of sites that gave out a wrong share; mostly none.
    """

    total: NDArray[np.uint32]
    survivors: tuple[str, ...]
    suspects: tuple[str, ...] = ()


class CoordinatorSum:
    """The coordinator in one session; see the module's docstring.

    ``take`` what the sites answer, then ``close`` the stage, which gives the next questions.
    Memory: one vector, whatever the number of sites.

    Args:
        session: What was agreed upon.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stage = Stage.ADVERTISE
        self._advertised: dict[int, Advertisement] = {}
        self._sealed: dict[int, Sealed] = {}
        self._total = np.zeros(session.entries, np.uint32)
        self._arrived: set[int] = set()
        self._agreed: dict[int, bytes] = {}
        self._revealed: dict[int, Revealed] = {}
        self._view = b""
        self._survivors = Survivors(())
        self._suspects: set[int] = set()
        self._result: SecureTotal | None = None

    @property
    def stage(self) -> Stage:
        """What the sites are answering."""
        return self._stage

    def take(self, site: str, answer: bytes) -> None:
        """Take a site's answer in; one that is refused leaves the session as it was.

        Args:
            site: Whose answer it is, as the transport knows.
            answer: The message.

        Raises:
            SecureSumError: ``secure-stage`` if nothing is asked of the site; ``secure-message``;
                ``secure-signature``; ``secure-keys`` for keys that another site has. The site has
                dropped out then.
        """
        place = self._session.place_of(site)
        takers: dict[Stage, tuple[Callable[[int, bytes], None], Mapping[int, object] | set[int]]]
        takers = {
            Stage.ADVERTISE: (self._take_advertisement, self._advertised),
            Stage.SHARE: (self._take_sealed, self._sealed),
            Stage.MASK: (self._take_masked, self._arrived),
            Stage.AGREE: (self._take_agreement, self._agreed),
            Stage.REVEAL: (self._take_revealed, self._revealed),
        }
        if self._stage not in takers:
            raise SecureSumError("secure-stage", "the session is over")
        taker, taken = takers[self._stage]
        if place in taken or place not in self._asked():
            raise SecureSumError("secure-stage", f"{site}: was not asked, or has answered")
        taker(place, answer)

    def close(self) -> dict[str, bytes]:
        """End a stage, and return what each site that is still in it is sent next.

        Raises:
            SecureSumError: ``secure-too-few`` if fewer than the threshold answered;
                ``secure-share`` if the shares do not give back what the sites signed. Nothing
                comes of the session then.
        """
        closers: dict[Stage, Callable[[], dict[int, bytes]]] = {
            Stage.ADVERTISE: self._close_advertising,
            Stage.SHARE: self._close_sharing,
            Stage.MASK: self._close_masking,
            Stage.AGREE: self._close_agreeing,
            Stage.REVEAL: self._close_revealing,
        }
        stage, self._stage = self._stage, Stage.OVER
        if stage not in closers:
            raise SecureSumError("secure-stage", "the session is over")
        questions = closers[stage]()
        self._stage = Stage(stage + 1)
        names = self._session.participants
        return {names[place].name: question for place, question in questions.items()}

    def result(self) -> SecureTotal:
        """Return what came of the session, once its last stage is closed.

        Raises:
            SecureSumError: ``secure-stage`` before that, and after a session without a result.
        """
        if self._result is None:
            raise SecureSumError("secure-stage", "the session has no result")
        return self._result

    def _names(self, places: tuple[int, ...]) -> tuple[str, ...]:
        return tuple(self._session.participants[place].name for place in sorted(places))

    def _asked(self) -> set[int]:
        """Return the places of the sites that the stage asks."""
        return {
            Stage.ADVERTISE: set(range(len(self._session.participants))),
            Stage.SHARE: set(self._advertised),
            Stage.MASK: set(self._sealed),
            Stage.AGREE: self._arrived,
            Stage.REVEAL: set(self._agreed),
        }[self._stage]

    def _take_advertisement(self, place: int, answer: bytes) -> None:
        found = Advertisement.decode(answer, self._session)
        _check_sender(found.site, place)
        text = Advertisement.text(self._session, place, found.keys)
        if not verified(self._session.participants[place].key, text, found.signature):
            raise SecureSumError("secure-signature", f"site {place} did not sign these keys")
        used = {k for each in self._advertised.values() for k in (each.channel_key, each.mask_key)}
        if used & {found.channel_key, found.mask_key} or found.channel_key == found.mask_key:
            raise SecureSumError("secure-keys", "a key stands twice")
        self._advertised[place] = found

    def _close_advertising(self) -> dict[int, bytes]:
        self._check_enough(len(self._advertised))
        keys = Keys(self._advertised)
        self._view = keys.view(self._session)
        return dict.fromkeys(sorted(self._advertised), keys.encode(self._session))

    def _take_sealed(self, place: int, answer: bytes) -> None:
        found = Sealed.decode(answer, self._session)
        _check_sender(found.site, place)
        if found.shares.keys() != self._advertised.keys() - {place}:
            raise SecureSumError("secure-message", "shares for other sites than those with keys")
        self._sealed[place] = found

    def _close_sharing(self) -> dict[int, bytes]:
        self._check_enough(len(self._sealed))
        senders = sorted(self._sealed)
        return {
            place: Delivery(
                place, {s: self._sealed[s].shares[place] for s in senders if s != place}
            ).encode(self._session)
            for place in senders
        }

    def _take_masked(self, place: int, answer: bytes) -> None:
        found = Masked.decode(answer, self._session)
        _check_sender(found.site, place)
        self._total += found.vector  # unsigned: wraps, so modulo 2**32
        self._arrived.add(place)

    def _close_masking(self) -> dict[int, bytes]:
        self._check_enough(len(self._arrived))
        self._survivors = Survivors(tuple(sorted(self._arrived)))
        question = self._survivors.encode(self._session)
        return dict.fromkeys(self._survivors.sites, question)

    def _take_agreement(self, place: int, answer: bytes) -> None:
        found = Agreement.decode(answer, self._session)
        _check_sender(found.site, place)
        shared = tuple(sorted(self._sealed))
        text = self._survivors.text(self._session, self._view, shared)
        if not verified(self._session.participants[place].key, text, found.signature):
            raise SecureSumError("secure-signature", f"site {place} signed other survivors")
        self._agreed[place] = found.signature

    def _close_agreeing(self) -> dict[int, bytes]:
        self._check_enough(len(self._agreed))
        question = Agreements(self._agreed).encode(self._session)
        return dict.fromkeys(sorted(self._agreed), question)

    def _take_revealed(self, place: int, answer: bytes) -> None:
        found = Revealed.decode(answer, self._session)
        _check_sender(found.site, place)
        dropped = self._sealed.keys() - self._arrived
        if found.own_masks.keys() != self._arrived or found.mask_keys.keys() != dropped:
            raise SecureSumError("secure-message", "other shares than were asked for")
        self._revealed[place] = found

    def _close_revealing(self) -> dict[int, bytes]:
        self._check_enough(len(self._revealed))
        apply_masks(self._total, [*self._own_masks(), *self._pair_masks()])
        survivors, suspects = self._survivors.sites, tuple(self._suspects)
        self._result = SecureTotal(self._total, self._names(survivors), self._names(suspects))
        return {}

    def _own_masks(self) -> Iterator[Mask]:
        """Yield what takes off the own masks of the sites whose vectors arrived."""
        for place in self._survivors.sites:
            shares = {p: each.own_masks[place] for p, each in self._revealed.items()}
            promised = self._advertised[place].commitment

            def right(seed: bytes, place: int = place, promised: bytes = promised) -> bool:
                return commitment(seed, self._session.digest, place) == promised

            seed = self._secret(place, shares, right)
            yield Mask(own_mask_key(seed, self._view, place), added=False)

    def _pair_masks(self) -> Iterator[Mask]:
        """Yield what takes off the masks between those sites and the ones that dropped out."""
        for place in sorted(self._sealed.keys() - self._arrived):
            shares = {p: each.mask_keys[place] for p, each in self._revealed.items()}
            promised = self._advertised[place].mask_key

            def right(private: bytes, promised: bytes = promised) -> bool:
                return KeyPair.of(private).public == promised

            pair = KeyPair.of(self._secret(place, shares, right))
            for other in self._survivors.sites:
                secret = pair.secret_with(self._advertised[other].mask_key)
                key = pair_mask_key(secret, place, other, self._view)
                # The other site added it if it comes first.
                yield Mask(key, added=other > place)

    def _secret(
        self, owner: int, shares: Mapping[int, bytes], right: Callable[[bytes], bool]
    ) -> bytes:
        """Return a site's secret; where one share is wrong, from the others, if they suffice."""
        for left_out in (None, *sorted(shares)):
            chosen = [place for place in sorted(shares) if place != left_out]
            if len(chosen) < self._session.threshold:
                break
            first = chosen[: self._session.threshold]
            try:
                secret = combine({p + 1: shares[p] for p in first}, self._session.threshold)
            except ValueError:
                continue
            if right(secret):
                if left_out is not None:
                    self._suspects.add(left_out)
                return secret
        raise SecureSumError(
            "secure-share",
            f"the shares of site {owner} do not give back what it signed; repeat the round",
        )

    def _check_enough(self, sites: int) -> None:
        if sites < self._session.threshold:
            raise SecureSumError(
                "secure-too-few",
                f"{sites} of {len(self._session.participants)} sites answered, expected at least "
                f"{self._session.threshold}; repeat the round",
            )


_OTHER: Final = "the message names another site than the one it came from"


def _check_sender(named: int, place: int) -> None:
    if named != place:
        raise SecureSumError("secure-message", _OTHER)
