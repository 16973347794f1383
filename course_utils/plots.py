"""The course's figures: one style file, one colour and one second cue for each format, and a text for those who can't see them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure

STYLE_FILE = Path(__file__).with_name("course.mplstyle")


@dataclass(frozen=True)
class Look:
    """How a format is drawn in every figure of the course: a colour, and a second cue beside it."""

    color: str
    linestyle: str
    marker: str
    hatch: str


LOOKS = {
    "32 bits": Look("#999999", "-", "s", ""),
    "16 bits": Look("#000000", "--", "D", "//"),
    "8 bits": Look("#56B4E9", "-.", "v", ".."),
    "4 bits": Look("#0072B2", "-", "o", ""),
    "nf4": Look("#0072B2", "-", "o", ""),
    "nf4, double quantization": Look("#009E73", "--", "^", "xx"),
    "fp4": Look("#E69F00", "-.", "P", "\\\\"),
    "int4": Look("#D55E00", ":", "X", "++"),
}


def use_style() -> None:
    """Draw all figures from here on in the course's style."""
    plt.style.use(STYLE_FILE)


def show(figure: Figure, description: str) -> None:
    """Show a figure together with its alternative text.

    Args:
        figure: closed afterwards, so that a notebook doesn't show it twice.
        description: what the figure shows, for readers who can't see it. It is the image's alternative text on web pages,
            and is printed below the figure, since JupyterLab gives images no alternative text.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    display({"image/png": buffer.getvalue(), "text/plain": description}, metadata={"image/png": {"alt": description}}, raw=True)
    print(f"Figure: {description}")
