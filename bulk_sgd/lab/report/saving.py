"""How figures are saved: for a page, and as wide as a column of a paper."""

import io
import math
import pathlib
import textwrap

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from bulk_sgd.lab.report.style import STYLE, legend

DPI = 160
BESIDE = {"pdf": "CreationDate", "svg": "Date"}  # other files, and their metadata
COLUMN, COLUMN_SCALE = 3.3, 0.75  # width in inches, and the scale of text there


def save(figure: Figure, path: pathlib.Path) -> bytes:
    """Saves a figure as `path`.png, .pdf and .svg; returns the bytes of the PNG.

    It also saves `path`-column.pdf, as wide as a paper's column, see `fit_column`.
    """
    buffer = io.BytesIO()
    # Without a date or random names, so that the same run gives the same files.
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": path.name}):
        figure.savefig(buffer, format="png", dpi=DPI)
        write = lambda end, date: figure.savefig(
            path.with_name(path.stem + end), metadata={date: None}
        )
        for kind, date in BESIDE.items():
            write(f".{kind}", date)
        if BESIDE:
            fit_column(figure)
            write("-column.pdf", "CreationDate")
    path.with_suffix(".png").write_bytes(buffer.getvalue())
    return buffer.getvalue()


def fit_column(figure: Figure) -> None:
    """Makes a drawn figure as wide as a column: panels below one another, smaller text.

    More than three panels go into two columns. If there are two rows, each row becomes
    a column.
    """
    panels = [axes for axes in figure.axes if axes.get_subplotspec() is not None]
    old = panels[0].get_gridspec()
    height = figure.get_figheight() / old.nrows
    columns = 1 if len(panels) <= 3 else 2
    rows = math.ceil(len(panels) / columns)
    places = figure.add_gridspec(rows, columns)
    if columns == old.nrows == 2 and len(panels) == 2 * old.ncols:
        places = [places[i, row] for row in range(2) for i in range(rows)]
    _label_each(panels, old.ncols)
    labelsize = COLUMN_SCALE * STYLE["font.size"]  # also for ticks to come
    for axes in figure.axes:  # including colour bars
        axes.tick_params(which="both", labelsize=labelsize)
    for place, axes in zip(places, panels):
        axes.set_subplotspec(place)
        axes.tick_params(labelleft=True, labelbottom=True)
        title = textwrap.fill(axes.get_title(loc="left"), 44 // columns)
        axes.set_title(title, loc="left")
    figure.set_size_inches(COLUMN, COLUMN_SCALE * height * rows)
    ticks = {x for axes in figure.axes for x in _tick_texts(axes)}
    for text in {*figure.findobj(Text)} - ticks:
        text.set_fontsize(COLUMN_SCALE * text.get_fontsize())
    for line in figure.findobj(Line2D):
        line.set_linewidth(COLUMN_SCALE * line.get_linewidth())
        line.set_markersize(COLUMN_SCALE * line.get_markersize())
    for old in list(figure.legends):
        labels = [text.get_text() for text in old.get_texts()]
        legend(figure, labels, old.legend_handles, COLUMN_SCALE)
        old.remove()


def _label_each(panels, columns):
    """Gives each panel the axis labels that its row or its column shares."""
    for i, axes in enumerate(panels):
        first, last = panels[i - i % columns], panels[i % columns :: columns][-1]
        axes.set_ylabel(axes.get_ylabel() or first.get_ylabel())
        axes.set_xlabel(axes.get_xlabel() or last.get_xlabel())


def _tick_texts(axes):
    axis = axes.xaxis, axes.yaxis
    return [text for x in axis for text in x.get_ticklabels(which="both")]
