"""The acceptance list of the report in headless Chromium, on every shape of run.

Each test is one line of the list; numbers in names are the list's numbers. Every page is opened
once, looked at from all sides, and the tests read what was seen.
"""

import json
import re
import shutil
import subprocess
import sys
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from shared.page.numbers import Interval, reading
from shared.results import Results
from simulations.report import render, write_report
from simulations.report.flow import patient_flow, site_flow

pytestmark = pytest.mark.browser

RUNS = [
    "phantom", "lossy", "real", "private", "failed", "unmeasured", "hostile",
    "one", "two", "text-only", "one-round", "two-hundred", "largest",
]  # fmt: skip
ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
MANIFEST: dict[str, object] = {"versions": {"consilia": "0.1.0"}, "seeds": [7], "device": None}
BANNED = (
    r"significan|\bn/a\b|\bnan\b|(?-i:\bNone\b)|undefined|\binf\b|anonymous|guarantee|\bproves?\b"
    r"|state of the art|\bsafe to use\b|\btrend\b|no effect"
)
WIDTHS = (1440, 900, 390, 320)

CONTRAST = """() => {
 const lin = c => { c /= 255; return c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4 };
 const lum = a => .2126 * lin(a[0]) + .7152 * lin(a[1]) + .0722 * lin(a[2]);
 const rgb = s => (s.match(/[\\d.]+/g) || []).map(Number), bad = [];
 const ground = e => { for (; e; e = e.parentElement) {
   const c = rgb(getComputedStyle(e).backgroundColor);
   if (c.length && (c.length < 4 || c[3] > 0)) return c } return [255, 255, 255] };
 for (const e of document.querySelectorAll('body *')) {
  if (!e.getClientRects().length || ['SCRIPT', 'STYLE'].includes(e.tagName)
      || e.closest('.skip,.vh')) continue;
  if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
  const st = getComputedStyle(e), svg = e instanceof SVGElement;
  const fg = rgb(svg ? st.fill : st.color);
  const a = lum(fg), b = lum(ground(svg ? e.closest('svg').parentElement : e));
  const r = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (r < 4.5) bad.push([e.textContent.trim().slice(0, 30), +r.toFixed(2)]);
 } return bad }"""

LOOK = """() => {
 const all = s => [...document.querySelectorAll(s)], bottom = s => {
   const e = document.querySelector(s); return e ? e.getBoundingClientRect().bottom : 0 };
 const ids = all('[id]').map(e => e.id);
 return {
  fold: ['.pill', '#h-answer', '.answers>div:last-child', '#fig1 tr.mean'].map(bottom),
  answers: all('.answers>div').length, pill: document.querySelector('.pill').innerText,
  pillTone: document.querySelector('.pill').className,
  verdict: document.querySelector('#h-answer').innerText,
  data: document.querySelector('#run-data').textContent,
  fig1: all('#fig1 tbody tr:not(.axis):not(.mean)').map(
    r => [r.querySelector('.name').title || r.querySelector('.name').innerText,
          (r.querySelector('.n') || {}).innerText || '']),
  readings: all('#fig1 tr:not(.mean) .n,#fig3 tr:not(.mean) .n').map(e => e.innerText),
  orders: ['#fig1', '#fig2', '#fig3', '#fig5', '#fig8', '#fig12'].map(f =>
    all(f + ' .rows tbody tr:not(.axis):not(.mean)>th .name').map(t => t.textContent)),
  main: document.querySelector('main').innerText,
  captions: all('figure').map(f => (f.querySelector('figcaption .t') || {}).textContent || ''),
  unlisted: all('figure').filter(f => !f.querySelector('table,ol.flow')).map(f => f.id),
  unnamed: all('svg').filter(
    s => !s.closest('[aria-hidden=true],[role=img][aria-label]')).length,
  images: all('img').map(i => [i.alt, i.width, i.height, i.src.length]),
  headings: all('h1,h2,h3,h4,h5').map(h => +h.tagName[1]),
  twice: ids.filter((x, i) => ids.indexOf(x) !== i),
  dangling: all('a[href^="#"],use').map(a => a.getAttribute('href').slice(1))
    .filter(x => !document.getElementById(x)),
  cells: all('#fig5 tbody td.m svg svg').length - all('#fig5 tr.axis svg svg').length,
  regions: all('.wrap').filter(w => w.tabIndex !== 0 || !w.getAttribute('aria-label')).length,
  scripts: all('script').length, central: all('#fig2 .s-centralised').length,
  note: (document.querySelector('[role=note]') || {}).innerText || '',
  flows: ['#fig6', '#fig7'].map(f => all(f + ' .flow>li').map(l => l.innerText)),
  gallery: document.querySelector('#gallery').innerText,
 } }"""

