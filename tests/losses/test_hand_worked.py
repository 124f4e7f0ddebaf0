"""Numbers worked out by hand, for the losses beyond those of test_preference.py."""

from __future__ import annotations

import math

import pytest
import torch
from test_preference import call, gradients, make_pair

from burnish.losses import preference_losses

LOG_2 = math.log(2)
ONE = {"chosen": [-10.0], "ref_chosen": [-12.0], "rejected": [-20.0], "ref_rejected": [-21.0]}  # r_w = 2, r_l = 1


def nll(x: float) -> float:
    """-log σ(x)."""
    return math.log1p(math.exp(-x))


def test_sigmoid_norm():
    """2 over 4 tokens and 1 over 2 are 0.5 each: log 2. 2 over 2 and 1 over 2 differ by 0.5; b = 4: -log σ(2)."""
    assert call("sigmoid_norm", make_pair(**ONE, chosen_length=[4.0], rejected_length=[2.0]), beta=4.0) == [LOG_2]
    uneven = make_pair(**ONE, chosen_length=[2.0], rejected_length=[2.0])
    assert call("sigmoid_norm", uneven, beta=4.0) == pytest.approx([0.12692801104297263], abs=1e-12)


def test_robust():
    """b D = 0.5, e = 0.2: (0.8 x 0.4740769842 - 0.2 x 0.9740769842) / 0.6 = 0.3074103175."""
    robust = call("robust", make_pair(**ONE), beta=0.5, label_smoothing=0.2)
    assert robust == pytest.approx([(0.8 * 0.4740769841801067 - 0.2 * 0.9740769841801067) / 0.6], abs=1e-12)
    plain = call("sigmoid", make_pair(**ONE), beta=0.5, label_smoothing=0.0)
    assert call("robust", make_pair(**ONE), beta=0.5, label_smoothing=0.0) == plain


def test_robust_is_unbiased():
    """Expectation over flips of probability e is the clean loss: (1 - e) L(D) + e L(-D), which is why it is used."""
    flipped = {"chosen": ONE["rejected"], "ref_chosen": ONE["ref_rejected"]}
    flipped |= {"rejected": ONE["chosen"], "ref_rejected": ONE["ref_chosen"]}
    right = call("robust", make_pair(**ONE), beta=0.5, label_smoothing=0.3)[0]
    wrong = call("robust", make_pair(**flipped), beta=0.5, label_smoothing=0.3)[0]
    assert 0.7 * right + 0.3 * wrong == pytest.approx(nll(0.5), abs=1e-12)


def test_exo_is_the_reverse_kl_to_the_smoothed_label():
    """At b D = 0: ½ [log ½ - log 0.9] + ½ [log ½ - log 0.1] = 0.5108256238. At log(0.9 / 0.1) the two agree: 0."""
    even = make_pair(chosen=[0.0])
    assert call("exo_pair", even, beta=0.5, label_smoothing=0.1) == pytest.approx([0.5108256237659907], abs=1e-12)
    agreed = make_pair(chosen=[math.log(9) / 0.5])
    assert call("exo_pair", agreed, beta=0.5, label_smoothing=0.1) == pytest.approx([0.0], abs=1e-12)


def test_exo_without_smoothing_is_refused():
    message = r"label_smoothing=0\.0: .* set label_smoothing=1e-3, the paper's value, or any other above 0"
    with pytest.raises(ValueError, match=message):
        call("exo_pair", make_pair(**ONE), beta=0.5, label_smoothing=0.0)


def test_discopop():
    """At b D = 0 it is half of log 2 and half of 1. At b D = 0.5, tau = 0.5: m = σ(1) = 0.7310585786."""
    assert call("discopop", make_pair(chosen=[0.0]), beta=1.0, discopop_tau=0.05) == pytest.approx([(LOG_2 + 1) / 2])
    m = 0.7310585786300049
    expected = (1 - m) * nll(0.5) + m * math.exp(-0.5)
    assert call("discopop", make_pair(**ONE), beta=0.5, discopop_tau=0.5) == pytest.approx([expected], abs=1e-12)


def test_tdpo():
    """b = 0.5, D = 1, K_w = 0.4, K_l = 1: first form 0.5 - 0.5 x 0.6 = 0.2; second, alpha 0.5: 0.5 - 0.15 = 0.35."""
    pair = make_pair(**ONE, chosen_kl=[0.4], rejected_kl=[1.0])
    assert call("tdpo1", pair, beta=0.5) == pytest.approx([nll(0.2)], abs=1e-12)
    assert call("tdpo", pair, beta=0.5) == pytest.approx([nll(0.35)], abs=1e-12)
    assert call("tdpo", pair, beta=0.5, tdpo_alpha=0.0) == pytest.approx([nll(0.5)], abs=1e-12)


