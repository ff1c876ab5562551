"""The words of the report, each in a sentence: at their first use on a page, listed at its end, and in the docs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import jinja2
from markupsafe import Markup, escape

# A word, and the spellings it is found by (regular expressions, any case; none: only listed); then what it means.
_TEXT = r"""
points
    A task's score times 100, so that 0.455 is 45.5 points.
backbone <- backbones?
    A language model before it is converted: base, or the reasoning variant made from it.
conversion <- conversions?
    Contrastive training that makes an embedding model of a backbone: texts that belong together are pulled
    together, others pushed apart. base-Emb and reasoning-Emb are base and reasoning after one and the same
    conversion.
SFT <- SFT
    Supervised fine-tuning: the model is trained to write given worked solutions.
GRPO, RLVR <- GRPO | RLVR
    Reinforcement learning from answers that are checked: those better than the others to the same question are
    made more likely.
LoRA <- LoRA
    Low-rank adapters: small matrices are trained beside the frozen weights.
causal, bidirectional <- causal | bidirectional
    Attention: a token sees only those before it, as language models do, or the whole text, as these embedding models
    do. Backbones are scored in both.
ndcg_at_10, v_measure, cosine_spearman <- ndcg_at_10 | v_measure | cosine_spearman
    The tasks' own metrics: how high the right passages rank; how well clusters match the topics; how well
    similarities rank pairs as people do (this one can be below 0).
few-shot prompt <- few[-_ ]shot prompt
    A few solved examples stand before the question.
margin <- margin
    The difference, fixed before the run, below which a difference does not matter.
t interval <- t interval
    The range of means that the spread between tasks leaves open, by Student's t distribution.
Satterthwaite <- Satterthwaite
    How many degrees of freedom an interval has whose spread comes from tasks and seeds at once.
Wilson interval <- Wilson intervals?
    An interval of a share, such as an accuracy, that stays within 0 and 1.
sign-flip permutation <- sign[- ]flips?(?: permutation)?
    If the two models were equal, each task's difference could as well have the other sign: p is the share of
    all such flips whose mean is as far from 0 as the one found.
power <- power
    How often a study of this size would say "no advantage" if the two models were truly equal.
Holm's correction <- Holm(?:'s correction)?
    With several studies one can differ by chance; it asks more of each the more there are.
positive control <- positive control
    A model known to be worse: a study that does not see this one cannot rule out a difference.
A/A <- A/A
    One model against itself with another seed: equal by design, so what differs is noise.
planted truths <- planted truths?
    Pairs of models made so that the right answer of every measure is known, sent through the same code.
noise floor <- noise floor
    What a measure says of a model against itself under other numerics, which should change nothing.
seed ceiling <- seed ceiling
    What a measure says of two conversions of one backbone that differ in their seed only.
attention sink <- attention sinks?
    A position, the first above all, whose vector is far larger than all others; a few of them can decide a
    measure alone.
linear CKA <- linear CKA | CKA
    Centred kernel alignment: how far two models place the same texts at the same distances from one another,
    whatever the rotation and the scale. 1 = the same, 0 = unrelated.
biased, debiased <- biased | debiased
    The published form of CKA grows when rows are few and dimensions many, even for unrelated models; the
    debiased form leaves that out.
k-NN overlap <- k-nearest-neighbour overlap | k-NN overlap | \d+-NN overlap | neighbour overlap
    Of the tokens that either model counts among a token's k nearest neighbours, the share that both do (Jaccard,
    by cosine after centring).
chance
    What the measure would say of two models that have nothing to do with one another; of a probe, what always
    naming the most frequent label would score.
per-dimension correlation <- per-dimension correlation
    Whether coordinate i of one model goes up and down over the texts with coordinate i of the other.
rotation residual <- rotation residual | Procrustes
    Procrustes: one model is rotated onto the other as well as can be, on one half of the texts; this is the
    variance that is left on the other half.
inverse row entropy <- inverse row entropy
    A number for that rotation: 1 if it sends every axis to one axis, low if it smears each over all.
Haar line <- Haar(?: line)?
    The inverse row entropy of a rotation drawn at random (by Haar measure).
linear probe <- linear probes?
    A linear classifier trained to read the texts' labels from a model's vectors.
probe transfer <- probe transfer
    The accuracy of base's probe on reasoning's vectors, as they are or rotated onto base's.
probe agreement <- probe agreement
    The share of held-out texts to which base's probe gives the same label whichever of the two models it reads.
manifold realignment <- manifold realignment
    The paper's word for embedding models that are more alike than their backbones were.
realignment index <- realignment index
    How much of that way conversion went: 0 = as unlike as the backbones, 1 = as alike as two seeds.
nats <- nats
    The unit of a loss: the natural logarithm of one over the probability that the model gave to the right
    answer.
bag of words <- bag[- ]of[- ]words
    Texts compared by the words they share, weighted by rarity; no model.
"""


def _read(text: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """({word: meaning}, [(spelling, word)])."""
    words: dict[str, str] = {}
    spellings, word = [], ""
    for line in text.strip("\n").splitlines():
        if line.startswith(" "):
            words[word] = f"{words[word]} {line.strip()}".strip()
        else:
            word, _, listed = line.partition(" <- ")
            words[word] = ""
            spellings += [(spelling, word) for spelling in listed.split(" | ") if spelling]
    return words, spellings


WORDS, _SPELLINGS = _read(_TEXT)
_FOUND = re.compile(
    r"(?P<tag><[^>]*>|&[#\w]+;)|(?<![\w/.-])(?:"
    + "|".join(f"(?P<w{at}>{text})" for at, (text, _) in sorted(enumerate(_SPELLINGS), key=lambda s: -len(s[1][0])))
    + r")(?![\w/-])",
    re.IGNORECASE,
)


@dataclass
class Definer:
    """Marks each word at its first use in a section of one page with what it means; one object a page."""

    seen: set[str] = field(default_factory=set)

    def __call__(self, text: str | Markup) -> Markup:
        """The text as HTML (escaped unless it is markup), first uses as `<abbr title="what it means">`."""
        return Markup(_FOUND.sub(self._mark, str(escape(text))))

    def section(self) -> str:
        """A new section begins: its words are explained again. Returns nothing to show."""
        self.seen.clear()
        return ""

    def _mark(self, match: re.Match[str]) -> str:
        found = match.group(0)
        if match.lastgroup is None or match.group("tag"):
            return found
        word = _SPELLINGS[int(match.lastgroup[1:])][1]
        if word in self.seen:
            return found
        self.seen.add(word)
        return f'<abbr title="{escape(WORDS[word])}">{found}</abbr>'

    def filter(self) -> Callable[[jinja2.runtime.Context, str | Markup], Markup]:
        """The template filter `defined`; it asks for the context, so that nothing is marked before the page is made."""

        @jinja2.pass_context
        def defined(_: jinja2.runtime.Context, text: str | Markup) -> Markup:
            return self(text)

        return defined


def markdown() -> str:
    """docs/words.md."""
    rows = [f"| {word} | {meaning} |" for word, meaning in WORDS.items()]
    lead = "The words of the report and of the tables, as the page itself explains them."
    return "\n".join(["# Words", "", lead, "", "| word | meaning |", "|---|---|", *rows, ""])
