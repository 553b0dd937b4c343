"""``python -m benchmarks.start_rounds``: whole rounds, begun as ``consilia simulate`` begins."""

import sys

from simulations.startup import loading

with loading():
    from benchmarks.rounds import main

if __name__ == "__main__":
    sys.exit(main())
