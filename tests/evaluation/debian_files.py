"""Small files in the formats of the Debian packages, for machines that have not installed them."""

from pathlib import Path

_WORDS = ["bank", "light", "spring", "match", "note", "plant", "point", "ring", "rock", "wave", "scale", "pitch"]
_KINDS = ["a sloping side", "a place for money", "a supply held ready", "a turn of an aircraft"]
_SCENES = ["we sat on the {}", "she went to the {} on Monday", "they keep a {} of blood", "the pilot began a {}"]
TOPICS = ("computers", "education", "food", "law", "literature", "love", "politics", "science", "sports", "work")


def write(root: Path) -> Path:
    """Fills root/usr/share/... and returns root."""
    _wordnet(root / "usr/share/wordnet")
    _metamath(root / "usr/share/metamath/databases")
    _fortunes(root / "usr/share/games/fortunes")
    return root


def _wordnet(folder: Path) -> None:
    folder.mkdir(parents=True)
    lines = ["  1 This software and database is being provided to you | a line of the licence"]
    for i, word in enumerate(_WORDS * 3):
        name = word if i < len(_WORDS) else f"{word}{'er' if i < 2 * len(_WORDS) else 'ing'}"
        for j, (kind, scene) in enumerate(zip(_KINDS, _SCENES, strict=True)):
            offset = f"{1000 + 10 * i + j:08d}"
            lines.append(
                f"{offset} 04 n 02 {name} 0 {name}_thing {j} 001 @ 00000001 n 0000 | {kind} of {name}; "
                f'"{scene.format(name)}"; "{scene.format(name)} again"  '
            )
    (folder / "data.noun").write_text("\n".join(lines) + "\n")
    (folder / "data.verb").write_text(
        "00095747 29 v 01 leaf 0 001 @ 00094460 v 0000 01 + 01 00 | produce leaves; of plants  \n"
    )
    (folder / "data.adj").write_text('00001740 00 s 02 able(p) 0 ready_made 0 000 | having skill: "able to swim"  \n')
    (folder / "data.adv").write_text("00001740 02 r 01 barely 0 000 | only a little  \n")


def _metamath(folder: Path) -> None:
    folder.mkdir(parents=True)
    parts = ["$( An outline. $)\n$c |- wff $.\n  wn $a wff -. ph $.\n"]
    for i in range(40):
        parts.append(
            f"  $( Basic fact number {i} about the set ` S{i} ` , see ~ df-x .  (Contributed by NM,\n"
            f"     5-Aug-1993.) $)\n  ax-f{i} $a |- ( S{i} = T{i} ) $.\n\n"
        )
    for i in range(30):
        parts.append(
            f"  ${{\n    th{i}.1 $e |- ph $.\n    $( Theorem number {i} joins two basic facts.  (Contributed by XY,\n"
            f"       1-Jan-2001.) $)\n    th{i} $p |- ( S{i} = T{i} /\\ S{i + 5} = T{i + 5} ) $=\n"
            f"      ( wn ax-f{i} ax-f{i + 5} ) ABCDE $.\n  $}}\n"
        )
    parts.append("  $( Theorem number 0 joins two basic facts again. $)\n  th0OLD $p |- ph $=\n ( wn ) A $.\n")
    (folder / "set.mm").write_text("".join(parts))


def _fortunes(folder: Path) -> None:
    folder.mkdir(parents=True)
    for topic in TOPICS:
        blocks = [f"A saying about {topic} that has at least eight words {i}\n\t\t-- Somebody {i}" for i in range(24)]
        blocks += ["Too short.", "The same saying stands under every topic of all these here."]
        (folder / topic).write_text("\n%\n".join(blocks) + "\n%\n")
