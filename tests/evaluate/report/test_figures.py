"""What holds of every figure, and of figures of awkward numbers."""

import math
import re
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from evaluate.estimates import Estimate
from evaluate.metrics.measurement import Comparison, Measurement
from evaluate.report.drawing import draw
from evaluate.report.figure import MOST_ROWS, Axis, Figure, Series, number
from evaluate.report.figures import FIGURES, Results, by_layer, sweep_frontier
from evaluate.report.images import write_images

FIRST = {
    "name": "ours <b> & $x_1$ \x00 的",
    "fvu": 0.2,
    "fvu_without_outliers": 0.2,
    "mse": 1.0,
    "mse_without_outliers": 1.0,
    "cosine_similarity": 0.9,
    "cosine_similarity_without_outliers": 0.9,
    "fvu_scalar_variance": 0.1,
    "n_rows": 10,
    "rows_digest": "d",
    "n_documents": 2,
    "n_outliers": 0,
    "store_fingerprint": "f",
    "split": "heldout",
    "ci95": {},
    "l0_mean": 64.5,
    "fvu_per_prefix": {"100": 0.5, "400": 0.3, "900": 0.2},
    "l0_per_prefix": {"100": 20.0, "400": 40.0, "900": 64.5},
    "frontier": [{"l0": 16.0, "fvu": 0.3}, {"l0": 64.5, "fvu": 0.21}],
    "frontier_delta_ce": [
        {"l0": 16.0, "value": 0.02, "ci95": [-0.01, 0.05]},
        {"l0": 64.5, "value": 0.01, "ci95": None},
    ],
    "fvu_by_position": {"1-3": {"rows": 3, "l0": 4.0, "fvu": 0.18}, "4-15": {"rows": 3, "l0": 4.0, "fvu": 0.24}},
    "fvu_by_token_rank": {"1-10": {"rows": 3, "l0": 4.0, "fvu": 0.17}, "11-100": {"rows": 3, "l0": 4.0, "fvu": 0.19}},
    "explained_variance_by_dimension": [0.5, -2.0, 0.75],
    "density_histogram": {"log10_edges": [-2, -1, 0], "features": [30.0, 8.0]},
    "max_cosine_histogram": {"edges": [0.0, 0.5, 1.0], "features": [30.0, 10.0]},
}

LISTS = ("fvu_per_prefix", "l0_per_prefix", "frontier", "frontier_delta_ce", "fvu_by_position", "fvu_by_token_rank")

HISTOGRAMS = ("explained_variance_by_dimension", "density_histogram", "max_cosine_histogram")


def bare(**values) -> Measurement:
    """A measurement of which nothing can be drawn, but what `values` has."""
    kept = {key: value for key, value in FIRST.items() if key not in (*LISTS, *HISTOGRAMS)}
    return Measurement(**(kept | values))


OURS = Measurement(**FIRST)

OTHER = Measurement(
    **FIRST | {"name": "theirs", "fvu_per_prefix": {"900": 0.25}, "l0_per_prefix": {"900": 60.0}, "frontier_delta_ce": []}
)

TRIVIAL = bare(name="the mean", trivial=True, fvu=1.0)

TRAINING = [{"tokens": 100 * n, "fvu": 1 / n, "fvu_max": 2 / n, "fvu_mean": 1.5 / n} for n in range(1, 200)]

RESULTS = Results([OURS, OTHER, TRIVIAL], TRAINING)

SWEPT = [{"line": "topk, 40 latents", "l0_mean": 8.0 * n, "fvu": 0.5 / n} for n in (1, 2)]


def compared(ours: Measurement, google: Measurement) -> Comparison:
    return Comparison(
        ours=ours,
        other=google,
        others=(),
        trivial=(),
        winners={},
        checks=(),
        rows=10,
        store_fingerprint="f",
    )


LAYERS = {
    8: compared(bare(kl={"value": 0.2, "ci95": None}), bare()),
    17: compared(bare(), bare(kl=Estimate(value=3, ci95=None))),
}

