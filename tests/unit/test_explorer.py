import re
import shutil
from unicodedata import normalize

import numpy as np
import pandas as pd
import pytest

from derma.dataset import CLASSES, LesionData
from derma.explorer import write_explorer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAMES = [f"IMAGE_{number:02}.jpg" for number in range(24)]
NAMES[15:] = ["O'Brien", "A&B", '"q"', "<img src=x onerror=evil=1>", "</script><script>evil=2</script>", "`${1}\\",
              "@{name}", "&#39;", "Mu\u0308ller"]  # fmt: skip
SOURCE = "Bokeh.documents[0].get_model_by_name('images')"
WHERE = """number => {
    const find = view => view.model.type === "Figure" ? view : [...view.children()].map(find).find(Boolean);
    const plot = find([...Bokeh.index.roots][0]), box = plot.canvas_view.el.getBoundingClientRect();
    return [box.x + plot.frame.x_scale.compute(number % 6), box.y + plot.frame.y_scale.compute(Math.floor(number / 6))];
}"""


@pytest.fixture(scope="module")
def file(drawn, tmp_path_factory):
    images, number = LesionData(drawn).split("train"), np.arange(24)
    table = pd.DataFrame({"file": images["path"], "name": NAMES, "x": number % 6, "y": number // 6, "split": "train"})
    table["label"] = np.array([*CLASSES[:2], "<img src=x onerror=evil=3>"])[images["target"]]
    table["error"], table["flag"], table["<b>nothing</b>"] = [np.nan, np.inf, *number[2:]], number % 2 == 0, "text"
    near = np.argsort(abs(number[:, None] - number), axis=1, kind="stable")[:, 1:11]
    file = tmp_path_factory.mktemp("explorer") / "explorer.html"
    write_explorer(table, near, "Map of <tiny>", "24 images & no more.", file)
    return file


def test_the_page_is_one_file_without_links(file):
    tags = re.sub(r"(<script[^>]*>).*?</script>", r"\1", file.read_text(), flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!data:)[\w/]""", tags)
    assert "Map of &lt;tiny&gt;" in tags and "Map of <tiny>" not in tags and "24 images &amp; no more." in tags


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here; apt-get install chromium")
def test_pointer_click_neighbours_search_colours_and_a_phone(file):
    """Names are found and shown as typed and never run; no number is grey."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]).new_page()
        page.set_default_timeout(10_000)
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(f"file://{file}")
        page.wait_for_function("window.Bokeh && Bokeh.documents.length && Bokeh.index && Bokeh.documents[0].is_idle")
        status, neighbours = page.get_by_role("status"), page.locator("#neighbours").get_by_role("button")
        for each in (*range(15, 24), 8):
            x, y = page.evaluate(WHERE, each)
            page.mouse.move(x, y, steps=2)
            page.get_by_text(NAMES[each]).first.wait_for(state="visible")
        page.mouse.click(x, y)
        neighbours.first.wait_for()
        assert page.locator("img[src^='data:image/jpeg']").first.evaluate("image => image.naturalWidth") == 72
        assert neighbours.count() == 10 and neighbours.first.get_attribute("title") == NAMES[7]
        neighbours.first.press("Enter")  # no mouse needed
        status.get_by_text(NAMES[7]).first.wait_for()
        search = page.get_by_label("Search by file name")
        for answer in [*NAMES[15:], "No file has this name."]:
            search.fill(normalize("NFC", answer.lower()))
            search.press("Enter")
            status.get_by_text(answer).first.wait_for()
        for way, number in (("error", 23), ("flag", 2), ("<b>nothing</b>", 1), ("split", 1), ("class", 3)):
            page.get_by_label("Colour by").select_option(way)
            page.wait_for_function(f"new Set({SOURCE}.data.colour).size === {number}")
            assert page.evaluate(f"{SOURCE}.data.colour[0] === '#999999'") == (way in ("error", "<b>nothing</b>"))
        page.set_viewport_size({"width": 390, "height": 844})
        page.wait_for_function("document.scrollingElement.scrollWidth <= 390")
        assert not errors and page.evaluate("typeof evil") == "undefined"
        assert all(url.startswith(("data:", f"file://{file}")) for url in requests)
