"""Pictures of scores: confusions, a grid of models and tasks. One style, colours for all eyes.

matplotlib draws without a display; nothing of its global state is touched.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from turncoder.disk import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_confusion", "draw_grid", "list_named"]

# Okabe & Ito 2008, told apart with any kind of colour vision; black and yellow left out
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^v"
CLASSES = 30
LONGEST = 24  # characters of a label
SHARES = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1)
DPI = 150


def draw_confusion(names: Sequence[str], counts: Mapping[tuple[str, str], int], path: Path) -> None:
    """Draw words by gold label (rows) and predicted label (columns); the colour is the share of the row.

    Parameters
    ----------
    names
        Labels, the most frequent first. Of more than 30 those beyond the first 29 are drawn as one, in which mistakes
        among themselves look right.
    counts
        Words by gold and predicted label.
    path
        The PNG to write.
    """
    import numpy as np
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    shown = list(names) if len(names) <= CLASSES else [*names[: CLASSES - 1], f"({len(names) - CLASSES + 1} others)"]
    place = {name: min(number, len(shown) - 1) for number, name in enumerate(names)}
    count_KK = np.zeros((len(shown), len(shown)), dtype=np.int64)
    for (right, said), count in counts.items():
        count_KK[place[right], place[said]] += count
    share_KK = count_KK / np.maximum(1, count_KK.sum(axis=1, keepdims=True))
    side = 1.6 + 0.36 * len(shown)
    figure = Figure(figsize=(max(4.0, side + 0.6), max(3.2, side)), layout="compressed")
    axes = figure.add_subplot()
    # the square root shows a row's mistakes, of a few per cent, beside what is right
    image = axes.imshow(share_KK, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    for row, column in np.argwhere(count_KK):
        light = share_KK[row, column] > 0.4
        cell = axes.text(column, row, _shorten(int(count_KK[row, column])), ha="center", va="center", fontsize=6)
        cell.set(color="white" if light else "black", in_layout=False)
    labels = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in shown]
    axes.set_xticks(range(len(shown)), labels, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(shown)), labels, fontsize=8, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, ticks=SHARES, format=PercentFormatter(1, decimals=0))
    bar.set_label("share of the gold label", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    _save(figure, path)


def _shorten(count: int) -> str:
    """Write a count in at most four characters."""
    if count < 10_000:
        return str(count)
    return f"{count / 1000:.0f}k" if count < 999_500 else f"{count / 1e6:.1f}M"


def draw_grid(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a score of each model at each task: a panel for each task, a line for each model, a colour for each mode.

    Parameters
    ----------
    rows
        ``model``, ``task``, ``mean`` and ``std`` (or None), between 0 and 1; ``mode`` where there are several;
        ``score`` where a task has another than token accuracy.
    path
        The PNG to write.
    """
    from matplotlib.figure import Figure

    models, tasks, modes = (list(dict.fromkeys(row.get(key, "") for row in rows)) for key in ("model", "task", "mode"))
    step = 0.6 / len(modes)
    height = 1.0 + len(models) * max(0.3, 0.16 * len(modes))
    figure = Figure(figsize=(max(5.0, 1.8 + 2.2 * len(tasks)), max(2.0, height)), layout="constrained")
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        for number, mode in enumerate(modes):
            own = [row for row in rows if (row["task"], row.get("mode", "")) == (task, mode)]
            axes.errorbar(
                [100 * row["mean"] for row in own],
                [models.index(row["model"]) + step * (number - (len(modes) - 1) / 2) for row in own],
                xerr=_bars(own),
                label=mode,
                linestyle="none",
                **_look(number),
            )
        axes.set_title(task, fontsize=10)
        named = next((row["score"] for row in rows if row["task"] == task and "score" in row), "token accuracy")
        axes.set_xlabel(f"{named} (%)", fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.tick_params(axis="y", length=0)
        _tidy(axes, "both")
    panels[0].set_yticks(range(len(models)), models, fontsize=9)
    panels[0].set_ylim(len(models) - 0.5, -0.5)
    _explain(figure, panels[0])
    _save(figure, path)


def _bars(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Give the lengths of error bars below and above, which end where scores do: at 0 and 100 %."""
    below = [100 * min(row["std"] or 0, row["mean"]) for row in rows]
    return [below, [100 * min(row["std"] or 0, 1 - row["mean"]) for row in rows]]


def _look(number: int) -> dict[str, Any]:
    """Give the colour and marker of a line; they come round together only after 30."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
        "markersize": 4.5,
        "capsize": 2,
        "linewidth": 1.5,
    }


def _tidy(axes: "Axes", lines: Literal["both", "x", "y"]) -> None:
    axes.grid(axis=lines, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def list_named(axes: "Axes") -> tuple[list[Any], list[str]]:
    """List what has a name, and the names; to matplotlib's own list a name that begins with _ is none."""
    handles: list[Any] = [one for one in axes.containers or axes.lines if one.get_label()]
    return handles, [str(one.get_label()) for one in handles]


def _explain(figure: "Figure", axes: "Axes") -> None:
    """Put a legend below, where there is something to tell apart."""
    handles, names = list_named(axes)
    if len(names) > 1:
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 3), frameon=False, fontsize=8)


def _save(figure: "Figure", path: Path) -> None:
    with replace_file(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI)
