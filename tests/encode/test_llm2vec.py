"""LLM2Vec's semantics give the vectors of llm2vec 0.2.3 itself (fixtures/llm2vec/make.py says how they came about)."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from turncoder.cli import main
from turncoder.encode.encoder import load_encoder
from turncoder.encode.texts import BatchEncoder

HOME = Path(__file__).parents[1] / "fixtures" / "llm2vec"
FOUND = json.loads((HOME / "vectors.json").read_text(encoding="utf8"))
CASES = FOUND["cases"]
TEXTS = FOUND["texts"]


def make() -> Any:
    spec = importlib.util.spec_from_file_location("make", HOME / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = make()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("llm2vec")
    for kind in MAKE.KINDS:
        MAKE.build(home / kind, kind)
        MAKE.build(home / f"{kind}-chat", kind, MAKE.CHAT_NAME)
    for seed in MAKE.ADAPTER_SEEDS:
        MAKE.build_adapter(home / f"adapter-{seed}", seed)
    return home


def open_case(home: Path, case: dict[str, Any], **options: Any) -> SentenceTransformer:
    name = case["kind"] + ("-chat" if case["name_or_path"] else "")
    adapters = [str(home / f"adapter-{seed}") for seed in MAKE.ADAPTER_SEEDS[: case["adapters"]]]
    encoder = load_encoder(
        str(home / name),
        adapters=adapters,
        merge=case["adapters"] < 2,
        pooling=case["pooling"],
        bidirectional=case["bidirectional"],
        llm2vec=True,
        **options,
    )
    encoder[0].skip_instruction = case["skip_instruction"]
    return encoder


def off_by_a_token(case: dict[str, Any]) -> np.ndarray:
    """Which texts llm2vec pools one token too many of: its instruction mask is counted on the text alone."""
    if case["pooling"] not in ("mean", "weighted_mean") or not case["skip_instruction"]:
        return np.zeros(len(TEXTS), dtype=bool)
    same = ("kind", "instruction", "name_or_path")
    row = next(
        row for row in FOUND["pooled"] if all(row[key] == case[key] for key in same) and row["pooling"] == "mean"
    )
    off = np.array(row["counts"]) - np.array(row["by_offset"])
    assert set(off.tolist()) <= {0, 1}
    return off == 1


@pytest.mark.parametrize("kind", MAKE.KINDS)
@pytest.mark.parametrize("pooling", MAKE.POOLINGS)
def test_vectors_are_those_of_llm2vec(kind: str, pooling: str, folders: Path) -> None:
    cases = [case for case in CASES if (case["kind"], case["pooling"]) == (kind, pooling)]
    assert len(cases) >= 12
    compared = 0
    for case in cases:
        vectors = open_case(folders, case).encode(TEXTS, prompt=case["instruction"] or None, batch_size=3)
        off = off_by_a_token(case)
        expected = np.array(case["vectors"])
        np.testing.assert_allclose(vectors[~off], expected[~off], atol=1e-5, rtol=0, err_msg=str(case)[:200])
        if off.any():  # and where that package pools the token before the text, ours does not
            assert (np.abs(vectors[off] - expected[off]).max(1) > 1e-4).all()
        compared += int((~off).sum())
    assert compared >= len(cases) * 2


def test_with_their_mask_the_vectors_are_theirs_too(folders: Path) -> None:
    """Offsets move by one where llm2vec's do: then nothing else differs."""
    for case in CASES:
        off = off_by_a_token(case)
        if not off.any():
            continue
        encoder = open_case(folders, case)
        preprocess = encoder[0].preprocess

        def shifted(inputs: list[str], preprocess: Any = preprocess, off: Any = off, **named: Any) -> dict[str, Any]:
            features = preprocess(inputs, **named)
            for row, text in enumerate(inputs):
                if off[TEXTS.index(text)]:
                    first = int(features["pooled_BL"][row].argmax())
                    features["pooled_BL"][row, first - 1] = 1
            return features

        encoder[0].preprocess = shifted
        vectors = encoder.encode(TEXTS, prompt=case["instruction"] or None)
        np.testing.assert_allclose(vectors, case["vectors"], atol=1e-5, rtol=0, err_msg=str(case)[:200])


def test_pooled_tokens_are_those_whose_characters_are_in_the_text(folders: Path) -> None:
    for row in FOUND["pooled"]:
        if row["pooling"] != "mean":
            continue
        case = {**row, "adapters": 0, "bidirectional": True, "skip_instruction": True}
        encoder = open_case(folders, case)
        features = encoder.preprocess(TEXTS, prompt=row["instruction"] or None)
        assert features["pooled_BL"].sum(1).tolist() == row["by_offset"]
        assert features["attention_mask"].sum(1).tolist() == row["totals"]


