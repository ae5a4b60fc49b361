"""What is unusual about an index, an address or a browser is said, and nothing else is."""

import dataclasses
from urllib.parse import parse_qs, urlencode

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from saetool.artifacts import Stage, run_stage
from saetool.errors import RequestError
from saetool.report import check
from saetool.report.chunks import unpack

LABEL = "kind.of <thing>"
ENTRY = """async name => {
    const facts = await saetool.site.ready, chunk = await saetool.load("labels");
    const entry = saetool.classes.entry(facts, chunk, ["kind", name, 8, 0.5, 3], 0, 3);
    return entry.querySelector(":scope > a").getAttribute("href");
}"""
"""Draws one class as search and the page of labels do; returns where its "all latents" leads."""


def remade(run, folder, **edits):
    """Return the run with tables of its index changed: remade(run, folder, latents=function)."""
    index = run.features

    def build(partial):
        for name in index.files:
            edit = edits.get(name.removesuffix(".parquet"))
            if edit is None:
                partial.write_bytes(name, index.read_bytes(name))
            else:
                partial.write_table(name, edit(index.read_table(name)))
        return index.content

    stage = Stage("features", {"edited": sorted(edits)}, build, (run.store, run.autoencoder))
    return dataclasses.replace(run, features=run_stage(stage, folder / "features"))


def replaced(table, name, values):
    return table.set_column(table.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("label_statistics", "auroc_low"),
        ("latents", "image_count"),
        ("examples", "held_out"),
        ("images", "held_out"),
    ],
)
def test_an_index_of_an_older_version_is_refused_by_name(run, tmp_path, table, column):
    older = remade(run, tmp_path, **{table: lambda found: found.drop_columns([column])})
    with pytest.raises(RequestError, match=rf"{table}\.parquet has no column '{column}'.*--force"):
        older.stage()


def test_a_class_without_an_image_has_base_rate_zero(make_run, tmp_path):
    few = make_run(tmp_path, n_images=3, n_latents=9)
    site = run_stage(few.stage(), tmp_path / "report")
    _, _, values = unpack(site.read_bytes("data/site.js"))
    assert values["labels"][0]["shares"] == pytest.approx([1 / 3] * 3 + [0] * 4)


@pytest.fixture(scope="module")
def unseen_none(run, tmp_path_factory):
    """A report in which no image is held out and the best classes are called 1 and 10."""
    folder = tmp_path_factory.mktemp("unseen")
    edited = remade(
        run,
        folder,
        images=lambda found: replaced(found, "held_out", [False] * len(found)),
        examples=lambda found: replaced(
            found.filter(pc.not_equal(found["group"].cast(pa.string()), "held_out")).combine_chunks(),
            "held_out",
            [False] * pc.sum(pc.not_equal(found["group"].cast(pa.string()), "held_out")).as_py(),
        ),
        latents=lambda found: replaced(found, f"{LABEL}.best_class", ["1" if i % 3 else "10" for i in range(70)]),
    )
    return run_stage(edited.stage(), folder / "report").path


@pytest.mark.browser
def test_no_image_is_called_held_out_where_none_is(open_site, unseen_none):
    page = open_site(unseen_none).open("index.html")
    words = page.locator("#look").inner_text()
    assert "shown on held-out ones" not in words
    assert words.count("held out") == 1, "once for all, not once a strip"


@pytest.mark.browser
def test_a_class_in_quotes_is_that_class_alone(open_site, unseen_none, reader):
    page = open_site(unseen_none).open("index.html#" + urlencode({"q": '"1"', "label": LABEL}))
    assert page.locator("#count").inner_text() == f"{sum(i % 3 > 0 for i in range(70))} of 70"
    page = reader.open("index.html")
    fragment = page.evaluate(ENTRY, 'it\'s "1"').split("#")[1]
    assert parse_qs(fragment)["q"] == ['"it\'s "1""']


