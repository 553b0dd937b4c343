"""A site's stages of secure aggregation: from the request to the message, and nothing beside it."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from client.policy import PolicySource
from client.provisioning.folder import FOLDER, SiteIdentity
from client.release import EncodedUpdate
from client.secure_sum import Asked, SecureSums
from client.summed_once import SummedOnce
from shared.adapter import AdapterLayout
from shared.errors import RefusedError
from shared.messages import Request
from shared.ranks import filled
from shared.secure_round import adapter_digest, form_of, measures_of
from shared.security.secagg.session import Demands
from shared.security.secagg.vector import SiteVector


class SecureStages:
    """Answers the stages; see the module's docstring.

    Args:
        sums: What the site does in secure sums; ``None`` for a site without an identity.
    """

    def __init__(self, sums: SecureSums | None) -> None:
        self._sums = sums

    def answer(self, request: Request, layout: Callable[[], AdapterLayout]) -> bytes:
        """Return the site's message of any stage but that which masks its change.

        Args:
            request: Permitted, and of a kind of ``SECURE_KINDS``.
            layout: Gives the run's, of the site's own encoder.

        Raises:
            SecureSumError: With the reason why there is none.
            RefusedError: ``secure-roster`` if the site has no identity.
            WireError: If the stage's question cannot be read.
        """
        sums, question = self._known(), request.stage_message
        digest = digest_of(request)
        if request.kind == "secure-keys":
            return sums.begin(question, asked_by(request, layout()))
        if request.kind == "secure-shares":
            return sums.share(digest, question)
        if request.kind == "secure-agree":
            return sums.agree(digest, question)
        return sums.reveal(digest, question)

    def confirm(self, request: Request, layout: AdapterLayout) -> None:
        """Raise unless a request to train belongs to the session that is under way.

        Raises:
            SecureSumError: ``secure-lost`` or ``secure-session``.
            RefusedError: ``secure-roster`` if the site has no identity.
        """
        self._known().confirm(digest_of(request), asked_by(request, layout))

    def mask(self, request: Request, update: EncodedUpdate, layout: AdapterLayout) -> bytes:
        """Return what the site changed, weighs and measured, under its masks.

        Args:
            request: To train.
            update: What came of it; of a site's own rank, or of the run's.
            layout: The run's.

        Raises:
            SecureSumError: With the reason; the session is over then.
            StorageError: If the vector cannot be noted; then it does not leave.
        """
        # What they are is checked where they are put into the vector.
        steps = cast("Mapping[str, NDArray[np.uint32]]", update.steps)
        measures = measures_of(update.summary)
        vector = SiteVector(filled(steps, layout), update.weights, measures)
        return self._known().mask(digest_of(request), request.stage_message, lambda: vector)

    def _known(self) -> SecureSums:
        if self._sums is None:
            raise RefusedError("secure-roster", "the site has no identity, so it knows no others")
        return self._sums


def asked_by(request: Request, layout: AdapterLayout) -> Asked:
    """Return what a session must say that comes with a request."""
    return Asked(
        run=request.run,
        round=request.round,
        attempt=request.attempt,
        base=request.base_sha256,
        job=request.job_sha256,
        adapter=adapter_digest(request.parts),
        scale=request.scale,
        clip_norm=request.job.aggregate.clip_norm,
        form=form_of(request.job, layout, request.factors, request.cohort),
        noise_shares=request.job.privacy.noise_shares if request.job.privacy.noised_together else 0,
        towers=tuple(sorted(request.weights)),
    )


def digest_of(request: Request) -> bytes:
    """Return the digest of the session that a request belongs to."""
    return bytes.fromhex(request.secure or "")


def secure_sums_of(home: Path, state: Path, policy: PolicySource) -> SecureSums | None:
    """Return what a site that joined a consortium does in secure sums; ``None`` without one.

    Args:
        home: The site's folder.
        state: Its own folder; what it summed is noted there.
        policy: Says how many sites must take part.

    Raises:
        IdentityError: If the identity cannot be used, or the site has not joined.
        StorageError: If what was summed cannot be read.
    """
    if not (home / FOLDER).exists():
        return None
    key = SiteIdentity.open(home).keys_in_use().load_signing()

    def demands() -> Demands:
        kit, now = SiteIdentity.open(home).pinned.content, datetime.now(UTC)
        allowed = policy.current()
        return Demands(
            site=kit.site,
            key=key.public,
            consortium=kit.consortium,
            roster={member.name: member.signing_keys(now) for member in kit.roster.members},
            least_sites=allowed.minimum_cohort,
            least_summed=allowed.minimum_summed,
            curious_sites=allowed.curious_sites,
        )

    return SecureSums(key, demands, SummedOnce(state / "summed.json"))
