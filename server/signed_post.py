"""Signs what the coordinator asks, and lets no answer through that its site did not sign for it.

Stands before another ``Post``, so that neither the round loop nor Flower knows of it; a
simulation goes without. Whose keys count is asked for every answer, so that a revoked site's next
one is refused.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from server.post import Letter, Outgoing, Post, Sheets
from shared.errors import VersionError, WireError
from shared.messages import RequestHeader, decode_reply, decode_request_header, halves
from shared.security.claims import Claim, objection, signature_of, split_signed
from shared.security.signing import SigningKey
from shared.signed import claim_of

UNREADABLE = "reply-signature"
_REMEMBERED = 10_000
"""Messages whose answers can still be checked; older ones are not waited for any more."""


@dataclass(frozen=True)
class CoordinatorIdentity:
    """What a coordinator signs with, and whom it believes.

    Attributes:
        key: Signs requests.
        keys_of: Returns the public keys that may sign for a site now; none for a stranger.
        consortium: Its number.
    """

    key: SigningKey
    keys_of: Callable[[str], Sequence[str]]
    consortium: str = ""


@dataclass
class SignedPost:
    """A post whose letters are signed; see the module's docstring.

    Attributes:
        post: Carries the bytes.
        identity: Signs, and knows the sites' keys.
    """

    post: Post
    identity: CoordinatorIdentity
    _asked: OrderedDict[str, RequestHeader] = field(default_factory=OrderedDict, init=False)
    _used: dict[str, str] = field(default_factory=dict, init=False)
    """The key that a site signed its last answer with."""

    def key_in_use(self, site: str) -> str | None:
        """Return the key that a site signs with: of those that count, the one it used last.

        For some days after a site got new keys two of them count, and only it knows which it uses.
        """
        counting = self.identity.keys_of(site)
        used = self._used.get(site)
        return used if used in counting else next(reversed(counting), None)

    def nodes(self) -> list[int]:
        """Return the numbers of all nodes that are connected."""
        return self.post.nodes()

    def send(self, requests: Sequence[Outgoing]) -> list[str | None]:
        """Sign requests and send them; what many have in common is digested once."""
        together = {id(each.body.enclosure): each.body.enclosure for each in requests}
        digests = {key: hashlib.sha256(content).digest() for key, content in together.items()}
        headers = [decode_request_header(each.body.header) for each in requests]
        signed = []
        for request, header in zip(requests, headers, strict=True):
            body = request.body
            claim = claim_of(header, header.site, body.header, digests[id(body.enclosure)])
            before = signature_of("request", claim, self.identity.key)
            signed.append(replace(request, body=Sheets(before + body.header, body.enclosure)))
        ids = self.post.send(signed)
        for message_id, header in zip(ids, headers, strict=True):
            if message_id is not None:
                self._asked[message_id] = header
        while len(self._asked) > _REMEMBERED:
            self._asked.popitem(last=False)
        return ids

    def collect(self, message_ids: Sequence[str]) -> list[Letter]:
        """Return what has come back, without signatures; what is not right says so instead."""
        letters = [self._opened(letter) for letter in self.post.collect(message_ids)]
        for letter in letters:  # only now: an answer that came twice is read twice
            self._asked.pop(letter.message_id, None)
        return letters

    def _opened(self, letter: Letter) -> Letter:
        asked = self._asked.get(letter.message_id)
        if letter.body is None:
            return letter
        reason, body = self._read(letter.body, asked) if asked else (UNREADABLE, b"")
        return (
            Letter(letter.message_id, b"", refused=reason) if reason else replace(letter, body=body)
        )

    def _read(self, content: bytes, asked: RequestHeader) -> tuple[str | None, bytes]:
        """Return why an answer does not count, if so, and its body."""
        body = b""
        try:
            signed, body = split_signed(content)
            header, rest = halves(body)
            # Before names are known the answer names itself; roster and signature must agree.
            site = asked.site if signed and asked.site else decode_reply(body)[0].site
        except VersionError:
            return None, body  # that it cannot be read is all that it says, and it never counts
        except WireError:
            return UNREADABLE, b""
        expected: Claim = claim_of(asked, site, header, hashlib.sha256(rest).digest())
        keys = self.identity.keys_of(site)
        reason = objection("reply", signed, expected, keys)
        if reason is None:
            self._used[site] = next(
                key
                for key in keys
                if len(keys) == 1 or objection("reply", signed, expected, [key]) is None
            )
        return reason, body
