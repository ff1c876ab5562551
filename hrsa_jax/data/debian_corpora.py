"""Real text from Debian packages, where they are installed: word senses, theorems, quotations.

Files are read where the package puts them, below $HRSA_DEBIAN when that is set (a folder that packages were unpacked
into with `dpkg -x`, which needs no root) and below / otherwise. A package that is missing is an error that names it.

| corpus | package | licence |
|---|---|---|
| wordnet_senses | wordnet-base | WordNet 3.0 |
| metamath_theorems | metamath-databases | CC0-1.0 |
| fortunes | fortunes, fortunes-min | collection BSD; quotations by their authors |
"""

import functools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hrsa_jax.data.leaks import normalised_hash
from hrsa_jax.runtime.errors import InputError

# package -> a file of it that is read
_MARKERS = {
    "wordnet-base": "usr/share/wordnet/data.noun",
    "metamath-databases": "usr/share/metamath/databases/set.mm",
    "fortunes": "usr/share/games/fortunes/law",
}
_EXAMPLE = re.compile(r'"([^"]+)"')
_STATEMENT = re.compile(r"\$[ap]\s+\|-\s+([^$]*)\$([.=])")
_CITED = re.compile(r"\s*\(\s*([^)]*)\)")
_CREDITS = re.compile(r"\((?:Contributed|Revised|Proof shortened|Proof modification|New usage)[^)]*\)")
_REFERENCE = re.compile(r"~~?\s*\S+")
_RETIRED = ("OLD", "ALT", "ALTV", "OLDN", "VD", "VD1")  # second versions of a theorem that is there already


def debian_package_installed(package: str) -> bool:
    """Whether the files of a package of this module are on this machine."""
    return _marker(package).is_file()


def _marker(package: str) -> Path:
    return Path(os.environ.get("HRSA_DEBIAN") or "/") / _MARKERS[package]


def _folder(package: str) -> Path:
    marker = _marker(package)
    if not marker.is_file():
        raise InputError(
            f"Debian package {package!r} is not installed ({marker} is missing): run `apt-get install {package}`, or "
            f"`apt-get download {package}` and `dpkg -x` into a folder that $HRSA_DEBIAN names"
        )
    return marker.parent


@dataclass(frozen=True)
class Sense:
    """One meaning of its words; `part` is noun, verb, adj or adv."""

    id: str
    part: str
    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]


def wordnet_senses() -> tuple[Sense, ...]:
    """All synsets of WordNet in file order: nouns, verbs, adjectives, adverbs."""
    return _wordnet_senses(_folder("wordnet-base"))


@functools.lru_cache(maxsize=1)
def _wordnet_senses(folder: Path) -> tuple[Sense, ...]:
    return tuple(sense for part in ("noun", "verb", "adj", "adv") for sense in _read_synsets(folder / f"data.{part}"))


def _read_synsets(path: Path) -> Iterator[Sense]:
    """Synsets of a data file (man 5 wndb): fields, then a bar and the gloss; the licence's lines begin with a space."""
    part = path.suffix[1:]
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(" ") or " | " not in line:
                continue
            head, gloss = line.split(" | ", 1)
            fields = head.split()
            count = int(fields[3], 16)
            words = tuple(re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
            definition = gloss.split('"')[0].strip().rstrip(";: ").strip()
            examples = tuple(" ".join(text.split()) for text in _EXAMPLE.findall(gloss))
            if definition:
                yield Sense(f"{part}-{fields[0]}", part, words, definition, examples)


@dataclass(frozen=True)
class Theorem:
    """A proved statement or an axiom: what its comment says, its formula, and the labels its proof cites."""

    label: str
    description: str
    formula: str
    premises: tuple[str, ...]


def metamath_theorems() -> tuple[Theorem, ...]:
    """Statements of set.mm that assert something and are described, in file order; second versions are left out."""
    return _metamath_theorems(_folder("metamath-databases") / "set.mm")


@functools.lru_cache(maxsize=1)
def _metamath_theorems(path: Path) -> tuple[Theorem, ...]:
    text = path.read_text(encoding="utf-8", errors="replace")
    found = []
    for match in _STATEMENT.finditer(text):
        formula, end = match.groups()
        label = text[max(0, match.start() - 100) : match.start()].split()[-1]
        description = _comment_before(text, text.rfind(label, 0, match.start()))
        if len(description.split()) >= 4 and not label.endswith(_RETIRED):
            cited = _cited(text, match.end()) if end == "=" else ()
            found.append(Theorem(label, description, " ".join(formula.split()), cited))
    return tuple(found)


def _comment_before(text: str, place: int) -> str:
    """The comment that ends right before `place`, without credits, references to labels and quoting marks."""
    close = text.rfind("$)", max(0, place - 200), place)
    if close < 0 or text[close + 2 : place].strip():
        return ""
    start = text.rfind("$(", 0, close)
    words = _REFERENCE.sub("", _CREDITS.sub("", " ".join(text[start + 2 : close].split())))
    return " ".join(words.replace("`", "").replace("_", "").split())


def _cited(text: str, place: int) -> tuple[str, ...]:
    """Labels of a compressed proof: what stands in its parentheses."""
    match = _CITED.match(text, place)
    return tuple(match.group(1).split()) if match else ()


@dataclass(frozen=True)
class Quotation:
    """One quotation of a topic (the name of its file), without its author."""

    text: str
    topic: str


def fortunes(topics: tuple[str, ...]) -> list[Quotation]:
    """Quotations of 8 to 80 words of some topics, in file order; one that comes twice is left out."""
    folder = _folder("fortunes")
    quotations = []
    for topic in topics:
        path = folder / topic
        if not path.is_file():
            raise InputError(f"{path} is missing: install the Debian packages fortunes and fortunes-min again")
        text = path.read_text(encoding="utf-8", errors="replace")
        for block in re.split(r"^%\s*$", text, flags=re.MULTILINE):
            words = _without_author(block).split()
            if 8 <= len(words) <= 80:
                quotations.append(Quotation(" ".join(words), topic))
    seen: dict[str, int] = {}
    for quotation in quotations:
        key = normalised_hash(quotation.text)
        seen[key] = seen.get(key, 0) + 1
    return [q for q in quotations if seen[normalised_hash(q.text)] == 1]


def _without_author(block: str) -> str:
    """The quotation up to the line "-- Author", struck-over characters removed."""
    plain = re.sub(r".\x08", "", block)
    return re.split(r"^\s+--", plain, maxsplit=1, flags=re.MULTILINE)[0]
