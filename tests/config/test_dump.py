"""YAML that readers of versions 1.1 and 1.2 understand alike."""

from typing import Any

import hypothesis
import hypothesis.strategies as st
from ruamel.yaml import YAML

from orchestrator.config.dump import dump_yaml
from support.manifests import read_documents

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)
SCALARS = st.one_of(
    TEXTS,
    st.booleans(),
    st.integers(-(10**9), 10**9),
    st.sampled_from(["yes", "No", "on", "0x1F", "012", "1:30", "1e3", "null", "~", "y", "=", "<<"]),
    st.lists(TEXTS, max_size=4).map("\n".join),
)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(st.dictionaries(TEXTS.filter(bool), st.one_of(SCALARS, st.lists(SCALARS))))
def test_yaml_1_1_and_1_2_readers_read_the_same_documents(document: dict[str, Any]) -> None:
    text = dump_yaml([document])
    assert (read_documents(text) or [{}])[0] == document
    assert (YAML(typ="safe", pure=True).load(text) or {}) == document
