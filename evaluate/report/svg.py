"""Makes matplotlib's SVG fit for a page: the page's colours and font, a title, a text on every point, and few bytes."""

import re
from collections.abc import Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from evaluate.report.style import VARIABLES

NUMBER = re.compile(r"-?\d+\.\d{2,}")

UNSAID = ("font-family", "font-stretch", "font-variant", "font-weight", "stroke-linejoin", "stroke-miterlimit")
"""Properties of matplotlib's elements that the page decides, or that are the same everywhere."""


def for_page(svg: str, title: str, name: str, hovers: Mapping[str, list[str]]) -> str:
    """An SVG element that can stand in a page.

    svg: matplotlib's document; title: what the figure shows, in words; name: of the figure, to keep its ids apart from
    those of others; hovers: texts of the points of a group, by its id, in the order of the points.
    """
    document = ElementTree.fromstring(svg)
    for element in document.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: text for key, text in element.attrib.items()}
    _drop(document, {"metadata", "style"})
    groups = {element.get("id"): element for element in document.iter("g")}
    for group, texts in hovers.items():
        _set_texts(groups[group], texts)
    _prune(document)
    for element in document.iter():
        _set_style(element)
    for element in document.iter("g"):
        _join_strokes(element)
    _set_ids(document, name)
    root = Element(
        "svg",
        {"viewBox": document.attrib["viewBox"], "role": "img", "aria-label": title, "font-family": "system-ui, sans-serif"},
    )
    SubElement(root, "title").text = title
    root.extend(document)
    return ElementTree.tostring(root, encoding="unicode").replace("\n", "")


def _drop(element: Element, tags: set[str]) -> None:
    for child in list(element):
        if child.tag in tags:
            element.remove(child)
        else:
            _drop(child, tags)


def _set_texts(group: Element, texts: list[str]) -> None:
    """Writes the markers of a group as circles with their texts; a text alone is that of the whole group."""
    holders = [element for element in group.iter("g") if element.find("use") is not None]
    if not holders:
        [text] = texts
        SubElement(group, "title").text = text
        return
    [holder] = holders
    uses = holder.findall("use")
    assert len(uses) == len(texts), (len(uses), len(texts))
    radius = _radius(group)
    style = uses[0].get("style", "").replace("opacity:", "fill-opacity:")
    holder.attrib = {"class": "points", "style": style}
    for use, text in zip(uses, texts, strict=True):
        holder.remove(use)
        circle = SubElement(holder, "circle", {"cx": use.attrib["x"], "cy": use.attrib["y"], "r": radius})
        SubElement(circle, "title").text = text
    for defs in group.findall("defs"):
        group.remove(defs)


def _radius(group: Element) -> str:
    """Half the height of the marker that a group defines."""
    path = next(element for defs in group.iter("defs") for element in defs.iter("path"))
    numbers = re.findall(r"[-\d.]+", path.attrib["d"])
    return f"{max(map(float, numbers)):.4g}"


def _prune(element: Element) -> None:
    """Drops groups that hold nothing and white space between elements."""
    for child in list(element):
        _prune(child)
        if child.tag in ("g", "defs") and not len(child):
            element.remove(child)
    if element.tag not in ("text", "title"):
        element.text = None
    element.tail = None


def _set_style(element: Element) -> None:
    """The page's colours, numbers of two digits at most behind the point, and no property that goes without saying."""
    for key in ("d", "x", "y", "cx", "cy", "transform"):
        if key in element.attrib:
            text = NUMBER.sub(lambda match: f"{float(match[0]):.1f}".removesuffix(".0"), element.attrib[key])
            element.attrib[key] = " ".join(text.replace("rotate(-0 ", "rotate(0 ").split())
    said = []
    for part in element.attrib.pop("style", "").split(";"):
        key, _, value = part.strip().partition(": ")
        if not key or key in UNSAID:
            continue
        for colour, variable in VARIABLES.items():
            value = value.replace(colour, f"var({variable}, {colour})")
        said.append(f"{key}: {value}")
    if element.tag == "text":
        said = [part.replace("font: ", "font-size: ").partition(" 'DejaVu")[0] for part in said]
    if said:
        element.attrib["style"] = "; ".join(said)


def _join_strokes(element: Element) -> None:
    """Makes one path of strokes that follow each other and look alike, as the error bars of a series do."""
    before: Element | None = None
    for child in list(element):
        if before is not None and _stroke(child) is not None and _stroke(child) == _stroke(before):
            before.attrib["d"] += f" {child.attrib['d']}"
            element.remove(child)
        else:
            before = child


def _stroke(element: Element) -> dict[str, str] | None:
    """How a stroke looks; None of what is filled, and of what is no path."""
    if element.tag != "path" or "fill: none" not in element.get("style", ""):
        return None
    return {key: text for key, text in element.attrib.items() if key != "d"}


def _set_ids(document: Element, name: str) -> None:
    """Keeps the ids that something in the figure refers to, under names that no other figure of the page has.

    Groups of ticks keep theirs as a class, without the number."""
    text = ElementTree.tostring(document, encoding="unicode")
    wanted = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    for element in document.iter():
        mine = element.attrib.pop("id", None)
        if mine in wanted:
            element.attrib["id"] = f"{name}-{mine}"
        elif mine is not None and re.match(r"[xy]tick_", mine):
            element.attrib["class"] = mine.partition("_")[0]
        for key, value in element.attrib.items():
            if key == "href":
                element.attrib[key] = value.replace("#", f"#{name}-")
            else:
                element.attrib[key] = value.replace("url(#", f"url(#{name}-")
