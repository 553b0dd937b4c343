"""Follows docs/extending.md to the letter, in a copy of the repository.

Files that the page names are written, its changes are made where it shows them, and its commands
are run; what they print holds the lines that the page prints. So the page fails here when it no
longer fits the code.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = Path("docs/extending.md")
COPIED = ["server", "client", "shared", "simulations", "tests", "docs", "pyproject.toml"]
PROGRAMS = {
    "python": [sys.executable],
    "consilia": [sys.executable, "-m", "simulations.cli"],
}


@dataclass(frozen=True)
class Block:
    """A fenced block: the heading it stands under, its language, its title and its lines."""

    section: str
    language: str
    title: str
    lines: list[str]


def blocks_of(text: str) -> list[Block]:
    """All fenced blocks of a page."""
    blocks: list[Block] = []
    section = ""
    opened: Block | None = None
    for line in text.splitlines():
        fence = re.fullmatch(r'```(\w*)(?: title="([^"]+)")?', line)
        if opened is None and line.startswith("## "):
            section = line[3:]
        elif opened is None and line.startswith("```"):
            assert fence, f"a fence that cannot be read: {line}"
            opened = Block(section, fence[1], fence[2] or "", [])
        elif opened is not None and line == "```":
            blocks.append(opened)
            opened = None
        elif opened is not None:
            opened.lines.append(line)
    assert opened is None, "a block that is not closed"
    return blocks


BLOCKS = blocks_of((ROOT / PAGE).read_text(encoding="utf-8"))
FILES = [block for block in BLOCKS if block.title]
DIFFS = [block for block in BLOCKS if block.language == "diff"]
SECTIONS = list(dict.fromkeys(block.section for block in BLOCKS))


def prose() -> str:
    """The page without its blocks."""
    return re.sub(r"(?ms)^```.*?^```$", "", (ROOT / PAGE).read_text(encoding="utf-8"))


def apply_diff(lines: list[str], folder: Path) -> None:
    """Change one file: every hunk's old lines must stand in it exactly once, as whole lines."""
    before, after, *rest = lines
    assert before.startswith("--- a/")
    assert after == before.replace("--- a/", "+++ b/")
    path = folder / before.removeprefix("--- a/")
    content = path.read_text(encoding="utf-8").splitlines()
    assert rest[0] == "@@"
    for hunk in "\n".join(rest)[3:].split("\n@@\n"):
        marked = hunk.split("\n")
        assert all(line[:1] in {" ", "-", "+"} for line in marked), f"not a hunk:\n{hunk}"
        old = [line[1:] for line in marked if line[0] != "+"]
        new = [line[1:] for line in marked if line[0] != "-"]
        starts = range(len(content) - len(old) + 1)
        found = [start for start in starts if content[start : start + len(old)] == old]
        assert len(found) == 1, f"{path.relative_to(folder)}: {len(found)} times, not once:\n{hunk}"
        content[found[0] : found[0] + len(old)] = new
    path.write_text("\n".join(content) + "\n", encoding="utf-8")


def commands_of(section: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a section's consoles, in order, each with the lines it shall print."""
    for block in BLOCKS:
        if block.section != section or block.language != "console":
            continue
        command = ""
        printed: list[str] = []
        for line in [*block.lines, "$ "]:
            if line.startswith("$ "):
                if command:
                    yield command, printed
                command, printed = line[2:], []
            elif line.strip() not in {"", "..."}:
                printed.append(" ".join(line.split()))


def run(command: str, folder: Path) -> list[str]:
    """Run a command of the page with the copy first on the path; return what it printed."""
    program, *arguments = shlex.split(command)
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "80",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("CONSILIA_HISTORY", None)
    done = subprocess.run(
        [*PROGRAMS[program], *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with all files and changes of the page."""
    folder = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name)
        else:
            shutil.copy2(ROOT / name, folder / name)
    for block in FILES:
        path = folder / block.title
        assert not path.exists(), f"{block.title} is there already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(block.lines) + "\n", encoding="utf-8")
    for block in DIFFS:
        apply_diff(block.lines, folder)
    return folder


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_works_when_followed_to_the_letter(followed: Path, section: str) -> None:
    commands = list(commands_of(section))
    assert commands, f"{section}: nothing to run"
    for command, printed in commands:
        found = iter(run(command, followed))
        for line in printed:  # in the page's order
            assert line in found, f"$ {command}: did not print\n{line}"


def test_what_the_page_adds_is_clean(followed: Path) -> None:
    """Under the repository's own rules, with the lines it changes."""
    changed = {block.lines[0].removeprefix("--- a/") for block in DIFFS}
    paths = sorted(
        path for path in {block.title for block in FILES} | changed if path.endswith(".py")
    )
    run(shlex.join(["python", "-m", "ruff", "check", *paths]), followed)
    run(shlex.join(["python", "-m", "ruff", "format", "--check", *paths]), followed)


def test_the_page_names_every_file_that_it_adds() -> None:
    assert [block.title for block in FILES if f"`{block.title}`" not in prose()] == []


def test_every_link_within_the_repository_leads_somewhere() -> None:
    anchors = {re.sub(r"[^\w-]", "", s.lower().replace(" ", "-")) for s in SECTIONS}
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", prose()):
        if target.startswith("#"):
            assert target[1:] in anchors
        else:
            assert (ROOT / "docs" / target).is_file(), target
