"""A map of images to explore in a browser: one HTML file that needs no network.

Drawn with Bokeh (https://docs.bokeh.org): a thumbnail under the pointer, colour by class, split or a number, the
nearest images on a click, search by file name. The keyboard is enough: search, then walk from neighbour to neighbour.
"""

import base64
import html
import io
import os
from itertools import cycle

import numpy as np
import pandas as pd
from bokeh.embed import file_html
from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, CustomJS, Div, HoverTool, Select, TextInput
from bokeh.palettes import Cividis256
from bokeh.plotting import figure
from bokeh.resources import INLINE

from derma.dataset import load_square
from derma.figures import COLOURS
from derma.files import write_text

THUMBNAIL = 72  # side, in pixels
MARKERS = {"circle": "&#9679;", "triangle": "&#9650;", "square": "&#9632;", "diamond": "&#9670;"}
TOOLTIP = f"""<div style="max-width:160px"><img src="@thumbnail" width="{THUMBNAIL}" height="{THUMBNAIL}" alt=""><br>
<b>@label</b><br>@name</div>"""

# Show the image that a click, the search or a neighbour's button selected.
SELECT = """
const data = source.data, index = source.selected.indices[0];
if (index === undefined || index < 0) return;
const safe = text => text.replace(/[&<>"']/g, sign => `&#${sign.charCodeAt(0)};`);
const button = i => `<button type="button" data-index="${i}" title="${safe(data.name[i])}"
    style="margin:2px;padding:2px;border:2px solid ${data.class_colour[i]};background:#fff;cursor:pointer;width:84px">
    <img src="${data.thumbnail[i]}" width="72" height="72" alt="${safe(data.name[i] + ", " + data.label[i])}"><br>
    <span style="font-size:11px;overflow-wrap:anywhere">${safe(data.name[i])}</span></button>`;
selected.data = {x: [data.x[index]], y: [data.y[index]]};
panel.text = `<div role="status"><p><b>${safe(data.name[index])}</b>: ${safe(data.about[index])}</p>${button(index)}
    <p>The nearest images, nearest first. Select one to move there:</p></div>
    <div id="neighbours">${data.near[index].map(button).join("")}</div>`;
"""
SEARCH = """
const plain = text => text.normalize().toLowerCase();  // macOS writes accents as signs of their own
const wanted = plain(this.value.trim());
if (!wanted) return;
const found = source.data.name.findIndex(name => plain(name).includes(wanted));
if (found >= 0) source.selected.indices = [found];
else panel.text = '<p role="status">No file has this name.</p>';
"""
COLOUR = "source.data = {...source.data, colour: colours[this.value]}; legend.text = legends[this.value];"
# Neighbours' buttons lie in Bokeh's shadow tree; their clicks are caught where they bubble to.
PAGE = """
{% block preamble %}
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<style>
  main { font-family: system-ui, sans-serif; margin: 0 auto; max-width: 1100px; padding: 8px; }
  h1 { font-size: 1.25rem; margin: 4px 0; } p { margin: 4px 0; }
</style>
{% endblock %}
{% block inner_body %}
<main><h1>{{ title|e }}</h1><p>{{ about|e }}</p>{{ super() }}</main>
<script>
document.addEventListener("click", event => {
    const button = event.composedPath().find(each => each.dataset && each.dataset.index !== undefined);
    if (button) Bokeh.documents[0].get_model_by_name("images").selected.indices = [Number(button.dataset.index)];
});
</script>
{% endblock %}
"""