PHONE = """() => {
 const all = s => [...document.querySelectorAll(s)], seen = e => e.getClientRects().length;
 const cut = '.rows tbody th,.rows tbody td,.answers dd,figcaption,.pill,h1,h3,dd,.b';
 return {
  text: Math.min(...all('svg text').filter(seen).map(t => {
    const k = t.ownerSVGElement.getScreenCTM();
    return parseFloat(getComputedStyle(t).fontSize) * Math.min(k.a, k.d) })),
  cut: all(cut).filter(e => seen(e) && e.scrollWidth > e.clientWidth + 1
    && !e.querySelector('svg')).map(e => e.innerText.slice(0, 60)),
  small: all('button,nav a,summary').filter(
    e => seen(e) && e.getBoundingClientRect().height < 24).map(e => e.innerText),
 } }"""


def find_chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    assert found, f"none of {', '.join(names)} is on the path; `make setup` installs Chromium"
    return found


def look_at(page: Page, uri: str) -> dict[str, Any]:
    """Open a page once and note everything that the tests ask about."""
    log: list[str] = []
    page.on("console", lambda message: log.append(message.text))
    page.on("pageerror", lambda error: log.append(str(error)))
    page.on("dialog", lambda dialog: (log.append("dialog"), dialog.dismiss()))
    page.on(
        "request",
        lambda r: None if r.url.split(":")[0] in ("file", "data", "blob") else log.append(r.url),
    )
    page.goto(uri)
    page.wait_for_timeout(60)
    seen: dict[str, Any] = page.evaluate(LOOK)
    page.keyboard.press("Tab")
    seen["tab"] = page.evaluate(
        "[document.activeElement.className, getComputedStyle(document.activeElement).outlineStyle]"
    )
    seen["light"] = page.evaluate(CONTRAST)
    background = "getComputedStyle(document.body).backgroundColor"
    page.locator("#theme").click()
    seen["clicked"] = page.evaluate(background)
    page.locator("#theme").click()
    page.evaluate("delete document.documentElement.dataset.theme")
    page.emulate_media(color_scheme="dark")
    seen["dark"] = page.evaluate(CONTRAST)
    page.emulate_media(color_scheme="dark", media="print")
    seen["print"] = page.evaluate(background)
    page.emulate_media(color_scheme="light", media="screen", forced_colors="active")
    fill = (
        "(e => e ? getComputedStyle(e).fill : '')(document.querySelector('#fig5 .fill,.key .fill'))"
    )
    seen["forced"] = (page.evaluate(fill), page.evaluate(background))
    page.emulate_media(color_scheme="light", media="null", forced_colors="none")
    seen["over"] = {}
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 844})
        seen["over"][width] = page.evaluate("document.documentElement.scrollWidth") - width
        if width == 390:
            seen |= page.evaluate(PHONE)
    page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    pdf = page.pdf(prefer_css_page_size=True, print_background=True)
    seen["pages"] = len(re.findall(rb"/Type\s*/Page[^s]", pdf))
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")
    shut = (
        "dispatchEvent(new Event('beforeprint')), document.querySelectorAll('details:not([open])')"
    )
    seen["shut"] = page.evaluate(f"({shut}).length")
    seen["log"] = log
    return seen


