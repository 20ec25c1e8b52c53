import csv
import importlib.metadata
import re
from pathlib import Path

import pytest

from turncoder.model.architectures import architectures_markdown, check_all, check_architecture
from turncoder.model.twin import causal_architectures

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
EXPECTED = {  # the oracle's words and ours
    "native_config": "bidirectional",
    "needs_fixup": "bidirectional",
    "needs_module_flag": "bidirectional",
    "already_bidirectional": "bidirectional",
    "bidirectional_right_padding_only": "bidirectional",
    "hybrid_attention_only": "partial",
    "partial_compressed_branch_causal": "partial",
    "impossible_generic": "causal",
    "no_pads_break": "padding leaks",
    "not_standalone": "not built",
    "not_built": "not built",
}


@pytest.fixture(scope="module")
def oracle(shared):
    with (shared / "reference" / "architectures.csv").open() as file:
        return {row["model_type"]: row for row in csv.DictReader(file)}


def test_a_row_names_how_where_and_why():
    row = check_architecture("modernbert-decoder")
    assert (row.verdict, row.implementations, row.isolates) == ("bidirectional", ("sdpa", "eager"), "yes")
    assert row.how == "config.is_causal = False (eager: mask factories wrapped)"
    row = check_architecture("lfm2")
    assert (row.verdict, row.remedy) == ("partial", "--allow-partial")
    assert "layers.0: back only (conv)" in row.reason
    row = check_architecture("gemma4_assistant")
    assert row.verdict == "not built"


def test_the_page_is_made_of_the_rows():
    rows = [check_architecture(name) for name in ("mistral", "mamba")]
    page = architectures_markdown(rows)
    assert (
        "| mistral | bidirectional | `config.is_causal = False` | sdpa, eager | exact | yes | bidirectional |" in page
    )
    assert "| mamba | causal |" in page


def test_the_page_has_every_architecture():
    page = PAGE.read_text(encoding="utf8")
    if f"transformers {importlib.metadata.version('transformers')}," not in page:
        pytest.skip("docs/architectures.md is of another version of transformers: write it anew")
    assert set(re.findall(r"^\| ([\w-]+) \|", page, flags=re.MULTILINE)) - {"architecture"} == set(
        causal_architectures()
    )


def test_the_page_agrees_with_the_oracle(oracle):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines() if "|" in line]
    verdicts = {row[0]: row[1] for row in rows[2:]}
    wrong = {
        name: (verdicts[name], row["verdict"])
        for name, row in oracle.items()
        if name in verdicts and verdicts[name] != EXPECTED[row["verdict"]]
    }
    assert not wrong
    text = [name for name, row in oracle.items() if row["category"] == "decoder_text"]
    assert len(text) == 108
    assert sum(verdicts.get(name) == "bidirectional" for name in text) >= 107


@pytest.mark.slow
def test_every_architecture_anew():
    page = PAGE.read_text(encoding="utf8")
    if f"transformers {importlib.metadata.version('transformers')}," not in page:
        pytest.skip("docs/architectures.md is of another version of transformers: write it anew")
    assert architectures_markdown(check_all()) == page
