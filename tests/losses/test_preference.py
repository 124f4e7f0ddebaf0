from __future__ import annotations

import inspect
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.losses import preference_losses
from burnish.types import PairLogps

LOG_2 = math.log(2)
LOGPS = ("chosen", "rejected", "ref_chosen", "ref_rejected", "chosen_length", "rejected_length")
COLUMNS = (*LOGPS, "chosen_row", "margin", "chosen_kl", "rejected_kl")
HYPER_PARAMETERS = {
    "beta": 0.3, "label_smoothing": 0.1, "discopop_tau": 0.5, "delta": 0.2, "usual_margin": 0.1
}  # fmt: skip
EVERY = sorted(preference_losses)


def make_pair(dtype=torch.float64, **columns) -> PairLogps:
    """Pairs from lists; what is left out is 0, lengths are 1."""
    size = max(len(values) for values in columns.values())
    filled = {name: [1.0 if "length" in name or name == "margin" else 0.0] * size for name in COLUMNS}
    filled["chosen_row"] = list(range(size))
    tensors = {name: torch.tensor(v, dtype=dtype) for name, v in {**filled, **columns}.items()}
    return PairLogps(**{**tensors, "chosen_row": tensors["chosen_row"].long()})


def random_pair(size=6, dtype=torch.float64, seed=0) -> PairLogps:
    generator = torch.Generator().manual_seed(seed)
    logps = -40 * torch.rand(4, size, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 30, (2, size), generator=generator).double()
    more = 0.1 + torch.rand(3, size, generator=generator, dtype=torch.float64)
    columns = torch.cat([logps, lengths, more]).to(dtype)
    names = [name for name in COLUMNS if name != "chosen_row"]
    return PairLogps(**dict(zip(names, columns, strict=True)), chosen_row=torch.arange(size) // 2)


def closed(name: str):
    """The loss with every hyper-parameter given: its own default, else ours."""
    entry = preference_losses[name]
    empty = inspect.Parameter.empty
    values = {k: HYPER_PARAMETERS[k] if v is empty else v for k, v in entry.hyper_parameters.items()}
    values |= {name: HYPER_PARAMETERS[name] for name in entry.facts["follows"]}
    return lambda pair: entry.function(pair, **values)


def call(name: str, pair: PairLogps, **hyper_parameters) -> list[float]:
    return preference_losses[name].function(pair, **hyper_parameters).tolist()


def gradients(loss, pair: PairLogps) -> tuple[torch.Tensor, torch.Tensor]:
    """d sum(loss) / d chosen and / d rejected."""
    leaves = {name: getattr(pair, name).clone().requires_grad_() for name in ("chosen", "rejected")}
    losses = loss(PairLogps(**{**{n: getattr(pair, n) for n in COLUMNS}, **leaves}))
    return torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)


# Values by hand.

ONE = {"chosen": [-10.0], "ref_chosen": [-12.0], "rejected": [-20.0], "ref_rejected": [-21.0]}  # D = 2 - 1 = 1


def test_sigmoid_values():
    """D = (-10 + 12) - (-20 + 21) = 1; at b = 0.5 the loss is log(1 + e^-0.5) = 0.47407698418."""
    loss = call("sigmoid", make_pair(**ONE), beta=0.5, label_smoothing=0.0)
    assert loss == pytest.approx([0.4740769841801067], abs=1e-12)


def test_sigmoid_label_smoothing():
    """log σ(-x) = log σ(x) - x, so smoothing by e adds e b D: 0.47407698418 + 0.1 x 0.5."""
    loss = call("sigmoid", make_pair(**ONE), beta=0.5, label_smoothing=0.1)
    assert loss == pytest.approx([0.5240769841801067], abs=1e-12)


def test_sigmoid_smoothing_has_its_minimum_at_the_odds_of_the_labels():
    """With e = 0.2 the derivative -b ((1 - e) - σ(b D)) is 0 at b D = log(0.8 / 0.2) = 1.38629."""
    pair = make_pair(chosen=[math.log(4) / 0.5])
    by_chosen, _ = gradients(lambda p: preference_losses["sigmoid"].function(p, beta=0.5, label_smoothing=0.2), pair)
    assert by_chosen.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.49])
