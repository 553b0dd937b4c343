"""The toy federation with the real protocol of secure aggregation, and every byte of it noted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fake_federation import LAYOUT, FakeSite, Federation, job_of

from client.release import EncodedUpdate
from client.secure_rounds import SecureStages
from client.secure_sum import SecureSums
from client.summed_once import SummedOnce
from server.secure_session import Members
from shared.errors import RefusedError, SecureSumError
from shared.messages import Reply, Request, decode_reply, decode_request, encode, stage_tensors
from shared.security.secagg.session import Demands
from tests.shared.security.secagg.sums import key_of

NAMES = ("east", "north", "south", "up", "west")
CONSORTIUM = "c" * 32
STAGES = ("secure-keys", "secure-shares", "train", "secure-agree", "secure-unmask")
ON = {"secure_aggregation": True}


@dataclass
class SecureSite(FakeSite):
    """A fake site that knows the protocol; ``restart`` is what a new process would know.

    ``vector`` and ``change_message`` are what a hostile one puts into the sum, and says.
    """

    folder: Any = None
    knows: tuple[str, ...] = NAMES
    wants: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    bytes_seen: list[bytes] = field(default_factory=list)
    planted: list[bytes] = field(default_factory=list)
    vector: Callable[[EncodedUpdate], EncodedUpdate] = lambda update: update
    change_message: Callable[[str, bytes], bytes] = lambda kind, message: message

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        roster = {each: (key_of(each).public,) for each in self.knows}
        demands = Demands(self.name, key_of(self.name).public, CONSORTIUM, roster, **self.wants)
        summed = SummedOnce(self.folder / f"{self.name}.json")
        self.stages = SecureStages(SecureSums(key_of(self.name), lambda: demands, summed))

    def handle(self, body: bytes) -> bytes:
        request, _ = decode_request(body)
        answer = self._secure(request, body) if request.secure else super().handle(body)
        self.bytes_seen += [body, answer]
        return answer

    def _secure(self, request: Request, body: bytes) -> bytes:
        reply = Reply(
            kind=request.kind,
            run=request.run,
            round=request.round,
            attempt=request.attempt,
            site=self.name,
            scale=request.scale,
            seconds=0.001,
        )
        try:
            if request.kind != "train":
                message = self.stages.answer(request, lambda: LAYOUT)
            else:
                self.stages.confirm(request, LAYOUT)
                told, steps = decode_reply(super().handle(body))
                if told.status != "ok":
                    return encode(told)
                reply = reply.model_copy(update={"holds": told.holds})
                self.planted += [steps[name].tobytes() for name in steps]
                update = EncodedUpdate(steps, told.weights, told.scale, told.summary)
                message = self.stages.mask(request, self.vector(update), LAYOUT)
        except (SecureSumError, RefusedError) as error:
            self.refused.append(error.reason)
            said = {"status": "refused", "reason": error.reason}
            return encode(reply.model_copy(update=said))
        return encode(reply, stage_tensors(self.change_message(request.kind, message)))


def secure_sites(folder, names=NAMES, **changes) -> list[SecureSite]:
    """Sites with disks of their own."""
    return [SecureSite(name, folder=folder / "disks", **changes) for name in names]


def secured(folder, sites=None, *, on: bool = True, rounds: int = 3, **tables) -> Federation:
    """A run of these sites, with or without secure aggregation."""
    privacy = {"privacy": ON} if on else {}
    job = job_of(rounds=rounds, **privacy, **tables)
    sites = sites or secure_sites(folder)
    keys = {site.name: key_of(site.name).public for site in sites}
    options = {"members": Members(CONSORTIUM, keys.get)} if on else {}
    return Federation(folder / "run", job, sites=list(sites), options=options)


def losing(*lost):
    """Lose messages: of (site, kind, round, attempt), ``None`` for any."""

    def on_push(site, request):
        asked = site.name, request.kind, request.round, request.attempt
        hit = any(all(b in (None, a) for a, b in zip(asked, each, strict=True)) for each in lost)
        return "lost" if hit else None

    return on_push


def with_change(update: EncodedUpdate, number: int) -> EncodedUpdate:
    """An update all of whose entries are one number."""
    steps = {name: np.full_like(update.steps[name], number) for name in update.steps}
    return EncodedUpdate(steps, update.weights, update.scale, update.summary)
