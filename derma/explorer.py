"""A map of pictures to explore in a browser: one HTML file that needs no network.

Drawn with Bokeh (https://docs.bokeh.org): a thumbnail under the pointer; colour by class, split or a number; the ten
nearest pictures at a click; search by file name. All of it works with the keyboard: search, then walk from neighbour to
neighbour.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from bokeh.embed import file_html
from bokeh.layouts import column, row
from bokeh.models import ColorBar, ColumnDataSource, CustomJS, Div, HoverTool, LinearColorMapper, Select, TextInput
from bokeh.palettes import Cividis256
from bokeh.plotting import figure
from bokeh.resources import INLINE
from PIL import Image

from derma.dataset import load_square

THUMBNAIL = 72  # side, in pixels
# Okabe and Ito's colours, told apart by colour-blind readers (https://jfly.uni-koeln.de/color/).
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
MARKERS = {
    "circle": "&#9679;",
    "triangle": "&#9650;",
    "square": "&#9632;",
    "diamond": "&#9670;",
}

TOOLTIP = f"""
<div style="max-width:160px">
<img src="@thumbnail" width="{THUMBNAIL}" height="{THUMBNAIL}" alt=""><br><b>@label</b><br>@name
</div>
"""

# What is chosen, by a click, by search or by a neighbour's button, is shown here.
CHOOSE = """
const data = source.data, index = INDEX;
if (index === undefined || index < 0) return;
const button = (i, large) => `<button type="button" data-index="${i}" title="${data.name[i]}"
    style="margin:2px;padding:2px;border:2px solid ${data.class_colour[i]};background:#fff;cursor:pointer;width:84px">
    <img src="${data.thumbnail[i]}" width="72" height="72" alt="${data.name[i]}, ${data.label[i]}"><br>
    <span style="font-size:11px;overflow-wrap:anywhere">${data.name[i]}</span></button>`;
chosen.data = {x: [data.x[index]], y: [data.y[index]]};
panel.text = `<div role="status"><p><b>${data.name[index]}</b>: ${data.about[index]}</p>${button(index)}
    <p>The ten nearest, the nearest first; each is a button:</p></div>
    <div id="neighbours">${data.near[index].map(i => button(i)).join("")}</div>`;
"""

# Neighbours' buttons lie in Bokeh's shadow tree; their clicks are caught where they bubble to.
PAGE = """
{% block preamble %}
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<style>
  html { font-family: system-ui, sans-serif; }
  main { margin: 0 auto; max-width: 1100px; padding: 8px; }
  h1 { font-size: 1.25rem; margin: 4px 0; }
  p { margin: 4px 0; }
