"""What a page's fragment asks for is what it shows: items, parts of the page, quick steps, and nothing that is not."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.browser

HOLD = """part => {
    const append = document.head.append.bind(document.head);
    document.head.append = script => {
        if (script.src.includes(part)) window.release = () => append(script);
        else append(script);
    };
}"""
"""Holds a chunk back until `release()`, as a slow disk would."""
RELEASE = "async name => { release(); await saetool.load(name); await new Promise(done => setTimeout(done)); }"


def wait_until(page, condition, argument=None):
    """Ask again and again; Playwright's own `wait_for_function` would have the page compile it, which pages forbid."""
    for _ in range(250):
        if page.evaluate(condition, argument):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"never: {condition}")


@pytest.mark.parametrize(
    ("item", "seen", "slow", "last", "chunk"),
    [("latent", 40, 1, 68, "latents/0"), ("image", 20, 1, 21, "patches/0")],
)
def test_the_last_of_quick_steps_is_shown(reader, item, seen, slow, last, chunk):
    page = reader.open(f"{item}.html#{item}={seen}")
    page.wait_for_selector(f"body[data-ready='{seen}']")
    page.evaluate(HOLD, chunk)
    page.evaluate(f"location.hash = '#{item}={slow}'")
    wait_until(page, "typeof release === 'function'")
    page.evaluate(f"location.hash = '#{item}={last}'")
    page.wait_for_selector(f"body[data-ready='{last}']")
    page.evaluate(RELEASE, chunk)
    assert page.locator("h1").inner_text() == f"{item.title()} {last}"
    assert page.locator("body").get_attribute("data-ready") == str(last)
    if item == "latent":
        assert f"latent={last}" in page.locator("#top a").first.get_attribute("href")


def test_a_bare_number_and_no_fragment_name_a_latent(reader):
    assert reader.open("latent.html#4").locator("h1").inner_text() == "Latent 4"
    page = reader.open("latent.html")
    assert page.locator("h1").inner_text() == "Latent 0"
    page.evaluate("location.hash = '#main'")
    page.evaluate("new Promise(done => setTimeout(done))")
    assert page.locator("h1").inner_text() == "Latent 0"
    page.evaluate("location.hash = '#8'")
    page.wait_for_selector("body[data-ready='8']")


@pytest.mark.parametrize(("item", "most"), [("latent", 69), ("image", 23)])
@pytest.mark.parametrize("text", ["70", "-1", "abc"])
def test_what_does_not_exist_is_said(reader, item, most, text):
    page = reader.open(f"{item}.html#{item}={text}")
    assert page.locator("#missing").inner_text() == f"There is no {item} {text}: they go from 0 to {most}."
    assert page.locator("#item").is_hidden()
    page.locator("#next").click()
    page.wait_for_selector("body[data-ready='0']")
    assert page.locator("#missing").is_hidden()
    assert page.locator("#item").is_visible()


def test_without_a_similar_latent_there_is_no_way_to_one(reader):
    page = reader.open("latent.html#latent=4")
    assert page.locator("#similar").is_visible()
    for fragment in ("#latent=3", "#latent=70"):  # 3 is dead: it has no neighbors
        page.evaluate(f"location.hash = '{fragment}'")
        wait_until(page, "fragment => document.querySelector('#similar').hidden", fragment)
        page.keyboard.press("s")
        assert page.url.endswith(fragment)


def test_links_to_parts_of_the_page_keep_the_filters(reader):
    page = reader.open("index.html#status=rare")
    before = page.locator("#count").inner_text()
    for link in ("Latents", "Provenance"):
        page.locator(".topbar").get_by_role("link", name=link, exact=True).click()
        wait_until(page, "location.hash === '#status=rare'")
        assert page.locator("#count").inner_text() == before != "70 of 70"


def test_column_headings_sort_by_keyboard(reader):
    page = reader.open("index.html")
    page.locator(".view").focus()
    for key in ("Tab", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    for key, state in [("Enter", "descending"), ("Space", "ascending")]:
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.dataset.key") == "image_frequency"
        assert page.locator(f"[aria-sort={state}]").inner_text() == "Images"


def test_the_most_associated_latents_are_sure_ones(reader, run):
    page = reader.open("index.html")
    page.locator("[data-preset='Most associated with a label']").click()
    latents = pq.read_table(run.features.path / "latents.parquet").to_pydict()
    best, q = latents["kind.of <thing>.best_class"], latents["kind.of <thing>.q_value"]
    statistics = pq.read_table(run.features.path / "label_statistics.parquet").to_pylist()
    low = {row["latent"]: row["auroc_low"] for row in statistics if row["class"] == best[row["latent"]]}
    sure = [i for i in low if q[i] <= 0.05 and latents["image_count"][i] >= 8]
    wanted = [i for i in sorted(sure, key=lambda i: -np.float32(low[i])) if latents["status"][i] in ("ok", "dense")]
    rows = page.locator(".body .row").evaluate_all("rows => rows.map(r => [+r.ariaRowIndex, +r.dataset.latent])")
    assert [latent for _, latent in sorted(rows)] == wanted[: len(rows)]
    assert 1 < len(wanted) < 30
    page = reader.open(f"latent.html#latent={wanted[0]}")
    purity = latents["kind.of <thing>.purity"][wanted[0]]
    words = page.locator("#labels h3").first.inner_text()
    assert re.search(r"q \d", words)
    assert float(re.search(r"purity ([\d.]+)%", words)[1]) == pytest.approx(100 * purity, abs=0.06)
