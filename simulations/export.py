"""``consilia export``: a run's adapter as a PEFT folder, or merged into its base."""

from pathlib import Path

from rich.console import Console

from client.state import SiteState
from server.checkpoint import RunStore
from server.history import RunHistory
from shared.adapter import SharedAdapter
from shared.errors import ConfigError, InputError, RunDirectoryError
from shared.model.export import save_merged, save_peft
from shared.model.view import AdapterView
from simulations.audit.gate import pass_gate
from simulations.histories import history_url
from simulations.machine import encoder_for, settle


def export_run(
    run: Path,
    to: Path,
    *,
    site: str | None,
    merged: bool,
    console: Console,
    despite_audit: str | None = None,
) -> None:
    """Write the adapter of a run's last committed round.

    Args:
        run: The run directory.
        to: Folder to write; must not exist or be empty.
        site: Add this site's personal adapter, mixed as the site uses it.
        merged: A whole Hugging Face folder instead of an adapter.
        console: Told what was written and how to open it.
        despite_audit: Why it is exported although its audit failed; recorded in the export and
            the run.

    Raises:
        RefusedError: ``audit-failed`` without such a reason.
        InputError: If there is nothing to export, or the folder is in use.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"--to {to}: expected a folder that does not exist or is empty")
    with RunStore.open(run, lock=False) as store, RunHistory(history_url(run)) as history:
        last = history.last_round(store.run)
        if last is None:
            raise RunDirectoryError(f"{run}: no round is committed yet, nothing to export")
        shared = store.load_round(last.round, last.manifest_sha256)
        if site is None and store.job.aggregate.shares_features:
            raise InputError(
                f"{run}: its sites exchanged features, so there is no shared adapter; export a "
                "site's own with --site"
            )
        job = store.job if site is None else store.job.at(site)
        encoder = encoder_for(job, settle(job))
    view = AdapterView(shared) if site is None else _personal(run, site, shared)
    claims = job.privacy.for_patients  # which is what an audit measures
    found, record = pass_gate(run, shared.sha256(), claims=claims, to=to, override=despite_audit)
    if found.remark:
        console.print(found.remark, highlight=False)
    if merged:
        save_merged(to, encoder, view, record)
        console.print(f"Wrote a Hugging Face checkpoint to {to}", highlight=False)
        console.print(f'Open it: transformers.AutoModel.from_pretrained("{to}")', highlight=False)
        return
    report = save_peft(to, encoder, view, record=record)
    console.print(
        f"Wrote a LoRA adapter of rank {report.rank} to {to}; what was cut is "
        f"{100 * report.relative_error:.3f} % of it",
        highlight=False,
    )
    console.print(f'Open it: peft.PeftModel.from_pretrained(base, "{to}")', highlight=False)


def _personal(run: Path, site: str, shared: SharedAdapter) -> AdapterView:
    folder = run / "sites" / site
    known = sorted(path.name for path in (run / "sites").glob("*/"))
    if site not in known:
        raise InputError(f"{run}: no site {site!r}; its sites are {', '.join(known)}")
    personal = SiteState(folder).load_personal(shared.sha256())
    if personal is None:
        raise InputError(f"{site}: has no personal adapter for this run's last round")
    return AdapterView(shared, personal.adapter, personal.alpha)
