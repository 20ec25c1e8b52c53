"""How a model is used, as a model card says it: sentence-transformers, transformers, vLLM, Text Embeddings Inference.

The commands are those of ``docs/serving.md``, which says what was tried; a test holds the two together.
"""

import json

from turncoder.model.views import AttentionFacts, AttentionReport

__all__ = ["EXAMPLES", "show_encoder", "show_language_model", "show_servers", "show_tagger"]

EXAMPLES = ["A decoder that looks both ways.", "An encoder, then."]
MEAN = """
With transformers alone, prompts not included:

```python
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}", padding_side="right", pad_token={pad_token})
model = AutoModel.from_pretrained("{name}")
batch = tokenizer({examples}, padding=True, return_tensors="pt")
with torch.no_grad():
    states = model(**batch).last_hidden_state
mask = batch["attention_mask"].unsqueeze(-1)
vectors = (states * mask).sum(1) / mask.sum(1)
```
"""
LANGUAGE = """
```python
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = {auto}.from_pretrained("{name}")
```
"""
TAGGER = """
Labels of words ({tasks}), which turncoder opens:

```python
from turncoder import load_tagger

for sentence in load_tagger("{name}").tag({examples}):
    print(sentence.words, sentence.tags)
```
"""
VLLM = """
```bash
vllm serve {name} --runner pooling
vllm serve {name} --runner pooling --pooler-config '{{"pooling_type": "{pooling}"}}'   # says the pooling again
curl http://localhost:8000/v1/embeddings -H 'Content-Type: application/json' \\
  -d '{{"model": "{name}", "input": ["A decoder that looks both ways."]}}'
```
"""
TEI = """
```bash
docker run {device}-p 8080:80 \\
  ghcr.io/huggingface/text-embeddings-inference:{image} --model-id {name} --dtype {dtype}
curl 127.0.0.1:8080/embed -X POST -H 'Content-Type: application/json' -d '{{"inputs": "{example}"}}'
```
"""
COMPARE = "No server was started here: compare a few of its vectors with those of sentence-transformers first."
POOLER = {"mean": "MEAN", "cls": "CLS", "lasttoken": "LAST"}
"""sentence-transformers' pooling modes that servers have, by vLLM's names."""
VLLM_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3", "apertus", "gemma3_text"})
TEI_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Architectures whose key a server reads; of others it computes the causal model."""


def show_encoder(name: str, opens: str, pooling: str, pad_token: str, dims: list[int] | None) -> str:
    """Show how an encoder is opened, in Python; see `turncoder.publish.card.write_card`."""
    examples = json.dumps(EXAMPLES)
    if opens == "bidirectional":
        package, call = "sentence_transformers import SentenceTransformer", f'SentenceTransformer("{name}")'
    else:
        package, call = "turncoder import load_encoder", f'load_encoder("{name}")'
    lines = ["\n```python", f"from {package}\n", f"encoder = {call}", f"vectors = encoder.encode({examples})"]
    if dims:
        lines.append(f"short = encoder.encode({examples}, truncate_dim={min(dims)})")
    lines += ["print(encoder.similarity(vectors, vectors))", "```"]
    text = "\n".join(lines) + "\n"
    if opens == "bidirectional" and pooling == "mean":
        text += MEAN.format(name=name, examples=examples, pad_token=json.dumps(pad_token, ensure_ascii=False))
    return text


def show_language_model(name: str, kind: str) -> str:
    """Show how a language model is opened: ``clm`` or ``mlm``."""
    return LANGUAGE.format(name=name, auto="AutoModelForMaskedLM" if kind == "mlm" else "AutoModelForCausalLM")


def show_tagger(name: str, tasks: list[str]) -> str:
    """Show how words are tagged."""
    return TAGGER.format(name=name, tasks=", ".join(tasks), examples=json.dumps(EXAMPLES))


def show_servers(name: str, report: AttentionReport | AttentionFacts, pooling: str, *, onnx: bool) -> str:
    """Show how vLLM and Text Embeddings Inference serve an encoder, as far as they read its keys.

    Parameters
    ----------
    name
        Hub id.
    report
        What its attention is; of an encoder that needed no conversion nothing is known, and nothing said.
    pooling
        A mode of sentence-transformers.
    onnx
        Whether there is a graph, which Text Embeddings Inference takes on a CPU.
    """
    if not report.how or report.verdict != "bidirectional":
        return ""
    parts, model_type = ["## Serving\n"], report.model_type
    runs = {"vLLM": model_type in VLLM_TYPES, "Text Embeddings Inference": model_type in TEI_TYPES or onnx}
    runs = {server: known and pooling in POOLER for server, known in runs.items()}
    if runs["vLLM"]:
        parts += ["vLLM:", VLLM.format(name=name, pooling=POOLER[pooling])]
    if runs["Text Embeddings Inference"]:
        parts.append("Text Embeddings Inference:")
        if model_type in TEI_TYPES:
            parts.append(
                TEI.format(name=name, device="--gpus all ", example=EXAMPLES[0], image="cuda-1.9", dtype="float16")
            )
        if onnx:
            parts.append(TEI.format(name=name, device="", example=EXAMPLES[0], image="cpu-1.9", dtype="float32"))
    for server, known in runs.items():
        if not known:
            parts.append(f"Not with {server}: it does not read that this model looks both ways, or not its pooling.\n")
    return "\n".join([*parts, COMPARE]) + "\n"
