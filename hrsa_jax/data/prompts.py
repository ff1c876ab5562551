"""Instruction templates: what stands in front of a query. Passages (documents) stay bare.

The default template ends in a newline. Stock sentence-transformers measures a prompt by tokenising it
alone; with the published template's trailing space that count includes the query's first word, which is then
left out of the pooled mean. A newline is never merged with the word after it, so that both agree.
"""

from hrsa_jax.runtime.errors import InputError

QUERY_TEMPLATE = "Instruct: {instruction}\nQuery:\n"
PAPER_TEMPLATE = "Instruct: {instruction}\nQuery: "


def query_prompt(instruction: str, template: str = QUERY_TEMPLATE) -> str:
    """The text put in front of a query; empty when there is no instruction.

    The formatted query is `query_prompt(instruction) + query`, in training, evaluation and export alike
    (`tokenize_texts` does the joining and finds where the query starts).

    Raises:
      InputError: the template does not hold `{instruction}`.
    """
    if "{instruction}" not in template:
        raise InputError(f"The query template {template!r} does not hold {{instruction}}; add it where it belongs.")
    return template.replace("{instruction}", instruction) if instruction else ""
