"""The factors that a site trains in every round and keeps: B where A is shared, or both.

It is a part of the site's function and of nothing else. Each round of training leaves a file in
the site's own folder; nothing in it is ever sent. Rounds are kept side by side, because a
coordinator may go back to any committed one, and the run must go on with the same bits.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import safetensors.numpy

from client.keeping import IN_THE_CLEAR, Keeping
from client.state import private_folder, read_tensors
from shared.adapter import Adapter, Array, Factor, SharedAdapter, adapter_sha256, factor_of
from shared.errors import StorageError
from shared.messages import Request


class OwnFactor:
    """What a site keeps of its own in one run, from round to round.

    Args:
        state: The site's own folder.
        request: Of the run.
        keeping: How private files are kept.
    """

    def __init__(self, state: Path, request: Request, keeping: Keeping = IN_THE_CLEAR) -> None:
        self._run, self._keeping = request.run, keeping
        # Not by the run's name alone: another coordinator may use it for another job.
        course = f"{request.run}\n{request.job_sha256}\n{request.base_sha256}"
        self._folder = state / "own-factor" / hashlib.sha256(course.encode()).hexdigest()[:32]

    def keep(self, round_number: int, factors: Adapter) -> None:
        """Keep the factors that a round of training left.

        What there is of later rounds belongs to a course that was given up, and goes.

        Raises:
            StorageError: If they could not be written; earlier rounds are intact.
        """
        private_folder(self._folder.parent)
        private_folder(self._folder)
        latest = self._of_round(round_number)
        metadata = {"sha256": adapter_sha256(factors)}
        content = safetensors.numpy.save(dict(factors), metadata=metadata)
        self._keeping.write(latest, content, self._run)
        for path in self._files():
            if path > latest:
                path.unlink(missing_ok=True)

    def after(self, round_number: int) -> dict[str, Array]:
        """Return what the site had after a round, trained in it or before; empty if nothing.

        Raises:
            StorageError: If the file is damaged: the site's function would be another one.
            IdentityError: If it is sealed and cannot be opened.
        """
        latest = self._of_round(round_number)
        paths = [path for path in self._files() if path <= latest]
        if not paths:
            return {}
        stated: str | None
        try:
            factors, metadata = read_tensors(self._keeping.read(paths[-1]))
            stated = metadata.get("sha256")
        except (OSError, ValueError):
            factors, stated = {}, None
        if adapter_sha256(factors) != stated:
            raise StorageError(
                f"{paths[-1]}: damaged; put it back from a copy, or remove it to go on with what "
                "the site had in the round before"
            )
        return factors

    def _of_round(self, number: int) -> Path:
        return self._folder / f"round-{number:08}.safetensors"

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("round-*.safetensors"))


def with_own(shared: SharedAdapter, own: Adapter) -> SharedAdapter:
    """Return the site's function: the shared adapter with its own factors in place."""
    if not own:
        return shared
    return replace(shared, factors={**shared.factors, **own})


def of_kinds(adapter: Adapter, kinds: tuple[Factor, ...]) -> dict[str, Array]:
    """Return the factors of some kinds."""
    return {name: array for name, array in adapter.items() if factor_of(name) in kinds}
