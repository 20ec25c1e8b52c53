"""What a card says of servers is what docs/serving.md says."""

import re
from pathlib import Path

import pytest

from turncoder.model.views import AttentionFacts
from turncoder.publish.usage import TEI_TYPES, VLLM_TYPES, show_servers

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf8")


def facts(model_type: str, **others: object) -> AttentionFacts:
    told = {"architecture": "X", "verdict": "bidirectional", "summary": "", "reason": "", "how": ("is_causal",)}
    return AttentionFacts(**{**told, "model_type": model_type, **others})  # type: ignore[arg-type]


def commands(text: str) -> set[str]:
    """Commands of all blocks, one a line, whatever folder or id they name."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    blocks = re.sub(r' -v "\$PWD/runs/mine/model:/model"', "", blocks)
    lines = re.sub(r"runs/mine/model|/model\b|me/mine", "MODEL", blocks).splitlines()
    return {re.sub(r" +", " ", line).strip() for line in lines if line.strip()}


def test_commands_are_those_of_the_page() -> None:
    ours = commands(show_servers("me/mine", facts("llama"), "mean", onnx=True))
    assert len(ours) == 6 and ours <= commands(PAGE), ours - commands(PAGE)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "apertus", "gpt2"])
def test_only_who_reads_the_key_is_named(model_type: str) -> None:
    said = show_servers("me/mine", facts(model_type), "mean", onnx=False)
    assert ("vllm serve" in said) == (model_type in VLLM_TYPES)
    assert ("docker run" in said) == (model_type in TEI_TYPES)
    assert said.count("Not with") == 2 - (model_type in VLLM_TYPES) - (model_type in TEI_TYPES)
    named = model_type.removesuffix("_text").replace("gemma3", "gemma 3")
    rows = [line.lower() for line in PAGE.splitlines() if line.startswith("| vLLM |")]
    assert (model_type in VLLM_TYPES) == any(named in row for row in rows)


def test_other_poolings_and_other_attention_are_not_served() -> None:
    assert "vllm serve" not in show_servers("me/mine", facts("llama"), "weightedmean", onnx=True)
    assert show_servers("me/mine", facts("bert", how=()), "mean", onnx=False) == ""
    assert show_servers("me/mine", facts("llama", verdict="partial"), "mean", onnx=False) == ""
