"""The site in a real browser: from file://, without a network, with every text hostile."""

import dataclasses
import itertools
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from saetool.artifacts import Stage, run_stage
from saetool.report import write_overview

pytestmark = pytest.mark.browser


def shown(page) -> list[int]:
    """Return the latents of the rows in the document, from the top."""
    rows = page.locator(".body .row").evaluate_all("rows => rows.map(r => [+r.ariaRowIndex, +r.dataset.latent])")
    return [latent for _, latent in sorted(rows)]


def test_landing_sorts_filters_and_leads_to_a_latent(reader, run):
    page = reader.open("index.html")
    latents = pq.read_table(run.features.path / "latents.parquet").to_pydict()
    assert page.locator("#count").inner_text() == "70 of 70"
    page.get_by_role("button", name="Frequency", exact=True).click()
    frequency = np.array(latents["token_frequency"])
    assert shown(page)[:5] == np.argsort(-frequency, kind="stable")[:5].tolist()
    assert page.locator("[aria-sort=descending]").inner_text() == "Frequency"
    page.locator("#statuses input[value=rare]").check()
    assert shown(page) == [i for i in np.argsort(-frequency, kind="stable") if latents["status"][i] == "rare"]
    page.locator("#clear").click()
    page.select_option("#range-column", label="Max")
    page.fill("#range-low", "8")
    page.get_by_role("button", name="Add").click()
    wanted = [i for i in range(70) if latents["max"][i] >= 8]
    assert shown(page) == wanted[: len(shown(page))]
    assert page.locator("#count").inner_text() == f"{len(wanted)} of 70"
    assert "range=max%3A8%3A" in page.url
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.locator("#count").inner_text() == f"{len(wanted)} of 70"
    page.locator(".body .row a").first.click()
    page.wait_for_selector(f"body[data-ready='{wanted[0]}']")
    assert page.locator("h1").inner_text() == f"Latent {wanted[0]}"


def test_the_most_specific_are_above_chance_by_more_than_it_strays(reader, run):
    page = reader.open("index.html")
    latents = pq.read_table(run.features.path / "latents.parquet").to_pydict()
    page.locator("[data-preset='Most specific']").click()
    often = [i for i in range(70) if latents["status"][i] == "ok" and latents["image_count"][i] >= 8]
    often = [i for i in often if latents["spatial_entropy"][i] >= 0.5]
    sure = {i: latents["monosemanticity_excess"][i] - 2 * latents["monosemanticity_spread"][i] for i in often}
    assert len(often) > 2
    assert shown(page)[:6] == sorted(often, key=lambda i: -sure[i])[:6]
    assert page.locator("[data-preset='Most specific']").get_attribute("aria-current") == "true"


def test_a_box_in_the_plane_filters_the_table(reader, run):
    page = reader.open("index.html")
    plane = page.locator(".plane")
    plane.scroll_into_view_if_needed()
    box = plane.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] - 20, steps=4)
    page.mouse.up()
    assert page.locator("#chips button").count() == 2
    (low, high), *_ = re.findall(r"range=token_frequency%3A([\d.e-]+)%3A([\d.e-]+)", page.url)
    frequency = np.array(pq.read_table(run.features.path / "latents.parquet")["token_frequency"])
    inside = np.flatnonzero((frequency >= float(low)) & (frequency <= float(high)))
    assert page.locator("#count").inner_text() == f"{len(inside)} of 70"
    assert 0 < len(inside) < 60


def test_hovering_the_plane_shows_pictures(reader, run):
    page = reader.open("index.html#range=token_frequency:0.02:0.03")
    plane = page.locator(".plane")
    plane.scroll_into_view_if_needed()
    x, y = plane.evaluate(
        """canvas => {
            const { width, height } = canvas, pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
            for (let i = 0; i < pixels.length; i += 4) {
                const [red, green, blue, alpha] = pixels.slice(i, i + 4);
                if (alpha > 150 && Math.max(red, green, blue) - Math.min(red, green, blue) > 60) {
                    return [(i / 4) % width, Math.floor(i / 4 / width)];
                }
            }
        }"""
    )
    box = plane.bounding_box()
    page.mouse.move(box["x"] + x + 1, box["y"] + y + 1)
    page.wait_for_selector(".tip:visible img")
    latent = int(page.locator(".tip strong").inner_text().removeprefix("Latent "))
    frequency = pq.read_table(run.features.path / "latents.parquet")["token_frequency"][latent].as_py()
    assert 0.02 <= frequency <= 0.03
    page.wait_for_timeout(300)
    assert page.locator(".tip").is_visible()  # the pointer is still over the plane


