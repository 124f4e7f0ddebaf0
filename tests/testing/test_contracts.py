"""The contract checks: the library's tables keep every law, and a function that breaks one is caught by its name."""

from __future__ import annotations

import inspect
import itertools
import random

import pytest
import torch
from torch.nn.functional import logsigmoid

from burnish.advantages import advantages
from burnish.losses import (
    policy_losses,
    preference_losses,
    reward_losses,
    supervised_losses,
    unpaired_losses,
)
from burnish.testing import ContractError, assert_advantage_contract, assert_loss_contract, assert_reward_contract
from burnish.types import JudgedLogps, PairLogps, PairScores, PolicyTokens, RewardTable, TokenLoss

VALUES = {"beta": 0.3, "label_smoothing": 0.1, "discopop_tau": 0.5, "delta": 0.2, "usual_margin": 0.1}
# What the laws do not hold for, by definition: its factor of the margin has no gradient.
WITHOUT_GRADIENT_OF_THE_VALUE = {"beta_dpo": {"beta_dpo_alpha": 0.0}}


# The library's own.


@pytest.mark.parametrize("name", sorted(preference_losses))
def test_preference_losses_keep_the_laws(name):
    entry = preference_losses[name]
    values = {k: VALUES[k] for k, v in entry.hyper_parameters.items() if v is inspect.Parameter.empty or k in VALUES}
    followed = {k: VALUES[k] for k in entry.facts["follows"]}
    assert_loss_contract(entry.function, **values, **followed, **WITHOUT_GRADIENT_OF_THE_VALUE.get(name, {}))


@pytest.mark.parametrize("name", sorted(policy_losses))
def test_policy_losses_keep_the_laws(name):
    assert_loss_contract(policy_losses[name].function)


@pytest.mark.parametrize("name", sorted(reward_losses))
def test_reward_losses_keep_the_laws(name):
    assert_loss_contract(reward_losses[name].function)


@pytest.mark.parametrize("name", sorted(unpaired_losses))
def test_losses_of_judged_answers_keep_the_laws(name):
    assert_loss_contract(unpaired_losses[name].function, beta=0.3)


@pytest.mark.parametrize("name", sorted(supervised_losses))
def test_supervised_losses_keep_the_laws(name):
    assert_loss_contract(supervised_losses[name].function)


@pytest.mark.parametrize("name", sorted(advantages))
def test_advantages_keep_the_laws(name):
    assert_advantage_contract(advantages[name].function)


