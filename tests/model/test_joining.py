"""Adapters one on top of the other are one adapter: the differences that they make add up."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from turncoder.errors import UserError
from turncoder.model.joining import join_adapters

WIDTH = 6


def write(folder: Path, rank: int, alpha: int, modules: list[str], seed: int, **others: Any) -> dict[str, torch.Tensor]:
    """Write an adapter; give what it adds to each module's weight."""
    draw = torch.Generator().manual_seed(seed)
    tensors, added = {}, {}
    for name in modules:
        a, b = torch.randn(rank, WIDTH, generator=draw), torch.randn(WIDTH, rank, generator=draw)
        tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        added[name] = (b.double() @ a.double()) * alpha / (rank**0.5 if others.get("use_rslora") else rank)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": modules, **others}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return added


MODULES = st.sets(st.sampled_from(["q", "k", "v"]), min_size=1).map(sorted)
SOME = st.tuples(st.integers(1, 4), st.integers(1, 16), MODULES, st.booleans())


@given(parts=st.lists(SOME, min_size=2, max_size=3))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_they_add_is_added(parts: list[tuple[int, int, list[str], bool]], tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(len(parts))]
    added: dict[str, Any] = {}
    for number, (folder, (rank, alpha, modules, stable)) in enumerate(zip(folders, parts, strict=True)):
        for name, difference in write(folder, rank, alpha, modules, number, use_rslora=stable).items():
            added[name] = added.get(name, 0) + difference
    own, joined = join_adapters(folders)
    assert own["r"] == own["lora_alpha"] == sum(part[0] for part in parts) and not own["use_rslora"]
    assert own["target_modules"] == sorted(added)
    for name, expected in added.items():
        a, b = (joined[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        assert a.shape == (own["r"], WIDTH)
        torch.testing.assert_close(b.double() @ a.double(), expected, atol=1e-4, rtol=1e-4)
    assert len(joined) == 2 * len(added)


@pytest.mark.parametrize("odd", [{"use_dora": True}, {"rank_pattern": {"q": 2}}, {"modules_to_save": ["head"]}])
def test_other_forms_are_refused(odd: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "one", 2, 4, ["q"], 0)
    write(tmp_path / "two", 2, 4, ["q"], 1, **odd)
    with pytest.raises(UserError, match="two cannot be joined"):
        join_adapters([tmp_path / "one", tmp_path / "two"])