def test_the_value_below_the_pointer_and_the_hottest_cell(reader, run):
    """On every picture, square or not, cropped or padded: the brightest cell is the example's patch and value."""
    examples = pq.read_table(run.features.path / "examples.parquet").to_pylist()
    rows, columns = run.shape.grid
    for latent in (0, 1, 8):
        page = reader.open(f"latent.html#latent={latent}")
        page.wait_for_selector(f"body[data-ready='{latent}']")
        top = [row for row in examples if row["latent"] == latent and row["group"] == "top"]
        tiles = page.locator("#top .tile")
        assert tiles.count() == len(top)
        for tile, example in zip(tiles.all(), top, strict=True):
            assert tile.get_attribute("data-image") == str(example["image"])
            assert float(tile.locator(".number").inner_text()) == pytest.approx(example["value"], abs=0.006)
            tile.scroll_into_view_if_needed()
            heat, picture = tile.locator("canvas.heat").bounding_box(), tile.locator(".picture").bounding_box()
            row, column = divmod(example["patch"], columns)
            x = heat["x"] + heat["width"] * (column + 0.5) / columns
            y = heat["y"] + heat["height"] * (row + 0.5) / rows
            inside = (
                picture["x"] < x < picture["x"] + picture["width"]
                and picture["y"] < y < picture["y"] + picture["height"]
            )
            if inside:
                page.mouse.move(x, y)
                assert tile.locator(".number").inner_text().endswith(f" at {row}, {column}")
            # A pixel's alpha grows with its value; canvases hold no pictures, so reading them back is allowed.
            alpha = tile.locator("canvas.heat").evaluate(
                "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 3)"
            )
            assert int(np.argmax(alpha)) == example["patch"]
            assert [i for i, a in enumerate(alpha) if a] == np.flatnonzero(run.z[example["image"], :, latent]).tolist()


def test_the_heat_map_lies_over_what_the_model_saw(reader, run):
    """A portrait picture is cropped above and below and padded at the sides: the grid's box says so."""
    page = reader.open("latent.html#latent=0")
    for tile in page.locator("#top .tile, #random .tile").all():
        image = int(tile.get_attribute("data-image"))
        if run.pictures.size(image) != (60, 90):
            continue
        heat, picture = tile.locator("canvas.heat").bounding_box(), tile.locator(".picture").bounding_box()
        assert heat["width"] / picture["width"] == pytest.approx(1.5, abs=0.02)
        assert heat["height"] / picture["height"] == pytest.approx(2 / 3, abs=0.02)
        assert (heat["x"] - picture["x"]) / picture["width"] == pytest.approx(-0.25, abs=0.02)
        return
    pytest.fail("no portrait picture among the examples")


def test_latent_page_steps_over_dead_latents(reader):
    page = reader.open("latent.html#latent=2")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("body[data-ready='4']")  # 3 is dead
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("body[data-ready='2']")
    page.keyboard.press("h")
    assert page.locator("#opacity").input_value() == "0"
    page = reader.open("latent.html#latent=3")
    page.wait_for_selector("body[data-ready='3']")
    assert page.locator("#dead").is_visible()