@pytest.mark.parametrize("name", ["sigmoid", "aot"])
def test_log_2_where_policy_is_reference(name, smoothing, beta):
    """D = 0 in every pair: -(1 - e) log ½ - e log ½ = log 2, and the slope is -b (1 - 2 e) / 2."""
    logps = {"chosen": [-3.0, -8.0], "ref_chosen": [-3.0, -8.0], "rejected": [-5.0, -1.0], "ref_rejected": [-5.0, -1.0]}
    pair = make_pair(**logps)
    assert call(name, pair, beta=beta, label_smoothing=smoothing) == pytest.approx([LOG_2, LOG_2], abs=1e-12)
    function = preference_losses[name].function
    by_chosen, by_rejected = gradients(lambda p: function(p, beta=beta, label_smoothing=smoothing), pair)
    slope = -beta * (1 - 2 * smoothing) / 2
    assert by_chosen.tolist() == pytest.approx([slope, slope], abs=1e-12)
    assert by_rejected.tolist() == pytest.approx([-slope, -slope], abs=1e-12)


def test_hinge_values_and_kink():
    """b = 0.5: max(0, 1 - D / 2) at D = -2, 0, 1, 2, 3 is 2, 1, 0.5, 0, 0; beyond the kink at D = 2 nothing pulls."""
    pair = make_pair(chosen=[-2.0, 0.0, 1.0, 2.0, 3.0])
    assert call("hinge", pair, beta=0.5) == [2.0, 1.0, 0.5, 0.0, 0.0]
    by_chosen, by_rejected = gradients(lambda p: preference_losses["hinge"].function(p, beta=0.5), pair)
    assert by_chosen.tolist() == [-0.5, -0.5, -0.5, 0.0, 0.0]
    assert by_rejected.tolist() == [0.5, 0.5, 0.5, 0.0, 0.0]


def test_ipo_is_per_token():
    """Log-ratios 2 over 4 tokens and 1 over 2 tokens are both 0.5 a token: (0 - 1 / (2 x 0.5))² = 1.
    6 over 3 and 1 over 2 differ by 1.5 a token: (1.5 - 1)² = 0.25; at b = 0.25 the margin is 2: (1.5 - 2)² = 0.25.
    """
    even = make_pair(**ONE, chosen_length=[4.0], rejected_length=[2.0])
    assert call("ipo", even, beta=0.5) == [1.0]
    uneven = make_pair(chosen=[6.0], rejected=[1.0], chosen_length=[3.0], rejected_length=[2.0])
    assert call("ipo", uneven, beta=0.5) == [0.25]
    assert call("ipo", uneven, beta=0.25) == [0.25]


def test_ipo_gradient_turns_at_its_margin():
    """b = 0.5: the minimum is at a difference of 1 a token; d/d chosen = 2 (difference - 1) / length."""
    pair = make_pair(chosen=[0.0, 4.0, 8.0], chosen_length=[4.0, 4.0, 4.0])
    by_chosen, by_rejected = gradients(lambda p: preference_losses["ipo"].function(p, beta=0.5), pair)
    assert by_chosen.tolist() == [-0.5, 0.0, 0.5]
    assert by_rejected.tolist() == [2.0, 0.0, -2.0]


def test_ipo_of_an_answer_without_trained_tokens_is_finite():
    pair = make_pair(chosen=[0.0], rejected=[-1.0], chosen_length=[0.0], rejected_length=[1.0])
    assert call("ipo", pair, beta=0.5) == [0.0]  # (0 - (-1) - 1)²


def test_aot_three_pairs():
    """Policy differences 4, 0, 1 sorted: 0, 1, 4. Reference 1, 1, -1 sorted: -1, 1, 1. d = 1, 0, 3.

    b = 1: log(1 + e^-1) = 0.3132616875, log 2, log(1 + e^-3) = 0.0485873516.
    """
    pair = make_pair(
        chosen=[-1.0, -2.0, -3.0],
        rejected=[-5.0, -2.0, -4.0],
        ref_chosen=[-1.0, -2.0, -3.0],
        ref_rejected=[-2.0, -3.0, -2.0],
    )
    expected = [0.3132616875182228, LOG_2, 0.04858735157374196]
    assert call("aot", pair, beta=1.0, label_smoothing=0.0) == pytest.approx(expected, abs=1e-12)


def test_aot_smoothing_adds_e_b_d():
    """As for sigmoid, at each quantile: d = 2, b = 0.5, e = 0.1 adds 0.1 to log(1 + e^-1)."""
    pair = make_pair(chosen=[2.0, 2.0])
    expected = [0.4132616875182228] * 2
    assert call("aot", pair, beta=0.5, label_smoothing=0.1) == pytest.approx(expected, abs=1e-12)