</style>
{% endblock %}
{% block inner_body %}
<main>
<h1>{{ title|e }}</h1>
<p>{{ about|e }}</p>
{{ super() }}
</main>
<script>
document.addEventListener("click", event => {
    const button = event.composedPath().find(each => each.dataset && each.dataset.index !== undefined);
    if (button) Bokeh.documents[0].get_model_by_name("pictures").selected.indices = [Number(button.dataset.index)];
});
</script>
{% endblock %}
"""


def data_url(picture: Image.Image) -> str:
    """Return a picture as a JPEG inside a ``data:`` address, which needs no further request."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def write_explorer(
    table: pd.DataFrame, neighbours: np.ndarray, title: str, about: str, file: str | os.PathLike
) -> None:
    """Write the page.

    Args:
        table: a row for each of N pictures: ``file`` (its path), ``name`` (what to search for), ``x`` and ``y`` (its
            place on the map), ``label`` (its class) and ``split``. Every further column is a number to colour by.
        neighbours: (N, K) positions of each picture's nearest, the nearest first.
        title: of the page.
        about: a sentence or two below it.
        file: the HTML file, replaced in one step.
    """
    numbers = [name for name in table.columns if name not in ("file", "name", "x", "y", "label", "split")]
    thumbnails = [data_url(load_square(path, THUMBNAIL)) for path in table["file"]]
    colours = {
        "class": _by_category(table["label"]),
        "split": _by_category(table["split"]),
        **{name: _by_number(table[name]) for name in numbers},
    }
    extra = [", ".join(f"{name} {value:.3g}" for name, value in zip(numbers, row)) for row in table[numbers].to_numpy()]
    source = ColumnDataSource(
        {
            "x": table["x"].to_numpy(np.float32), "y": table["y"].to_numpy(np.float32),
            "name": [html.escape(str(name)) for name in table["name"]], "label": table["label"].tolist(),
            "thumbnail": thumbnails, "near": neighbours.tolist(),
            "about": [", ".join(filter(None, each)) for each in zip(table["label"], table["split"], extra)],
            "marker": [list(MARKERS)[k % len(MARKERS)] for k in pd.factorize(table["label"], sort=True)[0]],
            "class_colour": colours["class"], "colour": list(colours["class"]),
        },
        name="pictures",
    )  # fmt: skip
    chosen = ColumnDataSource({"x": [], "y": []})
    plot = figure(
        height=560, sizing_mode="stretch_width", tools="pan,wheel_zoom,box_zoom,reset,tap,save",
        active_scroll="wheel_zoom",
        x_axis_label="first dimension of the map", y_axis_label="second dimension of the map", output_backend="canvas",
        title=None, match_aspect=True,
    )  # fmt: skip
    points = plot.scatter(
        "x", "y", source=source, size=7, marker="marker", fill_color="colour", line_color="colour", fill_alpha=0.7,
        line_width=0.5, nonselection_fill_alpha=0.7, nonselection_line_alpha=0.7,
    )  # fmt: skip
    plot.scatter("x", "y", source=chosen, size=18, marker="circle", fill_alpha=0, line_color="black", line_width=3)
    plot.add_tools(HoverTool(renderers=[points], tooltips=TOOLTIP, attachment="horizontal"))
    bars = {name: _colour_bar(table[name], name) for name in numbers}
    for bar in bars.values():
        plot.add_layout(bar, "below")

    legends = {
        "class": _legend(table["label"], [*MARKERS.values()]),
        "split": _legend(table["split"], ["&#9632;"]),
        **dict.fromkeys(numbers, ""),
    }
    legend = Div(text=legends["class"], sizing_mode="stretch_width")
    colour = Select(title="Colour by", value="class", options=list(colours), sizing_mode="stretch_width")
    colour.js_on_change(
        "value",
        CustomJS(
            args={"source": source, "colours": colours, "legend": legend, "legends": legends, "bars": bars},
            code="""
            source.data = {...source.data, colour: colours[this.value]};
            legend.text = legends[this.value];
            for (const [name, bar] of Object.entries(bars)) bar.visible = name === this.value;
            """,
        ),
    )
    panel = Div(
        text="<p>Click a point, or search for a file.</p>", sizing_mode="stretch_width", styles={"min-height": "120px"}
    )
    arguments = {"source": source, "chosen": chosen, "panel": panel}
    source.selected.js_on_change(
        "indices", CustomJS(args=arguments, code=CHOOSE.replace("INDEX", "source.selected.indices[0]"))
    )
    search = TextInput(
        title="Search by file name, then Enter", placeholder=str(table["name"].iloc[0]), sizing_mode="stretch_width"
    )
    search.js_on_change(
        "value",
        CustomJS(
            args={"source": source, "panel": panel},
            code="""
            const wanted = this.value.trim().toLowerCase();
            if (!wanted) return;
            const found = source.data.name.findIndex(name => name.toLowerCase().includes(wanted));
            if (found >= 0) source.selected.indices = [found];
            else panel.text = '<p role="status">No file of that name.</p>';
            """,
        ),
    )
    layout = column(row(search, colour, sizing_mode="stretch_width"), legend, plot, panel, sizing_mode="stretch_width")
    page = file_html(layout, INLINE, title, template=PAGE, template_variables={"about": about})
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".part")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, file)


def _by_category(values: Sequence) -> list[str]:
    return [COLOURS[code % len(COLOURS)] for code in pd.factorize(pd.Series(values), sort=True)[0]]


def _by_number(values: pd.Series) -> list[str]:
    low, high = values.min(), values.max()
    steps = ((values - low) / max(high - low, 1e-12) * (len(Cividis256) - 1)).round().astype(int)
    return [Cividis256[step] for step in steps]


def _colour_bar(values: pd.Series, name: str) -> ColorBar:
    mapper = LinearColorMapper(Cividis256, low=float(values.min()), high=float(values.max()))
    return ColorBar(color_mapper=mapper, title=name, height=10, visible=False)


def _legend(values: pd.Series, signs: Sequence[str]) -> str:
    names = sorted(pd.Series(values).unique())
    return " &nbsp; ".join(
        f'<span style="color:{COLOURS[k % len(COLOURS)]}">{signs[k % len(signs)]}</span> {html.escape(str(name))}'
        for k, name in enumerate(names)
    )
