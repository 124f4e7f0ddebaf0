from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

from burnish.losses import aggregations, policy_losses, reduce_tokens
from burnish.losses.policy import RATIO_LEVELS, apply_policy_loss, check_policy_loss, clip, ratio_level, with_ratio
from burnish.types import PolicyTokens, TokenLoss

EVERY = sorted(policy_losses)
SHARED = ("grpo", "dapo", "bnpo", "ppo", "dr_grpo", "gspo", "gspo_token", "luspo")


def make_tokens(ratio, advantages, *, mask=None, dtype=torch.float64, **more) -> PolicyTokens:
    """Tokens of these ratios to an old policy that is sure, logps = log(ratio)."""
    logps = torch.tensor(ratio, dtype=dtype).log()
    mask = torch.ones(logps.shape, dtype=torch.bool) if mask is None else torch.tensor(mask, dtype=torch.bool)
    return PolicyTokens(
        logps=logps,
        old_logps=torch.zeros_like(logps),
        advantages=torch.tensor(advantages, dtype=dtype),
        mask=mask,
        **more,
    )


def random_tokens(size=5, length=6, *, spread=0.5, per_token=False, seed=0, dtype=torch.float64) -> PolicyTokens:
    """Answers of 1 to `length` tokens, some of them untrained, with all that a loss may read."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    logps = -0.1 - 3 * uniform(size, length)
    advantages = torch.where(uniform(size, length if per_token else 1) < 0.5, -1, 1) * (0.2 + uniform(size, 1))
    ends = torch.randint(1, length + 1, (size, 1), generator=generator)
    mask = torch.arange(length) < ends
    mask[0, 0] = length == 1 or not bool(mask[0, 1])  # an untrained token in the middle
    tokens = PolicyTokens(
        logps=logps.to(dtype),
        old_logps=(logps + spread * (uniform(size, length) - 0.5)).to(dtype),
        advantages=advantages.to(dtype),
        mask=mask,
        importance_weights=(0.5 + uniform(size, length)).to(dtype),
        entropy=uniform(size, length).to(dtype),
    )
    return tokens


def bound(name: str, **hyper_parameters):
    entry = policy_losses[name]
    return replace(entry, function=partial(entry.function, **hyper_parameters))


def run(name: str, tokens: PolicyTokens, **hyper_parameters) -> TokenLoss:
    return apply_policy_loss(bound(name, **hyper_parameters), tokens)


def scalar(name: str, tokens: PolicyTokens) -> torch.Tensor:
    """The loss of a step that is these tokens: reduced, and divided once."""
    aggregation = policy_losses[name].facts["aggregation"]
    losses, per = reduce_tokens(
        run(name, tokens).losses, tokens.mask, aggregation=aggregation, max_completion_length=10
    )
    return losses.sum() / (tokens.mask.sum() if per == "token" else tokens.mask.any(1).sum())


def gradient(name: str, tokens: PolicyTokens) -> torch.Tensor:
    leaf = tokens.logps.clone().requires_grad_()
    (found,) = torch.autograd.grad(scalar(name, replace(tokens, logps=leaf)), leaf)
    return found


# Ratios.


def test_levels():
    """Log-ratios 1 and 3, the third token untrained: their mean is 2; sequence_token has its value at each token."""
    tokens = make_tokens([[math.e, math.e**3, 7.0]], [[1.0]], mask=[[1, 1, 0]])
    expected = {"token": [[1.0, 3.0, 0.0]], "sequence": [[2.0]], "sequence_token": [[2.0, 2.0, 2.0]]}
    for level, values in expected.items():
        ratio = with_ratio(tokens, level).required_log_ratio
        torch.testing.assert_close(ratio, torch.tensor(values, dtype=torch.float64))


def test_gradients_of_levels():
    """d log_ratio of token 0 by logps: 1 at its own token; 1/2 at both trained ones; 1 at its own token."""
    for level, expected in {"token": [1.0, 0.0, 0.0], "sequence": [0.5, 0.5, 0.0], "sequence_token": [1, 0, 0]}.items():
        tokens = make_tokens([[2.0, 3.0, 7.0]], [[1.0]], mask=[[1, 1, 0]])
        leaf = tokens.logps.clone().requires_grad_()
        ratio = with_ratio(replace(tokens, logps=leaf), level).required_log_ratio
        (found,) = torch.autograd.grad(ratio[0, 0], leaf)
        assert found.tolist() == [expected]


def test_no_ratio():
    tokens = with_ratio(with_ratio(make_tokens([[2.0]], [[1.0]]), "token"), "none")
    with pytest.raises(ValueError, match="with_ratio"):
        _ = tokens.required_log_ratio


def test_unknown_level():
    with pytest.raises(ValueError, match="'words'; known: token, sequence, sequence_token, none"):
        with_ratio(make_tokens([[2.0]], [[1.0]]), "words")


def test_ratios_of_half_precision_are_float32():
    tokens = make_tokens([[2.0]], [[1.0]], dtype=torch.bfloat16)
    assert with_ratio(tokens, "token").required_log_ratio.dtype == torch.float32


@pytest.mark.parametrize("name", EVERY)
def test_importance_sampling_level(name):
    """Where the ratio is part of the loss another level is refused, by name; its own and None always go."""
    entry = policy_losses[name]
    assert ratio_level(entry) == ratio_level(entry, entry.facts["ratio"]) == entry.facts["ratio"]
    for level in RATIO_LEVELS:
        if level in entry.facts["ratios"] or level == entry.facts["ratio"]:
            assert ratio_level(entry, level) == level
        else:
            with pytest.raises(ValueError, match=f"'{level}' does not go with the policy loss '{name}'"):
                ratio_level(entry, level)


def test_the_levels_of_a_loss_are_named():
    message = "'none' does not go .* 'grpo', whose ratio is 'token' or 'sequence' or 'sequence_token': leave it"
    with pytest.raises(ValueError, match=message):
        ratio_level(policy_losses["grpo"], "none")


def test_another_level_makes_grpo_gspo():
    tokens = random_tokens()
    asked = apply_policy_loss(policy_losses["grpo"], tokens, importance_sampling_level="sequence")
    assert torch.equal(asked.losses, run("gspo", tokens).losses)


# The clip, by hand.


def test_clip_values():
    """e = 0.2, h = 0.28. A = 1: min(r, 1.28) for r = 0.5, 1.2, 1.5; A = -1: max(r, 0.8)."""
    good = run("dapo", make_tokens([[0.5, 1.2, 1.5]], [[1.0]]), epsilon=0.2, epsilon_high=0.28)
    assert good.losses.tolist() == [pytest.approx([-0.5, -1.2, -1.28])]
    assert good.metrics["clip_ratio/high_mean"].tolist() == [[0.0, 0.0, 1.0]]
    bad = run("dapo", make_tokens([[0.5, 1.2, 1.5]], [[-1.0]]), epsilon=0.2, epsilon_high=0.28)
    assert bad.losses.tolist() == [pytest.approx([0.8, 1.2, 1.5])]
    assert bad.metrics["clip_ratio/low_mean"].tolist() == [[1.0, 0.0, 0.0]]
    assert bad.metrics["clip_ratio/region_mean"].tolist() == [[1.0, 0.0, 0.0]]


def test_a_clip_counts_what_lies_beyond_its_interval():
    """Ratios at the ends of the interval, exactly, are inside it; without an advantage nothing is clipped."""
    ends = make_tokens([[0.5, 1.5]] * 2, [[1.0], [-1.0]])
    beyond = make_tokens([[0.25, 4.0]], [[0.0]])
    for tokens in (ends, beyond):
        assert not run("grpo", tokens, epsilon=0.5).metrics["clip_ratio/region_mean"].any()


def test_an_interval_may_have_no_width():
    tokens = make_tokens([[0.5, 1.5]], [[1.0]])
    assert run("grpo", tokens, epsilon=0.0).losses.tolist() == [pytest.approx([-0.5, -1.0])]
    assert run("grpo", tokens, epsilon_high=0.0).losses.tolist() == [pytest.approx([-0.5, -1.0])]


def test_clip_gradients():
    """d loss / d logps = -r A inside the interval or towards it, 0 where it was left in A's direction."""
    for advantage, expected in {1.0: [-0.5, -1.0, 0.0], -1.0: [0.0, 1.0, 1.5]}.items():
        tokens = make_tokens([[0.5, 1.0, 1.5]], [[advantage]])
        leaf = tokens.logps.clone().requires_grad_()
        (found,) = torch.autograd.grad(run("grpo", replace(tokens, logps=leaf)).losses.sum(), leaf)
        assert found.tolist() == [pytest.approx(expected)]


