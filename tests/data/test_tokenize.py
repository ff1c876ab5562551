"""Tokenisation: the pooled span starts with the query's first word, whatever the tokenizer."""

import numpy as np
import pytest

from hrsa_jax.data.prompts import PAPER_TEMPLATE, QUERY_TEMPLATE, query_prompt
from hrsa_jax.data.tokenize import tokenize_texts
from hrsa_jax.runtime.errors import InputError

QUERIES = ["fox", "dogs sleep in the forest", "Überfluß naïve", "a", "3 cats", "日本語 text", "(bracket) first"]


def decoded(tokenizer, ids):
    return tokenizer.decode([int(i) for i in ids if i > 1])  # without <eos> and <bos>


@pytest.mark.parametrize("template", [QUERY_TEMPLATE, PAPER_TEMPLATE])
def test_pool_start_is_the_first_word_of_the_query(tokenizer, template):
    prompt = query_prompt("Given a question, find the passage", template)
    tokens = tokenize_texts(tokenizer, QUERIES, prompt=prompt, max_length=256)
    for query, ids, start in zip(QUERIES, tokens.ids, tokens.pool_start, strict=True):
        assert decoded(tokenizer, ids) == prompt + query
        assert decoded(tokenizer, ids[start:]).strip() == query
        assert decoded(tokenizer, ids[:start]).strip() == prompt.strip()
    assert not tokens.truncated.any()


def test_ids_are_the_tokenizers_own_with_its_special_tokens(tokenizer):
    tokens = tokenize_texts(tokenizer, QUERIES, max_length=64)
    for query, ids in zip(QUERIES, tokens.ids, strict=True):
        assert ids.tolist() == tokenizer(query)["input_ids"]
        assert ids.dtype == np.int32
    assert tokens.pool_start.tolist() == [0] * len(QUERIES)


def test_one_prompt_for_each_text(plain_tokenizer):
    tokens = tokenize_texts(plain_tokenizer, ["fox", "fox"], prompt=["Query:\n", ""], max_length=32)
    assert tokens.pool_start[0] > 0
    assert tokens.pool_start[1] == 0
    assert tokens.ids[0][tokens.pool_start[0] :].tolist() == tokens.ids[1].tolist()


def test_truncation_is_counted_and_keeps_the_closing_token(tokenizer):
    closing = tokenizer("fox")["input_ids"][-1] == 0  # <eos> is token 0
    tokens = tokenize_texts(tokenizer, ["the fox " * 20, "fox"], max_length=8)
    assert tokens.truncated.tolist() == [True, False]
    assert tokens.lengths[0] == 8
    assert (tokens.ids[0][-1] == 0) == closing


def test_empty_texts_have_nothing_to_pool_unless_the_tokenizer_adds_a_token(tokenizer):
    bare = tokenize_texts(tokenizer, [""], max_length=8)
    assert bare.empty[0] == (len(tokenizer("")["input_ids"]) == 0)
    assert tokenize_texts(tokenizer, [""], prompt="Query:\n", max_length=32).empty[0]
    assert len(tokenize_texts(tokenizer, [], max_length=8)) == 0


def test_a_prompt_that_leaves_no_room_is_refused(plain_tokenizer):
    with pytest.raises(InputError, match="text 0 fills all 4 tokens"):
        tokenize_texts(plain_tokenizer, ["fox"], prompt="Instruct: Given a question\nQuery:\n", max_length=4)


@pytest.mark.parametrize(("text", "message"), [(7, "Text 1 is a int"), ("\ud800", "Text 1 holds a lone surrogate")])
def test_a_text_that_is_none_is_refused_by_number(plain_tokenizer, text, message):
    with pytest.raises(InputError, match=message):
        tokenize_texts(plain_tokenizer, ["fine", text], max_length=8)


def test_wrong_arguments(plain_tokenizer):
    with pytest.raises(ValueError, match="2 entries for 1 texts"):
        tokenize_texts(plain_tokenizer, ["a"], prompt=["", ""], max_length=8)
    with pytest.raises(ValueError, match="max_length"):
        tokenize_texts(plain_tokenizer, ["a"], max_length=0)