def test_aot_sends_gradient_to_the_pair_of_the_quantile():
    """Policy differences 4, 0, 1 are quantiles 3, 1, 2, whose d is 3, 1, 0: the slope is -σ(-d)."""
    pair = make_pair(chosen=[4.0, 0.0, 1.0], ref_chosen=[1.0, 1.0, -1.0])
    function = preference_losses["aot"].function
    by_chosen, by_rejected = gradients(lambda p: function(p, beta=1.0, label_smoothing=0.0), pair)
    expected = [-0.04742587317756678, -0.2689414213699951, -0.5]
    assert by_chosen.tolist() == pytest.approx(expected, abs=1e-12)
    assert by_rejected.tolist() == pytest.approx([-g for g in expected], abs=1e-12)


def test_aot_of_one_pair_is_sigmoid():
    pair = make_pair(**ONE)
    settings_ = {"beta": 0.7, "label_smoothing": 0.2}
    assert call("aot", pair, **settings_) == pytest.approx(call("sigmoid", pair, **settings_), abs=1e-12)


def test_sft_is_the_negative_log_likelihood_of_the_chosen_answer():
    """A sum over tokens, of chosen answers only; the division by their tokens is the trainer's."""
    pair = make_pair(**ONE, chosen_length=[4.0])
    assert call("sft", pair) == [10.0]
    by_chosen, by_rejected = gradients(preference_losses["sft"].function, pair)
    assert (by_chosen.tolist(), by_rejected.tolist()) == ([-1.0], [0.0])
    assert preference_losses["sft"].facts["per"] == "chosen_token"


# Every row of the table.


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0.0, -x)


def smoothed(x: np.ndarray) -> np.ndarray:
    e = HYPER_PARAMETERS["label_smoothing"]
    return -(1 - e) * log_sigmoid(x) - e * log_sigmoid(-x)


def difference(p: dict[str, np.ndarray]) -> np.ndarray:
    return p["chosen"] - p["rejected"] - p["ref_chosen"] + p["ref_rejected"]


BETA = HYPER_PARAMETERS["beta"]
HALF = 0.5 / BETA


def chosen(p: dict[str, np.ndarray]) -> np.ndarray:
    return p["chosen"] - p["ref_chosen"]


def rejected(p: dict[str, np.ndarray]) -> np.ndarray:
    return p["rejected"] - p["ref_rejected"]


def logit(p: dict[str, np.ndarray]) -> np.ndarray:
    return BETA * difference(p)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(log_sigmoid(x))


def per_token(p: dict[str, np.ndarray], answer: str) -> np.ndarray:
    return p[answer] / p[f"{answer}_length"]


def log_odds(x: np.ndarray) -> np.ndarray:
    return x - np.log(1 - np.exp(x))


def exo(p: dict[str, np.ndarray]) -> np.ndarray:
    q, e = np.stack([logit(p), -logit(p)]), HYPER_PARAMETERS["label_smoothing"]
    return (sigmoid(q) * (log_sigmoid(q) - np.log([[1 - e], [e]]))).sum(0)


def plackett(p: dict[str, np.ndarray]) -> np.ndarray:
    same = p["chosen_row"][:, None] == p["chosen_row"][None]  # (M, M)
    return np.log(1 + (same * np.exp(-logit(p))[None]).sum(1)) / same.sum(1)