def test_epsilon_high_is_epsilon_unless_given():
    tokens = make_tokens([[1.5]], [[1.0]])
    assert run("grpo", tokens, epsilon=0.3).losses.item() == pytest.approx(-1.3)


def test_delta_bounds_what_was_bad_and_became_likely():
    """A = -1, r = 9: the loss is 9 without a bound, 4 with delta = 4, and without gradient there."""
    tokens = make_tokens([[9.0]], [[-1.0]])
    assert run("grpo", tokens).losses.item() == pytest.approx(9.0)
    leaf = tokens.logps.clone().requires_grad_()
    losses = run("grpo", replace(tokens, logps=leaf), delta=4.0).losses
    (found,) = torch.autograd.grad(losses.sum(), leaf)
    assert (losses.item(), found.item()) == (pytest.approx(4.0), 0.0)


@pytest.mark.parametrize("c", [1.5, 3.0, 10.0])
def test_dual_clip_is_its_formula(c):
    """-max(min(r A, clamp(r) A), c A) where A < 0, written down by numbers."""
    tokens = random_tokens(20, 8, spread=8.0, seed=1)
    ratio, advantages = (tokens.logps - tokens.old_logps).exp(), tokens.advantages
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    expected = -torch.where(advantages < 0, torch.maximum(surrogate, c * advantages), surrogate)
    plain = replace(tokens, importance_weights=None)
    found = run("dual_clip", plain, dual_clip_c=c).losses
    torch.testing.assert_close(found[tokens.mask], expected[tokens.mask])
    wider = run("dual_clip", plain, epsilon=0.4, dual_clip_c=c).losses
    torch.testing.assert_close(wider, run("grpo", plain, epsilon=0.4, delta=c).losses)


