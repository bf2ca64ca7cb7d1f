"""Measure the explorer in headless Chromium: how long it takes to be ready, and how smoothly it moves.

python benchmarks/explorer.py models/isic2017/explorer.html [screenshot.png]
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

READY = "window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle"
# The time between the pictures that the browser draws, while the map is dragged about.
FRAMES = """
() => { window.frames_at = []; const note = at => { frames_at.push(at); requestAnimationFrame(note); };
        requestAnimationFrame(note); }
"""


def main() -> None:
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        raise SystemExit(f"Usage: {__doc__.split(maxsplit=0)[0]}")
    file = Path(sys.argv[1]).resolve()
    browser_file = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_file is None:
        raise SystemExit("There is no Chromium here; apt-get install chromium.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_file, args=["--no-sandbox", "--disable-gpu"])
        seconds = []
        for _ in range(3):
            page = browser.new_page(viewport={"width": 1100, "height": 1000})
            started = time.perf_counter()
            page.goto(f"file://{file}")
            page.wait_for_function(READY)
            seconds.append(time.perf_counter() - started)
        count = page.evaluate("Bokeh.documents[0].get_model_by_name('pictures').data.x.length")
        print(f"{count:,} pictures, {file.stat().st_size / 1e6:.1f} MB: ready after {np.median(seconds):.2f} s")
        page.evaluate(FRAMES)
        page.mouse.move(500, 450)
        page.mouse.down()
        for step in range(60):
            page.mouse.move(500 + 3 * step, 450 + step)
        page.mouse.up()
        gaps = np.diff(page.evaluate("frames_at"))
        print(f"dragged: {np.median(gaps):.0f} ms from frame to frame, at most {gaps.max():.0f} ms")
        if len(sys.argv) > 2:
            page.screenshot(path=sys.argv[2])
        browser.close()


if __name__ == "__main__":
    main()
