"""The table of docs/personalization.md holds what the code holds, in the same order."""

import inspect
import re
from pathlib import Path

from client.personalization import PERSONALIZATIONS
from shared.config import PersonalizeConfig

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "personalization.md").read_text(encoding="utf-8")


def test_every_method_has_its_row() -> None:
    _, _, rest = PAGE.partition("<!-- table: client.personalization.PERSONALIZATIONS -->\n")
    rows = [line.split("|") for line in rest.partition("\n\n")[0].splitlines()[2:]]
    named = [(row[1].strip(" `"), row[2].strip(" `")) for row in rows]
    files = {name: Path(inspect.getfile(fit)).resolve() for name, fit in PERSONALIZATIONS.items()}
    wanted = [(name, str(file.relative_to(ROOT.resolve()))) for name, file in files.items()]
    assert named == wanted
    assert all(row[6].strip() == "nothing" for row in rows)  # what is sent


def test_the_options_it_names_are_there() -> None:
    options = {*PersonalizeConfig.model_fields}
    example = PAGE.partition("[personalize]\n")[2].partition("```")[0]
    assert set(re.findall(r"^(\w+) =", example, re.MULTILINE)) <= options
    assert {"distill", "proximal", "grid_from"} <= options