def test_image_page_picks_patches_by_mouse_and_keys(reader, run):
    page = reader.open("image.html#image=2&patch=7")
    _, columns = run.shape.grid

    def expect(patch):
        page.wait_for_selector(f"body[data-patch='{patch}']")
        strongest = [i for i in np.argsort(-run.z[2, patch], kind="stable")[:8] if run.z[2, patch, i] > 0]
        rarity = np.log(run.shape.n_images / np.maximum((run.z > 0).any(1).sum(0), 1))
        wanted = sorted(strongest, key=lambda i: (-run.z[2, patch, i] * rarity[i], i))
        rows = page.locator("#patch-latents li")
        assert [int(row.get_attribute("data-latent")) for row in rows.all()] == wanted
        for row, latent in zip(rows.all(), wanted, strict=True):
            value, top = float(run.z[2, patch, latent]), float(run.z[2, patch].max())
            assert float(row.locator(".number").inner_text()) == pytest.approx(value, abs=top / 400 + 0.006)

    expect(7)
    page.locator("#picture .picture").focus()
    page.keyboard.press("ArrowDown")
    expect(7 + columns)
    page.keyboard.press("ArrowLeft")
    expect(6 + columns)
    assert f"patch={6 + columns}" in page.url
    box = page.locator("#picture .picture").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2 + 2, box["y"] + box["height"] / 2 + 2)
    row, column = map(int, re.findall(r"\d+", page.locator("#patch-name").inner_text())[1:])
    assert 0 < row < 3
    assert 1 < column < 5


def test_hostile_text_stays_text(reader):
    for name in (
        "index.html",
        "latent.html#latent=1",
        "latent.html#latent=2",
        "image.html#image=1",
        "image.html#image=6",
        "images.html",
        "labels.html",
        "compare.html#latents=1,2",
        "index.html",
    ):
        page = reader.open(name)
        page.wait_for_timeout(100)
        assert "pwned" not in page.title()
        assert page.locator("main img[src='x'], main b, main script").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.fill("#search", "onerror")
    page.wait_for_selector("#answers .class")
    assert "pwned" not in page.title()
    assert page.locator("main img[src='x'], main b, main script").count() == 0
    page = reader.open("image.html#image=6")
    assert page.locator("#facts").inner_text().count("x") > 4_000
    page = reader.open("image.html#image=1")
    assert "</script><script>" in page.locator("#facts").inner_text()


def test_no_point_of_a_forged_plane_is_a_script(open_site, reader, run, tmp_path):
    shutil.copytree(run.autoencoder.path, tmp_path / "one" / "autoencoder")
    page = open_site(write_overview(tmp_path).parent).open("index.html")
    links = ["javascript:alert(1)", " java\nscript:alert(1)", "https://example.org/", "data:text/html,x", "http://["]
    point = {"kind": "x", "fvu": 0.5, "interval": [0.4, 0.6], "frontier": True}
    points = [{**point, "name": link, "l0": i, "link": link} for i, link in enumerate([*links, "../one.html"])]
    drawn = page.evaluate("points => saetool.plane(points).outerHTML", points)
    assert drawn.count("<circle") == 6
    assert re.findall('href="([^"]*)"', drawn) == ["../one.html"]


def test_a_label_may_have_any_name(reader, run):
    page = reader.open("image.html#image=3")
    page.wait_for_selector("body[data-ready='3']")
    facts = page.locator("#facts").inner_text()
    assert "__proto__" in facts
    assert "kind.of <thing>" in facts


def test_the_command_is_shown_on_every_page_that_tells_where_it_comes_from(reader):
    for name in ("index.html", "latent.html#latent=0"):
        page = reader.open(name)
        assert page.locator("#command").text_content() == "saetool run synthetic"


def test_pages_without_a_grid_have_no_heat_to_slide(open_site, reader, run, tmp_path):
    def without_grid(partial):
        for name in run.features.files:
            shutil.copy(run.features.file(name), partial.file(name))
        return run.features.content | {"grid": None}

    index = Stage("features", {"top": 6}, without_grid, (run.store, run.autoencoder))
    features = run_stage(index, tmp_path / "features")
    site = run_stage(dataclasses.replace(run, features=features).stage(), tmp_path / "report")
    bars = {}
    for page in (reader.open("latent.html#latent=0"), open_site(site.path).open("latent.html#latent=0")):
        page.wait_for_selector("body[data-ready='0']")
        bars[page.url] = page.locator("#heat-bar").is_visible()
    assert list(bars.values()) == [True, False]
    page = open_site(site.path).open("image.html#image=2")
    page.wait_for_selector("body[data-ready='2']")
    assert page.locator("#no-grid").is_visible()
    assert page.locator("#patch-section").is_hidden()
    assert page.locator("#image-latents li").count() > 3, "latents are listed where there is no place to show"


