"""A prompt computed once for its answers: scores are those of each row alone, and the classifier stays as it is."""

from __future__ import annotations

import pytest
import torch
from reward_rounds import make_answers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from burnish.rewards import Scorer
from burnish.rewards import models as room
from burnish.rewards.models import ClassifierReward
from conftest import make_classifier, make_tokenizer

PROMPTS = ["What is the colour of the sky?", "Two and two?", "x"]
ANSWERS = ["blue", "blue", "", "a long answer that goes on and on", "b"]


def make_round() -> tuple[list[str], list[str]]:
    """Answers to several prompts, those of a prompt apart from one another; the last prompt has one alone."""
    prompts = [prompt for _ in ANSWERS for prompt in PROMPTS]
    answers = [answer for answer in ANSWERS for _ in PROMPTS]
    return [*prompts, "A prompt with one answer"], [*answers, "!"]


@torch.no_grad()
def one_by_one(reward: ClassifierReward, prompts, answers, *, limit=512, append_eos=False) -> torch.Tensor:
    """What the plain class says of each row in a call of its own."""
    rows = [reward._encode(p, a, append_eos=append_eos) for p, a in zip(prompts, answers, strict=True)]
    own = type(reward.model).forward
    ids = [torch.tensor([reward._cut(row, limit) or [reward.tokenizer.pad_token_id]]) for row in rows]
    return torch.stack([own(reward.model, input_ids=row).logits[0, 0].double() for row in ids])


def assert_same(found, expected: torch.Tensor, *, rtol: float = 1e-5) -> None:
    size = float(expected.abs().max())
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, rtol=0, atol=rtol * size)


@pytest.fixture
def warnings_shown(monkeypatch) -> list[str]:
    """What the room tells the user."""
    told: list[str] = []
    monkeypatch.setattr(room.logger, "warning", told.append)
    return told


def inputs_of(reward: ClassifierReward) -> list[tuple[int, ...]]:
    """The shape of each input of the trunk from now on."""
    seen: list[tuple[int, ...]] = []
    reward.model.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["auto", "cache", "off"])
@pytest.mark.parametrize("max_tokens", [40, 200, 16_384])
def test_scores_are_those_of_each_row_alone(dtype, layout, max_tokens):
    reward = ClassifierReward(make_classifier(dtype=dtype), make_tokenizer())
    prompts, answers = make_round()
    found = reward(prompts, answers, max_tokens=max_tokens, prefix_sharing=layout)
    assert_same(found, one_by_one(reward, prompts, answers))


def test_a_prompt_is_computed_once_and_little_padding():
    """The empty answer leaves each of its prompt's answers one more token of their own, but for a prompt of one token.

    Prompts of 30, 12 and 1 tokens with answers of 4, 4, 0, 33 and 1, and one of 24 with an answer of 1:
    (29 + 47) + (11 + 47) + (1 + 42) + 25 = 202 tokens, and 2 that round them up; in rows 16 x 63.
    """
    reward = ClassifierReward(make_classifier(), make_tokenizer())
    prompts, answers = make_round()
    assert (reward.sharing().layout, reward.sharing("off").layout) == ("tree", "rows")
    seen = inputs_of(reward)
    reward(prompts, answers)
    reward(prompts, answers, prefix_sharing="off")
    assert seen == [(1, 204), (16, 63)]


def test_cut_rows_share_nothing_and_are_counted():
    """A row that is cut lost the beginning of its prompt; the other answers still share it."""
    reward = ClassifierReward(make_classifier(), make_tokenizer())
    prompts, answers = make_round()
    logged: dict[str, float] = {}
    found = reward(prompts, answers, logged.__setitem__, max_length=40)
    assert_same(found, one_by_one(reward, prompts, answers, limit=40))
    assert logged == {f"reward_truncated/{reward.name}": 2 / 16}


