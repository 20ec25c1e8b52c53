from collections import Counter

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from turncoder.report import plots
from turncoder.report.plots import draw_confusion, draw_grid


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures: list[Figure] = []
    save = plots._save

    def keep(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", keep)
    return figures


def points(axes):
    """Label, x, y and half the length of the error bar of every point."""
    for container in axes.containers:
        line, _, (bars,) = container.lines
        for point, ends in zip(line.get_xydata(), bars.get_segments(), strict=True):
            assert list(ends[:, 1]) == [point[1]] * 2
            assert ends[:, 0].mean() == pytest.approx(point[0])
            yield container.get_label(), *point, np.ptp(ends[:, 0]) / 2


def check_inside(figure):
    """All that is drawn lies inside the picture, and no two labels of an axis overlap."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [tick.get_window_extent() for tick in ticks if tick.get_text() and tick.get_visible()]
            assert not any(one.overlaps(other) for number, one in enumerate(boxes) for other in boxes[:number])
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width
        assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes)


def test_a_grid_of_models_and_tasks(drawn, tmp_path):
    models = [f"sheared-llama-1.3b {way}" for way in ("uni", "bi", "bi-mntp", "bi-mntp-simcse")] + ["deberta-v3-large"]
    tasks = {"ner_tags": "span F1", "upos": "token accuracy", "xpos": "token accuracy"}
    rows = [
        {"model": model, "task": task, "mode": mode, "mean": 0.7 + 0.01 * i + 0.02 * j + 0.1 * k, "std": 0.01 * k}
        for i, model in enumerate(models)
        for j, task in enumerate(tasks)
        for k, mode in enumerate(("probe", "full"))
        if (i, j, k) != (0, 1, 1)
    ]
    draw_grid([{**row, "score": tasks[row["task"]]} for row in rows], tmp_path / "grid.png")
    panels = {axes.get_title(): axes for axes in drawn[0].axes}
    assert {task: axes.get_xlabel() for task, axes in panels.items()} == {t: f"{tasks[t]} (%)" for t in tasks}
    assert [label.get_text() for label in panels["ner_tags"].get_yticklabels()] == models
    found = [(task, *point) for task, axes in panels.items() for point in points(axes)]
    assert {(task, mode, models[round(y)]): (x, error) for task, mode, x, y, error in found} == {
        (row["task"], row["mode"], row["model"]): pytest.approx((100 * row["mean"], 100 * row["std"])) for row in rows
    }
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["probe", "full"]
    check_inside(drawn[0])
    draw_grid([{"model": "a", "task": "upos", "mean": 0.5, "std": None}], tmp_path / "one.png")
    assert drawn[1].axes[0].get_xlabel() == "token accuracy (%)" and not drawn[1].legends
    assert [point for _, *point in points(drawn[1].axes[0])] == [[50, 0, 0]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "one.png"]
    assert imread(tmp_path / "grid.png").std() > 0.05


def test_error_bars_end_where_scores_do(drawn, tmp_path):
    rows = [{"mean": mean, "std": 0.1, "model": f"m{mean}", "task": "ner"} for mean in (0.04, 0.5, 0.98)]
    draw_grid(rows, tmp_path / "grid.png")
    (container,) = drawn[0].axes[0].containers
    ends = [segment[:, 0] for segment in container.lines[2][0].get_segments()]
    assert ends == [pytest.approx([0, 14]), pytest.approx([40, 60]), pytest.approx([88, 100])]


def test_thirty_lines_look_different():
    assert len({(look["color"], look["marker"]) for look in map(plots._look, range(30))}) == 30


def test_rare_labels_are_drawn_as_one(drawn, tmp_path):
    names = [f"L{number}" for number in range(40)]
    counts = Counter({(one, other): 3 for one in names for other in names[::7]})
    counts.update({(name, name): 12_345 for name in names})
    draw_confusion(names, counts, tmp_path / "confusion.png")
    axes = drawn[0].axes[0]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == [*names[:29], "(11 others)"] == [label.get_text() for label in axes.get_xticklabels()]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells[0, 0] == "12k" and cells[7, 0] == "3" and (1, 0) not in cells
    assert cells[29, 0] == "3" and cells[0, 29] == "33"  # L35; 11 rows
    share_KK = np.asarray(axes.images[0].get_array())
    assert share_KK.sum(axis=1) == pytest.approx(np.ones(30))
    check_inside(drawn[0])


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (9_999, "9999"), (10_000, "10k"), (999_499, "999k"), (1_250_000, "1.2M")]
)
def test_counts_are_short(count, text):
    assert plots._shorten(count) == text
