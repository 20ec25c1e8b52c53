"""What a person is shown of a text."""

from pathlib import Path

from turncoder import load_encoder
from turncoder.samples import show_text


def test_a_newline_is_not_a_backslash_and_n(stories: Path) -> None:
    encoder = load_encoder(str(stories), device="cpu")
    assert show_text(encoder, "a dog", "Find:\n").endswith("Find:\\n[a dog]")
    assert "Find:\\\\n" in show_text(encoder, "a dog", "Find:\\n")
