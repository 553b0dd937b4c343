"""Agents of one process that answer at once; those that train, train in one cohort.

A deployed agent is a cohort of one: there is no other path.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from client.audit import on_disk_together
from client.refusals import place_of
from client.work import Work, alike, personalize_together, train_together, validate_together
from shared.errors import StorageError

if TYPE_CHECKING:
    from client.agent import SiteAgent

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class NotReleasedError(StorageError):
    """Sites could not note their answers in their audit logs; nothing of them leaves.

    Attributes:
        answers: In the order in which the agents were asked: their answers, or why there is none.
    """

    def __init__(self, answers: Sequence[bytes | StorageError]) -> None:
        super().__init__(next(str(each) for each in answers if isinstance(each, StorageError)))
        self.answers = list(answers)


def answer_together(asked: Sequence[tuple["SiteAgent", bytes]]) -> list[bytes]:
    """Return the answers of agents in this process; those that train, train in one cohort.

    What an agent answers is, beyond rounding, what it
    would answer alone. Who is in a cohort depends on ``asked`` only, so that a repeated
    question gets the very same bits: kept answers are used if all of a cohort were kept.

    Args:
        asked: Agents with a request each; every agent once.

    Raises:
        NotReleasedError: If not even a refusal can be noted in the audit logs of some; it holds
            the answers of the others.
        StorageError: If the disk fails while all wait for it; then nothing leaves.
    """
    with on_disk_together(), ExitStack() as locks:
        for agent, _ in asked:
            locks.enter_context(agent.lock)
        begun = [_noted(partial(agent.begin, body)) for agent, body in asked]
        answers = [b"" if isinstance(begin, Work) else begin for begin in begun]
        numbers = [number for number, begin in enumerate(begun) if isinstance(begin, Work)]
        works = [begin for begin in begun if isinstance(begin, Work)]
        for group in alike(works):
            agents = [asked[numbers[number]][0] for number in group]
            found = _answer_group(agents, [works[number] for number in group])
            for number, answer in zip(group, found, strict=True):
                answers[numbers[number]] = answer
    released = [answer for answer in answers if isinstance(answer, bytes)]
    if len(released) < len(answers):
        raise NotReleasedError(answers)
    return released


def _noted(step: Callable[[], Result]) -> Result | StorageError:
    """Return what a step gives, or why its site could not write its audit log."""
    try:
        return step()
    except StorageError as error:
        failed = error
    except OSError as error:
        failed = StorageError(f"the audit log cannot be used: {error.strerror}")
        failed.__cause__ = error
    # Only the place is logged, as for a refusal.
    log.error("nothing released: storage at %s", place_of(failed))
    return failed


def _answer_group(
    agents: Sequence["SiteAgent"], works: Sequence[Work]
) -> list[bytes | StorageError]:
    """Answer works of one kind and job."""
    if all(work.kept is not None for work in works):
        return [
            _noted(partial(agent.answer_again, work))
            for agent, work in zip(agents, works, strict=True)
        ]
    results: Sequence[object] = [None] * len(works)
    try:
        if works[0].request.kind == "train":
            results = train_together(works)
        elif works[0].request.kind == "personalize":
            results = personalize_together(works)
        elif works[0].request.kind == "evaluate":
            results = validate_together(works)
    except Exception as error:
        if len(works) > 1:  # whatever one site's records do, the others answer
            pairs = zip(agents, works, strict=True)
            return [_answer_group([agent], [work])[0] for agent, work in pairs]
        results = [error]
    together = len(works) if any(result is not None for result in results) else 1
    return [
        _noted(partial(agent.finish, work, result, together))
        for agent, work, result in zip(agents, works, results, strict=True)
    ]
