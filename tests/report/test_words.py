"""The words of the report: each explained once a page, where it is first used, and in the docs as on the page."""

import re
from pathlib import Path

import pytest
from make_results import make_results
from markupsafe import Markup, escape

from hrsa_jax.report import page
from hrsa_jax.report.words import WORDS, Definer, markdown


def marked(html: str) -> list[str]:
    return re.findall(r'<abbr title="[^"]+">([^<]+)</abbr>', html)


def test_the_first_use_alone_is_marked_and_text_is_escaped():
    define = Definer()
    said = define("Debiased CKA < biased CKA; Holm's correction & Haar")
    assert marked(said) == ["Debiased", "CKA", "Holm", "Haar"]
    assert "&lt;" in said
    assert "&amp; " in said
    assert marked(define("CKA again, and the noise floor")) == ["noise floor"]


def test_markup_keeps_its_tags_and_parts_of_names_are_no_words():
    define = Definer()
    said = define(Markup('<code title="CKA">config.margin</code> powerful t-interval, a margin'))
    assert '<code title="CKA">config.margin</code>' in said
    assert marked(said) == ["margin"]


@pytest.mark.parametrize("case", ["quickstart", "controlled", "advantage"])
def test_a_word_is_explained_once_in_every_section_that_uses_it(case):
    html = page.render(make_results(case, layers=3))
    sections = dict(re.findall(r'<section id="(\w+)"[^>]*>(.*?)</section>', html, flags=re.DOTALL))
    marks = {name: re.findall(r'<abbr title="([^"]+)">', text) for name, text in sections.items()}
    for name, found in marks.items():
        assert len(found) == len(set(found)), name
    for name in ("answer", "hrsa", "realignment"):
        assert escape(WORDS["linear CKA"]) in marks[name], name
    assert len(set().union(*marks.values())) > 15


def test_the_list_of_words_can_be_folded_and_the_contents_lead_to_it():
    html = page.render(make_results("quickstart", layers=3))
    assert '<a href="#words">' in html
    listed = re.search(r'<details id="words" open>(.*?)</details>', html, flags=re.DOTALL)
    assert listed
    assert listed[1].count("<dt>") == len(WORDS)


def test_every_meaning_is_one_short_paragraph():
    for word, meaning in WORDS.items():
        assert meaning.endswith("."), word
        assert meaning[0].isupper(), word
        assert len(meaning) < 230, word


def test_the_docs_have_the_same_words():
    kept = (Path(__file__).parents[2] / "docs" / "words.md").read_text(encoding="utf-8")
    assert kept == markdown(), "write hrsa_jax.report.words.markdown() to docs/words.md"
