"""axe-core, the field's checker of accessibility, finds nothing on any page: in light, in dark and at 200 %."""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PAGES = (
    "index.html",
    "index.html#status=rare&sort=-max",
    "latent.html#latent=8",
    "latent.html#latent=3",
    "image.html#image=2",
    "images.html",
    "labels.html",
    "compare.html#latents=0,8",
)
VIEWS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    # What a window of 1,280 × 900 comes to when its reader zooms in.
    "200 %": {"color_scheme": "light", "viewport": {"width": 640, "height": 450}, "device_scale_factor": 2},
}


def violations(page) -> list[str]:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe (pip install 'saetool[test]')")
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['html'][:160]}" for one in found for node in one["nodes"]]


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing(browser, site, view):
    context = browser.new_context(offline=True, **VIEWS[view])
    page, found = context.new_page(), {}
    for name in PAGES:
        page.goto("about:blank")
        page.goto(f"file://{site.path}/{name}")
        page.wait_for_selector("body[data-ready]")
        page.wait_for_timeout(150)
        for details in page.locator("details").all():
            details.evaluate("one => { one.open = true; }")
        if name == "index.html":
            page.fill("#search", "plain")
            page.wait_for_selector("#answers .class")
        if problems := violations(page):
            found[name] = problems
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    context.close()
    assert found == {}
