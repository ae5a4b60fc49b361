"""Take the pictures of a report that the README shows: `python scripts/report_pictures.py REPORT`."""

import argparse
import shutil
from pathlib import Path

from saetool.errors import RequestError
from saetool.program import run_script

PLACE = Path(__file__).parents[1] / "docs" / "images"
PAGES = {"report.png": "latent.html#latent={latent}", "landing.png": "index.html"}


def main() -> None:
    """Read the arguments and write the pictures of both pages into docs/images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, help="a finished report")
    parser.add_argument("--latent", type=int, default=4734, help="whose page is shown")
    parser.add_argument("--out", type=Path, default=PLACE, help="where the pictures go")
    given = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        raise RequestError("Pictures need Chromium: none is on the path (Debian: apt install chromium).")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": 1200, "height": 800}, color_scheme="light")
        for name, address in PAGES.items():
            page.goto("about:blank")
            page.goto(f"{given.report.resolve().as_uri()}/{address.format(latent=given.latent)}")
            page.wait_for_selector("body[data-ready]")
            page.wait_for_load_state("networkidle")
            page.screenshot(path=given.out / name)
            print(given.out / name)
        chromium.close()


if __name__ == "__main__":
    run_script(main)
