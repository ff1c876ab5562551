"""Licences as checkpoints state them."""

import pytest

from hrsa_jax.models.licence import folder_licence, gguf_licence


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\n", "apache-2.0"),
        ('---\nlicense: "llama3.1"\n---\n', "llama3.1"),
        ("# Model\nlicense: mit\n", None),  # not in the front matter
        ("---\nlicense: [mit, gpl]\n---\n", None),
        ("", None),
        ("---\nlicense:\ntags: [a]\n---\n", None),
        ("---\nlicense: null\n---\n", None),
        ("---\nlicense: mit  # checked\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: llama3.1-community\n---\n", "llama3.1-community"),
    ],
)
def test_the_front_matter_of_a_card(tmp_path, card, expected):
    (tmp_path / "README.md").write_text(card)
    assert folder_licence(tmp_path) == expected


def test_no_card_and_gguf_headers(tmp_path):
    assert folder_licence(tmp_path) is None
    assert gguf_licence({"general.license": "apache-2.0"}) == "apache-2.0"
    assert gguf_licence({"general.license": 3}) is None
    assert gguf_licence({}) is None
