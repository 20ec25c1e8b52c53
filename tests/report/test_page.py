import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reading_pages import check_page
from turncoder.report.page import Cell, Code, Fold, Lines, Page, Picture, Section, Table, write_html, write_markdown

SVG = '<svg viewBox="0 0 1 1"></svg>'
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


def fill(*texts):
    """A page that has each kind of part, and a text in each place."""
    one, two, three = texts
    table = Table(one, [two, three], [[three, Cell(one, best=True)], [Cell(two), Cell(three, share=0.7)]])
    parts = [Lines([one, two]), Lines([three], "list"), Lines([one], "warning"), Code(two), Picture(SVG, three, one)]
    return Page(one, [Fold(two, [table, *parts])], [Section(three, parts, [Section(one, [table])]), Section(two)])


@given(words, words, words)
@settings(max_examples=60, deadline=None)
def test_whatever_a_text_holds_it_is_shown_and_not_obeyed(one, two, three):
    page = check_page(write_html(fill(one, two, three)))
    plain = check_page(write_html(fill("a", "b", "c")))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert all(text in page.text for text in (one, two, three))


@given(words, words, words)
@settings(max_examples=60, deadline=None)
def test_markdown_has_as_many_cells_as_columns_and_no_tags_of_others(one, two, three):
    text = write_markdown(fill(one, two, three))
    outside = re.sub(r"^(`{3,})\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    rows = [line for line in outside.split("\n") if line.startswith("| ")]
    assert len(rows) == 6
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3 for row in rows)
    tags = re.findall(r"(?<!\\)<[^>]*>", outside)
    assert {*tags} <= {"<!-- turncoder report -->", "<details>", "</details>", "<summary>", "</summary>"}


def test_the_best_is_marked_and_shares_are_colours():
    table = Table(
        "t", ["a", "b"], [["x", Cell("1", best=True)], ["y", Cell("2", share=0.25)], ["z", Cell("3", share=0.9)]]
    )
    html, markdown = (write(Page("p", [table])) for write in (write_html, write_markdown))
    assert "<td><strong>1</strong></td>" in html and "| x | **1** |" in markdown
    assert '<td class="share" style="--share:25%">2</td>' in html
    assert '<td class="strong share" style="--share:90%">3</td>' in html
    assert "| a | b |\n|---|---:|\n" in markdown


def test_a_section_of_nothing_is_left_out():
    page = Page("p", [], [Section("empty"), Section("full", [Lines(["text"])])])
    assert "empty" not in write_html(page) + write_markdown(page)
    assert '<a href="#part-1">full</a>' in write_html(page)


@pytest.mark.parametrize("inner", ["```", "a ```` b", "x"])
def test_code_stays_code_in_markdown(inner):
    fence, shown, closing = write_markdown(Page("p", [Code(inner)])).split("\n")[3:6]
    assert shown == inner and fence == closing and set(fence) == {"`"} and fence not in inner
