"""Parsers of WordNet, Metamath and fortune files, on small files of the same format and on the real ones if here."""

import debian_files
import pytest

from hrsa_jax.data import debian_corpora
from hrsa_jax.data.debian_corpora import fortunes, metamath_theorems, wordnet_senses
from hrsa_jax.runtime.errors import InputError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("HRSA_DEBIAN", str(tmp_path))
    return debian_files.write(tmp_path)


def test_wordnet_synsets_have_words_definition_and_examples(root):
    senses = {sense.id: sense for sense in wordnet_senses()}
    first = senses["noun-00001000"]
    assert first.words == ("bank", "bank thing")
    assert first.definition == "a sloping side of bank"
    assert first.examples == ("we sat on the bank", "we sat on the bank again")
    assert senses["verb-00095747"].definition == "produce leaves; of plants"
    assert senses["adj-00001740"].words == ("able", "ready made")
    assert senses["adj-00001740"].definition == "having skill"
    assert {sense.part for sense in senses.values()} == {"noun", "verb", "adj", "adv"}
    assert len(senses) == 36 * 4 + 3  # the licence's lines are no synsets


def test_metamath_statements_have_comment_formula_and_premises(root):
    theorems = {theorem.label: theorem for theorem in metamath_theorems()}
    assert theorems["ax-f3"].description == "Basic fact number 3 about the set S3 , see ."
    assert theorems["ax-f3"].formula == "( S3 = T3 )"
    assert theorems["ax-f3"].premises == ()
    assert theorems["th4"].description == "Theorem number 4 joins two basic facts."
    assert theorems["th4"].premises == ("wn", "ax-f4", "ax-f9")
    assert "wn" not in theorems  # syntax, not a statement
    assert "th4.1" not in theorems  # a hypothesis
    assert "th0OLD" not in theorems


def test_fortunes_lose_their_authors_and_doubles(root):
    found = fortunes(("law", "food"))
    assert len(found) == 48
    assert found[0].text == "A saying about law that has at least eight words 0"
    assert {quotation.topic for quotation in found} == {"law", "food"}
    assert not [q for q in found if "same saying" in q.text or "Somebody" in q.text]
    with pytest.raises(InputError, match="chess"):
        fortunes(("chess",))


def test_a_missing_package_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("HRSA_DEBIAN", str(tmp_path))
    for corpus, package in (
        (wordnet_senses, "wordnet-base"),
        (metamath_theorems, "metamath-databases"),
        (lambda: fortunes(("law",)), "fortunes"),
    ):
        assert not debian_corpora.debian_package_installed(package)
        with pytest.raises(InputError, match=f"'{package}' is not installed .*apt-get install {package}"):
            corpus()


def _needs(package):
    here = debian_corpora.debian_package_installed(package)
    return pytest.mark.skipif(not here, reason=f"Debian package {package} is not installed")


@_needs("wordnet-base")
def test_the_real_wordnet():
    senses = wordnet_senses()
    assert len(senses) == 117_659  # as the manual of WordNet 3.0 says
    dog = next(sense for sense in senses if sense.part == "noun" and "Canis familiaris" in sense.words)
    assert dog.examples == ("the dog barked all night",)


@_needs("metamath-databases")
def test_the_real_metamath_database():
    theorems = {theorem.label: theorem for theorem in metamath_theorems()}
    assert len(theorems) > 30_000
    assert theorems["2p2e4"].formula == "( 2 + 2 ) = 4"
    assert "addassi" in theorems["2p2e4"].premises


@_needs("fortunes")
def test_the_real_fortunes():
    assert len(fortunes(("science", "law"))) > 300
