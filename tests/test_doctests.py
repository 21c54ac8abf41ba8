"""Examples in docstrings show what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

from test_architecture import FILES, module_of

FEWEST = 9


def _examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [importlib.import_module(module_of(file)) for file in FILES if ">>>" in file.read_text()]
    return [found for module in modules for found in finder.find(module) if found.examples]


EXAMPLES = _examples()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_shows_what_it_says(example):
    said: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert not result.failed, "".join(said)


def test_the_nouns_have_examples():
    names = {example.name.rpartition(".")[2] for example in EXAMPLES}
    assert {"Scan", "Grid", "Clock", "dice_ce_loss", "contrastive_loss", "heartbeat", "dice"} <= names
    assert len(EXAMPLES) >= FEWEST
