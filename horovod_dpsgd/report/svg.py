"""Figures as SVG elements that stand in an HTML page: no file, font or script beside it is needed."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from horovod_dpsgd.report.figures import plt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)


def element(figure: Figure, name: str, title: str, description: str) -> Markup:
    """The figure as one <svg>; its texts stay texts. `name` is unlike those of the page's other figures; title and
    description are what a screen reader says. Closes the figure."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    root = ElementTree.fromstring(buffer.getvalue())
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    _rename(root, name)
    for number, (tag, text) in enumerate((("title", title), ("desc", description))):
        words = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{tag}"})
        words.text = text
        root.insert(number, words)
    width = float(root.attrib.pop("width").removesuffix("pt")) * 4 / 3  # CSS pixels
    del root.attrib["height"]  # follows from the width and the viewBox
    root.attrib |= {
        "id": name,
        "role": "img",
        "aria-labelledby": f"{name}-title",
        "aria-describedby": f"{name}-desc",
        "style": f"max-width: {width:.0f}px",
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _rename(root: ElementTree.Element, name: str) -> None:
    """Put `name` before all ids, and what refers to them: matplotlib calls things alike in every figure. And keep its
    style, which is of everything in a document, to this one."""
    for node in root.iter():
        if node.tag == f"{{{SVG}}}style" and node.text:
            node.text = re.sub(r"^\s*\*", f"#{name} *", node.text)
        for key, value in node.attrib.items():
            if key == "id":
                node.set(key, f"{name}-{value}")
            elif key in ("href", f"{{{XLINK}}}href"):
                node.set(key, re.sub("^#", f"#{name}-", value))
            elif "url(#" in value:
                node.set(key, value.replace("url(#", f"url(#{name}-"))