@pytest.mark.browser
def test_answers_are_walked_and_left_by_keyboard(reader):
    page = reader.open("index.html")
    page.fill("#search", "sharp#1")
    page.wait_for_selector("#answers[data-answers='sharp#1']")
    links = page.locator("#answers a").evaluate_all("all => all.map(one => one.href)")
    at = "document.activeElement.href ?? document.activeElement.id"
    for key, wanted in [("ArrowDown", links[0]), ("ArrowDown", links[1]), ("ArrowUp", links[0]), ("ArrowUp", "search")]:
        page.keyboard.press(key)
        assert page.evaluate(at) == wanted
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    page.wait_for_timeout(50)
    assert page.evaluate(at) == "search"
    assert page.locator("#answers").is_hidden()


@pytest.mark.browser
def test_a_latent_is_found_by_its_number_as_the_report_writes_it(reader):
    page = reader.open("index.html")
    page.fill("#search", "12,287")
    page.wait_for_selector("#answers[data-answers='12,287']")
    assert "There is no latent 12287: they go from 0 to 69." in page.locator("#answers").inner_text()


@pytest.mark.browser
def test_the_choice_of_a_label_follows_the_address(reader):
    page = reader.open("index.html")
    for label in ("__proto__", LABEL):
        page.evaluate("fragment => { location.hash = fragment; }", urlencode({"label": label, "sort": "-max"}))
        page.wait_for_timeout(50)
        assert page.locator("#label").input_value() == label


@pytest.mark.browser
def test_latents_beyond_what_is_compared_are_named(reader):
    page = reader.open("compare.html#latents=0,1,2,4,5,6,7,8")
    assert page.locator(".side").count() == 6
    assert "6 latents are compared at most: 7, 8 left out." in page.locator("#missing").inner_text()


@pytest.mark.browser
@pytest.mark.parametrize("patch", ["1.5", "-3", "x", "9999"])
def test_an_image_shows_a_patch_that_exists(reader, patch):
    page = reader.open(f"image.html#image=0&patch={patch}")
    shown = page.locator("body").get_attribute("data-patch")
    assert shown.isdigit()
    assert int(shown) < 24


@pytest.mark.browser
def test_a_purity_stands_beside_the_base_rate_of_its_own_class_or_none(reader):
    page = reader.open("latent.html#latent=4")
    heading = page.locator("#labels h3").first.inner_text()
    assert "purity" in heading
    assert "base rate" not in heading, "the purity is of none of the classes whose shares are kept"


@pytest.mark.browser
def test_filters_of_images_stay_in_the_address_of_older_browsers(reader):
    reader.page.add_init_script("delete URLSearchParams.prototype.size;")
    page = reader.open("images.html")
    page.fill("#find", "sharp")
    page.wait_for_timeout(50)
    assert page.url.endswith("#q=sharp")


@pytest.mark.browser
def test_rows_that_were_never_pictures_have_a_report(open_site, run, tmp_path):
    """A store made from tensors: no source, no sizes, no thumbnails; all else stands."""
    table = run.store.read_table("images.parquet")
    for name in ("width", "height"):
        table = table.set_column(table.column_names.index(name), name, pa.nulls(len(table), pa.int32()))

    def build(partial):
        partial.write_table("images.parquet", table)
        return run.store.content | {"source": None, "attribution": None}

    store = run_stage(Stage("activations", {"source": "tensors"}, build), tmp_path / "activations")
    edited = remade(dataclasses.replace(run, store=store, pictures=None), tmp_path)
    site = run_stage(edited.stage(), tmp_path / "report")
    assert site.content["thumbnails"] == 0
    assert check(site.path) == []
    reader = open_site(site.path)
    assert "no thumbnail" in reader.open("latent.html#latent=4").locator("#top").inner_text()
    facts = reader.open("image.html#image=3").locator("#facts").inner_text()
    assert "Size\n–" in facts
