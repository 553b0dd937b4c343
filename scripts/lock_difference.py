"""Print the entries of one lock file that another does not have; torch's own are left out.

python scripts/lock_difference.py FULL BASE
"""

import re
import sys
from pathlib import Path

TORCH_ONLY = re.compile(r"^(torch|triton|nvidia-|cuda-)")


def entries(path: str) -> dict[str, str]:
    """Return the lock's entries by package name; an entry is its line and its hashes."""
    found: dict[str, str] = {}
    name = ""
    for line in Path(path).read_text(encoding="utf-8").splitlines(keepends=True):
        if re.match(r"^[A-Za-z0-9]", line):
            name = re.split(r"[=\[ ]", line, maxsplit=1)[0]
            found[name] = found.get(name, "") + line
        elif name and line.startswith(" "):
            found[name] += line
    return found


def main() -> None:
    """Write the difference to standard output."""
    full, base = entries(sys.argv[1]), entries(sys.argv[2])
    sys.stdout.write("# Made by 'make lock'. On top of requirements.lock: make setup-ray.\n")
    for name, text in full.items():
        if name not in base and not TORCH_ONLY.match(name):
            sys.stdout.write(text)


if __name__ == "__main__":
    main()