@pytest.mark.parametrize("width", [360, 800])
def test_narrow_screens_do_not_scroll_sideways(reader, width):
    for name in (
        "index.html",
        "latent.html#latent=0",
        "image.html#image=0",
        "images.html",
        "labels.html",
        "compare.html#latents=0,8",
    ):
        page = reader.open(name)
        page.set_viewport_size({"width": width, "height": 740})
        page.wait_for_timeout(80)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_every_picture_has_words_and_colors_have_contrast(reader):
    for scheme in ("light", "dark"):
        reader.page.emulate_media(color_scheme=scheme)
        page = reader.open("latent.html#latent=0")
        assert page.locator("img:not([alt])").count() == 0
        assert page.locator("#top img").first.get_attribute("alt").startswith("Image ")
        assert contrast(page, "body", "color", "--paper") > 12
        for name in ("--muted", "--link", "--dead", "--rare", "--ok", "--dense"):
            assert contrast(page, "body", name, "--paper") >= 4.5, (scheme, name)
        for name in ("--dead", "--rare", "--ok", "--dense"):
            assert contrast(page, "body", name, f"{name}-bg") >= 4.5, (scheme, name)


def contrast(page, selector, ink, paper):
    """Return WCAG's contrast ratio of two colors of the style sheet."""
    read = """([selector, name]) => {
        const probe = document.createElement("i");
        const given = getComputedStyle(document.querySelector(selector)).color;
        probe.style.color = name.startsWith("--") ? `var(${name})` : given;
        document.body.append(probe);
        const color = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number);
        probe.remove();
        return color;
    }"""

    def luminance(name):
        channels = np.array(page.evaluate(read, [selector, name])) / 255
        linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    high, low = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_nothing_moves_while_a_page_loads(reader):
    for name in ("index.html", "latent.html#latent=0", "image.html#image=0"):
        reader.page.add_init_script(
            "window.shift = 0;"
            "new PerformanceObserver(list => list.getEntries().forEach(entry => { window.shift += entry.value; }))"
            ".observe({type: 'layout-shift', buffered: true});"
        )
        page = reader.open(name)
        page.wait_for_timeout(200)
        assert page.evaluate("window.shift") < 0.1, name


