"""A person drops a photograph, clicks a patch, switches a latent off, and reads what the model says then."""

import re

import pytest

from saetool.pipeline import Run

from .conftest import answering, png

pytestmark = pytest.mark.browser


@pytest.fixture
def page(browser, client):
    context, complaints = browser.new_context(viewport={"width": 1280, "height": 900}), []
    page = context.new_page()
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{client.address}/photograph.html")
    page.wait_for_selector("body[data-ready=true]")
    yield page
    context.close()
    assert [said for said in complaints if "status of 4" not in said and "CONNECTION_REFUSED" not in said] == []


def give(page, content, name="mine.png"):
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})
    page.wait_for_selector("body[data-state=shown]")


def percent(text):
    return float(re.match(r"[\d.]+", text)[0]) / 100


def test_a_patch_s_latents_and_the_answer_without_one(page, session):
    give(page, png(12, bright=True), "<b>mine</b>.png")
    found = session.look(png(12, bright=True))
    assert page.locator("#facts dd").first.inner_text() == "<b>mine</b>.png"
    box = page.locator("#picture .picture").bounding_box()
    left, top, right, bottom = found["box"]
    x, y = left + (right - left) * 2.5 / 3, top + (bottom - top) * 1.5 / 3  # the middle of patch 5
    page.mouse.click(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
    assert page.locator("#patch-name").inner_text().startswith("Patch 5 (row 1, column 2)")
    page.select_option("#rank", "activation")
    start = sum(found["counts"][:5])
    wanted = found["latents"][start : start + found["counts"][5]]
    shown = [int(one.get_attribute("data-latent")) for one in page.locator("#patch-latents li").all()]
    assert shown == wanted

    page.locator("#patch-latents li button").first.click()
    page.wait_for_selector("#changed:has-text('cosine')")
    answer = session.change(found["picture"], {wanted[0]: 0.0})
    for one in answer["classes"]:
        cells = page.locator(f"#classes tr[data-class={one['name']}] td").all_inner_texts()
        assert [percent(cell) for cell in cells] == pytest.approx(
            [one["before"], one["after"], one["others"]], abs=6e-4
        )
    assert f"{answer['cosine']['after']:.4f}" in page.locator("#changed").inner_text()
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"

    page.check("#here")
    page.wait_for_selector("body[data-state=shown]")
    there = session.change(found["picture"], {wanted[0]: 0.0}, [5])
    assert f"{there['cosine']['after']:.4f}" in page.locator("#changed").inner_text()
    page.click("#reset")
    page.wait_for_selector("body[data-state=shown]")
    assert page.locator("#changes li").count() == 0
    assert page.locator("#changed").inner_text() == "Switch a latent off to see what changes."


def test_a_slider_doubles_a_latent(page, session):
    give(page, png(13))
    latent = int(page.locator("#image-latents li").first.get_attribute("data-latent"))
    page.locator("#image-latents li button").first.click()
    page.locator("#changes input").fill("2")
    found = session.look(png(13))
    wanted = session.change(found["picture"], {latent: 2.0})["cosine"]["after"]
    page.wait_for_selector(f"#changed:has-text('{wanted:.4f}')")
    assert page.locator("#changes .number").inner_text() == "× 2"
    assert page.locator("#image-latents li button").first.get_attribute("aria-pressed") == "false"
    page.locator("#image-latents li button").first.click()  # off, and on again
    page.locator("#image-latents li button").first.click()
    assert page.locator("#changes li").count() == 0
    page.locator("#image-latents li button").first.click()
    page.locator("#changes input").fill("1")
    page.wait_for_selector("#changed:has-text('Switch a latent off')")


def test_a_dropped_and_a_pasted_picture_are_taken_and_what_is_none_is_said(page):
    give(page, png(14))
    handed = """([kind, bytes]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, { type: "image/png" }));
      const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
        : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
      document.body.dispatchEvent(event);
    }"""
    for kind in ("drop", "paste"):
        page.evaluate(handed, [kind, list(png(15))])
        page.wait_for_selector(f"#facts dd:has-text('{kind}.png')")
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"words"})
    page.wait_for_selector("body[data-state=failed]")
    assert "notes.txt" in page.locator("#problem").inner_text()
    give(page, png(16))
    assert page.locator("#problem").is_hidden()