def test_tdpo_pushes_through_the_rejected_drift_only():
    """d loss / d K_l = b alpha σ(-0.35) with alpha 0.5; none by K_w in the second form, -b σ(-0.2) in the first."""
    pair = make_pair(**ONE, chosen_kl=[0.4], rejected_kl=[1.0])
    for kl in (pair.chosen_kl, pair.rejected_kl):
        kl.requires_grad_()
    second = preference_losses["tdpo"].function(pair, beta=0.5).sum()
    by = torch.autograd.grad(second, (pair.chosen_kl, pair.rejected_kl), allow_unused=True)
    assert by[0] is None
    assert by[1].item() == pytest.approx(0.25 / (1 + math.exp(0.35)), abs=1e-12)
    first = preference_losses["tdpo1"].function(pair, beta=0.5).sum()
    by = torch.autograd.grad(first, (pair.chosen_kl, pair.rejected_kl))
    assert by[0].item() == pytest.approx(-0.5 / (1 + math.exp(0.2)), abs=1e-12)


def test_nca():
    """b = 0.5: rewards 1 and 0.5: -log σ(1) - ½ log σ(-1) - ½ log σ(-0.5)."""
    expected = nll(1) + 0.5 * nll(-1) + 0.5 * nll(-0.5)
    assert call("nca_pair", make_pair(**ONE), beta=0.5) == pytest.approx([expected], abs=1e-12)


def test_bco_shifts_both_rewards():
    """b = 0.5, delta = 0.25: -log σ(1 - 0.25) - log σ(-(0.5 - 0.25))."""
    bco = call("bco_pair", make_pair(**ONE), beta=0.5, delta=0.25)
    assert bco == pytest.approx([nll(0.75) + nll(-0.25)], abs=1e-12)


def test_sppo_and_cal_dpo():
    """b = 0.25: target 2. (2 - 2)² + (1 + 2)² = 9; Cal-DPO adds -log σ(0.25)."""
    assert call("sppo_hard", make_pair(**ONE), beta=0.25) == [9.0]
    assert call("cal_dpo", make_pair(**ONE), beta=0.25) == pytest.approx([9 + nll(0.25)], abs=1e-12)


def test_apo():
    """b = 1: σ(-2) + σ(1) and σ(2) + σ(-1); at the reference both are 1."""
    s1, s2 = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    assert call("apo_zero", make_pair(**ONE), beta=1.0) == pytest.approx([1 - s2 + s1], abs=1e-12)
    assert call("apo_down", make_pair(**ONE), beta=1.0) == pytest.approx([s2 + 1 - s1], abs=1e-12)
    assert call("apo_zero", make_pair(chosen=[0.0]), beta=1.0) == [1.0]
    assert call("apo_down", make_pair(chosen=[0.0]), beta=1.0) == [1.0]


def test_apo_down_lowers_the_chosen_answer_where_the_margin_is_wide():
    """b = 1, r_w = 0, r_l = -5: d/d r_w = σ'(0) - σ'(5) = 0.25 - 0.0066 > 0."""
    function = preference_losses["apo_down"].function
    by_chosen, _ = gradients(lambda p: function(p, beta=1.0), make_pair(rejected=[-5.0]))
    assert by_chosen.item() == pytest.approx(0.25 - 0.006648056670790155, abs=1e-12)


def test_dpop():
    """r_w = 2 is no loss: the sigmoid. r_w = -1, D = -2, lambda = 3: b (-2 - 3) with b = 0.5 is -2.5."""
    assert call("dpop", make_pair(**ONE), beta=0.5) == pytest.approx([nll(0.5)], abs=1e-12)
    fallen = make_pair(chosen=[-1.0], rejected=[1.0])
    assert call("dpop", fallen, beta=0.5, dpop_lambda=3.0) == pytest.approx([nll(-2.5)], abs=1e-12)
    assert call("dpop", fallen, beta=0.5) == pytest.approx([nll(-26.0)], abs=1e-12)  # the paper's lambda: 50


def test_simpo():
    """-10 over 5 tokens and -20 over 8: -2 + 2.5 = 0.5; b = 2, gamma = 0.5: -log σ(0.5). No reference in it."""
    pair = make_pair(**ONE, chosen_length=[5.0], rejected_length=[8.0])
    assert call("simpo", pair, beta=2.0) == pytest.approx([nll(0.5)], abs=1e-12)
    assert call("simpo", pair, beta=2.0, simpo_gamma=0.0) == pytest.approx([nll(1.0)], abs=1e-12)


def test_cpo():
    """b = 0.1: -log σ(0.1 x 10) plus -10 / 5 = 2 nats a token, times alpha."""
    pair = make_pair(**ONE, chosen_length=[5.0])
    assert call("cpo", pair, beta=0.1, label_smoothing=0.0) == pytest.approx([nll(1.0) + 2], abs=1e-12)
    assert call("cpo", pair, beta=0.1, label_smoothing=0.0, cpo_alpha=0.5) == pytest.approx([nll(1.0) + 1], abs=1e-12)