BY_NUMPY = {
    "sigmoid_norm": lambda p: (
        -log_sigmoid(BETA * (chosen(p) / p["chosen_length"] - rejected(p) / p["rejected_length"]))
    ),
    "robust": lambda p: (-0.9 * log_sigmoid(logit(p)) + 0.1 * log_sigmoid(-logit(p))) / 0.8,
    "exo_pair": exo,
    "discopop": lambda p: sigmoid(-2 * logit(p)) * -log_sigmoid(logit(p)) + sigmoid(2 * logit(p)) * np.exp(-logit(p)),
    "tdpo1": lambda p: -log_sigmoid(logit(p) - BETA * (p["rejected_kl"] - p["chosen_kl"])),
    "tdpo": lambda p: -log_sigmoid(logit(p) - 0.5 * BETA * (p["rejected_kl"] - p["chosen_kl"])),
    "nca_pair": lambda p: (
        -log_sigmoid(BETA * chosen(p)) - (log_sigmoid(-BETA * chosen(p)) + log_sigmoid(-BETA * rejected(p))) / 2
    ),
    "bco_pair": lambda p: -log_sigmoid(BETA * chosen(p) - 0.2) - log_sigmoid(0.2 - BETA * rejected(p)),
    "sppo_hard": lambda p: (chosen(p) - HALF) ** 2 + (rejected(p) + HALF) ** 2,
    "apo_zero": lambda p: 1 - sigmoid(BETA * chosen(p)) + sigmoid(BETA * rejected(p)),
    "apo_down": lambda p: sigmoid(BETA * chosen(p)) + 1 - sigmoid(logit(p)),
    "dpop": lambda p: -log_sigmoid(logit(p) - BETA * 50 * np.maximum(0, -chosen(p))),
    "cal_dpo": lambda p: -log_sigmoid(logit(p)) + (chosen(p) - HALF) ** 2 + (rejected(p) + HALF) ** 2,
    "simpo": lambda p: -log_sigmoid(BETA * (per_token(p, "chosen") - per_token(p, "rejected")) - 0.5),
    "cpo": lambda p: smoothed(BETA * (p["chosen"] - p["rejected"])) - per_token(p, "chosen"),
    "orpo": lambda p: (
        -per_token(p, "chosen")
        - BETA * log_sigmoid(log_odds(per_token(p, "chosen")) - log_odds(per_token(p, "rejected")))
    ),
    "simper": lambda p: np.exp(per_token(p, "rejected")) - np.exp(per_token(p, "chosen")),
    "aot_unpaired": lambda p: smoothed(BETA * (np.sort(chosen(p)) - np.sort(rejected(p)))),
    "beta_dpo": lambda p: -log_sigmoid(logit(p) * max(0.01, 1 + 0.6 * (logit(p).mean() - 0.1))),
    "odpo": lambda p: -log_sigmoid(logit(p) - np.log(p["margin"])),
    "margin_dpo": lambda p: -log_sigmoid(logit(p) - p["margin"]),
    "plackett_luce": plackett,
    "sigmoid": lambda p: smoothed(BETA * difference(p)),
    "ipo": lambda p: (
        (
            (p["chosen"] - p["ref_chosen"]) / p["chosen_length"]
            - (p["rejected"] - p["ref_rejected"]) / p["rejected_length"]
            - 0.5 / BETA
        )
        ** 2
    ),
    "hinge": lambda p: np.maximum(0.0, 1 - BETA * difference(p)),
    "aot": lambda p: smoothed(
        BETA * (np.sort(p["chosen"] - p["rejected"]) - np.sort(p["ref_chosen"] - p["ref_rejected"]))
    ),
    "sft": lambda p: -p["chosen"],
}


