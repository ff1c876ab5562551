"""From a matplotlib figure to inline SVG that follows the page's light or dark colours."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Okabe-Ito hues, distinguishable under the common colour deficiencies. One model keeps one colour everywhere: light
# and dark blue are base and base-Emb, orange and vermilion reasoning and reasoning-Emb; pairs have hues of their own.
COLOURS = {
    "ink": "#1d232b",
    "muted": "#5a6472",
    "grid": "#dfe3e8",
    "band": "#eef1f4",
    "base": "#56b4e9",
    "base-Emb": "#0072b2",
    "reasoning": "#e69f00",
    "reasoning-Emb": "#d55e00",
    "bag-of-words": "#7f7f7f",
    "random": "#a8a8a8",
    "backbones": "#b0568a",
    "embeddings": "#009e73",
}
PANEL = (3.75, 2.65)  # inches; shown three in a row or full width on a phone, so that 9 pt text stays legible
_STYLE: Any = {
    "svg.fonttype": "path",  # glyphs as outlines: the same picture on every machine
    "svg.hashsalt": "hrsa_jax",
    "text.parse_math": False,  # names come from data: "$" is a character
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.edgecolor": COLOURS["muted"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.7,
    "axes.unicode_minus": True,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}
_BY_HEX = {value: name for name, value in COLOURS.items()}


def css_name(colour: str) -> str:
    """The CSS custom property of a palette colour."""
    return "--c-" + colour.lower()


@contextlib.contextmanager
def panel(width: float = PANEL[0], height: float = PANEL[1]) -> Iterator[tuple[Figure, Axes]]:
    """A styled figure with one axes, away from pyplot's global state.

    Args:
      width: inches.
      height: inches.
    """
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that DejaVu lacks become boxes; no noise on the terminal
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def to_svg(figure: Figure, key: str) -> str:
    """The figure as an `<svg>` element: ids prefixed by `key`, palette colours as CSS variables, no metadata.

    Must be called inside `panel`. Equal figures give equal text.
    """
    buffer = io.StringIO()
    empty = {"Date": None, "Creator": None, "Format": None, "Type": None}
    FigureCanvasSVG(figure).print_svg(buffer, metadata=empty)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{key}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", text)
    text = re.sub(r"#[0-9a-f]{6}(?=[;\"])", _variable, text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r">\s+<", ">\n<", text)
    return text.strip()


def _variable(match: re.Match[str]) -> str:
    name = _BY_HEX.get(match.group(0))
    return match.group(0) if name is None else f"var({css_name(name)})"


def shorten(text: str, limit: int = 26) -> str:
    """A name that fits an axis label."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
