"""The ONNX graph: its vectors are those of the bidirectional model, and never those of the causal one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import GPT2Config, LlamaConfig, MistralConfig, MixtralConfig, PretrainedConfig

from turncoder.config.encoding import MergeConfig
from turncoder.errors import UserError
from turncoder.merging import merge_to_folder
from turncoder.onnx import export_onnx

TEXTS = ["Once upon a time", "The little dog ran home to its mother", "a"]
SIZES = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=4),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
    "gpt2": GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}
BACKEND = """
import json, sys
try:
    from optimum.onnxruntime import ORTModelForFeatureExtraction
except Exception as error:
    print(json.dumps(f"{type(error).__name__}: {error}"))
    raise SystemExit
from sentence_transformers import SentenceTransformer
print(json.dumps(SentenceTransformer(sys.argv[1], backend="onnx").encode(json.loads(sys.argv[2])).tolist()))
"""


def make_folder(make_model: Callable[..., Path], config: PretrainedConfig, folder: Path) -> Path:
    name = str(make_model(config, name="decoder"))
    return merge_to_folder(MergeConfig(model_name_or_path=name, output_dir=str(folder), max_seq_length=32))


def test_what_is_no_model_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"modules\.json"):
        export_onnx(tmp_path)


def test_missing_packages_are_named(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(make_model, CONFIGS["llama"], tmp_path / "model")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime.*turncoder\[onnx\]"):
        export_onnx(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_its_vectors_are_the_model_s(name: str, make_model: Callable[..., Path], tmp_path: Path) -> None:
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (pip install 'turncoder[onnx]')")
    import onnxruntime

    folder = make_folder(make_model, CONFIGS[name], tmp_path / "model")
    session = onnxruntime.InferenceSession(export_onnx(folder))
    encoder = SentenceTransformer(str(folder), device="cpu")
    batch = encoder.preprocess(TEXTS)
    mask = batch["attention_mask"].numpy()
    assert mask.min() == 0
    fed = {"input_ids": batch["input_ids"].numpy(), "attention_mask": mask}
    states = session.run(["last_hidden_state"], fed)[0]
    pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    np.testing.assert_allclose(pooled, encoder.encode(TEXTS), atol=1e-4)
    changed = {"input_ids": fed["input_ids"].copy(), "attention_mask": mask}
    changed["input_ids"][1, -1] += 1
    moved = np.abs(session.run(None, changed)[0] - states)
    assert moved[1, -2].max() > 1e-3 and moved[0].max() < 1e-6  # it looks ahead, and rows are apart
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []


@pytest.mark.slow
def test_onnx_runtime_alone_as_the_page_shows_it(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (pip install 'turncoder[onnx]')")
    page = (Path(__file__).resolve().parents[1] / "docs" / "serving.md").read_text(encoding="utf8")
    block = next(part.split("```")[0] for part in page.split("```python\n") if "InferenceSession" in part)
    folder = make_folder(make_model, CONFIGS["llama"], tmp_path / "runs" / "mine" / "model")
    export_onnx(folder)
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    exec(block, space)
    expected = SentenceTransformer(str(folder)).encode(["A decoder that looks both ways.", "An encoder, then."])
    np.testing.assert_allclose(space["vectors"], expected, atol=1e-4)


@pytest.mark.slow
def test_a_graph_that_is_causal_is_not_written(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (pip install 'turncoder[onnx]')")
    from turncoder import onnx

    folder = make_folder(make_model, CONFIGS["llama"], tmp_path / "model")
    whole = onnx._export

    def export_causal(states: torch.nn.Module, path: Path) -> None:
        states.backbone.config.is_causal = True
        whole(states, path)
        states.backbone.config.is_causal = False

    monkeypatch.setattr(onnx, "_export", export_causal)
    with pytest.raises(UserError, match="away from the model's; not written"):
        export_onnx(folder)
    assert not (folder / "onnx").exists() and not (folder / ".onnx.partial").exists()


@pytest.mark.slow
def test_sentence_transformers_backend_reads_it(make_model: Callable[..., Path], tmp_path: Path) -> None:
    """In the Python that TURNCODER_ONNX_PYTHON names, or this one: Optimum wants another transformers than we do."""
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (pip install 'turncoder[onnx]')")
    folder = make_folder(make_model, CONFIGS["llama"], tmp_path / "model")
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    export_onnx(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # as tokenizers say that transformers 4 wrote
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    python = os.environ.get("TURNCODER_ONNX_PYTHON", sys.executable)
    run = subprocess.run(
        [python, "-c", BACKEND, str(folder), json.dumps(TEXTS)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    told = json.loads(run.stdout.strip().splitlines()[-1])
    if isinstance(told, str):
        pytest.skip(f"optimum-onnx is absent, or does not work with this transformers ({told})")
    np.testing.assert_allclose(told, expected, atol=1e-4)
