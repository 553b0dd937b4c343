"""A site's part in one session: five answers in order, each given once.

Whatever is not as it should be ends the session at the site: its secrets are dropped, and it
answers nothing more. Asking for both shares of a site cannot even be said: of which site it gives
which share follows from the survivors, and it signs one set of survivors only.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from shared.errors import SecureSumError
from shared.security.secagg.keys import (
    Channel,
    KeyPair,
    Shares,
    commitment,
    own_mask_key,
    pair_mask_key,
)
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
from shared.security.secagg.shamir import SECRET_BYTES, Randomness, split
from shared.security.signing import SigningKey, verified


class Stage(IntEnum):
    """What is to be done next in a session."""

    ADVERTISE = 1
    SHARE = 2
    MASK = 3
    AGREE = 4
    REVEAL = 5
    OVER = 6


@dataclass
class _Secrets:
    """What must not leave the site, but in shares; gone once the vector is masked."""

    channel: KeyPair
    masks: KeyPair
    seed: bytes = field(repr=False)
    agreed: dict[int, bytes] = field(default_factory=dict, repr=False)
    """With every other site, behind the mask between the two."""


_NO_SURVIVORS: Final = Survivors(())


class SiteSum:
    """One site in one session; see the module's docstring.

    Args:
        session: What was agreed upon; the caller has checked it (``Demands.check``).
        site: Name of the site.
        key: Its long-term key.
        randomness: Draws all secrets; the operating system's, but for fixed vectors in tests.

    Raises:
        SecureSumError: ``secure-roster`` unless the session names the site with this key.
    """

    def __init__(
        self, session: Session, site: str, key: SigningKey, randomness: Randomness = os.urandom
    ) -> None:
        self._session = session
        self._place = session.place_of(site)
        if session.participants[self._place].key != key.public:
            raise SecureSumError("secure-roster", "the session names another key for this site")
        self._key = key
        self._randomness = randomness
        self._stage = Stage.ADVERTISE
        self._secrets: _Secrets | None = None
        self._shares: dict[int, Shares] = {}
        self._keys = Keys({})
        self._view = b""
        self._survivors = _NO_SURVIVORS

    @property
    def stage(self) -> Stage:
        """What the site answers next."""
        return self._stage

    def __reduce__(self) -> NoReturn:
        """Refuse to be stored or copied: a session goes on in one place only, or not at all."""
        raise TypeError("a site's part in a secure sum is never stored")

    def advertise(self) -> bytes:
        """Draw fresh secrets, and return the public keys, signed.

        Raises:
            SecureSumError: ``secure-stage`` if this was answered before.
        """
        with self._answering(Stage.ADVERTISE):
            pairs = KeyPair.new(self._randomness), KeyPair.new(self._randomness)
            seed = self._randomness(SECRET_BYTES)
            self._secrets = _Secrets(*pairs, seed)
            bound = commitment(seed, self._session.digest, self._place)
            keys = pairs[0].public + pairs[1].public + bound
            signature = self._key.sign(Advertisement.text(self._session, self._place, keys))
            return Advertisement.of_record(self._place, keys + signature).encode(self._session)

    def share(self, keys: bytes) -> bytes:
        """Return the secrets in shares, each sealed for one site.

        Args:
            keys: All advertisements (``Keys``).

        Raises:
            SecureSumError: ``secure-stage``; ``secure-message``; ``secure-too-few``;
                ``secure-signature`` for keys that their site did not sign; ``secure-keys`` for a
                key that occurs twice, is of low order, or is not the site's own.
        """
        with self._answering(Stage.SHARE):
            secrets = self._known()
            found = Keys.decode(keys, self._session)
            self._check_keys(found, secrets)
            self._keys, self._view = found, found.view(self._session)
            points = [place + 1 for place in found.advertisements]
            threshold = self._session.threshold
            seeds = split(secrets.seed, points, threshold, self._randomness)
            private = split(secrets.masks.private, points, threshold, self._randomness)
            sealed = {}
            for place, other in found.advertisements.items():
                shares = Shares(seeds[place + 1], private[place + 1])
                if place == self._place:
                    self._shares[place] = shares
                    continue
                channel = self._channel(self._place, place)
                sealed[place] = channel.seal(secrets.channel, other.channel_key, shares)
            return Sealed(self._place, sealed).encode(self._session)

    def mask(self, delivery: bytes, vector: NDArray[np.uint32]) -> bytes:
        """Return the vector under its masks.

        Args:
            delivery: What the others sealed for this site (``Delivery``).
            vector: (entries,) uint32, contiguous; masked in place.

        Raises:
            SecureSumError: ``secure-stage``; ``secure-message``; ``secure-too-few``;
                ``secure-share`` if shares cannot be opened.
            ValueError: If the vector is not what the session says.
        """
        with self._answering(Stage.MASK):
            if vector.dtype != np.uint32 or vector.shape != (self._session.entries,):
                raise ValueError(f"expected {self._session.entries} entries of uint32")
            secrets = self._known()
            self._receive(Delivery.decode(delivery, self._session), secrets)
            masks = [Mask(own_mask_key(secrets.seed, self._view, self._place), added=True)]
            for place in sorted(self._shares.keys() - {self._place}):
                key = pair_mask_key(secrets.agreed[place], self._place, place, self._view)
                masks.append(Mask(key, added=self._place < place))
            apply_masks(vector, masks)
            self._secrets = None
            return Masked(self._place, vector).encode(self._session)

    def agree(self, survivors: bytes) -> bytes:
        """Return the signature on which sites' vectors arrived.

        Args:
            survivors: The sites (``Survivors``).

        Raises:
            SecureSumError: ``secure-stage``; ``secure-message``; ``secure-too-few``;
                ``secure-survivors`` if this site is not among them, or one that sent no shares.
        """
        with self._answering(Stage.AGREE):
            found = Survivors.decode(survivors, self._session)
            self._check_enough(len(found.sites))
            if self._place not in found.sites or not set(found.sites) <= self._shares.keys():
                raise SecureSumError("secure-survivors", "not the sites that this site masked for")
            self._survivors = found
            return Agreement(self._place, self._key.sign(self._agreed)).encode(self._session)

    def reveal(self, agreements: bytes) -> bytes:
        """Return one share of every site: of its own mask if its vector arrived, else of its keys.

        Args:
            agreements: Signatures on the very survivors that this site signed (``Agreements``).

        Raises:
            SecureSumError: ``secure-stage``; ``secure-message``; ``secure-too-few``;
                ``secure-signature`` if one is not right or not a survivor's.
        """
        with self._answering(Stage.REVEAL):
            found = Agreements.decode(agreements, self._session)
            self._check_enough(len(found.signatures))
            for place, signature in found.signatures.items():
                known = self._session.participants[place].key
                if place not in self._survivors.sites or not verified(
                    known, self._agreed, signature
                ):
                    raise SecureSumError(
                        "secure-signature", f"site {place} did not agree on these survivors"
                    )
            survived = set(self._survivors.sites)
            answer = Revealed(
                self._place,
                {p: shares.own_mask for p, shares in self._shares.items() if p in survived},
                {p: shares.mask_key for p, shares in self._shares.items() if p not in survived},
            ).encode(self._session)
            self._forget()
            return answer

    def _check_keys(self, keys: Keys, secrets: _Secrets) -> None:
        found = keys.advertisements
        self._check_enough(len(found))
        used = [key for each in found.values() for key in (each.channel_key, each.mask_key)]
        if len(set(used)) < len(used):
            raise SecureSumError("secure-keys", "a key stands twice")
        own = found.get(self._place)
        mine = (secrets.channel.public, secrets.masks.public)
        if own is None or (own.channel_key, own.mask_key) != mine:
            raise SecureSumError("secure-keys", "the keys are not those that this site advertised")
        for place, each in found.items():
            text = Advertisement.text(self._session, place, each.keys)
            if not verified(self._session.participants[place].key, text, each.signature):
                raise SecureSumError("secure-signature", f"site {place} did not sign these keys")
            if place != self._place:
                # A key of low order is refused here, before any training.
                secrets.agreed[place] = secrets.masks.secret_with(each.mask_key)

    def _receive(self, delivery: Delivery, secrets: _Secrets) -> None:
        """Open all shares, or have none of them."""
        if delivery.site != self._place or self._place in delivery.shares:
            raise SecureSumError("secure-message", "the shares are for another site")
        if not delivery.shares.keys() <= self._keys.advertisements.keys():
            raise SecureSumError("secure-keys", "shares of a site without keys")
        self._check_enough(len(delivery.shares) + 1)
        for place, sealed in delivery.shares.items():
            other = self._keys.advertisements[place].channel_key
            channel = self._channel(place, self._place)
            self._shares[place] = channel.open(secrets.channel, other, sealed)

    def _check_enough(self, sites: int) -> None:
        if sites < self._session.threshold:
            raise SecureSumError(
                "secure-too-few", f"{sites} sites, expected at least {self._session.threshold}"
            )

    def _channel(self, sender: int, receiver: int) -> Channel:
        return Channel(sender, receiver, self._session.digest, self._view)

    @property
    def _agreed(self) -> bytes:
        """What this site signs of the survivors."""
        shared = tuple(sorted(self._shares))
        return self._survivors.text(self._session, self._view, shared)

    def _known(self) -> _Secrets:
        if self._secrets is None:
            raise SecureSumError("secure-stage", "the session is over at this site")
        return self._secrets

    @contextmanager
    def _answering(self, stage: Stage) -> Iterator[None]:
        """Answer a stage in its turn and once; end the session whatever goes wrong."""
        expected, self._stage = self._stage, Stage.OVER
        try:
            if expected is not stage:
                _out_of_turn(stage, expected)
            yield
        except BaseException:
            self._forget()
            raise
        self._stage = Stage(stage + 1)

    def _forget(self) -> None:
        self._secrets = None
        self._shares = {}


def _out_of_turn(asked: Stage, expected: Stage) -> NoReturn:
    raise SecureSumError(
        "secure-stage", f"asked to {asked.name.lower()}, expected {expected.name.lower()}"
    )
