"""The phases after the last round: every site personalizes, then every site evaluates.

A site's answer is written to the run directory at once, whole, and is not asked for again
when the run is resumed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from server.checkpoint import RunStore
from server.events import EventLog
from server.exchange import Exchange
from server.outcome import Closing
from server.planning import Asking
from server.questions import NOT_CONNECTED, Answer
from server.roster import Roster

Phase = Literal["personalize", "evaluate"]
CLOSING_PHASES: Final[tuple[Phase, ...]] = ("personalize", "evaluate")

FOLDERS: Final[Mapping[str, str]] = {"personalize": "personalized", "evaluate": "evaluations"}


@dataclass
class ClosingPhases:
    """Carries the closing phases out and keeps what came of them.

    Attributes:
        store: Where answers are kept.
        roster: The sites.
        exchange: Asks them.
        events: Told of the progress.
    """

    store: RunStore
    roster: Roster
    exchange: Exchange
    events: EventLog
    _records: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    _lost: dict[str, str] = field(default_factory=dict)
    _seconds: float = 0.0

    def carry_out(self, asking: Asking) -> None:
        """Ask all sites that have not answered yet.

        Raises:
            StorageError: If an answer cannot be kept.
        """
        phase, started = asking.request.kind, self.exchange.clock()
        adapter = asking.shared.sha256()
        kept = self.store.read_records(FOLDERS[phase])
        done = {site: r for site, r in kept.items() if r.get("adapter_sha256") == adapter}
        self._records[phase] = done
        self.roster.refresh()
        connected = self.roster.connected()
        sites = [s for name, s in sorted(self.roster.sites.items()) if name not in done]
        questions = [asking.question(site) for site in sites if site.name in connected]
        total = len(done) + len(questions)
        self.events.emit("phase-started", phase=phase, n=total)
        away = {site.name for site in sites} - connected | set(self.roster.gone()) - set(done)
        gone = dict.fromkeys(sorted(away), NOT_CONNECTED)
        for site, reason in {**self.roster.refused, **gone}.items():
            self._lost[f"{site} ({phase})"] = reason
        deadline = asking.request.job.aggregate.deadline_seconds
        for answer in self.exchange.ask(questions, deadline):
            self.roster.note(answer)
            if answer.state == "in":
                done[answer.site] = self._keep(answer, phase, adapter)
                self.events.emit(
                    "phase-progress", site=answer.site, phase=phase, done=len(done), n=total
                )
            else:
                self._lost[f"{answer.site} ({phase})"] = answer.reason or answer.state
                self.events.emit(
                    "site-dropped",
                    site=answer.site,
                    reason=answer.reason,
                    state=answer.state,
                    about=list(answer.detail),
                )
        self._seconds += self.exchange.clock() - started

    def closing(self) -> Closing:
        """Return what came of the phases that were carried out."""
        return Closing(self._records, self._lost, self._seconds)

    def _keep(self, answer: Answer, phase: str, adapter: str) -> dict[str, Any]:
        reply = answer.reply
        if reply is None:
            raise ValueError(f"{answer.site}: an admitted answer has no reply")
        record: dict[str, Any] = {
            "adapter_sha256": adapter,
            "round": reply.round,
            "seconds": reply.seconds,
            "bytes_up": answer.bytes_up,
            "bytes_down": answer.bytes_down,
            "peak_memory_bytes": reply.peak_memory_bytes,
            "anchor": reply.anchor.model_dump() if reply.anchor else None,
            "validation_loss": reply.summary.validation_loss if reply.summary else None,
            "evaluation": reply.evaluation.model_dump(mode="json") if reply.evaluation else None,
        }
        self.store.write_record(FOLDERS[phase], answer.site, record)
        return record