@pytest.mark.parametrize("name", EVERY)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 9))
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_agrees_with_numpy(name, seed, size):
    pair = random_pair(size, seed=seed)
    expected = BY_NUMPY[name]({column: getattr(pair, column).numpy() for column in COLUMNS})
    np.testing.assert_allclose(closed(name)(pair).numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_finite_at_extremes(name, dtype):
    """Log-probs of -1e4 and 0, differences of ±1e3 and ±1e4, in value and in gradient; the dtype is kept."""
    extremes = [-1e4, -1e3, 0.0]
    grid = torch.cartesian_prod(*[torch.tensor(extremes, dtype=dtype)] * 4)  # (81, 4)
    lengths = torch.ones(len(grid), dtype=dtype)
    columns = (*grid.unbind(1), lengths, 1000 * lengths)
    rest = {"margin": lengths, "chosen_kl": 1e4 * lengths, "rejected_kl": lengths, "chosen_row": torch.arange(81) // 3}
    pair = PairLogps(**dict(zip(LOGPS, columns, strict=True)), **rest)
    losses = closed(name)(pair)
    assert losses.dtype == dtype
    assert losses.shape == (81,)
    assert losses.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(closed(name), pair))


@pytest.mark.parametrize("name", EVERY)
def test_gradcheck(name):
    pair = random_pair(4, seed=3)
    fixed = {column: getattr(pair, column) for column in COLUMNS[2:]}
    if name == "beta_dpo":  # b' has no gradient by definition, so it is held fixed: with alpha 0 it is b
        function = partial(preference_losses[name].function, beta=0.3, usual_margin=0.1, beta_dpo_alpha=0.0)
    else:
        function = closed(name)

    def of_policy(chosen, rejected):
        return function(PairLogps(chosen=chosen, rejected=rejected, **fixed))

    assert torch.autograd.gradcheck(of_policy, (pair.chosen.requires_grad_(), pair.rejected.requires_grad_()))


@pytest.mark.parametrize("name", EVERY)
def test_order_of_pairs(name):
    """A loss follows its pair; a loss that couples rows keeps its sum, and its gradients follow their pairs."""
    pair = random_pair(6, seed=1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = PairLogps(**{column: getattr(pair, column)[order] for column in COLUMNS})
    losses, moved = closed(name)(pair), closed(name)(shuffled)
    if preference_losses[name].facts["couples_rows"]:
        torch.testing.assert_close(moved.sum(), losses.sum(), rtol=1e-12, atol=0)
    else:
        torch.testing.assert_close(moved, losses[order], rtol=1e-14, atol=0)
    for mine, original in zip(gradients(closed(name), shuffled), gradients(closed(name), pair), strict=True):
        torch.testing.assert_close(mine, original[order], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", EVERY)
def test_rows_are_coupled_exactly_where_the_table_says_so(name):
    """Whether the loss of the first pair moves when the second changes; the second crosses the first in order."""
    columns = {"chosen": [1.0, 3.0], "rejected": [0.0, 0.0], "ref_chosen": [0.0, 0.5]}
    before = closed(name)(make_pair(**columns))
    after = closed(name)(make_pair(**{**columns, "chosen": [1.0, -3.0]}))
    assert bool(before[0] != after[0]) is preference_losses[name].facts["couples_rows"]


# DiscoPOP is not convex: at b D = 0 its gradient points the other way for tau below 0.1 (section 5 of its paper)
@pytest.mark.parametrize("name", EVERY)
def test_gradient_favours_the_chosen_answer_near_the_reference(name):
    """A step down the gradient never lowers chosen relative to rejected; at the reference it raises it."""
    near = 0.05 * (torch.rand(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5) - 10
    lengths = torch.full((2, 8), 5.0, dtype=torch.float64)
    rest = {"margin": torch.ones(8), "chosen_kl": torch.ones(8), "rejected_kl": torch.ones(8)}
    pair = PairLogps(**dict(zip(LOGPS, torch.cat([near, lengths]), strict=True)), **rest)
    by_chosen, by_rejected = gradients(closed(name), pair)
    assert (by_chosen - by_rejected < 0).all()
    if name != "apo_down":  # which makes both answers less likely
        assert (by_rejected >= 0).all()
        assert (by_chosen <= 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_operands_are_not_mutated(name):
    pair, untouched = random_pair(seed=2), random_pair(seed=2)
    closed(name)(pair)
    assert all(torch.equal(getattr(pair, column), getattr(untouched, column)) for column in COLUMNS)


@pytest.mark.parametrize("name", EVERY)
def test_the_reference_is_read_as_the_table_says(name):
    """`difference`: adding a constant to both log-ratios changes nothing; `none`: the reference does not matter.

    `ratios`: the constant, which stands for what depends on the prompt alone, does not cancel.
    """
    pair, moved_by = random_pair(5, seed=4), torch.linspace(1.0, 2.0, 5, dtype=torch.float64)
    moved = replace(pair, ref_chosen=pair.ref_chosen + moved_by, ref_rejected=pair.ref_rejected + moved_by)
    same = torch.allclose(closed(name)(moved), closed(name)(pair), rtol=1e-12, atol=1e-12)
    fact = preference_losses[name].facts["reference"]
    if fact == "ratios" and name in ("tdpo", "tdpo1", "aot"):
        return  # stricter than the sum over pairs shows: they add more than a difference of scores
    assert same is (fact != "ratios")
    unrelated = replace(pair, ref_chosen=pair.ref_chosen * 2)
    assert torch.equal(closed(name)(unrelated), closed(name)(pair)) is (fact == "none")


@pytest.mark.parametrize("name", EVERY)
def test_facts_and_documentation(name):
    """Each row states its unit and its source, and its docstring has a formula."""
    entry = preference_losses[name]
    assert entry.facts["per"] in ("pair", "chosen_token", "prompt")
    assert entry.facts["reference"] in ("difference", "ratios", "none")
    assert entry.facts["reward"] in ("sum", "mean")
    assert set(entry.facts["follows"]) <= set(inspect.signature(entry.function).parameters)
    assert entry.paper is not None
    assert "loss = " in entry.function.__doc__
    assert "Source:" in entry.function.__doc__
