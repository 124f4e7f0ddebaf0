"""The contract of generators: the engine keeps every law, and one that breaks one is caught by its name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from burnish import NativeGenerator
from burnish.testing import ContractError, assert_generator_contract


def native(model):
    return NativeGenerator(model, pad_token_id=0)


MORE = [pytest.param(options, marks=pytest.mark.gallery) for options in ({"max_rows": 3}, {"packing": "on"})]


@pytest.mark.parametrize("options", [{}, *MORE], ids=str)
def test_the_engine_keeps_the_laws(options):
    assert_generator_contract(lambda model: NativeGenerator(model, pad_token_id=0, **options), num_draws=800)


class Around:
    """A generator around the engine, of which a test breaks one thing."""

    def __init__(self, model):
        self.inner = native(model)

    def generate(self, prompts, params, *, num_samples, seed, round_index):
        return self.inner.generate(prompts, params, num_samples=num_samples, seed=seed, round_index=round_index)

    def update_policy(self, model, *, version):
        self.inner.update_policy(model, version=version)


class Interleaved(Around):
    def generate(self, prompts, params, **keys):
        found = super().generate(prompts, params, **keys)
        count = keys["num_samples"]
        return [found[row * count + sample] for sample in range(count) for row in range(len(prompts))]


class AlwaysStops(Around):
    def generate(self, prompts, params, **keys):
        return [replace(answer, finish_reason="stop") for answer in super().generate(prompts, params, **keys)]


class Untempered(Around):
    """Log-probs under temperature 1, whatever it drew at."""

    def generate(self, prompts, params, **keys):
        found = super().generate(prompts, params, **keys)
        return [replace(answer, logps=answer.logps * params.temperature) for answer in found]


class Sharpened(Around):
    """Draws at half the temperature, and says the log-probs of the whole."""

    def generate(self, prompts, params, **keys):
        if params.is_greedy:
            return super().generate(prompts, params, **keys)
        found = super().generate(prompts, replace(params, temperature=params.temperature / 2), **keys)
        return [self.said(answer, params) for answer in found]

    def said(self, answer, params):
        ids = torch.cat([answer.prompt_ids, answer.token_ids])
        with torch.no_grad():
            logps = (self.inner.model(ids[None]).logits[0] / params.temperature).log_softmax(-1)
        start = len(answer.prompt_ids) - 1
        return replace(answer, logps=logps[start:-1].gather(1, answer.token_ids[:, None])[:, 0])


class KeyedByPlace(Around):
    def generate(self, prompts, params, **keys):
        return super().generate([replace(p, key=place) for place, p in enumerate(prompts)], params, **keys)


class OneRound(Around):
    def generate(self, prompts, params, **keys):
        return super().generate(prompts, params, **{**keys, "round_index": 0})


class NeverGreedy(Around):
    def generate(self, prompts, params, **keys):
        return super().generate(prompts, replace(params, temperature=params.temperature or 1.0), **keys)


class Stale(Around):
    def update_policy(self, model, *, version):
        self.inner.version = version


class Unversioned(Around):
    def update_policy(self, model, *, version):
        self.inner.update_policy(model, version=0)


@pytest.mark.gallery
@pytest.mark.parametrize(
    ("broken", "law", "words"),
    [
        (Interleaved, "answers in the order of their prompts", r"answer 1 is to \[5\], not to \[4, 5, 6\]"),
        (AlwaysStops, "where answers end", "right is 'length'"),
        (Untempered, "log-probs of the model", "when the model scores it again"),
        (Sharpened, "drawn from the model", "of 2000 answers"),
        (KeyedByPlace, "the same again, whatever is beside", "beside the others"),
        (OneRound, "other rounds, other answers", "another round_index gives the same answers"),
        (NeverGreedy, "greedy is greedy", "at temperature 0 token"),
        (Stale, "update_policy", "the old weights answer"),
        (Unversioned, "update_policy", r"after update_policy\(version=5\) the answers have policy_version 0"),
    ],
)
def test_a_generator_that_breaks_a_law_is_caught(broken, law, words):
    with pytest.raises(ContractError, match=f"(?s)the generator {broken.__name__} breaks the law '{law}'.*{words}"):
        assert_generator_contract(broken)


def test_the_case_is_shown():
    with pytest.raises(ContractError) as caught:
        assert_generator_contract(AlwaysStops)
    assert "  prompt of key 100: ids [4, 5, 6]" in str(caught.value)
    assert "2 answers each" in str(caught.value)