DOTS = Figure(
    name="dots",
    title="Dots",
    caption="Some.",
    x=Axis(label="across", from_zero=True),
    y=Axis(label="up", from_zero=True),
    series=(
        Series(name="a", x=[0.0, 0.5, 1.0], y=[0.25, 0.5, 1.0], kind="dots", labels=["#1", "#2", "#3"]),
        Series(name="b", x=[0.2], y=[0.8], kind="dots", colour=None, labels=["#4"]),
    ),
    square=True,
)

EVERY = {figure(RESULTS).name: figure(RESULTS) for figure in FIGURES} | {
    "sweep": sweep_frontier(SWEPT),
    "layers": by_layer(LAYERS, "kl", "KL, nats"),
    "dots": DOTS,
}


DRAWN: dict[str, str] = {}
"""SVG of those of EVERY that were drawn."""


def text_of(figure: Figure) -> str:
    for name, known in EVERY.items():
        if known is figure:
            if name not in DRAWN:
                DRAWN[name] = draw(figure).svg()
            return DRAWN[name]
    return draw(figure).svg()


def svg_of(figure: Figure) -> ElementTree.Element:
    return ElementTree.fromstring(text_of(figure))


def titles(svg: ElementTree.Element) -> list[str]:
    """Texts of points, without the figure's own title."""
    return [title.text or "" for title in svg.iter("title")][1:]


def texts(svg: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in svg.iter("text")]


@pytest.fixture(params=EVERY)
def figure(request) -> Figure:
    return EVERY[request.param]


def test_its_svg_has_a_title_a_label_and_a_width_that_fits_any_screen(figure):
    svg = svg_of(figure)
    assert svg.attrib["role"] == "img"
    assert svg.attrib["aria-label"] == svg[0].text == f"{figure.title}. {figure.caption}"
    assert {"width", "height"}.isdisjoint(svg.attrib)
    assert "viewBox" in svg.attrib


def test_its_text_is_text_in_the_font_of_the_page(figure):
    svg = text_of(figure)
    assert figure.x.label in svg
    assert figure.y.label in svg
    assert "DejaVu" not in svg
    assert "http" not in svg
    assert "<style" not in svg


def test_every_colour_is_one_of_the_page(figure):
    unnamed = re.sub(r"var\(--[a-z0-9-]+, #[0-9a-f]{6}\)", "", text_of(figure))
    assert re.findall(r"#[0-9a-f]{6}\b", unnamed) == []


def test_it_refers_to_nothing_that_another_figure_holds(figure):
    svg = svg_of(figure)
    ids = [element.attrib["id"] for element in svg.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    assert all(each.startswith(f"{figure.name}-") for each in ids)
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text_of(figure))) <= set(ids)