@pytest.mark.parametrize(
    ("reward", "columns", "settings"),
    [
        ("number", {"answer": "42"}, {}),
        ("exact_match", {"answer": "42"}, {}),
        ("length", {}, {"max_tokens": 50}),
        ("repetition", {}, {}),
        ("think_format_reward", {}, {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rewards_keep_the_laws(reward, columns, settings):
    assert_reward_contract(reward, columns=columns, **settings)


# Preference losses that break a law.


def mean_of_pairs(pair: PairLogps):
    return -logsigmoid(pair.logratio_diff).mean()


def reference_alone(pair: PairLogps):
    return pair.ref_chosen - pair.ref_rejected


def doubles_in_place(pair: PairLogps):
    pair.ref_chosen.mul_(2)
    return -logsigmoid(pair.logratio_diff)


def noisy(pair: PairLogps):
    return -logsigmoid(pair.logratio_diff) * random.random()


def weighted_by_place(pair: PairLogps):
    return -logsigmoid(pair.logratio_diff) * torch.arange(1, len(pair.chosen) + 1)


def compared_with_the_mean(pair: PairLogps):
    return -logsigmoid(pair.logratio_diff - pair.logratio_diff.mean())


def turned(pair: PairLogps):
    return -logsigmoid(-pair.logratio_diff)


def half_detached(pair: PairLogps):
    return -logsigmoid(pair.logratio_diff) * (1 + pair.chosen.detach() ** 2)


def overflows(pair: PairLogps):
    return torch.log(1 + torch.exp(-pair.logratio_diff))


@pytest.mark.parametrize(
    ("loss", "law", "words"),
    [
        (mean_of_pairs, "one number a pair", r"shape \(\) for 1 pairs"),
        (reference_alone, "one number a pair", "does not depend on the policy"),
        (doubles_in_place, "no operand is changed", "ref_chosen in place"),
        (noisy, "no operand is changed", "two calls on the same pairs"),
        (weighted_by_place, "order of pairs", "in reverse"),
        (compared_with_the_mean, "split into micro-batches", "couples_rows=True"),
        (turned, "direction of the gradient", "Is a sign turned"),
        (half_detached, "gradient of the value", "Jacobian mismatch"),
        (overflows, "finite at extremes", "Use logsigmoid"),
    ],
)
def test_a_preference_loss_that_breaks_a_law_is_caught(loss, law, words):
    with pytest.raises(ContractError, match=f"(?s)the preference loss {loss.__name__} breaks the law '{law}'.*{words}"):
        assert_loss_contract(loss)


def test_the_case_is_the_smallest():
    with pytest.raises(ContractError) as caught:
        assert_loss_contract(compared_with_the_mean)
    assert "chosen (2,) = [" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 14


def test_a_loss_that_raises_is_named_with_the_case():
    def fails(pair: PairLogps):
        return {}["chosen"]

    with pytest.raises(ContractError, match=r"(?s)fails breaks the law.*it raised KeyError: 'chosen'.*chosen \(1,\)"):
        assert_loss_contract(fails)


def test_what_no_loss_takes_is_an_error():
    with pytest.raises(
        TypeError, match=r"annotated 'torch\.Tensor'; a loss takes one of PairLogps, PolicyTokens, PairScores, JudgedL"
    ):
        assert_loss_contract(of_scores_alone)


def of_scores_alone(scores: torch.Tensor):
    return scores


# Policy losses.


def ratio_of(tokens: PolicyTokens):
    return tokens.required_log_ratio.clamp(-20, 20).exp()


def leaks_padding(tokens: PolicyTokens):
    return TokenLoss(
        losses=-ratio_of(tokens) * tokens.advantages + 1e-3 * tokens.logps.sum(1, keepdim=True), metrics={}
    )


def turned_policy(tokens: PolicyTokens):
    return TokenLoss(losses=ratio_of(tokens) * tokens.advantages, metrics={})


def squares_advantages(tokens: PolicyTokens):
    return TokenLoss(losses=-ratio_of(tokens) * tokens.advantages.abs(), metrics={})


def whitens_the_batch(tokens: PolicyTokens):
    return TokenLoss(losses=-ratio_of(tokens) * (tokens.advantages - 0.01 * tokens.advantages.mean()), metrics={})


def unbounded(tokens: PolicyTokens):
    return TokenLoss(losses=-tokens.required_log_ratio.exp() * tokens.advantages, metrics={})


def metric_with_gradient(tokens: PolicyTokens):
    ratio = ratio_of(tokens)
    return TokenLoss(losses=-ratio * tokens.advantages, metrics={"ratio": ratio})


@pytest.mark.parametrize(
    ("loss", "law", "words"),
    [
        (leaks_padding, "padding", "outside the mask"),
        (turned_policy, "on policy", "below 0 for every trained token"),
        (squares_advantages, "on policy", "at ratio 1"),
        (whitens_the_batch, "split into micro-batches", "alone"),
        (unbounded, "finite at extremes", "bound the exponent"),
    ],
)
def test_a_policy_loss_that_breaks_a_law_is_caught(loss, law, words):
    with pytest.raises(ContractError, match=f"(?s)the policy loss {loss.__name__} breaks the law '{law}'.*{words}"):
        assert_loss_contract(loss)


# Reward losses.


def turned_scores(scores: PairScores):
    return -logsigmoid(-scores.difference)


def overflowing_scores(scores: PairScores):
    return torch.log(1 + torch.exp(-scores.difference))


@pytest.mark.parametrize(
    ("loss", "law"), [(turned_scores, "direction of the gradient"), (overflowing_scores, "finite at extremes")]
)
def test_a_reward_loss_that_breaks_a_law_is_caught(loss, law):
    with pytest.raises(ContractError, match=f"the reward loss {loss.__name__} breaks the law '{law}'"):
        assert_loss_contract(loss)


# Losses of single answers.


def gain(judged: JudgedLogps):
    return torch.where(judged.is_desirable, 1.0, -1.0) * judged.logratio


def own_point(judged: JudgedLogps):
    return torch.sigmoid(-gain(judged) + judged.logratio.mean().detach())


def judged_in_reverse(judged: JudgedLogps):
    return torch.sigmoid(gain(judged))


def judgement_unread(judged: JudgedLogps):
    return torch.sigmoid(-judged.logratio)


def exponential(judged: JudgedLogps):
    return torch.exp(-gain(judged))


def mean_of_answers(judged: JudgedLogps):
    return torch.sigmoid(-gain(judged)).mean()


def stopped(judged: JudgedLogps):
    return torch.sigmoid(-gain(judged)) * (1 + gain(judged).detach() ** 2)


def place_of_answer(judged: JudgedLogps):
    return torch.sigmoid(-gain(judged)) * torch.arange(1, len(judged.logps) + 1)


@pytest.mark.parametrize(
    ("loss", "law", "words"),
    [
        (mean_of_answers, "one number an answer", r"shape \(\) for 1 answers"),
        (place_of_answer, "order of answers", "in reverse"),
        (own_point, "split into micro-batches", "What is of the whole step is in `kl`"),
        (judged_in_reverse, "direction of the gradient", "Is a sign turned"),
        (judgement_unread, "direction of the gradient", r"is_desirable \(2,\) = \[True, False\]"),
        (stopped, "gradient of the value", "Jacobian mismatch"),
        (exponential, "finite at extremes", "for a desirable answer of logps, ref_logps, kl"),
    ],
)
def test_a_loss_of_judged_answers_that_breaks_a_law_is_caught(loss, law, words):
    with pytest.raises(
        ContractError, match=f"(?s)the single-answer loss {loss.__name__} breaks the law '{law}'.*{words}"
    ):
        assert_loss_contract(loss)


def mean_of_tokens(logps):
    return -logps.mean()


def own_length(logps):
    return -logps / logps.shape[1]


def against_the_mean(logps):
    return -logps * logps.mean(0).exp().detach()


def forgets(logps):
    return logps


def distant(logps):
    return torch.exp(-2 * logps) - 1


@pytest.mark.parametrize(
    ("loss", "law", "words"),
    [
        (mean_of_tokens, "a number a token", "one number a token, unreduced"),
        (own_length, "padding", "two more columns of padding"),
        (against_the_mean, "split into micro-batches", "beside the others"),
        (forgets, "direction of the gradient", "Is a sign turned"),
        (distant, "finite at extremes", r"inf in torch\.float64 for a log-prob of -10000"),
    ],
)
def test_a_supervised_loss_that_breaks_a_law_is_caught(loss, law, words):
    with pytest.raises(ContractError, match=f"(?s)the supervised loss {loss.__name__} breaks the law '{law}'.*{words}"):
        assert_loss_contract(loss)


# Advantages.


def by_number(rewards: RewardTable, prompt_index):
    return (rewards.total() * (1 + prompt_index))[:, None]


def pessimist(rewards: RewardTable, prompt_index):
    return (rewards.total().nanmean() - rewards.total())[:, None]


def without_baseline(rewards: RewardTable, prompt_index):
    return rewards.total()[:, None]


def nothing_is_bad(rewards: RewardTable, prompt_index):
    total = rewards.total().nan_to_num(0.0)
    return (total - total.mean())[:, None]


@pytest.mark.parametrize(
    ("advantage", "law"),
    [
        (by_number, "order of answers"),
        (pessimist, "better answers"),
        (without_baseline, "no signal"),
        (nothing_is_bad, "answers without a score"),
    ],
)
def test_an_advantage_that_breaks_a_law_is_caught(advantage, law):
    with pytest.raises(
        ContractError, match=f"(?s)the advantage {advantage.__name__} breaks the law '{law}'.*prompt_index"
    ):
        assert_advantage_contract(advantage)


# Rewards.


CALLS = itertools.count()


def divides_by_words(completions, **kwargs):
    return [1 / len(text.split()) for text in completions]


def share_of_the_batch(completions, **kwargs):
    sizes = [len(str(text)) for text in completions]
    return [size / sum(sizes) for size in sizes]


def counts_calls(completions, **kwargs):
    return [float(next(CALLS)) for _ in completions]


def by_place(completions, **kwargs):
    return [float(row == 0) for row in range(len(completions))]


def only_texts(completions, **kwargs):
    return [float(text.startswith("4")) for text in completions]


@pytest.mark.parametrize(
    ("reward", "law", "words"),
    [
        (divides_by_words, "a number or None for each answer", "ZeroDivisionError"),
        (only_texts, "a number or None for each answer", "AttributeError"),
        (counts_calls, "the same again", "when it is scored again"),
        (by_place, "order of answers", "in reverse order"),
        (share_of_the_batch, "alone", "alone"),
    ],
)
def test_a_reward_that_breaks_a_law_is_caught(reward, law, words):
    with pytest.raises(ContractError, match=f"(?s)the reward {reward.__name__} breaks the law '{law}'.*{words}"):
        assert_reward_contract(reward)


def test_a_column_that_a_reward_takes_has_to_be_given():
    def right(completions, answer):
        return [1.0] * len(completions)

    with pytest.raises(ValueError, match="takes the column 'answer': pass columns="):
        assert_reward_contract(right)


def test_coroutines_are_awaited():
    async def later(completions, **kwargs):
        return [0.5] * len(completions)

    assert_reward_contract(later)
