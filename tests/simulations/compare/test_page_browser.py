"""The comparison's page in headless Chromium: a phone's and a desktop's width, light and dark."""

import shutil

import pytest
from playwright.sync_api import sync_playwright

from simulations.compare.choice import Choice, Tried
from simulations.compare.methods import parse_methods
from simulations.compare.model import MethodComparison
from simulations.compare.page import render
from simulations.compare.scores import Scores
from simulations.compare.table import make_rows
from simulations.compare.words import sentences

pytestmark = pytest.mark.browser

METHODS = parse_methods("fedavg,ffa,fedavg+geometric-median+finetune,altfold+duet")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """Four methods, one of which diverged, over three seeds."""
    levels = {"fedavg": 0.7, "fedavg+geometric-median+finetune": 0.72, "altfold+duet": 0.73}
    levels |= {"local": 0.69, "centralised": 0.74}
    found = {
        (name, seed): Scores(
            job_sha256="x",
            own={site: {"auroc": level + seed * (0.01 + level / 100)} for site in "abc"},
            base={site: {"auroc": 0.6 + seed / 100} for site in "abc"},
            others=dict.fromkeys("abc", level - 0.05 * (3 - seed)),
        )
        for name, level in levels.items()
        for seed in (1, 2, 3)
    }
    tried = (Tried(0.001, 3.0, 2.5), Tried(0.002, 3.0, 2.4))
    choices = {name: Choice(0.002, tried) for name in levels}
    lost = (Tried(0.001, 3.0, None), Tried(0.002, 3.0, None))
    choices["ffa"] = Choice(None, lost, "diverged at every rate (0.001, 0.002)")
    rows, best = make_rows(METHODS, choices, found, (1, 2, 3), "auroc")
    comparison = MethodComparison(
        name="compare", command="consilia compare job.toml --methods fedavg", created="today",
        job_sha256="3f" * 32, main_metric="auroc", margin=0.0, seeds=[1, 2, 3], tuning_seed=1001,
        rates=[0.001, 0.002], rounds=2, steps="4 steps", personal_steps=20, sites=["a", "b", "c"],
        phantoms=True, best=best, complete=True, rows=rows,
        sentences=sentences(rows, best, "auroc", 3),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("page") / "comparison.html"
    path.write_text(render(comparison))
    return path


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_asks_for_nothing_and_shows_every_mark(page_file, width, scheme):
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        asked, said = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto(page_file.as_uri())
        assert (asked, said) == ([page_file.as_uri()], [])
        assert page.evaluate("document.documentElement.scrollWidth") == width
        # 5 rows with numbers and the base: a mark each, but for the best's own difference.
        assert page.locator("#fig1 rect.fill").count() == 6 + 5
        assert page.locator("#fig2 rect.fill").count() == 6 + 6
        outside = page.evaluate(
            "[...document.querySelectorAll('figure .n, figure th, p')].filter(e => e.offsetWidth "
            "&& !e.closest('.wrap') && !e.closest('thead') "
            "&& e.getBoundingClientRect().right > innerWidth).length"
        )
        assert outside == 0
        browser.close()