@pytest.mark.parametrize(
    ("hyper_parameters", "message"),
    [
        ({"epsilon": -0.1}, "epsilon=-0.1"),
        ({"epsilon_high": -0.1}, "epsilon_high=-0.1"),
        ({"epsilon": 0.2, "delta": 1.2}, r"delta=1\.2 bounds .* ends at 1\.2: set it above that, or to None"),
    ],
)
def test_intervals_that_are_none(hyper_parameters, message):
    with pytest.raises(ValueError, match=message):
        run("grpo", make_tokens([[1.0]], [[1.0]]), **hyper_parameters)


def test_rows_of_one_function():
    assert all(policy_losses[name].function is clip for name in SHARED)
    shapes = {(policy_losses[name].facts["ratio"], policy_losses[name].facts["aggregation"]) for name in SHARED}
    assert len(shapes) == len(SHARED) - 2  # bnpo and ppo are dapo


def test_gspo_by_hand():
    """Ratios 2 and 8 have the geometric mean 4; |A| = 1 and h = 0.2, so 1.2 for each of the answers."""
    good = run("gspo", make_tokens([[2.0, 8.0]], [[1.0]]))
    assert good.losses.tolist() == [[pytest.approx(-1.2)]]
    assert run("gspo", make_tokens([[2.0, 8.0]], [[-1.0]])).losses.tolist() == [[pytest.approx(4.0)]]