def test_conversations():
    reward = ClassifierReward(make_classifier(), make_tokenizer())
    texts, answers = make_round()
    prompts = [[{"role": "user", "content": text}] for text in texts]
    completions = [[{"role": "assistant", "content": text}] for text in answers]
    assert_same(reward(prompts, completions), one_by_one(reward, prompts, completions))


def test_a_token_at_the_border_may_be_of_prompt_and_answer():
    """`?b` is one token, so that an answer which begins with b takes the prompt's last token along."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *alphabet, "?b"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("?", "b")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")
    reward = ClassifierReward(make_classifier(), tokenizer)
    prompts, answers = ["The sky?"] * 4, ["blue", "bright", "red", ""]
    assert reward._encode(prompts[0], answers[0], append_eos=False)[7] == vocabulary["?b"]
    reward.sharing()
    seen = inputs_of(reward)
    assert_same(reward(prompts, answers), one_by_one(reward, prompts, answers))
    assert seen[0] == (1, 7 + 4 + 6 + 4 + 1)


@pytest.mark.parametrize("append_eos", [True, False])
def test_padding_that_is_the_end_of_text(append_eos):
    """The plain class reads the last token that is not padding, whatever is behind it; a text of padding alone too."""
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    reward = ClassifierReward(make_classifier(), tokenizer)
    prompts, answers = make_round()
    prompts, answers = [*prompts, "", "", "a"], [*answers, "", "<|im_end|><|im_end|>", "<|im_end|>b"]
    found = reward(prompts, answers, append_eos=append_eos)
    assert_same(found, one_by_one(reward, prompts, answers, append_eos=append_eos))
    assert found == pytest.approx(reward(prompts, answers, append_eos=append_eos, prefix_sharing="off"), abs=1e-5)


def test_the_classifier_stays_as_it_is():
    model = make_classifier()
    before, state = set(vars(model)), {name: value.clone() for name, value in model.state_dict().items()}
    ClassifierReward(model, make_tokenizer())(*make_round())
    assert set(vars(model)) == before
    assert model.config._attn_implementation == make_classifier().config._attn_implementation
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_an_encoder_runs_in_plain_rows_and_says_so_once(warnings_shown):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=259, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_labels=1
    )
    reward = ClassifierReward(BertForSequenceClassification(config), make_tokenizer())
    prompts, answers = make_round()
    for _ in range(2):
        assert_same(reward(prompts, answers), one_by_one(reward, prompts, answers))
    assert len(warnings_shown) == 1
    assert "computed anew for each of its answers" in warnings_shown[0]
    assert "BertForSequenceClassification with num_labels=1 has no head `score`" in warnings_shown[0]
    with pytest.raises(ValueError, match="has no head `score`"):
        reward(prompts, answers, prefix_sharing="tree")


def test_a_forward_of_its_own_counts(warnings_shown):
    """Somebody changed what the model says: then nobody else knows how it comes about."""
    model = make_classifier()
    plain = model.forward

    def doubled(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    prompts, answers = make_round()
    reward = ClassifierReward(model, make_tokenizer())
    expected = one_by_one(reward, prompts, answers)
    model.forward = doubled
    assert_same(reward(prompts, answers), 2 * expected)
    assert "in a way that is not known" in warnings_shown[0]


def test_the_switch_is_an_option_of_the_reward():
    model = make_classifier()
    found = {}
    for layout in ("auto", "off"):
        scorer = Scorer(
            model, processing_classes=make_tokenizer(), options={type(model).__name__: {"prefix_sharing": layout}}
        )
        seen = inputs_of(next(iter(scorer.models.values())))
        found[layout] = scorer.score(make_answers(), num_tokens=8)[0].rewards[:, 0].tolist()
        assert (seen[-1][0] == 1) is (layout == "auto")
    assert found["auto"] == pytest.approx(found["off"], abs=1e-5)


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match=r"prefix_sharing='yes'; allowed: auto, tree, cache, off"):
        ClassifierReward(make_classifier(), make_tokenizer())(["a"], ["b"], prefix_sharing="yes")