@pytest.fixture(scope="module")
def pages(runs: dict[str, Results]) -> dict[str, str]:
    return {name: render(runs[name], MANIFEST, digest="4be1" * 16) for name in RUNS}


@pytest.fixture(scope="module")
def observed(
    pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    folder, out = tmp_path_factory.mktemp("pages"), {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGS)
        for name, html in pages.items():
            path = folder / f"{name}.html"
            path.write_text(html, encoding="utf-8")
            context = browser.new_context(viewport={"width": 1440, "height": 900})
            out[name] = look_at(context.new_page(), path.as_uri())
            context.close()
            plain = browser.new_context(java_script_enabled=False)
            page = plain.new_page()
            page.goto(path.as_uri())
            out[name]["plain"] = (
                page.locator("figure").count(), page.locator("button:visible").count()
            )  # fmt: skip
            plain.close()
        browser.close()
    return out


@pytest.fixture(params=RUNS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def html(name: str, pages: dict[str, str]) -> str:
    return pages[name]


@pytest.fixture
def seen(name: str, observed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return observed[name]


@pytest.fixture
def data(seen: dict[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(seen["data"])
    return loaded


class Printed:
    """An interval read back from the page."""

    def __init__(self, text: str) -> None:
        found = re.findall(r"[+\u2212]?\d+\.\d+", text)[:3]
        self.value, self.low, self.high = (float(x.replace("\u2212", "-")) for x in found)
        self.unit = 10.0 ** -len(found[0].partition(".")[2])


def word_of(row: Interval) -> str:
    return reading(row)


def test_01_the_file_is_at_most_2_mb(html: str) -> None:
    assert len(html.encode()) <= 2_000_000


def test_02_no_style_attribute_no_handler_no_remote_address(html: str) -> None:
    markup = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    bad = r'\sstyle="|\son\w+="|(?:src|href)="(?!#|data:)|url\((?!data:)|@import'
    assert not re.search(bad, markup)


def test_03_the_policy_forbids_everything_by_default(html: str) -> None:
    assert "default-src 'none'" in unescape(html)
    assert "unsafe-" not in html


def test_04_two_builds_are_byte_identical(name: str, html: str, runs: dict[str, Results]) -> None:
    again = Results.model_validate_json(runs[name].model_dump_json())
    assert render(again, MANIFEST, digest="4be1" * 16) == html


def test_05_no_request_and_a_silent_console(seen: dict[str, Any]) -> None:
    assert seen["log"] == []


def test_06_the_first_screen_holds_the_answer(seen: dict[str, Any]) -> None:
    assert seen["answers"] == 6
    assert max(seen["fold"]) <= 900, seen["fold"]


def test_07_a_run_that_lost_a_site_is_never_plain_success(
    seen: dict[str, Any], data: dict[str, Any]
) -> None:
    cells = [c["state"] for s in data["sites"].values() for c in s["participation"]]
    if "missing" in cells or "refused" in cells:
        assert re.search("without|missing", seen["pill"])
        assert "good" not in seen["pillTone"]


def test_08_every_reading_follows_from_its_printed_interval(seen: dict[str, Any]) -> None:
    for text in seen["readings"]:
        assert word_of(Printed(text)) in text, text


def test_09_the_verdict_counts_what_figure_1_shows(seen: dict[str, Any]) -> None:
    rows = [text for _, text in seen["fig1"] if text]
    better, noise = (sum(word in text for text in rows) for word in ("better", "within noise"))
    worse = len(rows) - better - noise
    answer = seen["main"]
    if rows:
        assert f"{better} better, {noise} within noise, {worse} worse" in answer
    if len(rows) > 1 and better and not worse:
        assert f"helped {better} of the {len(rows)} " in seen["verdict"]
        assert not noise or f"At {noise} " in seen["verdict"]
    if not rows:
        assert "nothing could be measured" in seen["verdict"]


def test_10_figure_1_equals_the_embedded_numbers(
    seen: dict[str, Any], data: dict[str, Any]
) -> None:
    metric = data["main_metric"]
    for name, text in seen["fig1"]:
        if text:
            row, printed = (
                data["sites"][name]["differences"]["personal_minus_local"][metric],
                Printed(text),
            )
            for end in ("value", "low", "high"):
                assert abs(row[end] - getattr(printed, end)) <= printed.unit * 0.5001


def test_11_all_sites_in_every_figure_in_one_order(
    seen: dict[str, Any], data: dict[str, Any]
) -> None:
    assert len(seen["orders"][0]) == len(data["sites"])
    assert all(order == seen["orders"][0] for order in seen["orders"])


def test_12_no_forbidden_word_and_no_leftover(seen: dict[str, Any]) -> None:
    assert not re.findall(BANNED, seen["main"], re.IGNORECASE)


def test_13_minus_signs_are_true(seen: dict[str, Any]) -> None:
    assert not re.findall(r".{9}(?<![\w\d])-\d", seen["main"])


def test_14_figures_are_numbered_in_order(seen: dict[str, Any]) -> None:
    numbers = [int(re.match(r"Figure (\d+)\. \S", c)[1]) for c in seen["captions"]]  # type: ignore[index]
    assert numbers == list(range(1, 13))


def test_15_every_figure_carries_its_numbers(seen: dict[str, Any]) -> None:
    assert seen["unlisted"] == []


def test_16_every_drawing_is_hidden_or_named(seen: dict[str, Any]) -> None:
    assert seen["unnamed"] == 0


def test_17_pictures_have_words_sizes_and_at_most_6_kb(seen: dict[str, Any]) -> None:
    for alt, width, height, length in seen["images"]:
        assert alt
        assert width
        assert height
        assert length < 8200


def test_18_one_h1_and_no_skipped_level(seen: dict[str, Any]) -> None:
    levels = seen["headings"]
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_19_ids_are_unique_and_links_resolve(seen: dict[str, Any]) -> None:
    assert seen["twice"] == []
    assert seen["dangling"] == []


def test_20_one_mark_per_site_and_round(seen: dict[str, Any], data: dict[str, Any]) -> None:
    rounds = [len(s["participation"]) for s in data["sites"].values()]
    shown = max(rounds) if max(rounds) <= 40 else -(-max(rounds) // -(-max(rounds) // 40))
    assert seen["cells"] == shown * len(rounds)


def test_21_the_first_tab_is_the_skip_link_with_a_ring(seen: dict[str, Any]) -> None:
    focused, ring = seen["tab"]
    assert focused == "skip"
    assert ring != "none"


def test_22_scroll_regions_are_focusable_and_named(seen: dict[str, Any]) -> None:
    assert seen["regions"] == 0


def test_23_text_contrast_light(seen: dict[str, Any]) -> None:
    assert seen["light"] == []


def test_24_the_colour_button_works(seen: dict[str, Any]) -> None:
    assert seen["clicked"] == "rgb(19, 22, 25)"


def test_25_text_contrast_dark(seen: dict[str, Any]) -> None:
    assert seen["dark"] == []


def test_26_print_is_light_whatever_the_screen(seen: dict[str, Any]) -> None:
    assert seen["print"] == "rgb(255, 255, 255)"


def test_27_no_sideways_scroll(seen: dict[str, Any]) -> None:
    assert {w: o for w, o in seen["over"].items() if o > 0} == {}


def test_28_figure_text_is_at_least_12_px_on_a_phone(seen: dict[str, Any]) -> None:
    assert seen["text"] is None or seen["text"] >= 12


def test_29_no_clipped_text_on_a_phone(seen: dict[str, Any]) -> None:
    assert seen["cut"] == []


def test_30_targets_are_at_least_24_px(seen: dict[str, Any]) -> None:
    assert seen["small"] == []


def test_31_complete_without_scripts_and_no_dead_button(seen: dict[str, Any]) -> None:
    assert seen["plain"] == (12, 0)


def test_32_prints_on_at_most_14_pages(name: str, seen: dict[str, Any]) -> None:
    # 60 sites have 60 cards and 60 rows in ten figures and tables: more than 14 pages hold.
    most = 40 if name == "largest" else 14
    assert 0 < seen["pages"] <= most


def test_33_printing_opens_every_table(seen: dict[str, Any]) -> None:
    assert seen["shut"] == 0


def test_34_marks_stay_visible_in_forced_colours(seen: dict[str, Any]) -> None:
    mark, background = seen["forced"]
    assert mark
    assert mark != background


def test_35_phantom_data_say_so(name: str, seen: dict[str, Any], data: dict[str, Any]) -> None:
    assert ("Phantom data" in seen["note"]) == (data["origin"]["origin"] == "phantom")


def test_36_a_hostile_name_is_text(
    observed: dict[str, dict[str, Any]], pages: dict[str, str]
) -> None:
    seen = observed["hostile"]
    assert seen["scripts"] == 2
    assert any(name == "<script>alert(1)</script>" for name, _ in seen["fig1"])
    assert "<script>alert" not in pages["hostile"]


def test_37_without_an_origin_there_is_no_picture(runs: dict[str, Results], tmp_path: Path) -> None:
    data = json.loads(runs["phantom"].model_dump_json())
    del data["origin"]
    (tmp_path / "results.json").write_text(json.dumps(data))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<img" not in page
    assert "data:image" not in page
    assert "Small rounded opacity" not in page
    assert "No pictures: the data set declares neither" in page


def test_38_every_shape_of_run_was_looked_at(observed: dict[str, dict[str, Any]]) -> None:
    assert list(observed) == RUNS
    assert observed["failed"]["pill"] == "Failed in round 1"


def test_39_flow_numbers_add_up(name: str, runs: dict[str, Results]) -> None:
    for stages in (site_flow(runs[name]), patient_flow(runs[name])):
        for stage, after in pairwise(stages):
            if after.of is None:
                assert stage.n - sum(n for n, _ in stage.out) == after.n


def test_41_centralised_is_shown_in_a_simulation(observed: dict[str, dict[str, Any]]) -> None:
    assert observed["phantom"]["central"] > 7
    assert "Centralised: one adapter trained on all data" in observed["phantom"]["main"]
    assert observed["one"]["central"] == 0
    assert "no centralised comparison" in observed["one"]["main"].lower()


def test_42_no_exact_count_under_the_minimum(observed: dict[str, dict[str, Any]]) -> None:
    seen = observed["private"]
    counts = {
        "n",
        "images",
        "texts",
        "pairs",
        "patients",
        "positives",
        "gallery_texts",
        "gallery_images",
    }

    def walk(value: Any, key: str = "") -> None:
        if isinstance(value, dict):
            for k, v in value.items():
                walk(v, k) if k != "mean" else None
        elif isinstance(value, list):
            for item in value:
                walk(item)
        elif key in counts:
            assert value == "under 20" or (value % 10 == 0 and value != 10), (key, value)

    walk(json.loads(seen["data"]))
    text = seen["main"].replace("\u202f", "")
    nouns = "test patients|patients|texts|images|pictures|to train|to choose models|kept for test"
    for count in re.findall(rf"(\d+) (?:{nouns})", text):
        assert int(count) == 150 or (int(count) % 10 == 0 and int(count) >= 20), count
    assert "under 20" in text
    assert "Kestrel" in text


def test_43_renders_in_a_second_without_torch_flower_matplotlib(
    runs: dict[str, Results], tmp_path: Path
) -> None:
    (tmp_path / "results.json").write_text(runs["lossy"].model_dump_json())
    code = (
        "import sys, time; from pathlib import Path; from simulations.report import write_report\n"
        "start = time.perf_counter(); write_report(Path(sys.argv[1]))\n"
        "took = time.perf_counter() - start\n"
        "heavy = {'torch', 'flwr', 'matplotlib', 'transformers'} & set(sys.modules)\n"
        "assert took < 1, took\nassert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
