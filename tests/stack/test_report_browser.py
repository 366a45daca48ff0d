"""The report in a real browser: headless Chromium, a file opened from disk."""

from __future__ import annotations

import http.server
import json
import os
import random
import threading
import time
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Error, sync_playwright
from report_runs import SCRIPT, _notes, game, write_lines, write_run

from openrlhf_medical.report.outcomes import OUTCOMES, outcome_of
from openrlhf_medical.report.write import write_report

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
DESKTOP, TABLET, PHONE = {"width": 1440, "height": 900}, {"width": 768, "height": 1024}, {"width": 360, "height": 780}
LOAD_S = 3.0
MOST_BYTES = 25e6


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        message = f"{CHROMIUM} is missing: apt-get install the packages of launch/pins/apt.txt"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    with sync_playwright() as playwright:  # an empty user folder of its own
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def folder(runs):
    """A run with everything in it: arena, an evaluation, warnings, a broken line."""
    folder = write_run(runs / "example", steps=5, games_per_step=16, held_out=8)
    cell = {
        "attacker": "step 5",
        "assessor": "base",
        "games": 40,
        "attacker_wins": 30,
        "rate": 0.75,
        "low": 0.6,
        "high": 0.9,
    }
    arena = {"attackers": ["step 5", "base"], "assessors": ["base"], "matrix": [cell], "cycles": [["a", "b", "c"]],
             "ratings": [{"player": "step 5", "role": "attacker", "elo": 1031.4, "low": 990, "high": 1071}],
             }  # fmt: skip
    (folder / "arena.json").write_text(json.dumps(arena))
    metrics = {"flag_accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}
    (folder / "evaluation.json").write_text(json.dumps({"metrics": metrics}))
    with (folder / "games.jsonl").open("a") as file:
        file.write('{"step": 9, "ga')
    return folder


@pytest.fixture(scope="module")
def report(folder):
    return write_report(folder)[0]


@pytest.fixture(scope="module")
def rows(folder):
    return [json.loads(line) for line in (folder / "games.jsonl").read_text().splitlines()[:-1]]


class Opened:
    """A page, and all that it said and asked for."""

    def __init__(self, browser, file, viewport=DESKTOP, theme="light", address=""):
        self.context = browser.new_context(viewport=viewport, color_scheme=theme, offline=True)
        self.page = self.context.new_page()
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.address = f"file://{file}{address}"
        self.page.goto(self.address)

    def __enter__(self):
        self.until("performance.getEntriesByName('games-ready').length || !document.getElementById('games')")
        return self

    def __exit__(self, *problem):
        self.context.close()

    def until(self, condition, seconds=60):
        """The page's own policy forbids Playwright's wait_for_function, which is an eval."""
        end = time.monotonic() + seconds
        while not (value := self.now(condition)):
            assert time.monotonic() < end, f"{condition} did not come true; {self.said}"
            time.sleep(0.05)
        return value

    def now(self, expression):
        try:
            return self.page.evaluate(expression)
        except Error as error:  # the page is loading itself again
            assert "context was destroyed" in str(error)
            return None

    def draw_all(self):
        self.until("performance.getEntriesByName('charts-ready').length")
        self.page.evaluate("document.querySelectorAll('main details').forEach((details) => (details.open = true))")
        for chart in self.page.locator("[data-chart]").all():
            chart.scroll_into_view_if_needed()
        self.until("[...document.querySelectorAll('[data-chart]')].every((chart) => chart.querySelector('.main-svg'))")

    def until_count(self, shown, total):
        self.until(f"document.getElementById('count').textContent === '{shown} of {total} games'", 10)

    def text(self, selector):
        return self.page.locator(selector).inner_text()

    def marked(self, tag):
        return " ".join(self.page.locator(f"#notes {tag}").all_inner_texts()).split()


def test_no_error_and_no_request_whatever_is_opened(browser, report):
    with Opened(browser, report) as opened:
        opened.draw_all()
        opened.page.locator("#rows button").first.click()
        opened.page.locator("#game-title").wait_for()
        opened.page.locator("#filter-text").fill("the")
        opened.page.locator("#theme").click()
        opened.until("document.getElementById('count').textContent.includes(' of ')")
        assert opened.said == [] and opened.asked == [f"file://{report}"]
        assert opened.page.locator("[data-chart]").count() > 25


def test_the_policy_keeps_even_a_planted_script_from_the_network(browser, report):
    hits = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_response(200)
            self.end_headers()

    server = http.server.HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    plant = """async (address) => {
      document.body.append(Object.assign(document.createElement("img"), {src: address + "/img"}));
      document.body.append(Object.assign(document.createElement("script"), {src: address + "/script"}));
      document.body.append(Object.assign(document.createElement("script"), {textContent: "window.broken = 1"}));
      await fetch(address + "/fetch").catch(() => null);
      await new Promise((done) => setTimeout(done, 300));
      return window.broken === undefined;
    }"""
    try:
        with Opened(browser, report) as opened:
            opened.context.set_offline(False)
            assert opened.page.evaluate(plant, address)
            assert hits == [] and sum("Content Security Policy" in line for line in opened.said) >= 4
            other = opened.context.new_page()  # that the listener can be reached at all
            other.goto(f"{address}/seen")
            assert hits[0] == "/seen"
    finally:
        server.shutdown()


def test_hostile_text_is_shown_and_never_run(browser, runs):
    folder = write_run(runs / "hostile", steps=1, games_per_step=1)
    rng = random.Random(0)
    write_lines(folder / "games.jsonl", [game(0, i, _notes(), rng, extra=SCRIPT) for i in range(8)])
    write_lines(folder / "metrics.jsonl", [{"step": s, f"reward/attacker/{SCRIPT}": 1.0 + s} for s in range(2)])
    with Opened(browser, write_report(folder)[0]) as opened:
        opened.draw_all()
        opened.page.locator("#rows button").nth(1).click()
        opened.page.locator("#game-title").wait_for()
        assert SCRIPT in opened.text("#game") and SCRIPT in opened.text("#game .facts")
        assert opened.page.evaluate("window.broken") is None and opened.said == []
        assert opened.page.locator("img").count() == 0


def test_filters_by_mouse(browser, report, rows):
    with Opened(browser, report) as opened:
        page = opened.page
        opened.until_count(len(rows), len(rows))
        page.select_option("#filter-category", "adversarial_benign")
        page.select_option("#filter-outcome", "attacker_won")
        found = [r for r in rows if r["category"] == "adversarial_benign" and outcome_of(r) == "attacker_won"]
        assert found
        opened.until_count(len(found), len(rows))
        assert set(page.locator("#rows .badge").all_inner_texts()) == {OUTCOMES["attacker_won"]}
        page.reload()  # the address keeps what was chosen
        opened.until("performance.getEntriesByName('games-ready').length")
        opened.until_count(len(found), len(rows))
        page.locator("#clear-filters").click()
        page.select_option("#filter-step", "2")
        page.select_option("#filter-status", "forfeit")
        opened.until_count(sum(r["step"] == 2 and r["status"] == "forfeit" for r in rows), len(rows))
        page.locator("#clear-filters").click()
        rare = next(r["attacker"]["thinking"] for r in rows if r["attacker"])
        page.locator("#filter-text").fill(rare.upper())
        opened.until_count(1, len(rows))


def test_a_game_by_keyboard(browser, report, rows):
    with Opened(browser, report) as opened:
        page, press = opened.page, opened.page.keyboard.press
        page.locator("#filter-category").focus()
        press("a")  # adversarial benign
        opened.until("document.getElementById('filter-category').value === 'adversarial_benign'")
        for _ in range(40):
            press("Tab")
            if page.evaluate("document.activeElement.matches('#rows button')"):
                break
        press("ArrowDown")
        shown = [r for r in rows if r["category"] == "adversarial_benign" and r["presented_note"]]
        while True:  # down to the first game with a note
            step, index = map(int, page.evaluate("document.activeElement.ariaLabel.match(/-?\\d+/g)")[::-1])
            chosen = next(r for r in rows if (r["step"], r["game_idx"]) == (step, index))
            if chosen in shown:
                break
            press("ArrowDown")
        press("Enter")
        opened.until("document.activeElement.id === 'game-title'")
        removed, added = opened.marked("del"), opened.marked("ins")
        assert removed and added
        assert set(added) <= set(chosen["presented_note"].split()) | {w for a in added for w in [a]}
        before, after = (text.split() for text in page.locator("#notes .note").all_inner_texts())
        assert before == chosen["seed_note"].split() and after == chosen["presented_note"].split()
        press("Tab")
        for _ in range(12):
            if page.evaluate("document.activeElement.dataset.before") == "reference":
                break
            press("Tab")
        press("Enter")
        assert page.locator("[data-before=reference]").get_attribute("aria-pressed") == "true"
        assert page.locator("#notes .note").first.inner_text().split() == chosen["reference_note"].split()
        assert chosen["assessor"]["thinking"] in opened.text("#game")
        page.get_by_role("button", name="Back to the list").focus()
        press("Enter")
        assert page.evaluate("document.activeElement.ariaLabel") == f"Open game {index} of step {step}"


def test_exactly_the_changed_words_are_marked(browser, runs):
    folder = write_run(runs / "marked", steps=1, games_per_step=1)
    row = game(0, 3, _notes(), random.Random(1))
    row |= {
        "seed_note": "He takes 5 mg \U0001f600 of warfarin daily.",
        "presented_note": "He takes 50 mg \U0001f600 of warfarin.",
    }
    write_lines(folder / "games.jsonl", [row | {"status": "ok", "case": "wrong"}])
    with Opened(browser, write_report(folder)[0]) as opened:
        opened.page.locator("#rows button").click()
        opened.page.locator("#game-title").wait_for()
        assert (opened.marked("del"), opened.marked("ins")) == (["5", "daily"], ["50"])
        assert "2 words changed" in opened.text("#game")


def test_ten_thousand_games(browser, runs):
    folder = write_run(runs / "big", steps=100, games_per_step=100, held_out=0)
    file, page, _ = write_report(folder)
    assert page.games.shown == 10_000 and file.stat().st_size < MOST_BYTES
    seconds = []
    for _ in range(3):  # the quickest: a machine that does something else is no slower page
        with Opened(browser, file) as opened:
            seconds.append(opened.page.evaluate("performance.getEntriesByName('games-ready')[0].startTime") / 1000)
            assert opened.page.locator("#rows tr").count() == 15 and opened.text("#count").startswith("10,000 of")
        if seconds[-1] < LOAD_S:
            break
    print(f"10,000 games: {min(seconds):.2f} s, {file.stat().st_size / 1e6:.1f} MB")
    assert min(seconds) < LOAD_S
    with Opened(browser, file, address="#step=57&page=2") as opened:
        assert opened.text("#count") == "100 of 10,000 games" and opened.text("#page-of") == "Page 3 of 7"
        opened.page.locator("#last-page").click()
        assert opened.page.locator("#rows tr").count() == 10


@pytest.fixture(scope="module")
def drawn(browser, report):
    """The report with every chart drawn and a game open: what takes longest, for several tests."""
    with Opened(browser, report) as opened:
        opened.draw_all()
        opened.page.locator("#rows button").nth(3).click()
        opened.page.locator("#game-title").wait_for()
        yield opened


@pytest.mark.parametrize(("theme", "viewport"), [("light", DESKTOP), ("dark", PHONE)], ids=["light", "dark"])
def test_no_serious_accessibility_problem(drawn, theme, viewport):
    drawn.page.emulate_media(color_scheme=theme)
    drawn.page.set_viewport_size(viewport)
    assert serious_problems(drawn.page) == []


def serious_problems(page):
    # What is inside a chart is one image to a screen reader, with words and a table of numbers beside it.
    found = Axe().run(page, {"exclude": [[".main-svg"]]}, {"resultTypes": ["violations"]}).response["violations"]
    bad = [violation for violation in found if violation["impact"] in ("serious", "critical")]
    return [(one["id"], [node["html"][:200] for node in one["nodes"]][:3]) for one in bad]


@pytest.mark.parametrize("viewport", [DESKTOP, TABLET, PHONE], ids=["desktop", "tablet", "phone"])
def test_nothing_scrolls_sideways(drawn, viewport):
    drawn.page.set_viewport_size(viewport)
    wide = """(width) => [...document.querySelectorAll("main *")].filter((node) => !node.closest(".scroll, svg"))
      .filter((node) => node.getBoundingClientRect().right > width + 1).map((node) => node.outerHTML.slice(0, 90))"""
    drawn.until(f"document.documentElement.scrollWidth <= {viewport['width']}", 5)
    assert drawn.page.evaluate(wide, viewport["width"]) == []


def test_every_chart_has_its_numbers_and_words(drawn):
    drawn.page.set_viewport_size(DESKTOP)
    charts = """[...document.querySelectorAll("figure")].map((figure) =>
      [figure.querySelectorAll("tbody tr").length, figure.querySelector("[role=img]").ariaLabel])"""
    found = drawn.page.evaluate(charts)
    assert len(found) > 25 and all(rows and "step" in words for rows, words in found)


def test_pages_of_a_sweep_and_a_comparison_are_accessible_too(browser, runs):
    sweep = runs / "sweep"
    for name in ("base-s0", "lr-s0"):
        write_run(sweep / name, steps=2, games_per_step=1, name=name)
    (sweep / "summary.csv").write_text("variant,mean\nbase,0.5\n")
    with Opened(browser, write_report(sweep)[0], PHONE, "dark") as opened:
        opened.draw_all()
        lines = "document.querySelector('[data-chart] .scatterlayer').querySelectorAll('.trace').length"
        assert opened.until(lines) == 4  # two runs, training and held out
        opened.page.get_by_role("checkbox", name="lr-s0").uncheck()
        opened.until(f"{lines} === 2")
        assert serious_problems(opened.page) == [] and opened.said == []


def test_light_and_dark(browser, report):
    background = "getComputedStyle(document.body).backgroundColor"
    with Opened(browser, report, theme="dark") as opened:
        dark = opened.page.evaluate(background)
        opened.page.locator("#theme").click()
        assert opened.text("#theme") == "Theme: light" and opened.page.evaluate(background) != dark
        opened.page.locator("#theme").click()
        assert opened.text("#theme") == "Theme: dark" and opened.page.evaluate(background) == dark


def test_a_live_page_loads_itself_again_and_keeps_what_was_chosen(browser, runs):
    folder = write_run(runs / "live", steps=4, games_per_step=8)
    (folder / "checkpoints" / "final").rmdir()
    file, *_ = write_report(folder, live=1)
    with Opened(browser, file) as opened:
        page = opened.page
        page.locator("#filter-category").focus()  # while a filter has the focus nothing is loaded again
        page.select_option("#filter-category", "vanilla_benign")
        page.locator("#rows button").nth(1).click()
        title = opened.until("document.getElementById('game-title')?.textContent")
        (folder / "checkpoints" / "final").mkdir()
        write_report(folder, live=1)
        opened.until("!document.documentElement.dataset.live && document.getElementById('game-title')?.textContent")
        assert opened.text("#game-title") == title
        assert page.locator("#filter-category").input_value() == "vanilla_benign"
        assert "finished" in opened.text("header") and page.locator("#pause").count() == 0