def test_orpo():
    """p_w = ½, p_l = ¼ per token: odds 1 and 1/3, log odds ratio log 3, -log σ(log 3) = log(4/3); NLL log 2."""
    pair = make_pair(
        chosen=[3 * math.log(0.5)], chosen_length=[3.0], rejected=[2 * math.log(0.25)], rejected_length=[2.0]
    )
    assert call("orpo", pair, beta=0.1) == pytest.approx([LOG_2 + 0.1 * math.log(4 / 3)], abs=1e-12)


def test_simper():
    """Chosen ½ a token over 3 tokens, rejected ¼ over 2: ¼ - ½, whatever the lengths are."""
    pair = make_pair(
        chosen=[3 * math.log(0.5)], chosen_length=[3.0], rejected=[2 * math.log(0.25)], rejected_length=[2.0]
    )
    assert call("simper", pair) == pytest.approx([-0.25], abs=1e-12)


def test_aot_unpaired():
    """Chosen ratios 4, 0 sorted 0, 4; rejected 1, -1 sorted -1, 1: d = 1, 3, whatever the pairs were."""
    pair = make_pair(chosen=[4.0, 0.0], rejected=[1.0, -1.0])
    expected = [nll(1.0), nll(3.0)]
    assert call("aot_unpaired", pair, beta=1.0, label_smoothing=0.0) == pytest.approx(expected, abs=1e-12)
    swapped = make_pair(chosen=[4.0, 0.0], rejected=[-1.0, 1.0])
    assert call("aot_unpaired", swapped, beta=1.0, label_smoothing=0.0) == pytest.approx(expected, abs=1e-12)


def test_beta_dpo():
    """b = 0.5, D = 1 and 3: mean margin 1, usual 0.5, alpha 0.6: b' = 0.5 x 1.3 = 0.65."""
    pair = make_pair(chosen=[1.0, 3.0])
    expected = [nll(0.65), nll(1.95)]
    assert call("beta_dpo", pair, beta=0.5, usual_margin=0.5) == pytest.approx(expected, abs=1e-12)


def test_beta_dpo_never_turns_a_preference_around():
    """Margins far below the usual would make b' negative; the floor is b / 100."""
    losses = call("beta_dpo", make_pair(chosen=[-100.0]), beta=0.5, usual_margin=0.0)
    assert losses == pytest.approx([nll(-0.5)], abs=1e-12)


def test_odpo_and_margin():
    """b D = 0.5. Margin 2: offset log 2 for ODPO (twice that at alpha 2), 2 itself for margin_dpo."""
    pair = make_pair(**ONE, margin=[2.0])
    assert call("odpo", pair, beta=0.5) == pytest.approx([nll(0.5 - LOG_2)], abs=1e-12)
    assert call("odpo", pair, beta=0.5, odpo_alpha=2.0) == pytest.approx([nll(0.5 - 2 * LOG_2)], abs=1e-12)
    assert call("margin_dpo", pair, beta=0.5) == pytest.approx([nll(-1.5)], abs=1e-12)


@pytest.mark.parametrize("margin", [-1.0, 0.0])
def test_odpo_needs_a_margin_above_0(margin):
    with pytest.raises(ValueError, match=rf"smallest is {margin}: remove rows"):
        call("odpo", make_pair(**ONE, margin=[margin]), beta=0.5)


@pytest.mark.parametrize("name", ["odpo", "margin_dpo"])
def test_a_margin_that_is_not_there_is_asked_for(name):
    pair = make_pair(**ONE)
    object.__setattr__(pair, "margin", None)
    with pytest.raises(ValueError, match="add a column margin, or score_chosen and score_rejected"):
        call(name, pair, beta=0.5)


def test_plackett_luce_of_three():
    """b r = 2, 1, 0 for ranks 1, 2, 3: -log(e² / (e² + e + 1)) - log(e / (e + 1)) = 0.4076059644 + 0.3132616875."""
    pair = make_pair(chosen=[2.0, 2.0, 1.0], rejected=[1.0, 0.0, 0.0], chosen_row=[0, 0, 1])
    first, second = math.log(math.e**2 + math.e + 1) - 2, math.log(math.e + 1) - 1
    losses = call("plackett_luce", pair, beta=1.0)
    assert losses == pytest.approx([first / 2, first / 2, second], abs=1e-12)
    assert first + second == pytest.approx(0.4076059644443806 + 0.31326168751822286, abs=1e-12)


def test_plackett_luce_of_two_is_sigmoid():
    pair = make_pair(**ONE)
    assert call("plackett_luce", pair, beta=0.7) == pytest.approx([nll(0.7)], abs=1e-12)
