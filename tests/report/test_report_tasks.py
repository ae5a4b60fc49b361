"""What people come for, done as they would: by clicks, counted, and by the browser's own ways."""

import csv
import functools
import http.server
import io
import json
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytestmark = pytest.mark.browser
LABEL = "kind.of <thing>"


class Person:
    """Uses a page and counts clicks."""

    def __init__(self, page):
        self.page, self.clicks = page, 0

    def click(self, place, **how):
        (self.page.locator(place).first if isinstance(place, str) else place).click(**how)
        self.clicks += 1


@pytest.fixture(scope="session")
def latents(run):
    return pq.read_table(run.features.path / "latents.parquet").to_pydict()


def surest(run, latents, name):
    """The latents that tell a class apart best, by hand."""
    rows = pq.read_table(run.features.path / "label_statistics.parquet").to_pylist()
    larger = [row for row in rows if row["class"] == name and row["auroc"] > 0.5]
    mine = [row for row in larger if latents["status"][row["latent"]] in ("ok", "dense")]
    sure = [
        r for r in mine if latents["image_count"][r["latent"]] >= 8 and latents[f"{LABEL}.q_value"][r["latent"]] <= 0.05
    ]
    return [row["latent"] for row in sorted(sure, key=lambda row: (-np.float32(row["auroc_low"]), row["latent"]))]


def test_a_latent_of_a_class_is_two_clicks_from_the_landing_page(reader, run, latents):
    person = Person(reader.open("index.html"))
    person.click("#search")
    person.page.keyboard.type("PLAIN")
    wanted = surest(run, latents, "plain")
    person.page.wait_for_selector("#answers .class-latent")
    found = person.page.locator("[data-class=plain] .class-latent")
    assert [int(one.get_attribute("data-latent")) for one in found.all()] == wanted[:6]
    person.click(found.first)
    person.page.wait_for_selector(f"body[data-ready='{wanted[0]}']")
    assert person.clicks == 2


def test_a_latent_is_two_clicks_from_an_image(reader, run):
    person = Person(reader.open("image.html#image=2"))
    box = person.page.locator("#picture .picture").bounding_box()
    shown = person.page.locator("#shown").inner_text()
    patch = int(np.argmax((run.z[2] > 0).sum(1)))
    row, column = divmod(patch, run.shape.grid[1])
    where = {
        "x": box["width"] * (column + 0.5) / run.shape.grid[1],
        "y": box["height"] * (row + 0.5) / run.shape.grid[0],
    }
    person.click("#picture .picture", position=where)
    person.page.wait_for_selector(f"body[data-patch='{patch}']")
    first = person.page.locator("#patch-latents li").first.get_attribute("data-latent")
    assert person.page.locator("#shown").inner_text().startswith(f"Heat: latent {first},"), shown
    person.click("#patch-latents a")
    person.page.wait_for_selector(f"body[data-ready='{first}']")
    assert person.clicks == 2


def test_one_box_finds_numbers_classes_statuses_and_files(reader, run):
    page = reader.open("index.html")

    def answers(text):
        page.fill("#search", text)
        page.wait_for_selector(f"#answers[data-answers={json.dumps(text)}]")
        return page.locator("#answers")

    assert answers("42").locator("a.found").get_attribute("href") == "latent.html#latent=42"
    assert answers("latent 7").locator("a.found").get_attribute("href") == "latent.html#latent=7"
    assert "they go from 0 to 69" in answers("70").inner_text()
    assert answers("dead").locator("a.found").get_attribute("href") == "index.html#status=dead"
    assert answers("emoji").locator(".class").count() == 1
    files = [i for i in range(run.shape.n_images) if "sharp#1" in run.pictures.path(i)]
    found = answers("sharp#1").locator(".thumb").evaluate_all("all => all.map(one => one.getAttribute('href'))")
    assert found == [f"image.html#image={i}" for i in files]
    assert "Nothing here is called “qqq”" in answers("qqq").inner_text()
    answers("42")
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-ready='42']")


@pytest.mark.slow
def test_the_table_searches_the_classes_of_every_label(reader, latents):
    page = reader.open("index.html#q=emoji")
    wanted = [i for i, name in enumerate(latents[f"{LABEL}.best_class"]) if name and "emoji" in name]
    assert page.locator("#count").inner_text() == f"{len(wanted)} of 70"
    page.locator("#chips button").click()
    assert page.locator("#count").inner_text() == "70 of 70"