def test_gspo_and_gspo_token_are_one_for_one_advantage_an_answer():
    """Value and gradient (GSPO section 4.3): the mean over tokens of token gradients is the sequence's."""
    tokens = random_tokens(seed=4)
    tokens = replace(tokens, importance_weights=None)
    torch.testing.assert_close(scalar("gspo", tokens), scalar("gspo_token", tokens))
    torch.testing.assert_close(gradient("gspo", tokens), gradient("gspo_token", tokens))


def test_luspo_counts_tokens():
    """A loss of -1.2 for each of three tokens is -3.6 for the answer."""
    assert scalar("luspo", make_tokens([[2.0, 2.0, 2.0]], [[1.0]])).item() == pytest.approx(-3.6)


# Every row.


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("per_token", [False, True])
def test_on_policy_gradient_is_the_policy_gradient(name, per_token):
    """At ratio 1 every loss has the gradient -A of logps, in its own average: the weights of the aggregation."""
    tokens = replace(random_tokens(spread=0.0, per_token=per_token, seed=2), importance_weights=None)
    if per_token and (policy_losses[name].facts["ratio"] == "sequence" or name == "gmpo"):
        return  # they have one ratio for all tokens of an answer, whose gradient mixes the advantages
    weights = {  # of each token in the step's loss
        "token_mean": tokens.mask / tokens.mask.sum(),
        "seq_mean_token_mean": tokens.mask / tokens.mask.sum(1, keepdim=True) / 5,
        "seq_mean_token_sum": tokens.mask / 5,
        "token_sum_norm": tokens.mask / 50,
    }[policy_losses[name].facts["aggregation"]]
    torch.testing.assert_close(gradient(name, tokens), -weights * tokens.advantages)


