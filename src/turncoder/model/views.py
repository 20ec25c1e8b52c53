"""What is reported of a model's attention: each layer's view, and the verdict on the whole."""

import dataclasses
import itertools
import re
from typing import Any

from rich.table import Table

__all__ = ["AttentionFacts", "AttentionReport", "LayerView", "describe_faults"]


@dataclasses.dataclass(frozen=True)
class LayerView:
    """What one layer sees."""

    index: int
    """Its place among the layers that mix tokens, from 0."""
    name: str
    """Its module within the backbone."""
    kind: str
    """Its type as the configuration states it; empty where there is but one."""
    looks_ahead: bool
    """Whether a position of its output moves when the next position of its input is changed."""
    looks_back: bool
    """The same of the position before."""
    window: int | None
    """Positions that it reaches to each side; None without a window."""
    window_before: int | None = None
    """Positions that it reached back to before the conversion."""
    causal_parts: tuple[str, ...] = ()
    """Modules inside it that mix tokens and look back only (convolutions, recurrent branches)."""

    @property
    def direction(self) -> str:
        """Where it looks: both ways, back only, back further than ahead, ahead only, or at no other token."""
        if self.looks_ahead and self.looks_back:
            return "back further than ahead" if self.causal_parts else "both ways"
        if self.looks_ahead or self.looks_back:
            return "ahead only" if self.looks_ahead else "back only"
        return "no other token"


@dataclasses.dataclass(frozen=True)
class AttentionFacts:
    """What a model folder keeps of an `AttentionReport`: what is told of the whole, layer by layer aside."""

    architecture: str
    model_type: str
    verdict: str
    summary: str
    reason: str
    how: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class AttentionReport:
    """What was found about a model, and what was done to it."""

    architecture: str
    """Class of the backbone."""
    model_type: str
    """What its configuration calls itself."""
    implementation: str
    """Of attention: sdpa, eager, ..."""
    verdict: str
    """"bidirectional", "partial" (some layers are), "causal" or "padding leaks"."""
    reason: str
    """Why it is not bidirectional; empty if it is."""
    remedy: str
    """What helps; empty if nothing is wrong."""
    how: tuple[str, ...]
    """What made it bidirectional."""
    left_padding: str
    """"exact", "needs position_ids" or "impossible"; right padding is exact in every model that is accepted."""
    reopens: str
    """How plain `AutoModel` opens a saved copy: "bidirectional", "causal", "disagrees" or "fails"."""
    layers: tuple[LayerView, ...]
    """What each layer sees."""
    seconds: float = 0.0
    """How long the proof took."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        return dataclasses.asdict(self) | {"summary": self.summary}

    @property
    def facts(self) -> AttentionFacts:
        """What a model folder keeps of it."""
        return AttentionFacts(**{one.name: getattr(self, one.name) for one in dataclasses.fields(AttentionFacts)})

    @property
    def summary(self) -> str:
        """One line: how many layers look where."""
        mixing = [layer for layer in self.layers if layer.looks_ahead or layer.looks_back]
        ahead = sum(layer.direction == "both ways" for layer in mixing)
        windows = sorted({layer.window for layer in mixing if layer.window is not None})
        text = f"{ahead} of {len(mixing)} layers look both ways" if mixing else f"the whole model is {self.verdict}"
        return text + (f", windows of {', '.join(f'+-{window}' for window in windows)}" if windows else "")

    def table(self) -> Table:
        """Return the layers as a table for rich."""
        columns = {
            "layer": [layer.name for layer in self.layers],
            "type": [layer.kind for layer in self.layers],
            "looks": [
                layer.direction + (f" ({', '.join(layer.causal_parts)})" if layer.causal_parts else "")
                for layer in self.layers
            ],
            "window": ["" if layer.window is None else f"+-{layer.window}" for layer in self.layers],
            "before": ["" if layer.window_before is None else f"-{layer.window_before}" for layer in self.layers],
        }
        told = {name: cells for name, cells in columns.items() if any(cells)}
        table = Table(*told, title=f"{self.architecture}{', converted' if self.how else ''}: {self.verdict}")
        for cells in zip(*told.values(), strict=True):
            table.add_row(*cells)
        return table


def describe_faults(layers: list[LayerView]) -> str:
    """Return in one line which layers look where, and because of which modules inside them."""
    groups: dict[tuple[str, tuple[str, ...]], list[LayerView]] = {}
    for layer in layers:
        groups.setdefault((layer.direction, layer.causal_parts), []).append(layer)
    texts = []
    for (direction, parts), group in groups.items():
        texts.append(f"{name_layers(group)}: {direction}" + (f" ({', '.join(parts)})" if parts else ""))
    return "; ".join(texts)


def name_layers(layers: list[LayerView]) -> str:
    """Return names of layers in short, like ``layers.0-2,5``."""
    stems: dict[str, list[int]] = {}
    for layer in layers:
        stem, _, number = layer.name.rpartition(".")
        stems.setdefault(stem, []).append(int(number) if re.fullmatch(r"\d+", number) else layer.index)
    texts = []
    for stem, numbers in stems.items():
        runs = [
            [number for _, number in run]
            for _, run in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
        ]
        texts.append(stem + "." + ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs))
    return " ".join(texts)