NUMBERS = {
    ("1", "share"): 0.01,
    ("1%", "share"): 0.01,
    ("0,5 %", "share"): 0.005,
    ("5%", "unit"): 0.05,
    ("0,01", "value"): 0.01,
    ("1,000", "count"): 1000,
    ("1e-3", "value"): 0.001,
    ("−2", "value"): -2,
    (".5", "value"): 0.5,
}


def test_numbers_are_read_as_people_write_them(reader):
    page = reader.open("index.html")
    read = "([text, form]) => saetool.numbers.read(text, form)"
    for typed, value in NUMBERS.items():
        assert page.evaluate(read, list(typed)) == {"value": pytest.approx(value)}, typed
    for typed in (["many", "value"], ["1..2", "value"], ["1,2,3", "unit"], ["5%", "count"]):
        assert typed[0] in page.evaluate(read, typed)["error"]


def test_a_range_that_is_not_understood_says_so_and_changes_nothing(reader, latents):
    page = reader.open("index.html")
    page.select_option("#range-column", label="Images")
    assert page.locator("#range-unit").inner_text() == "%"
    for low, high, said in [("many", "", "“many” is not a number"), ("20", "10", "the first is larger")]:
        page.fill("#range-low", low)
        page.fill("#range-high", high)
        page.get_by_role("button", name="Add").click()
        assert said in page.locator("#range-error").inner_text()
        assert page.locator("#count").inner_text() == "70 of 70"
    page.fill("#range-low", "20")
    page.fill("#range-high", "40%")
    page.get_by_role("button", name="Add").click()
    inside = [i for i in range(70) if 0.2 <= np.float32(latents["image_frequency"][i]) <= 0.4]
    assert 0 < len(inside) < 70
    assert page.locator("#count").inner_text() == f"{len(inside)} of 70"
    assert page.locator("#range-error").is_hidden()


def test_steps_follow_the_list_and_back_returns_to_its_place(reader, latents):
    page = reader.open("index.html")
    page.get_by_role("button", name="Max", exact=True).click()
    order = np.lexsort((np.arange(70), -np.nan_to_num(np.array(latents["max"], float), nan=-1))).tolist()
    page.locator(".view").evaluate("view => { view.scrollTop = 1500; }")
    place = 27
    page.wait_for_selector(f".row[data-latent='{order[place]}']")
    page.locator(f".row[data-latent='{order[place]}'] a").click()
    page.wait_for_selector(f"body[data-ready='{order[place]}']")
    page.wait_for_selector("#place a")
    assert page.locator("#place").inner_text() == f"{place + 1} of 70 in this list"
    depth = page.evaluate("history.length")
    for step in (1, 2, 3):
        page.locator("#next").click()
        page.wait_for_selector(f"body[data-ready='{order[place + step]}']")
    assert page.evaluate("history.length") == depth
    page.go_back()
    page.wait_for_selector("body[data-ready=true]")
    assert page.locator("[aria-sort=descending]").inner_text() == "Max"
    assert page.locator(".view").evaluate("view => view.scrollTop") == pytest.approx(1500, abs=1)
    assert page.locator(f".row[data-latent='{order[place]}']").is_visible()


@pytest.mark.slow
def test_a_list_that_the_session_does_not_hold_comes_from_the_table(reader, latents):
    page = reader.open("latent.html#latent=4&list=status%3Drare")
    page.wait_for_selector("#place a")
    rare = [i for i in range(70) if latents["status"][i] == "rare"]
    assert page.locator("#place").inner_text() in (
        f"Not one of the {len(rare)} in this list",
        f"{rare.index(4) + 1 if 4 in rare else 0} of {len(rare)} in this list",
    )
    page.locator("#next").click()
    page.wait_for_selector(f"body[data-ready='{rare[0] if 4 not in rare else rare[(rare.index(4) + 1) % len(rare)]}']")


