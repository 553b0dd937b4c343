"""An agent that answers its own coordinator only, and signs what it answers.

The courier has a network and may be taken over; it can neither make nor alter nor repeat a
request of the coordinator's, nor a reply of the site's.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from client.asked import AskedRounds
from client.decisions import NOBODY, Party
from client.provisioning.folder import FOLDER, SiteIdentity
from client.service import AgentChannel
from shared.errors import IdentityError, WireError
from shared.messages import Request, decode_request, halves
from shared.security.claims import Claim, objection, signature_of, split_signed
from shared.signed import claim_of

STALE = "request-stale"

Refuse = Callable[[Request, str], bytes]
"""Makes a refusal with a reason code, and notes it in the site's audit log."""


class SignedAgent:
    """Stands before an agent; see the module's docstring.

    Args:
        agent: Answers the requests that are the coordinator's.
        refuse: Answers the others.
        identity: The site's keys, and the coordinator's key that it pinned.
        asked: File that remembers what the site was asked to train.

    Raises:
        IdentityError: If the site has not joined, or its keys are damaged or open to others.
        StorageError: If ``asked`` is damaged.
    """

    def __init__(
        self, agent: AgentChannel, refuse: Refuse, identity: SiteIdentity, asked: Path
    ) -> None:
        keys = identity.keys_in_use()
        self._agent = agent
        self._refuse = refuse
        self._site = keys.part.name
        self._key = keys.load_signing()
        self._coordinator = identity.coordinator
        self._asked = AskedRounds(asked)

    def handle(self, content: bytes) -> bytes:
        """Return the signed answer to a signed request; to any other, a signed refusal.

        What cannot be read as a request at all is refused without a signature: there is no round
        that it could belong to.

        Raises:
            StorageError: If not even a refusal can be noted in the audit log.
        """
        body = content
        try:
            signed, body = split_signed(content)
            request, _ = decode_request(body)
        except WireError:
            return self._agent.handle(body)
        expected = _claim(request, request.site, body)
        reason = objection("request", signed, expected, [self._coordinator])
        if reason is None and not self._is_new(request):
            reason = STALE
        reply = self._agent.handle(body) if reason is None else self._refuse(request, reason)
        return signature_of("reply", _claim(request, self._site, reply), self._key) + reply

    def _is_new(self, request: Request) -> bool:
        # The other kinds change nothing, and release the same again or belong to one session.
        if request.kind not in ("train", "secure-keys"):
            return True
        return self._asked.is_new(request.run, request.round, request.attempt)


def signed(agent: AgentChannel, refuse: Refuse, home: Path, site: str, asked: Path) -> AgentChannel:
    """Return an agent that answers its coordinator only, if the site has an identity.

    Args:
        agent: Answers the requests.
        refuse: Refuses them.
        home: The site's folder; without an identity in it the agent is returned as it is.
        site: Name of the site in its settings.
        asked: File that remembers what the site was asked to train.

    Raises:
        IdentityError: If the identity cannot be used, has joined nothing, or is another site's.
        StorageError: If ``asked`` is damaged.
    """
    if not (home / FOLDER).exists():
        return agent
    identity = SiteIdentity.open(home)
    name = identity.pinned.content.site
    if name != site:
        raise IdentityError(
            f"{identity.folder}: is the identity of site {name}, and site.toml names {site}; "
            f'expected name = "{name}" in site.toml, or another identity'
        )
    return SignedAgent(agent, refuse, identity, asked)


def party_of(home: Path) -> Party:
    """Return who may ask the site of a folder, for its policy; anybody without an identity.

    Raises:
        IdentityError: If the identity cannot be used, or the site has not joined.
    """
    if not (home / FOLDER).exists():
        return NOBODY
    identity = SiteIdentity.open(home)
    members = identity.pinned.content.roster.members
    return Party(identity.coordinator, sum(member.status == "active" for member in members))


def _claim(request: Request, site: str, body: bytes) -> Claim:
    header, rest = halves(body)
    return claim_of(request, site, header, hashlib.sha256(rest).digest())
