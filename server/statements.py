"""What a run may claim about privacy, as sites or coordinator say it: for the run's manifest."""

from collections.abc import Iterable
from typing import Any

from server.outcome import RunOutcome
from shared.config import JobConfig
from shared.privacy.statement import unclaimed


def statements(job: JobConfig, outcome: RunOutcome) -> dict[str, Any]:
    """Return every site's statement as JSON's own types, by site.

    Where the coordinator adds noise for whole sites, its own statement is every site's.

    Args:
        job: What was carried out.
        outcome: With the evaluations, in which sites that trained with privacy say what it cost.
    """
    names: Iterable[str] = sorted({*outcome.sites, *outcome.evaluations})
    if outcome.privacy is not None:
        return {name: outcome.privacy.tree() for name in names}
    reason = "the job asks for no differential privacy"
    if job.privacy.differential_privacy:
        reason = "the site did not say what its ledger has"
    said = {name: evaluation.privacy for name, evaluation in outcome.evaluations.items()}
    return {name: (said.get(name) or unclaimed(reason)).tree() for name in names}
