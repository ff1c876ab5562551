"""Query templates."""

import pytest

from hrsa_jax.data.prompts import PAPER_TEMPLATE, query_prompt
from hrsa_jax.runtime.errors import InputError


def test_templates():
    assert query_prompt("Find {it}") == "Instruct: Find {it}\nQuery:\n"
    assert query_prompt("Find it", PAPER_TEMPLATE) == "Instruct: Find it\nQuery: "
    assert query_prompt("") == ""


def test_a_template_without_its_field_is_refused():
    with pytest.raises(InputError, match=r"does not hold \{instruction\}"):
        query_prompt("Find it", "Query: ")