@pytest.mark.parametrize("name", EVERY)
def test_padding_content(name):
    """What stands outside the mask changes neither the loss nor a gradient, and has none itself."""
    tokens = random_tokens(seed=3)
    noise = 1e4 * torch.rand(tokens.mask.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)

    def disturbed(values):
        return torch.where(tokens.mask, values, -noise)

    other = replace(
        tokens,
        logps=disturbed(tokens.logps),
        old_logps=disturbed(tokens.old_logps).flip(0).where(~tokens.mask, tokens.old_logps),
        importance_weights=torch.where(tokens.mask, tokens.importance_weights, noise),
    )
    assert torch.equal(scalar(name, tokens), scalar(name, other))
    assert torch.equal(gradient(name, tokens), gradient(name, other))
    assert (gradient(name, tokens)[~tokens.mask] == 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_order_of_rows(name):
    tokens = random_tokens(seed=5)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = replace(tokens, **{k: v[order] for k, v in vars(tokens).items() if isinstance(v, torch.Tensor)})
    torch.testing.assert_close(scalar(name, moved), scalar(name, tokens), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(gradient(name, moved), gradient(name, tokens)[order], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", EVERY)
def test_split_into_micro_batches(name):
    """Losses of a part are the part of the losses: rows do not see each other, however the step is cut."""
    tokens = random_tokens(seed=6)
    whole = run(name, tokens).losses
    for rows in (slice(0, 2), slice(2, 5)):
        part = replace(tokens, **{k: v[rows] for k, v in vars(tokens).items() if isinstance(v, torch.Tensor)})
        torch.testing.assert_close(run(name, part).losses, whole[rows], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", EVERY)
def test_sign_of_the_gradient(name):
    """A step down the gradient never makes a good answer less likely, nor a bad one more likely."""
    tokens = random_tokens(40, 6, spread=2.0, seed=7)
    pull = gradient(name, tokens) * tokens.advantages
    assert (pull <= 0).all()
    assert (pull[tokens.mask] < 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_finite_at_extremes(name, dtype):
    """Log-probs of 0 to -1e4 under either policy, advantages of ±100, no trained token: finite, in at least float32."""
    logps, old_logps, advantages = torch.cartesian_prod(
        torch.tensor([-1e4, -50.0, 0.0]), torch.tensor([-1e4, -50.0, 0.0]), torch.tensor([-100.0, 0.0, 100.0])
    ).unbind(1)
    tokens = PolicyTokens(
        logps=logps[:, None].repeat(1, 3).to(dtype),
        old_logps=old_logps[:, None].repeat(1, 3).to(dtype),
        advantages=advantages[:, None].to(dtype),
        mask=torch.tensor([True, True, False]).expand(27, 3) & (torch.arange(27) != 5)[:, None],
        importance_weights=torch.tensor([0.0, 3.0, 1.0], dtype=dtype).expand(27, 3),
    )
    result = run(name, tokens)
    assert result.losses.dtype == dtype
    assert result.losses.isfinite().all()
    assert gradient(name, tokens).isfinite().all()
    assert all(values.isfinite().all() for values in result.metrics.values())


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_gradcheck(name, per_token):
    """The gradient is that of the value; where a weight has none by definition, of the value with the weight frozen."""
    tokens = random_tokens(4, 5, per_token=per_token, seed=8)
    if name in ("cispo", "vespo", "gspo_token"):
        frozen = run(name, tokens)  # linear in logps: loss - loss at the same place of another slope is their check
        leaf = tokens.logps.clone().requires_grad_()
        (found,) = torch.autograd.grad(run(name, replace(tokens, logps=leaf)).losses.sum(), leaf)
        if name != "gspo_token":
            torch.testing.assert_close(found, frozen.losses / tokens.logps)
            return
        low, high = frozen.metrics["clip_ratio/low_mean"], frozen.metrics["clip_ratio/high_mean"]
        clipped = (low + high) > 0
        torch.testing.assert_close(found, torch.where(clipped | ~tokens.mask, 0.0, frozen.losses))
        return

    def of_policy(logps):
        losses = run(name, replace(tokens, logps=logps)).losses
        return torch.where(tokens.mask, losses, torch.zeros_like(losses))

    assert torch.autograd.gradcheck(of_policy, (tokens.logps.clone().requires_grad_(),))


@pytest.mark.parametrize("name", EVERY)
def test_importance_weights(name):
    """They multiply the losses, or the loss reads them itself; weights of 1 change nothing either way."""
    tokens = random_tokens(seed=10)
    plain = run(name, replace(tokens, importance_weights=None)).losses
    ones = run(name, replace(tokens, importance_weights=torch.ones_like(tokens.logps))).losses
    weighted = run(name, tokens).losses
    torch.testing.assert_close(ones[tokens.mask], plain.expand_as(tokens.mask)[tokens.mask])
    if policy_losses[name].facts["correction"] == "outside":
        torch.testing.assert_close(weighted, plain * tokens.importance_weights)
    else:
        assert not torch.allclose(weighted[tokens.mask], (plain * tokens.importance_weights)[tokens.mask])


@pytest.mark.parametrize("name", EVERY)
def test_what_is_not_kept_has_no_loss(name):
    """By token (N, T) and by answer (N, 1); the rest is as before."""
    tokens = replace(random_tokens(seed=11), importance_weights=None)
    whole = run(name, tokens).losses
    for keep in (tokens.logps > tokens.logps.median(), torch.tensor([[True], [False], [True], [True], [False]])):
        kept = apply_policy_loss(policy_losses[name], tokens, keep=keep).losses
        torch.testing.assert_close(kept, torch.where(keep, whole, 0.0))


@pytest.mark.parametrize("name", EVERY)
def test_operands_are_not_mutated(name):
    tokens, untouched = random_tokens(seed=12), random_tokens(seed=12)
    run(name, tokens)
    assert all(torch.equal(getattr(tokens, f), getattr(untouched, f)) for f in ("logps", "old_logps", "advantages"))
    assert tokens.log_ratio is None


@pytest.mark.parametrize("name", EVERY)
def test_metrics_are_numbers_of_tokens_or_answers(name):
    """Without gradient; shares are 0 or 1."""
    tokens = random_tokens(30, 5, spread=8.0, seed=13)
    tokens = replace(tokens, logps=tokens.logps.clone().requires_grad_())
    for metric, values in run(name, tokens).metrics.items():
        assert values.shape in (tokens.mask.shape, (30, 1))
        assert not values.requires_grad
        if "clip_ratio" in metric:
            assert set(values.flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("name", EVERY)
def test_facts_and_documentation(name):
    """Each row states its ratio, its average and its source, and its docstring has a formula."""
    entry = policy_losses[name]
    assert entry.facts["ratio"] in (*RATIO_LEVELS, "none")
    assert set(entry.facts["ratios"]) <= set(RATIO_LEVELS)
    assert entry.facts["aggregation"] in aggregations
    assert entry.facts["correction"] in ("outside", "inside")
    assert entry.facts["needs"] <= {"entropy"}
    assert entry.paper is not None
    assert "loss = " in entry.function.__doc__
    assert "Source:" in entry.function.__doc__
    assert inspect.Parameter.empty not in entry.hyper_parameters.values()


# A loss of the user, and the table with a configuration.


@pytest.mark.parametrize("name", EVERY)
def test_every_row_passes_the_check(name):
    check_policy_loss(policy_losses[name])


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda tokens: -tokens.logps, TypeError, "returned Tensor: return TokenLoss"),
        (
            lambda tokens: TokenLoss(losses=-tokens.logps.mean()),
            ValueError,
            r"losses of shape \(\) .* to three tokens: return \(N, T\), one .* answer, not a sum or a mean$",
        ),
        (lambda tokens: TokenLoss(losses=-tokens.logps.sum(1)), ValueError, r"losses of shape \(2,\)"),
        (
            lambda tokens: TokenLoss(losses=tokens.advantages),
            ValueError,
            "do not depend on the policy: compute them from `logps` or `log_ratio`, which have a gradient$",
        ),
        (
            lambda tokens: TokenLoss(losses=-tokens.logps, metrics={"share": torch.ones(3)}),
            ValueError,
            r"share of shape \(3,\)",
        ),
    ],
)
def test_a_loss_of_the_user_is_checked(function, error, message):
    with pytest.raises(error, match=message):
        check_policy_loss(policy_losses.entry(function))


def test_a_loss_of_the_user_is_checked_on_two_answers():
    """One good and one bad, of three trained tokens and of two, as likely as for the old policy, with entropies."""
    seen = []

    def mine(tokens):
        seen.append(tokens)
        return TokenLoss(losses=-tokens.required_log_ratio * tokens.advantages)

    for level in ("token", "sequence"):
        check_policy_loss(policy_losses.entry(mine), level)
    tokens, by_answer = seen
    assert (tokens.logps == -1.0).all()
    assert (tokens.log_ratio.shape, by_answer.log_ratio.shape) == ((2, 3), (2, 1))
    assert (tokens.log_ratio == 0.0).all()
    assert tokens.advantages.tolist() == [[1.0], [-1.0]]
    assert tokens.mask.tolist() == [[True] * 3, [True, True, False]]
    assert tokens.entropy.shape == (2, 3)


def test_a_loss_of_the_user_has_the_facts_of_the_table():
    def mine(tokens):
        return TokenLoss(losses=-tokens.required_log_ratio * tokens.advantages)

    entry = policy_losses.entry(mine)
    check_policy_loss(entry, "sequence")
    assert (entry.facts["ratio"], entry.facts["aggregation"]) == ("token", "token_mean")


@dataclass
class Options:
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    sapo_temperature_pos: float = 1.0


def test_options_come_from_the_configuration():
    (entry,) = policy_losses.bind(["dapo"], Options(epsilon_high=0.28))
    losses = apply_policy_loss(entry, make_tokens([[1.5]], [[1.0]])).losses
    assert losses.item() == pytest.approx(-1.28)


def test_an_option_that_the_loss_does_not_read_is_an_error():
    with pytest.raises(ValueError, match=r"delta=3.0 is set, but the policy loss \['cispo'\] does not read it"):
        policy_losses.bind(["cispo"], Options(delta=3.0))
