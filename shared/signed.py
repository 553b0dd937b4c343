"""What a signature on a request or a reply is about; see ``shared.security.claims``."""

from shared.messages import RequestHeader
from shared.security.claims import Claim, body_digest


def claim_of(request: RequestHeader, site: str, header: bytes, rest: bytes) -> Claim:
    """Return the claim of a request, or of a reply to it.

    Args:
        request: The request; a reply belongs to the same run, round, attempt, base and job.
        site: Whom a request is for, or whose reply it is.
        header: Header of the body that is signed.
        rest: sha256 of what comes after it, 32 bytes.
    """
    return Claim(
        protocol=request.protocol,
        run=request.run,
        round=request.round,
        attempt=request.attempt,
        site=site,
        base=request.base_sha256,
        job=request.job_sha256,
        body=body_digest(header, rest),
    )