def test_its_tables_hold_the_numbers_drawn(figure):
    tables = iter(figure.tables)
    for series in figure.series:
        if series.kind == "dots":
            continue
        table = next(tables)
        shown = list(zip(series.x, series.y, strict=True))
        assert len(table.rows) <= MOST_ROWS
        assert [row[:2] for row in table.rows] == [[number(x), number(y)] for x, y in shown[:: 1 + len(shown) // MOST_ROWS]]
        assert table.heads[:2] == [figure.x.label, figure.y.label]
        assert all(len(row) == len(table.heads) for row in table.rows)
    assert next(tables, None) is None


def test_it_is_a_png_too(figure, tmp_path):
    [path] = write_images(tmp_path / "figures", {"any": figure})
    assert path == tmp_path / "figures" / "any.png"
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_its_bytes_are_the_same_whatever_the_user_s_settings_are(figure):
    import matplotlib

    one = draw(figure)
    assert one.svg() == text_of(figure)
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path", "savefig.bbox": "tight"}):
        other = draw(figure)
        assert other.svg() == one.svg()
        assert other.png() == one.png()


@pytest.mark.parametrize("make", FIGURES, ids=lambda make: make.__name__)
def test_no_data_gives_no_figure(make, tmp_path):
    figure = make(Results([bare(fvu=math.nan, l0_mean=math.nan)]))
    assert not figure.has_data
    assert write_images(tmp_path, {"any": figure}) == []


def test_each_point_says_its_numbers():
    said = titles(svg_of(EVERY["fvu_by_prefix"]))
    assert said[1] == "ours <b> & $x_1$ � 的: latents in the prefix 400, FVU 0.3"
    assert len(said) == 4
    assert titles(svg_of(EVERY["delta_ce_by_l0"]))[0].endswith("mean L0 16, delta CE, nats 0.02 [-0.01, 0.05]")
    assert titles(svg_of(EVERY["density"])) == [
        f"{name}: log10 of the share of rows {x}, features {count}"
        for name in ("ours <b> & $x_1$ � 的", "theirs")
        for x, count in ((-1.5, 30), (-0.5, 8))
    ]


def test_dots_lie_where_their_numbers_say():
    svg = svg_of(DOTS)
    circles = {circle[0].text: circle for circle in svg.iter("circle") if len(circle)}
    assert sorted(circles) == ["#1: 0, 0.25", "#2: 0.5, 0.5", "#3: 1, 1", "#4: 0.2, 0.8"]
    numbers = [tuple(map(float, re.findall(r"[\d.]+", text.partition(":")[2]))) for text in circles]
    places = [(float(circle.attrib["cx"]), float(circle.attrib["cy"])) for circle in circles.values()]
    for axis, direction in ((0, 1), (1, -1)):
        there = np.array([place[axis] for place in places])
        slope, start = np.polyfit([value[axis] for value in numbers], there, 1)
        assert slope * direction > 100
        np.testing.assert_allclose(start + slope * np.array([value[axis] for value in numbers]), there, atol=0.11)


def ticks(svg: ElementTree.Element, side: str) -> list[str]:
    return [text for group in svg.iter("g") if group.get("class") == f"{side}tick" for text in texts(group)]


def line(x: Axis, y: Axis, *series: Series) -> Figure:
    return Figure(name="line", title="Line", caption="", x=x, y=y, series=series)


def test_labels_of_prefixes_are_whole_numbers_and_do_not_touch():
    assert ticks(svg_of(EVERY["fvu_by_prefix"]), "x") == ["100", "400", "900"]
    sizes = [2**n for n in range(5, 16)] + [32_700]
    crowded = line(
        Axis(label="x", scale="log", ticks=sizes), Axis(label="y"), Series(name="a", x=sizes, y=[1.0] * len(sizes))
    )
    labels = ticks(svg_of(crowded), "x")
    assert labels[-1] == "32,768"
    assert "32,700" not in labels
    assert 4 <= len(labels) < len(sizes)


@pytest.mark.parametrize(
    ("y", "expected"),
    [([0.2, 20.0], ["0.2", "0.5", "1", "2", "5", "10", "20"]), ([0.211, 0.213], ["0.211", "0.212", "0.213"])],
)
def test_a_log_axis_has_ticks_however_wide_it_is(y, expected):
    found = ticks(svg_of(line(Axis(label="x"), Axis(label="y", scale="log"), Series(name="a", x=[0, 1], y=y))), "y")
    assert [tick for tick in expected if tick not in found] == []


def test_ticks_that_differ_in_a_late_digit_are_told_apart():
    found = ticks(svg_of(line(Axis(label="x"), Axis(label="y"), Series(name="a", x=[0, 1], y=[12_345.1, 12_345.4]))), "y")
    assert len(found) == len(set(found)) > 2


AWKWARD = {
    "one prefix": [900],
    "prefixes that read as dates": [1, 2, 30],
    "NaN": [10, 20, 30],
    "dead": [10, 20],
}


@pytest.mark.parametrize("case", AWKWARD)
def test_no_warning_reaches_a_user(case, caplog, capfd):
    sizes = [str(size) for size in AWKWARD[case]]
    fvu = {"NaN": [math.nan, 0.2, math.inf], "dead": [1.0, 1.0]}.get(case, [0.3, 0.2, 0.1][: len(sizes)])
    l0 = [0.0] * len(sizes) if case == "dead" else [4.0, 5.0, 6.0][: len(sizes)]
    fields = FIRST | {
        "fvu": fvu[0],
        "l0_mean": l0[0],
        "fvu_per_prefix": dict(zip(sizes, fvu, strict=True)),
        "l0_per_prefix": dict(zip(sizes, l0, strict=True)),
        "frontier": [],
        "fvu_by_position": {size: {"rows": 1, "l0": 0.0, "fvu": value} for size, value in zip(sizes, fvu, strict=True)},
        "fvu_by_token_rank": {"2024-01-01": {"rows": 1, "l0": 0.0, "fvu": 0.0}},
        "explained_variance_by_dimension": [0.0],
        "density_histogram": {"log10_edges": [-1, 0], "features": [0.0]},
        "max_cosine_histogram": {"edges": [0.0, 1.0], "features": [0.0]},
    }
    training = [{"tokens": 0, "fvu": math.nan, "fvu_max": 0.0, "fvu_mean": None}, {"tokens": 0, "fvu": 1.0}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = [make(Results([Measurement(**fields)], training)) for make in FIGURES]
        drawn = {figure.name: draw(figure) for figure in figures if figure.has_data}
        assert all(drawing.png() for drawing in drawn.values())
        points = titles(ElementTree.fromstring(drawn["fvu_by_prefix"].svg()))
    assert len(drawn) == len(FIGURES)
    assert [text for text in points if "nan" in text or "inf" in text] == []
    assert len(points) == sum(map(math.isfinite, fvu))
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_a_point_that_is_not_finite_is_a_gap_and_stands_in_the_table():
    gap = line(Axis(label="x"), Axis(label="y"), Series(name="a", x=[0, 1, 2], y=[1.0, math.nan, 3.0]))
    assert [text.rpartition("y ")[2] for text in titles(svg_of(gap))] == ["1", "3"]
    assert [row[1] for row in gap.tables[0].rows] == ["1", "not a number", "3"]


def test_long_names_are_broken_and_none_is_cut_off():
    name = "a transcoder whose name is much longer than what a line of a legend on a telephone holds"
    shown = texts(svg_of(line(Axis(label="x"), Axis(label="y"), Series(name=name, x=[0, 1], y=[0, 1]))))
    parts = [text for text in shown if text in name and text not in ("", "x", "y")]
    assert " ".join(parts) == name
    assert len(parts) > 1


def test_figures_of_long_runs_and_wide_layers_are_small():
    rng = np.random.default_rng(0)
    m = Measurement(**FIRST | {"explained_variance_by_dimension": rng.normal(size=5000).tolist()})
    training = [{"tokens": n, "fvu": 0.3 + 0.1 * rng.random(), "fvu_max": 0.5, "fvu_mean": 0.4} for n in range(1, 5000)]
    results = Results([m, OTHER, TRIVIAL], training)
    assert sum(len(draw(make(results)).svg()) for make in FIGURES) < 250_000


def test_no_report_needs_plotly():
    root = Path(__file__).parents[3]
    for path in (*root.glob("evaluate/**/*.py"), root / "pyproject.toml", root / "constraints.txt"):
        assert "plotly" not in path.read_text(), path


def test_the_error_bars_of_a_series_are_one_path_with_a_stroke_for_each_interval():
    intervals = [(0.1, 0.3), (0.3, 0.5), (0.2, 0.6)]
    series = Series(name="a", x=[1, 2, 3], y=[0.2, 0.4, 0.5], intervals=intervals)
    figure = Figure(name="bars", title="t", caption="c", x=Axis(label="x"), y=Axis(label="y"), series=(series,))
    svg = draw(figure).svg()
    [path] = re.findall(r'<path d="([^"]+)"[^>]*stroke-width: 1.2"', svg)
    strokes = re.findall(r"M (\S+) (\S+) L (\S+) (\S+)", path)
    assert len(strokes) == 3
    lengths = [float(bottom) - float(top) for _, bottom, _, top in strokes]
    assert lengths[1] == pytest.approx(lengths[0], abs=0.2)
    assert lengths[2] == pytest.approx(2 * lengths[0], abs=0.2)
