"""What the page says of privacy: statements of sites or coordinator, or that there is no claim."""

import math

from shared.page.numbers import number
from shared.results import Results
from simulations.audit.results import AuditReport
from simulations.audit.table import rows

CLAIM = "No differential privacy: no claim"


def claim_of(results: Results) -> str:
    """Return what holds at every site, without a full stop: the largest epsilon of all."""
    claims = [statement.claim for statement in results.privacy.values()]
    known = [claim for claim in claims if claim is not None]
    if not known or len(known) < len(claims) or len(known) < len(results.sites):
        return CLAIM
    worst = max(known, key=lambda claim: claim.epsilon)
    whom = "each patient"
    if worst.unit == "site":
        whom = "each site as a whole, not against the coordinator and for no single patient"
    return (
        f"Differential privacy for {whom}: \u03b5 at most {rounded_up(worst.epsilon)} at "
        f"\u03b4 = {worst.delta:g}"
    )


def promised(results: Results) -> bool:
    """Return whether something is promised at every site, to patients or to whole sites."""
    return claim_of(results) != CLAIM


def for_sites(results: Results) -> bool:
    """Return whether it is whole sites that are promised something, and patients nothing."""
    claims = [statement.claim for statement in results.privacy.values()]
    return promised(results) and all(claim is not None and claim.unit == "site" for claim in claims)


def together(results: Results) -> bool:
    """Return whether sites added the noise together, to one sum of gradients a round."""
    claims = [statement.claim for statement in results.privacy.values()]
    return any(claim is not None and claim.mode == "distributed" for claim in claims)


def about_noise(results: Results) -> tuple[str, str]:
    """Return how the run was made private, and what the figure of what was spent shows."""
    if for_sites(results):
        return (
            "Whole sites were hidden from one another: what each sent in a round was cut to one "
            "norm, and the coordinator added noise from the operating system\u2019s generator to "
            "their sum. The coordinator saw more and must be trusted. Patients were promised "
            "nothing: sites trained without noise. The coordinator\u2019s statement is below, "
            "with the price of the noise and what it does not cover.",
            "What the rounds spent for every site, by the coordinator\u2019s account; the same "
            "for all.",
        )
    if promised(results) and together(results):
        return (
            "The sites trained with differential privacy for their patients, one step a round: "
            "what one patient can change was bounded, every site added its share of the noise, "
            "from the operating system\u2019s generator, before anything left, and of the step "
            "nobody saw more than the sum. What each site\u2019s ledger says of this run is below, "
            "with whom it leans on and what it does not cover.",
            "What this run spent by each site\u2019s ledger. Limits are the sites\u2019 own and "
            "not on this page.",
        )
    if promised(results):
        return (
            "Every site trained with differential privacy for its patients: what one of them can "
            "change was bounded, and noise from the operating system\u2019s generator was added "
            "in every step before anything left. What each site\u2019s ledger says of this run "
            "is below, with what it does not cover.",
            "What this run spent by each site\u2019s ledger. Limits are the sites\u2019 own and "
            "not on this page.",
        )
    return (
        "Changes were bounded in norm, which is no privacy by itself, and no noise was added. "
        "This page therefore makes no claim about what an adapter reveals.",
        "A bar would show what was spent of a limit. Nothing was accounted for in this run, so "
        "there is no bar; an empty bar at 0 would look like strong privacy.",
    )


def site_claim(results: Results, site: str) -> str:
    """Return what one site spent, in a few words."""
    statement = results.privacy.get(site)
    if statement is None or statement.claim is None:
        return CLAIM
    claim = statement.claim
    steps = f"{claim.steps} rounds, the site as a whole"
    if claim.unit != "site":
        steps = f"{claim.steps} steps"
    return f"\u03b5 = {rounded_up(claim.epsilon)} at \u03b4 = {claim.delta:g}, {steps}"


def statements(results: Results) -> list[tuple[str, str, list[tuple[str, list[str]]]]]:
    """Return whose statement it is, its first line, and its rows: name and lines.

    Sites that say the same say it together.
    """
    sites: dict[str, list[str]] = {}
    for site, statement in sorted(results.privacy.items()):
        sites.setdefault(statement.text(), []).append(site)
    found = []
    for text, names in sites.items():
        first, *lines = text.splitlines()
        rows: list[tuple[str, list[str]]] = []
        for line in lines:
            name, _, value = line.removeprefix("  ").partition("  ")
            if name:
                rows.append((name, [value.strip()]))
            else:  # goes on with the row above
                rows[-1][1].append(value.strip())
        found.append((", ".join(names), first, rows))
    return found


def about_sums(results: Results) -> str:
    """Return what the coordinator got of the sites' changes, as sentences."""
    if not results.secure_aggregation:
        return "Secure aggregation was off: the coordinator saw what every single site sent."
    summed = "changes and weights" if promised(results) else "changes, weights and losses"
    if together(results):
        summed = "noised gradients, and of the patients that they are taken to be of"
    return (
        f"Secure aggregation was on: in every round the coordinator got the sum of the sites’ "
        f"{summed}, and no site’s own. What the sum itself tells is not hidden, "
        "and after the rounds every site told its own evaluation."
    )


def audited(audit: AuditReport | None) -> list[tuple[str, list[str]]]:
    """Return the lines of the attack rehearsal: what came of it; see ``attacks`` for each."""
    if audit is None:
        return [
            ("Membership test", ["not run"]),
            ("Planted pairs", ["not run"]),
            ("Lower bound on \u03b5", ["not measured: no attack was rehearsed"]),
        ]
    found: dict[str, list[str]] = {"Outcome": [audit.status, *audit.failures]}
    pairs = sum(each.members + each.others for each in audit.membership[:1])
    found["Planted pairs"] = [f"{pairs} phantom patients at one site, half of them trained on"]
    found |= {"Not run": list(audit.not_run)} if audit.not_run else {}
    if not audit.bounds:
        found["Lower bound on \u03b5"] = ["not measured: nothing is claimed"]
    return list(found.items())


def attacks(audit: AuditReport | None) -> list[tuple[str, str, str]]:
    """Return a row for every attack: which, on what, and what was found."""
    found = []
    for attack, where, what, _ in rows(audit) if audit else ():
        found.append((attack[:1].upper() + attack[1:], where, what.replace("**", "")))
    return found


def rounded_up(epsilon: float) -> str:
    """Return an epsilon to two decimals, never a smaller one."""
    return number(math.ceil(epsilon * 100 - 1e-9) / 100, 2)