def write_explorer(
    table: pd.DataFrame, neighbours: np.ndarray, title: str, about: str, file: str | os.PathLike
) -> None:
    """Write the page, all or nothing, with ``about`` below its title.

    Args:
        table: a row for each of N images: ``file`` (its path), ``name`` (what to search for), ``x`` and ``y`` (its
            place on the map), ``label`` (its class) and ``split``. Each further column is a number to colour by; what
            is not a finite number is grey.
        neighbours: (N, K) positions of each image's nearest, the nearest first.
    """
    table = table.astype({text: str for text in ("name", "label", "split")})
    numbers = table.drop(columns=["file", "name", "x", "y", "label", "split"])
    numbers = numbers.apply(pd.to_numeric, errors="coerce").astype(float)
    ways = {
        "class": _by_category(table["label"], list(MARKERS.values())),
        "split": _by_category(table["split"], [MARKERS["square"]]),
        **{name: _by_number(numbers[name]) for name in numbers},
    }
    colours, legends = ({name: way[part] for name, way in ways.items()} for part in (0, 1))
    extra = [", ".join(f"{name} {value:.3g}" for name, value in line.items()) for _, line in numbers.iterrows()]
    source = ColumnDataSource(
        {
            **{axis: table[axis].to_numpy(np.float32) for axis in ("x", "y")},
            **{text: table[text].tolist() for text in ("name", "label")},
            "about": [", ".join(filter(None, each)) for each in zip(table["label"], table["split"], extra)],
            "thumbnail": list(map(_data_url, table["file"])),
            "near": neighbours.tolist(),
            "marker": [list(MARKERS)[k % len(MARKERS)] for k in pd.factorize(table["label"], sort=True)[0]],
            "class_colour": colours["class"],
            "colour": colours["class"],
        },
        name="images",
    )
    plot = figure(
        height=560, sizing_mode="stretch_width", tools="pan,wheel_zoom,box_zoom,reset,tap,save",
        active_scroll="wheel_zoom", output_backend="canvas", match_aspect=True,
        x_axis_label="first dimension of the map", y_axis_label="second dimension of the map",
    )  # fmt: skip
    points = plot.scatter(
        "x", "y", source=source, size=7, marker="marker", fill_color="colour", line_color="colour", fill_alpha=0.7,
        line_width=0.5, nonselection_fill_alpha=0.7, nonselection_line_alpha=0.7,
    )  # fmt: skip
    selected = ColumnDataSource({"x": [], "y": []})
    plot.scatter("x", "y", source=selected, size=18, marker="circle", fill_alpha=0, line_color="black", line_width=3)
    plot.add_tools(HoverTool(renderers=[points], tooltips=TOOLTIP, attachment="horizontal"))

    wide = {"sizing_mode": "stretch_width"}
    legend = Div(text=legends["class"], **wide)
    panel = Div(text="<p>Click a point, or search for a file.</p>", styles={"min-height": "120px"}, **wide)
    colour = Select(title="Colour by", value="class", options=list(ways), **wide)
    search = TextInput(title="Search by file name, then Enter", placeholder=table["name"].iloc[0], **wide)
    models = {"source": source, "selected": selected, "panel": panel, "legend": legend}
    source.selected.js_on_change("indices", CustomJS(args=models, code=SELECT))
    search.js_on_change("value", CustomJS(args=models, code=SEARCH))
    colour.js_on_change("value", CustomJS(args=models | {"colours": colours, "legends": legends}, code=COLOUR))
    layout = column(row(search, colour, **wide), legend, plot, panel, **wide)
    write_text(file_html(layout, INLINE, title, template=PAGE, template_variables={"about": about}), file)


def _data_url(file: str) -> str:
    """Return a thumbnail as a JPEG inside a ``data:`` address, which needs no request."""
    content = io.BytesIO()
    load_square(file, THUMBNAIL).save(content, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def _by_category(values: pd.Series, signs: list[str]) -> tuple[list[str], str]:
    """Return each value's colour, and the legend as HTML."""
    codes, names = pd.factorize(values, sort=True)
    keys = (f'<span style="color:{colour}">{sign}</span> ' for colour, sign in zip(cycle(COLOURS), cycle(signs)))
    legend = " &nbsp; ".join(key + html.escape(name) for key, name in zip(keys, names))
    return [COLOURS[code % len(COLOURS)] for code in codes], legend


def _by_number(values: pd.Series) -> tuple[list[str], str]:
    """Return each value's colour, grey where it is not a finite number, and the scale as HTML."""
    values = values.where(np.isfinite(values))
    low, high = values.min(), values.max()
    steps = (values - low) / max(high - low, 1e-12) * (len(Cividis256) - 1)
    colours = ["#999999" if np.isnan(step) else Cividis256[round(step)] for step in steps]
    bar = f"width:12em;height:0.7em;background:linear-gradient(to right,{','.join(Cividis256[::15])})"
    return colours, f'{low:.3g} <span style="display:inline-block;{bar}"></span> {high:.3g}'
