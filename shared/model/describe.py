"""Write ``layout.json`` of a job's base: ``python -m shared.model.describe JOB.toml FILE``.

A program of its own, so that the coordinator, which needs the layout, needs no torch.
"""

import sys
from pathlib import Path

from shared.config import load_job
from shared.errors import ConfigError, ConsiliaError
from shared.files import write_atomic
from shared.layout_file import layout_bytes
from shared.model.encoder import DualEncoder


def main(job_file: str, target: str) -> int:
    """Write the layout; return the exit code."""
    try:
        job = load_job(Path(job_file))
        encoder = DualEncoder.load(job.model, job.lora)
        largest = encoder.layout.largest_rank
        if job.personalize.fits and job.personalize.rank > largest:
            raise ConfigError(
                f"personalize.rank = {job.personalize.rank} is larger than the smallest adapted "
                f"layer of this base; expected at most {largest}"
            )
        write_atomic(Path(target), layout_bytes(encoder.layout, encoder.base_sha256))
    except ConsiliaError as error:
        sys.stderr.write(f"{' '.join(str(error).splitlines())}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