def test_an_image_of_the_run_is_taken_by_its_number(page):
    page.fill("#row", "7")
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-state=shown]")
    assert page.locator("#facts dd").first.inner_text().startswith("image 7: ")
    page.fill("#row", "99")
    page.click("#own button")
    page.wait_for_selector("#problem:has-text('there is no image 99')")


def test_arrow_keys_walk_over_the_patches(page):
    give(page, png(17))
    page.locator("#picture .picture").focus()
    for key in ("ArrowUp", "ArrowLeft", "ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.locator("#patch-name").inner_text().startswith("Patch 0 ")
    for key, wanted in (("ArrowRight", 1), ("ArrowDown", 4), ("ArrowLeft", 3), ("ArrowLeft", 3)):
        page.keyboard.press(key)
        assert page.locator("#patch-name").inner_text().startswith(f"Patch {wanted} ")


def test_undoing_a_change_keeps_the_focus_on_the_page(page):
    give(page, png(18))
    for i in range(2):
        page.locator("#image-latents li button").nth(i).click()
    page.locator("#changes button").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").endswith("back as it was")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "rank"


def test_a_server_that_is_gone_is_said_in_words(page):
    give(page, png(19))
    page.route("**/api/**", lambda route: route.abort("connectionrefused"))
    page.locator("#image-latents li button").first.click()
    page.wait_for_selector("body[data-state=failed]")
    assert "is saetool serve still running?" in page.locator("#problem").inner_text()


def test_a_slow_answer_is_not_drawn_over_a_later_one(page):
    page.evaluate("""() => {
      const ask = fetch;
      let first = true;
      window.fetch = async (...given) => {
        const slow = first;
        first = false;
        const reply = await ask(...given);
        if (slow) { await new Promise((go) => setTimeout(go, 800)); document.body.dataset.late = "true"; }
        return reply;
      };
    }""")
    page.set_input_files("#file", {"name": "slow.png", "mimeType": "image/png", "buffer": png(20)})
    give(page, png(21), "fast.png")
    page.wait_for_selector("body[data-late]")
    page.wait_for_timeout(100)
    assert page.locator("#facts dd").first.inner_text() == "fast.png"


def test_a_latent_switched_while_a_new_picture_comes_does_not_lose_it(page):
    give(page, png(22), "first.png")
    page.evaluate("""() => {
      const ask = fetch;
      window.fetch = async (...given) => {
        const reply = await ask(...given);
        await new Promise((go) => setTimeout(go, 500));
        return reply;
      };
    }""")
    page.set_input_files("#file", {"name": "second.png", "mimeType": "image/png", "buffer": png(23)})
    page.locator("#image-latents li button").first.click()
    page.wait_for_selector("#facts dd:has-text('second.png')")
    assert page.locator("#changes li").count() == 0


def test_what_was_changed_while_a_file_that_is_no_picture_came_is_answered(page):
    give(page, png(24), "first.png")
    page.evaluate("""() => {
      const ask = fetch;
      window.fetch = async (...given) => {
        await new Promise((go) => setTimeout(go, 300));
        return ask(...given);
      };
    }""")
    page.set_input_files("#file", {"name": "none.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.locator("#image-latents li button").first.click()
    page.wait_for_selector("#changed:has-text('cosine')")
    assert page.locator("#facts dd").first.inner_text() == "first.png"
    assert page.locator("#problem").is_visible()


def test_latents_of_means_over_patches_offer_no_switch(browser, place, tmp_path):
    run = Run.load(str(place / "a.yaml"), [f"run={tmp_path}/mean", "backbone.tokens=mean"])
    run.make_all()
    with answering(run) as client:
        page = browser.new_page()
        page.goto(f"{client.address}/photograph.html")
        page.wait_for_selector("body[data-ready=true]")
        give(page, png(22))
        assert page.locator("#image-latents li").count() == 5
        assert page.locator("#image-latents button").count() == 0
        assert "cannot be put back" in page.locator("#changed").inner_text()
        page.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_and_nothing_is_cut(page, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe (pip install 'saetool[test]')")
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    for state in ("empty", "shown"):
        if state == "shown":
            give(page, png(18))
            page.locator("#image-latents li button").first.click()
            page.wait_for_selector("#changed:has-text('cosine')")
        found = axe.Axe().run(page).response["violations"]
        assert [f"{one['id']}: {node['html'][:160]}" for one in found for node in one["nodes"]] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
