"""Seeds: every random choice of a run derives from the job's seed, never from its order."""

from shared.security.derive import hkdf_sha256


def derive_seed(job_seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose, such as ``("train", round, site)``.

    Different purposes give independent seeds; the same purpose gives the same seed on any
    machine, in any order, before and after a resume.
    """
    info = "\x1f".join(f"{type(part).__name__}:{part}" for part in purpose).encode()
    secret = job_seed.to_bytes(32, "big")
    return int.from_bytes(hkdf_sha256(secret, info, 8), "big") >> 1