def test_pairs_bring_their_own_instruction(folders: Path) -> None:
    case = next(case for case in CASES if case["instruction"] and not case["name_or_path"])
    encoder = open_case(folders, case)
    expected = encoder.encode(TEXTS, prompt=case["instruction"])
    pairs = encoder[0].preprocess([[case["instruction"], text] for text in TEXTS])
    np.testing.assert_allclose(encoder(pairs)["sentence_embedding"].detach(), expected, atol=1e-5)


def test_their_folder_opens_by_itself(folders: Path, tmp_path: Path) -> None:
    """As published: configuration and merged-in-name-only adapter in one folder, a second adapter, settings beside."""
    base, mntp, simcse = tmp_path / "base", tmp_path / "mntp", tmp_path / "simcse"
    shutil.copytree(folders / "llama", base)
    first, second = MAKE.ADAPTER_SEEDS
    for seed, folder, below in ((first, mntp, base), (second, simcse, mntp)):
        shutil.copytree(folders / f"adapter-{seed}", folder)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(below)}))
    for file in ("config.json", *MAKE.TOKENIZER_FILES):
        shutil.copy(base / file, mntp / file)
    settings = {"pooling_mode": "weighted_mean", "max_length": 512, "doc_max_length": 400, "skip_instruction": True}
    (simcse / "llm2vec_config.json").write_text(json.dumps(settings))
    case = next(
        case
        for case in CASES
        if (case["kind"], case["adapters"], case["pooling"], case["bidirectional"], case["instruction"])
        == ("llama", 2, "weighted_mean", True, "")
    )
    for encoder in (load_encoder(str(simcse)), load_encoder(str(mntp), adapters=[str(simcse)])):
        np.testing.assert_allclose(encoder.encode(TEXTS), case["vectors"], atol=1e-5, rtol=0)
    assert main(["merge", str(simcse), "--output", str(tmp_path / "merged")]) == 0
    np.testing.assert_allclose(load_encoder(str(tmp_path / "merged")).encode(TEXTS), case["vectors"], atol=1e-5, rtol=0)
    encoder = load_encoder(str(simcse))
    encoder.save(str(tmp_path / "saved"))
    reopened = load_encoder(str(tmp_path / "saved"))
    np.testing.assert_allclose(reopened.encode(TEXTS), case["vectors"], atol=1e-5, rtol=0)


def test_batches_by_tokens_give_the_same_and_count_what_is_cut(folders: Path) -> None:
    case = next(case for case in CASES if case["instruction"] and case["pooling"] == "mean")
    encoder = open_case(folders, case)
    vectors, counts = BatchEncoder(encoder, prompt=case["instruction"], batch_tokens=300).encode(TEXTS)
    np.testing.assert_allclose(vectors, encoder.encode(TEXTS, prompt=case["instruction"]), atol=1e-5)
    assert counts.truncated == 1  # of 900 words


@pytest.mark.parametrize("chat", [False, True])
def test_tokens_are_those_that_the_model_reads(chat: bool, folders: Path) -> None:
    case = next(
        case
        for case in CASES
        if case["instruction"] and case["pooling"] == "mean" and bool(case["name_or_path"]) == chat
    )
    encoder = open_case(folders, case)
    read: list[tuple[int, int]] = []
    forward = encoder[0].forward

    def spy(features: dict[str, Any], **named: Any) -> dict[str, Any]:
        texts = len(torch.unique(features["input_ids"], dim=0))  # without the rows that fill a small batch
        read.append((int(features["attention_mask"][:texts].sum()), features["attention_mask"][:texts].numel()))
        return forward(features, **named)

    encoder[0].forward = spy
    _, counts = BatchEncoder(encoder, prompt=case["instruction"], batch_tokens=1500).encode(TEXTS)
    assert (counts.tokens, counts.padded) == tuple(map(sum, zip(*read, strict=True)))


def test_a_text_of_nothing_has_a_vector(folders: Path) -> None:
    case = next(case for case in CASES if case["pooling"] == "mean" and not case["instruction"])
    encoder = open_case(folders, case)
    alone = encoder.encode([""])
    assert np.isfinite(alone).all()
    np.testing.assert_allclose(encoder.encode(["", TEXTS[1]])[:1], alone, atol=1e-5)


def test_a_merge_keeps_the_chat_template(folders: Path, tmp_path: Path) -> None:
    case = next(case for case in CASES if case["name_or_path"] and case["pooling"] == "mean")
    out = tmp_path / "merged"
    assert main(["merge", str(folders / f"{case['kind']}-chat"), "--llm2vec", "--output", str(out)]) == 0
    before, after = open_case(folders, case), load_encoder(str(out))
    np.testing.assert_allclose(after.encode(TEXTS), before.encode(TEXTS), atol=1e-5)