def test_rows_are_links_and_selected_text_opens_nothing(reader):
    page = reader.open("index.html")
    context = page.context
    row = page.locator(".body .row").first
    for place, how in [(row.locator("a"), {"modifiers": ["Control"]}), (row.locator("a"), {"button": "middle"})]:
        with context.expect_page() as opened:
            place.click(**how)
        opened.value.close()
    with context.expect_page() as opened:
        row.locator(".cell.number").first.click(modifiers=["Control"])
    opened.value.close()
    cell = row.locator(".cell.number").nth(1).bounding_box()
    page.mouse.move(cell["x"] + cell["width"] - 12, cell["y"] + cell["height"] / 2)
    page.mouse.down()
    page.mouse.move(cell["x"] - 60, cell["y"] + cell["height"] / 2, steps=5)
    page.mouse.up()
    assert page.evaluate("getSelection().toString()") != ""
    assert page.url.endswith("index.html")
    for link in ("#presets a", "a[data-random]", ".strip", "#junk a"):
        assert page.locator(link).first.get_attribute("href")


def test_a_link_to_a_latent_loads_its_own_chunk_and_nothing_large(reader):
    reader.open("latent.html#latent=40").wait_for_selector("body[data-ready='40']")
    data = {url.split("/data/")[1] for url in reader.requests if "/data/" in url}
    assert data == {"site.js", "command.js", "latents/5.js"}


def test_two_latents_are_compared_by_what_they_fire_on(reader, run):
    a, b = 0, 8
    page = reader.open(f"compare.html#latents={a},{b}")
    fires = (run.z > 0).any(1)
    both, only_a, only_b = (
        (fires[:, a] & fires[:, b]).sum(),
        (fires[:, a] & ~fires[:, b]).sum(),
        (fires[:, b] & ~fires[:, a]).sum(),
    )
    directions = np.random.default_rng(3).integers(-127, 128, (run.shape.n_latents, 16)).astype(float)
    cosine = directions[a] @ directions[b] / np.linalg.norm(directions[a]) / np.linalg.norm(directions[b])
    words = dict(zip(*(page.locator(f".pair {tag}").all_inner_texts() for tag in ("dt", "dd")), strict=True))
    assert float(words["Cosine of directions"].replace("−", "-")) == pytest.approx(cosine, abs=6e-4)
    assert [words[key] for key in ("Both fire", f"Only {a}", f"Only {b}")] == [str(n) for n in (both, only_a, only_b)]
    examples = pq.read_table(run.features.path / "examples.parquet").to_pylist()
    for k, (one, other) in enumerate([(a, b), (b, a)]):
        alone = {row["image"] for row in examples if row["latent"] == one and not fires[row["image"], other]}
        shown = page.locator(".alone").nth(k).locator(".crop").evaluate_all("all => all.map(c => +c.dataset.image)")
        assert set(shown) == alone
        assert len(shown) == len(alone)
    page.fill("#add-latent", "2")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"body[data-ready='{a},{b},2']")
    assert page.locator(".pair").count() == 3
    page.fill("#add-latent", "soup")
    page.keyboard.press("Enter")
    page.wait_for_selector("#missing:visible")
    assert "There is no latent soup" in page.locator("#missing").inner_text()


@pytest.mark.slow
def test_what_one_sees_can_be_saved(reader, latents):
    page = reader.open("index.html#status=rare&sort=-max")

    def saved(button):
        with page.expect_download() as download:
            page.locator(button).click()
        return download.value.path().read_bytes()

    rows = list(csv.DictReader(io.StringIO(saved("#csv").decode())))
    rare = sorted((i for i in range(70) if latents["status"][i] == "rare"), key=lambda i: (-latents["max"][i], i))
    assert [int(row["latent"]) for row in rows] == rare
    assert [float(row["max"]) for row in rows] == pytest.approx([latents["max"][i] for i in rare], rel=1e-6)
    assert not any(row[f"{LABEL}.best_class"].startswith(("=", "+", "@")) for row in rows)
    assert Image.open(io.BytesIO(saved("#png"))).width > 300
    page = reader.open("latent.html#latent=8")
    found = json.loads(saved("#json"))
    assert found["latent"] == 8
    assert found["numbers"]["max"] == pytest.approx(latents["max"][8], rel=1e-6)
    assert saved("#histogram-svg").startswith(b"<svg")
    page = reader.open("latent.html#latent=8&list=status%3Drare")
    page.locator("#copy").click()
    page.wait_for_selector("#said:visible")
    words = page.locator("#said").inner_text()
    assert words == "The link is copied." or words.endswith("latent.html#latent=8")


