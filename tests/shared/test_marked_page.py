"""A table goes between its two lines and nowhere else."""

import pytest

from shared.errors import ConfigError
from shared.marked_page import MarkedPage

BEGIN, END = "<!-- costs: begin -->", "<!-- costs: end -->"


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    return path


def test_the_page_keeps_everything_around_the_table(page):
    for _ in range(2):
        MarkedPage.open(page, "costs").write("new")
        assert page.read_text() == f"before\n{BEGIN}\n\nnew\n{END}\nafter\n"


def test_what_others_wrote_meanwhile_stays(page):
    opened = MarkedPage.open(page, "costs")
    page.write_text(page.read_text().replace("before", "changed"))
    opened.write("new")
    assert page.read_text().startswith("changed\n")


@pytest.mark.parametrize("text", ["nothing", f"{END}\n{BEGIN}\n", f"{BEGIN}\n"])
def test_a_page_without_a_place_is_refused_and_kept(page, text):
    page.write_text(text)
    with pytest.raises(ConfigError, match=f"the two lines {BEGIN} and {END}"):
        MarkedPage.open(page, "costs")
    with pytest.raises(ConfigError, match="two lines"):
        MarkedPage(page, "costs").write("new")
    assert page.read_text() == text


def test_a_page_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected a page"):
        MarkedPage.open(tmp_path / "none.md", "costs")
