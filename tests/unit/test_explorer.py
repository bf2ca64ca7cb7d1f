"""The explorer's page, in a real browser where there is one."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest

from derma.dataset import CLASSES, LesionData
from derma.explorer import write_explorer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def table(drawn):
    images = LesionData(drawn).split("train")
    table = pd.DataFrame({"file": images["path"], "name": images["path"].str.split("/").str[-1]})
    table.loc[20, "name"] = "<O'Brien & Co>.jpg"
    table["label"], table["split"] = np.array(CLASSES)[images["target"]], "train"
    # On a grid, so that the test knows where each point is.
    table["x"], table["y"] = np.arange(len(table)) % 6, np.arange(len(table)) // 6
    table["error"] = np.linspace(0.001, 0.01, len(table))
    table.loc[0, "error"] = np.nan
    return table


@pytest.fixture(scope="module")
def page_file(table, tmp_path_factory):
    file = tmp_path_factory.mktemp("explorer") / "explorer.html"
    near = np.array([[k for k in np.argsort(abs(np.arange(24) - i), kind="stable") if k != i][:10] for i in range(24)])
    write_explorer(table, near, "Map of <tiny>", "24 images & no more.", file)
    return file


def test_the_page_is_whole_in_itself(page_file):
    text = page_file.read_text()
    tags = re.sub(r"(<script[^>]*>).*?</script>", r"\1", text, flags=re.DOTALL)  # what scripts do, the browser tells
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!data:)[\w/]""", tags)
    assert "Map of &lt;tiny&gt;" in text and "Map of <tiny>" not in tags and "24 images &amp; no more." in text
    assert [file.name for file in page_file.parent.iterdir()] == ["explorer.html"]


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here; apt-get install chromium")
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, page_file):
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"file://{page_file}")
    page.wait_for_function("window.Bokeh && Bokeh.documents.length && Bokeh.index && Bokeh.documents[0].is_idle")
    yield page
    page.close()
    assert not errors
    assert [url for url in requests if not url.startswith("data:")] == [f"file://{page_file}"]  # nothing leaves it


WHERE = """
number => {
    const find = view => view.model.type === "Figure" ? view : [...view.children()].map(find).find(Boolean);
    const plot = find([...Bokeh.index.roots][0]);
    const data = Bokeh.documents[0].get_model_by_name("images").data;
    const frame = plot.frame, box = plot.canvas_view.el.getBoundingClientRect();
    return {x: box.x + frame.x_scale.compute(data.x[number]), y: box.y + frame.y_scale.compute(data.y[number])};
}
"""


def test_hover_shows_the_image(page, table):
    spot = page.evaluate(WHERE, 8)
    page.mouse.move(spot["x"] - 3, spot["y"])
    page.mouse.move(spot["x"], spot["y"])
    page.get_by_text(table["name"][8]).first.wait_for(state="visible", timeout=5000)
    assert page.locator("img[src^='data:image/jpeg']").first.evaluate("image => image.naturalWidth") == 72


def test_click_shows_the_ten_nearest_and_leads_on(page, table):
    spot = page.evaluate(WHERE, 8)
    page.mouse.click(spot["x"], spot["y"])
    panel = page.locator("#neighbours")
    panel.wait_for(timeout=5000)
    assert panel.get_by_role("button").count() == 10
    assert page.get_by_role("status").inner_text().startswith(table["name"][8])
    first = panel.get_by_role("button").first
    assert first.get_attribute("title") == table["name"][7]
    first.focus()
    page.keyboard.press("Enter")  # no mouse needed
    page.wait_for_function("() => Bokeh.documents[0].get_model_by_name('images').selected.indices[0] === 7")
    page.get_by_role("status").get_by_text(table["name"][7]).first.wait_for(timeout=5000)


def test_search_finds_and_says_when_it_does_not(page, table):
    search = page.get_by_label("Search by file name")
    search.fill(table["name"][20].lower())
    search.press("Enter")
    page.get_by_role("status").get_by_text(table["name"][20]).first.wait_for(timeout=5000)
    search.fill("nobody")
    search.press("Enter")
    page.get_by_text("No file has this name.").wait_for(timeout=5000)


def test_colours_change(page):
    colours = "() => Bokeh.documents[0].get_model_by_name('images').data.colour"
    assert len(set(page.evaluate(colours))) == 3
    for way, number in (("error", 24), ("split", 1), ("class", 3)):
        page.get_by_label("Colour by").select_option(way)
        page.wait_for_function(f"() => new Set(({colours})()).size === {number}")


def test_it_fits_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(500)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    assert page.get_by_label("Search by file name").bounding_box()["width"] >= 120