@pytest.mark.slow
def test_a_strip_is_saved_where_the_browser_allows_it_and_else_it_is_said(reader, browser, site):
    page = reader.open("latent.html#latent=8")
    page.evaluate("window.print = () => { window.printed = document.body.className; }")
    page.locator("#save").click()
    page.wait_for_selector("#said:visible")
    assert "print the strip" in page.locator("#said").inner_text()
    assert "print-strip" in page.evaluate("window.printed")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site.path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/latent.html#latent=8")
        page.wait_for_selector("body[data-ready='8']")
        with page.expect_download() as download:
            page.locator("#save").click()
        picture = np.asarray(Image.open(download.value.path()).convert("L"))
        assert picture[:128, :128].std() > 5, "the first crop is in it"
        context.close()
    finally:
        server.shutdown()


@pytest.mark.slow
def test_a_tap_on_the_plane_shows_a_latent_with_its_link(browser, site):
    context = browser.new_context(has_touch=True, viewport={"width": 390, "height": 844}, offline=True)
    page = context.new_page()
    page.goto(f"file://{site.path}/index.html")
    page.wait_for_selector("body[data-ready]")
    plane = page.locator(".plane")
    plane.scroll_into_view_if_needed()
    box = plane.bounding_box()
    for across in np.linspace(0.2, 0.95, 40):
        for down in (0.2, 0.4, 0.6, 0.8):
            page.touchscreen.tap(box["x"] + box["width"] * across, box["y"] + box["height"] * down)
            if page.locator(".tip").is_visible():
                latent = page.locator(".tip strong").inner_text().removeprefix("Latent ")
                page.locator(".tip").tap()
                page.wait_for_selector(f"body[data-ready='{latent}']")
                context.close()
                return
    pytest.fail("no tap showed anything")


@pytest.mark.slow
def test_junk_links_list_as_many_latents_as_they_say(reader):
    page = reader.open("index.html")
    links = page.locator("#junk a")
    assert links.count() >= 3
    for link in links.all():
        name, count = link.inner_text().rsplit(": ", 1)
        link.click()
        assert page.locator("#count").inner_text() == f"{count} of 70", name


@pytest.mark.slow
def test_images_are_found_by_class_and_by_name(reader, run):
    page = reader.open("images.html")
    assert page.locator("#count").inner_text() == "24 of 24 images"
    page.locator("[data-label='0']").select_option(index=1)
    assert page.locator("#count").inner_text() == f"{len(range(0, 24, 7))} of 24 images"
    page.reload()
    page.wait_for_selector("body[data-ready]")
    shown = page.locator(".thumb").evaluate_all("all => all.map(one => +one.dataset.image)")
    assert shown == list(range(0, 24, 7))
    page.locator("[data-label='0']").select_option(index=0)
    page.locator("#held-out").select_option("1")
    assert page.locator("#count").inner_text() == f"{len(range(0, 24, 5))} of 24 images"
    page.fill("#find", "nothing of the kind")
    page.wait_for_selector("#empty:visible")


@pytest.mark.slow
def test_images_are_ranked_by_what_sets_them_apart(reader, run):
    page = reader.open("image.html#image=2")
    count = (run.z > 0).any(1).sum(0)
    mine = run.z[2].max(0)
    scores = {"activation": mine, "distinctive": mine * np.log(24 / np.maximum(count, 1)), "contribution": mine}
    for name, score in scores.items():
        page.locator("#rank").select_option(name)
        wanted = [i for i in np.lexsort((np.arange(70), -score)) if mine[i] > 0]
        found = [int(row.get_attribute("data-latent")) for row in page.locator("#image-latents li").all()]
        assert found == wanted[: len(found)], name


@pytest.mark.slow
def test_many_classes_do_not_push_everything_away(reader):
    page = reader.open("latent.html#latent=8")
    assert page.locator("#labels > div > .scroll tbody tr").count() == 6
    assert page.locator("#labels details summary").inner_text() == "1 more class"
    assert page.locator("#labels details tbody tr").first.is_hidden()


@pytest.mark.slow
def test_on_paper_the_table_is_not_cut(reader):
    page = reader.open("index.html")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 720, "height": 1000})
    assert page.locator(".controls").is_hidden()
    right = page.locator(".row.head .cell:visible").evaluate_all(
        "all => Math.max(...all.map(c => c.getBoundingClientRect().right))"
    )
    assert right <= 720
