"""Two people read a fingerprint to one another, over the phone; only then somebody is trusted."""

import sys
from collections.abc import Callable

from shared.errors import IdentityError
from shared.security.signing import same_fingerprint


def compare(
    found: str, given: str | None, other: str, ask: Callable[[str], str] | None = None
) -> None:
    """Raise unless a fingerprint is the one that the other side reads out.

    Args:
        found: Of the file at hand.
        given: What the other side read out; ``None`` to ask the person at the terminal.
        other: The other side, such as ``the site``.
        ask: Puts a question to the person; the terminal's if not given, and there is one.

    Raises:
        IdentityError: If they differ, or nobody is there to compare them; nothing was changed.
    """
    if given is not None:
        if not same_fingerprint(found, given):
            raise IdentityError(
                f"--fingerprint {given[:80]}: the file's is {found}; somebody may have replaced "
                f"it on the way; nothing was changed; ask {other} for the file again"
            )
        return
    if ask is None and sys.stdin.isatty():
        ask = input
    if ask is None:
        raise IdentityError(
            f"the file's fingerprint is {found}; compare it with what {other} reads out, and give "
            "that with --fingerprint; nothing was changed"
        )
    answer = ask(f"Fingerprint {found}\nDoes {other} read out the same? [y/N] ")
    if answer.strip().lower() not in {"y", "yes"}:
        raise IdentityError(f"the fingerprint was not confirmed; nothing was changed; call {other}")
