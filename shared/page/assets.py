"""Style, script and content policy of a page, read from the files beside this one."""

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markupsafe import Markup

from shared.page import tokens
from shared.page.markup import trusted

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Assets:
    """What the head and the end of a page need.

    Attributes:
        css: The whole style sheet.
        js: The whole script.
        policy: Content policy that allows exactly these two and pictures inside the file.
    """

    css: Markup
    js: Markup
    policy: str


def _digest(source: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() + "'"


def _squeeze(css: str) -> str:
    return re.sub(r"\s*\n\s*", "", re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL))


@cache
def load() -> Assets:
    """Return style, script and policy; the policy holds no ``unsafe-`` and no address."""
    css = _squeeze(tokens.css() + (FOLDER / "page.css").read_text(encoding="utf-8"))
    js = (FOLDER / "page.js").read_text(encoding="utf-8").strip()
    policy = (
        f"default-src 'none'; style-src {_digest(css)}; script-src {_digest(js)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return Assets(trusted(css), trusted(js), policy)