def test_the_overview_sorts_and_draws_its_plane(open_site, run, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(run.autoencoder.path, tmp_path / name / "autoencoder")
    page = open_site(write_overview(tmp_path).parent).open("index.html")
    assert page.locator("#plane circle").count() == 2
    names = page.locator(".runs tbody th")
    assert names.all_inner_texts() == ["one (no report)", "two (no report)"]
    page.get_by_role("button", name="Run").click()
    page.get_by_role("button", name="Run").click()
    assert names.all_inner_texts() == ["two (no report)", "one (no report)"]


def test_whiskers_stay_inside_the_plane(open_site, run, tmp_path):
    shutil.copytree(run.autoencoder.path, tmp_path / "many" / "k=3" / "autoencoder")
    given = [("k=3", "autoencoder", 3.0, 0.1, [0.05, 0.2]), ("k-means", "baseline", 1.0, 0.5, [0.3, 0.9])]
    names = ("name", "kind", "l0", "fvu", "fvu_interval", "frontier")
    points = [dict(zip(names, (*point, True), strict=True)) for point in given]
    seal = Stage("sweep", {}, lambda partial: partial.write_json("sweep.json", {"points": points}) or {})
    run_stage(seal, tmp_path / "many" / "sweep")
    page = open_site(write_overview(tmp_path).parent).open("index.html")
    boxes = page.locator(".whisker").evaluate_all(
        """lines => lines.map(line => {
            const [box, svg] = [line.getBoundingClientRect(), line.ownerSVGElement.getBoundingClientRect()];
            return [box.top - svg.top, svg.bottom - box.bottom, box.height];
        })"""
    )
    assert len(boxes) == 2
    assert all(above >= 0 and below >= 0 and height > 10 for above, below, height in boxes)


def test_names_in_the_plane_do_not_cover_one_another(open_site, run, tmp_path):
    shutil.copytree(run.autoencoder.path, tmp_path / "many" / "k=3" / "autoencoder")
    given = [("k=3", "autoencoder", 44.2, 0.119), ("PCA", "baseline", 44.0, 0.118), ("raw", "baseline", 44.0, 0.47)]
    given += [("random dictionary", "baseline", 44.0, 0.48), ("k-means", "baseline", 1.0, 0.4)]
    names = ("name", "kind", "l0", "fvu", "fvu_interval", "frontier")
    points = [dict(zip(names, (*point, [point[3], point[3]], True), strict=True)) for point in given]
    seal = Stage("sweep", {}, lambda partial: partial.write_json("sweep.json", {"points": points}) or {})
    run_stage(seal, tmp_path / "many" / "sweep")
    page = open_site(write_overview(tmp_path).parent).open("index.html")
    boxes = page.locator(".point-name").evaluate_all(
        "all => all.map(t => t.getBoundingClientRect()).map(b => [b.left, b.right, b.top, b.bottom])"
    )
    assert len(boxes) == 1 + len(given)  # the runs have a plane of their own
    for a, b in itertools.combinations(boxes, 2):
        apart = a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] + 4 or b[3] <= a[2] + 4
        assert apart, (a, b)


@pytest.fixture(scope="module")
def wide(tmp_path_factory, make_run):
    """24,576 latents on few small pictures."""
    made = make_run(tmp_path_factory.mktemp("wide"), n_latents=24_576, n_images=8, grid=(2, 3), top=2, intervals=0)
    return run_stage(made.stage(), made.features.path.parent / "report")


@pytest.mark.slow
def test_24576_latents_load_scroll_and_sort_in_a_few_dozen_rows(open_site, wide):
    """What keeps the table fluid is that only the rows in view exist; times belong to benchmarks."""
    page = open_site(wide.path).open("index.html")
    assert page.locator("#count").inner_text() == "24,576 of 24,576"
    view = page.locator(".view")
    most = view.evaluate(
        """view => new Promise(done => {
            let frames = 0, most = 0;
            const step = () => {
                most = Math.max(most, document.querySelectorAll('.body .row').length); view.scrollTop += 2400;
                ++frames < 60 ? requestAnimationFrame(step) : done(most);
            };
            requestAnimationFrame(step);
        })"""
    )
    assert most < 60
    view.focus()
    page.keyboard.press("End")
    page.wait_for_selector(".row[data-latent='24575']")
    page.locator(".head button").nth(2).click()
    assert page.locator(".body .row").count() < 60


@pytest.mark.parametrize(
    ("form", "number", "text"),
    [
        ("tick", 0, "0%"),
        ("tick", 0.1, "10%"),
        ("tick", 0.125, "12.5%"),
        ("tick", 1, "100%"),
        ("tick", 0.0005, "0.05%"),
        ("signed", -0.0001, "0.000"),
        ("signed", -0.01, "−0.010"),
    ],
)
def test_ticks_keep_their_zeros_and_zero_has_no_sign(reader, form, number, text):
    page = reader.open("index.html")
    assert page.evaluate("([form, number]) => saetool.format(form, number)", [form, number]) == text


def test_another_label_takes_the_filters_and_the_order_by_the_one_before_along(reader):
    page = reader.open("index.html")
    page.wait_for_selector("body[data-ready]")
    first, second = [o.get_attribute("value") for o in page.locator("#label option").all()][:2]
    page.click("[data-preset='Most associated with a label']")
    for label in (second, first):
        page.select_option("#label", label)
        filters = page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")
        sort, other = filters.get("sort", "latent").removeprefix("-"), first if label == second else second
        assert sort == "latent" or sort.startswith(f"{label}.")
        assert not filters.get("range", "").startswith(f"{other}.")
