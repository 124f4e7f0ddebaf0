from __future__ import annotations

import math

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from burnish import Completion, NativeGenerator, Prompt, SamplingParams, TokenBatch, forward
from burnish.generation import packing
from burnish.generation.cache import Room
from burnish.generation.decode import problem_with
from burnish.generation.kinds import CACHES
from burnish.models.forward import install_forward
from burnish.models.introspect import UnsupportedModelError
from conftest import SMALL, make_model

PROMPTS = [[5], [6, 7, 8, 9, 10, 11, 12], [20, 21, 22], [9] * 12]
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
EAGER = {"attn_implementation": "eager"}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "mistral": {"sliding_window": 8},
    "gemma2": {**GEMMA, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, **EAGER},
    "gemma3_text": {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {},
    "granite": {"logits_scaling": 4.0},
    "cohere2": {"logit_scale": 0.125, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "olmo2": {},
    "smollm3": {},
    "gpt2": {},
    "gpt_oss": {
        "head_dim": 8,
        "sliding_window": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "qwen3_next": {
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8},
}


def make_family(kind: str, **more):
    """A random model whose norms and biases are random too."""
    torch.manual_seed(0)
    settings = {**SMALL, **FAMILIES[kind], **more}
    attention = settings.pop("attn_implementation", None)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**settings), attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_prompts(prompts: list[list[int]] = PROMPTS) -> list[Prompt]:
    return [Prompt(ids=torch.tensor(ids), key=100 + number) for number, ids in enumerate(prompts)]


def make_params(**settings) -> SamplingParams:
    return SamplingParams(**{"max_new_tokens": 12, "end_token_ids": (2,), **settings})


def answer(model, prompts=None, *, num_samples=3, seed=0, round_index=0, generator=None, **settings):
    generator = generator or NativeGenerator(model, pad_token_id=0)
    prompts = make_prompts() if prompts is None else prompts
    return generator.generate(
        prompts, make_params(**settings), num_samples=num_samples, seed=seed, round_index=round_index
    )


def ids_of(completions: list[Completion]) -> list[list[int]]:
    return [completion.token_ids.tolist() for completion in completions]


@torch.no_grad()
def own_logits(model, completion: Completion) -> torch.Tensor:
    """(t, V) before each token: one plain forward over prompt and answer, no padding, no cache."""
    text = torch.cat([completion.prompt_ids, completion.token_ids])[None]
    return model(input_ids=text, use_cache=False).logits[0, len(completion.prompt_ids) - 1 : -1].double()


def own_logps(model, completion: Completion, temperature: float = 1.0) -> torch.Tensor:
    log_probs = (own_logits(model, completion) / temperature).log_softmax(1)
    return log_probs.gather(1, completion.token_ids[:, None]).squeeze(1).float()


# The answers are the model's.


HYBRIDS = ("lfm2", "qwen3_next", "falcon_h1")
# One of each: plain attention, a window, softcaps, positions that are learned, sinks with experts, a recurrence.
FAST = {"llama", "mistral", "gemma2", "gpt2", "gpt_oss", "lfm2"}
EACH_FAMILY = [name if name in FAST else pytest.param(name, marks=pytest.mark.gallery) for name in FAMILIES]


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_families(family):
    """Log-probs are those of a plain forward, past the sliding windows too, and every row is as if it were alone."""
    model = make_family(family)
    generator = NativeGenerator(model, pad_token_id=0, max_rows=5)
    completions = answer(model, generator=generator)
    assert len(completions) == 12
    assert len({tuple(ids) for ids in ids_of(completions)}) == 12
    assert max(map(len, completions)) == 12
    for completion in completions:
        torch.testing.assert_close(completion.logps, own_logps(model, completion), rtol=1e-4, atol=1e-4)
    alone = [one for prompt in make_prompts() for one in answer(model, [prompt])]
    assert share_of_equal_rows(completions, alone) == 1
    expected = "cache dynamic" if family in HYBRIDS else "cache rows"
    assert generator.description.startswith(expected)
    assert ("not rows" in generator.description) == (family in HYBRIDS)


def share_of_equal_rows(left: list[Completion], right: list[Completion]) -> float:
    pairs = list(zip(ids_of(left), ids_of(right), strict=True))
    return sum(one == other for one, other in pairs) / len(pairs)


NOT_SHARED = {
    "gemma2": "a mask, a softcap or dropout of its own",
    "gpt_oss": "attention with s_aux",
    **dict.fromkeys(HYBRIDS, "beside keys and values"),
}


def test_shared_prompts_need_the_log_sum_exp_of_an_attention():
    """Which torch's flash attention gives alone: without it every row keeps its prompt."""
    model = make_family("llama")
    assert not problem_with(model, "shared")
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        assert "gives its log-sum-exp" in problem_with(model, "shared")
    finally:
        torch.backends.cuda.enable_flash_sdp(True)


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_families_with_shared_prompts(family):
    """Where attention is plain, prompts that are there once change nothing; elsewhere the reason is told."""
    model = make_family(family, **({"sliding_window": 64} if "sliding_window" in FAMILIES[family] else {}))
    if family in NOT_SHARED:
        assert NOT_SHARED[family] in problem_with(model, "shared")
        return
    generator = NativeGenerator(model, pad_token_id=0, max_rows=5, cache="shared")
    completions = answer(model, generator=generator, num_samples=4)
    assert generator.description.startswith("cache shared")
    assert not generator.fell_back
    assert ids_of(completions) == ids_of(
        answer(model, generator=NativeGenerator(model, pad_token_id=0, cache="rows"), num_samples=4)
    )
    for completion in completions:
        torch.testing.assert_close(completion.logps, own_logps(model, completion), rtol=1e-4, atol=1e-4)


def test_prompts_are_shared_where_that_pays():
    """Not if they are short, have few answers, or are longer than a window."""
    model = make_family("mistral", sliding_window=100)
    generator = NativeGenerator(model, pad_token_id=0)
    for length, num_samples, expected in ((70, 4, "shared"), (20, 4, "rows"), (70, 2, "rows"), (95, 4, "rows")):
        answer(model, make_prompts([[5] * length]), generator=generator, num_samples=num_samples)
        assert generator.description.startswith(f"cache {expected}")
    with pytest.raises(UnsupportedModelError, match="rows of 107 tokens are longer than a window of 100"):
        answer(model, make_prompts([[9] * 95]), generator=NativeGenerator(model, pad_token_id=0, cache="shared"))


def test_first_tokens_follow_the_softmax(model):
    """Pearson's chi-square of 6,000 answers of one token against the model's own softmax."""
    prompts = make_prompts([[6, 7, 8], [9]])
    completions = answer(model, prompts, num_samples=3000, max_new_tokens=1)
    for number, prompt in enumerate(prompts):
        tokens = torch.cat([one.token_ids for one in completions[number * 3000 : (number + 1) * 3000]])
        probs = model(input_ids=prompt.ids[None]).logits[0, -1].detach().double().softmax(0)
        often = probs * 3000 >= 5
        observed = tokens.bincount(minlength=len(probs)).double()
        observed = torch.cat([observed[often], observed[~often].sum()[None]])
        expected = 3000 * torch.cat([probs[often], probs[~often].sum()[None]])
        freedom = len(expected) - 1
        assert freedom > 50
        assert ((observed - expected).square() / expected).sum() < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.7}, {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "min_new_tokens": 4}],
)
def test_log_probs_under_temperature_and_filters(model, settings):
    """logps + log(kept_mass) is the log-prob under softmax(logits / temperature)."""
    for completion in answer(model, **settings):
        expected = own_logps(model, completion, settings["temperature"])
        torch.testing.assert_close(completion.logps + completion.kept_mass.log(), expected, rtol=1e-4, atol=1e-4)
        assert bool((completion.kept_mass < 1).any()) == ("top_k" in settings)
        assert completion.kept_mass.max() <= 1


def test_the_one_forward_gives_the_same_log_probs(model):
    """Scored again with burnish.forward, in another layout."""
    install_forward(model)
    completions = answer(model)
    width = max(map(len, completions))
    ids, mask = torch.zeros(12, width, dtype=torch.int64), torch.zeros(12, width, dtype=torch.bool)
    for row, completion in enumerate(completions):
        ids[row, : len(completion)], mask[row, : len(completion)] = completion.token_ids, True
    longest = max(map(len, PROMPTS))
    batch = TokenBatch(
        prompt_ids=torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS]),
        prompt_mask=torch.tensor(
            [[column >= longest - len(prompt) for column in range(longest)] for prompt in PROMPTS]
        ),
        completion_ids=ids,
        completion_mask=mask,
        loss_mask=mask,
        prompt_index=torch.arange(4).repeat_interleave(3),
        row_id=torch.arange(12),
    )
    logps = forward(model, batch).logps.detach()
    torch.testing.assert_close(torch.cat([c.logps for c in completions]), logps[mask], rtol=1e-4, atol=1e-4)


def test_the_likeliest_tokens(model):
    for completion in answer(model, num_samples=1, temperature=0):
        logits = own_logits(model, completion)
        assert torch.equal(completion.token_ids, logits.argmax(1))
        torch.testing.assert_close(completion.logps, own_logps(model, completion), rtol=1e-4, atol=1e-4)
        assert completion.kept_mass.tolist() == [1] * len(completion)


def test_repetition_penalty_covers_prompt_and_answer(model):
    """A penalty that leaves nothing: no token comes twice, nor one of the prompt; padding is not penalised."""
    for completion in answer(model, num_samples=2, repetition_penalty=1e6, temperature=0, end_token_ids=()):
        text = completion.prompt_ids.unique().tolist() + completion.token_ids.tolist()
        assert len(set(text)) == len(text)


def test_the_models_own_generation_defaults_are_not_applied(model):
    """Near-greedy defaults, as some models ship them, change nothing; nor does a limit of length or a ban."""
    before = answer(model)
    for name, value in {"temperature": 0.1, "top_k": 1, "max_new_tokens": 2, "repetition_penalty": 9.0}.items():
        setattr(model.generation_config, name, value)
    model.generation_config.suppress_tokens = list(range(3, 200))
    assert ids_of(answer(model)) == ids_of(before)


# Randomness.


def test_a_round_can_be_made_again_and_no_two_are_alike(model):
    first = ids_of(answer(model))
    torch.manual_seed(99)
    assert ids_of(answer(model)) == first
    for other in ({"seed": 1}, {"round_index": 1}):
        assert not [one for one, two in zip(ids_of(answer(model, **other)), first, strict=True) if one == two]


def test_the_key_decides_not_the_place(model):
    prompts = make_prompts([[5, 6]] * 4)
    completions = ids_of(answer(model, prompts, num_samples=2))
    assert len({tuple(ids) for ids in completions}) == 8
    backwards = ids_of(answer(model, prompts[::-1], num_samples=2))
    assert [backwards[6:], backwards[:2]] == [completions[:2], completions[6:]]
    same_key = [Prompt(ids=prompt.ids, key=7) for prompt in prompts]
    assert len({tuple(ids) for ids in ids_of(answer(model, same_key, num_samples=1))}) == 1


def test_torchs_own_random_numbers_are_left_alone(model):
    before = torch.get_rng_state()
    answer(model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("cache", CACHES)
def test_batches_change_nothing(model, cache):
    expected = answer(model)
    for bounds in ({"max_rows": 1}, {"max_rows": 5}, {"max_batch_tokens": 60}):
        completions = answer(model, generator=NativeGenerator(model, pad_token_id=0, cache=cache, **bounds))
        assert [c.prompt_ids.tolist() for c in completions] == [ids for ids in PROMPTS for _ in range(3)], bounds
        assert share_of_equal_rows(completions, expected) == 1, bounds


def test_a_bound_below_one_row_takes_rows_one_by_one(model):
    completions = answer(model, generator=NativeGenerator(model, pad_token_id=0, max_batch_tokens=1))
    assert share_of_equal_rows(completions, answer(model)) == 1


@pytest.mark.parametrize("cache", CACHES)
def test_answers_do_not_depend_on_who_is_beside_them(model, cache):
    """50 rows that end here and there: decoded 8 at a time, and 40 at a time with others waiting."""
    prompts = make_prompts([[5 + number] * (1 + number % 9) for number in range(10)])
    few, many = (
        answer(
            model,
            prompts,
            num_samples=5,
            generator=NativeGenerator(model, pad_token_id=0, max_rows=rows, cache=cache),
            max_new_tokens=20,
            end_token_ids=tuple(range(2, 20)),
        )
        for rows in (8, 40)
    )
    assert len({len(completion) for completion in many}) > 12
    assert share_of_equal_rows(few, many) >= 0.99
    for completion in many[::7]:
        torch.testing.assert_close(completion.logps, own_logps(model, completion), rtol=1e-4, atol=1e-4)


def test_batches_keep_their_bounds(model, monkeypatch):
    """No batch is larger than it may be; a row that is too long alone is a batch of its own."""
    for kind in CACHES:
        generator = NativeGenerator(model, pad_token_id=0, max_rows=4, max_batch_tokens=48, cache=kind)
        rooms = record_rooms(monkeypatch, kind)
        completions = answer(model, make_prompts([*PROMPTS, [3] * 40]), generator=generator)
        assert len(completions) == 15
        assert [c.prompt_ids.tolist() for c in completions] == [ids for ids in [*PROMPTS, [3] * 40] for _ in range(3)]
        sizes = [(room.num_rows, room.num_rows * (room.longest_prompt + room.max_new_tokens)) for room in rooms]
        assert all(tokens <= 48 or rows == 1 for rows, tokens in sizes)
        assert max(rows for rows, _ in sizes) == 3


def record_rooms(monkeypatch, kind: str) -> list[Room]:
    """What each cache of a kind is made for, from now on."""
    rooms: list[Room] = []

    class Recorded(CACHES[kind]):
        def __init__(self, config, room):
            rooms.append(room)
            super().__init__(config, room)

    monkeypatch.setitem(CACHES, kind, Recorded)
    return rooms


# Work.


class Counted:
    """Counts the tokens and rows of each call of a model's forward."""

    def __init__(self, model, monkeypatch):
        self.shapes = []
        own = model.forward

        def counting(*args, **kwargs):
            self.shapes.append(tuple(kwargs["input_ids"].shape))
            return own(*args, **kwargs)

        monkeypatch.setattr(model, "forward", counting)


def test_each_prompt_is_run_once_and_rows_that_ended_leave(model, monkeypatch):
    generator = NativeGenerator(model, pad_token_id=0)
    answer(model, generator=generator, max_new_tokens=1)  # the check of the cache is behind
    counted = Counted(model, monkeypatch)
    ends = tuple(range(2, 40))
    completions = answer(model, generator=generator, num_samples=8, end_token_ids=ends)
    prefill, *steps = counted.shapes
    assert prefill == (4, 12)
    assert {columns for _, columns in steps} == {1}
    rows = [count for count, _ in steps]
    longest = [sum(len(completion) > step for completion in completions) for step in range(1, 12)]
    assert rows == [live for live in longest if live]


def test_waiting_rows_take_the_places_of_finished_ones(model, monkeypatch):
    """40 rows in 8 places: 8 are decoded until no one waits, and there are about as few steps as there can be."""
    generator = NativeGenerator(model, pad_token_id=0, max_rows=8)
    answer(model, generator=generator, max_new_tokens=1)
    counted = Counted(model, monkeypatch)
    prompts = make_prompts([[5 + number] * (1 + number) for number in range(5)])
    completions = answer(
        model, prompts, num_samples=8, generator=generator, max_new_tokens=20, end_token_ids=tuple(range(2, 20))
    )
    assert max(map(len, completions)) == 20
    steps = [rows for rows, columns in counted.shapes if columns == 1]
    assert counted.shapes[0] == (1, 1)  # the first eight rows have one prompt, of one token
    fed = sum(len(completion) - 1 for completion in completions)
    assert sum(steps) - 1 == fed  # no row is decoded after its end; the other is the first prompt
    full = [rows for rows in steps[1:] if rows == 8]
    assert len(full) >= (fed - 8 * 20) / 8


def test_all_ended_at_once_is_one_call(model, monkeypatch):
    generator = NativeGenerator(model, pad_token_id=0)
    answer(model, generator=generator, max_new_tokens=1)
    counted = Counted(model, monkeypatch)
    completions = answer(model, generator=generator, end_token_ids=tuple(range(259)))
    assert counted.shapes == [(4, 12)]
    assert [(len(c), c.finish_reason) for c in completions] == [(1, "stop")] * 12


# Where answers end.


def test_every_end_token_ends(model):
    """Each of several, once and last; what has none of them is as long as allowed."""
    ends = tuple(range(30, 60))
    completions = answer(model, num_samples=16, end_token_ids=ends)
    reasons = {"stop": 0, "length": 0}
    for completion in completions:
        reasons[completion.finish_reason] += 1
        is_end = [token in ends for token in completion.token_ids.tolist()]
        assert is_end == [False] * (len(completion) - 1) + [completion.finish_reason == "stop"]
        assert completion.finish_reason == "stop" or len(completion) == 12
    assert min(reasons.values()) >= 5
    assert len({completion.token_ids[-1].item() for completion in completions}) > 10


def test_answers_without_an_end_token(model):
    assert {(len(c), c.finish_reason) for c in answer(model, end_token_ids=())} == {(12, "length")}


def test_min_new_tokens(model):
    ends = tuple(range(30, 250))
    free = answer(model, num_samples=16, end_token_ids=ends)
    bound = answer(model, num_samples=16, end_token_ids=ends, min_new_tokens=5)
    assert min(map(len, free)) < 5
    assert min(map(len, bound)) == 6  # five that are no end, and the end
    assert all(token not in ends for c in bound for token in c.token_ids[:5].tolist())


def test_stop_strings_over_the_borders_of_tokens(model, tokenizer):
    """Of two bytes each, so of two tokens; the answer is kept up to the token that completes one."""
    texts = [tokenizer.decode(ids) for ids in ids_of(answer(model, num_samples=8, end_token_ids=()))]
    stops = tuple({text[5:7] for text in texts[:6]})
    generator = NativeGenerator(model, pad_token_id=0, tokenizer=tokenizer)
    completions = answer(model, num_samples=8, end_token_ids=(), generator=generator, stop_strings=stops)
    ended = [completion for completion in completions if completion.finish_reason == "stop_string"]
    assert len(ended) >= 6
    for completion, text in zip(completions, texts, strict=True):
        found = tokenizer.decode(completion.token_ids)
        assert text.startswith(found)
        assert any(stop in found for stop in stops) == (completion in ended)
        assert not any(stop in tokenizer.decode(completion.token_ids[:-1]) for stop in stops)


# Settings.


def test_caches_are_named_and_the_wanted_one_is_taken(model):
    with pytest.raises(ValueError, match="cache='static'; allowed: auto, shared, rows, dynamic"):
        NativeGenerator(model, pad_token_id=0, cache="static")
    generator = NativeGenerator(model, pad_token_id=0, cache="dynamic")
    answer(model, generator=generator, max_new_tokens=1)
    assert generator.description == "cache dynamic: keys and values grow by copying"
    hybrid = make_family("lfm2")
    with pytest.raises(UnsupportedModelError, match="it keeps LinearAttentionLayer beside keys and values"):
        answer(hybrid, generator=NativeGenerator(hybrid, pad_token_id=0, cache="rows"))


@pytest.fixture
def _small_layers_are_packed(monkeypatch):
    monkeypatch.setattr(packing, "MIN_WEIGHTS", 1)


@pytest.mark.usefixtures("_small_layers_are_packed")
def test_packing_changes_nothing_and_is_used_where_it_pays(model):
    """In 48 steps or more, unless it is said."""
    plain = answer(model, generator=NativeGenerator(model, pad_token_id=0, packing="off"), end_token_ids=())
    for kind, max_rows, is_packed in (("on", 64, True), ("auto", 3, True), ("auto", 64, False), ("off", 3, False)):
        generator = NativeGenerator(model, pad_token_id=0, packing=kind, max_rows=max_rows)
        completions = answer(model, generator=generator, end_token_ids=())
        assert share_of_equal_rows(completions, plain) == 1
        assert ("15 linear layers read packed copies" in generator.description) == is_packed
    assert "forward" not in vars(model.lm_head)


@pytest.mark.usefixtures("_small_layers_are_packed")
@pytest.mark.parametrize("packing_option", ["on", "off"])
def test_a_precision_of_its_own(model, packing_option):
    """bfloat16 for a float32 policy is what autocast gives, and float32 under autocast is the policy's own."""
    exact, rough = (
        NativeGenerator(model, pad_token_id=0, packing=packing_option, dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    plain, drawn = answer(model), answer(model, generator=rough)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ids_of(answer(model, generator=exact)) == ids_of(plain)
        assert ids_of(answer(model)) == ids_of(drawn)
    gaps = torch.cat([one.logps - own_logps(model, one) for one in drawn]).abs()
    assert 1e-4 < gaps.mean() < 0.1
    assert drawn[0].logps.dtype == torch.float32
    with pytest.raises(ValueError, match=r"dtype=.float32., but the weights are torch\.bfloat16"):
        answer(model.to(torch.bfloat16), generator=exact)


# Models as they come.


def test_no_prompts(model):
    assert answer(model, []) == []


def test_mode_and_gradients_are_as_before(model):
    """In training mode, with dropout and gradient checkpointing: decoded exactly, and trained on afterwards."""
    expected = ids_of(answer(model))
    noisy = make_model(attention_dropout=0.5)
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # renamed in transformers 5.23
    getattr(noisy, next(name for name in names if hasattr(noisy, name)))()
    noisy.train()
    completions = answer(noisy)
    assert ids_of(completions) == expected
    assert noisy.training
    assert not any(c.logps.requires_grad or c.logps.is_inference() for c in completions)
    noisy(input_ids=completions[0].token_ids[None]).logits.sum().backward()
    assert noisy.lm_head.weight.grad.abs().sum() > 0


def test_under_autocast_the_gradients_that_follow_are_whole(model):
    """bf16 casts that are cached while answering have no gradient; they must not serve the training after it."""
    ids = torch.tensor([[5, 6, 7]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        completions = answer(model)
        model(input_ids=ids).logits.float().sum().backward()
    assert completions[0].logps.dtype == torch.float32
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # read by peft
def test_adapters_answer_too(model):
    """The adapted model, not the one below it."""
    peft = pytest.importorskip("peft", reason="adapters need the package peft")
    plain = ids_of(answer(model))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.train()
    completions = answer(adapted)
    assert ids_of(completions) != plain
    assert adapted.training
    adapted.eval()
    for completion in completions:
        torch.testing.assert_close(completion.logps, own_logps(adapted, completion), rtol=1e-4, atol=1e-4)


def test_low_precision(model):
    completions = answer(model.to(torch.bfloat16))
    for completion in completions:
        torch.testing.assert_close(completion.logps, own_logps(model, completion), rtol=0.1, atol=0.1)


def test_a_new_policy_answers(model):
    generator = NativeGenerator(model, pad_token_id=0)
    first = answer(model, generator=generator)
    assert {completion.policy_version for completion in first} == {0}
    generator.update_policy(make_model(seed=1), version=7)
    second = answer(None, generator=generator)
    assert {completion.policy_version for completion in second} == {7}
    assert ids_of(first) != ids_of(second)


def test_weights_are_read_when_it_answers(model):
    generator = NativeGenerator(model, pad_token_id=0)
    first = answer(model, generator=generator)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    assert ids_of(answer(model, generator=generator)) != ids_of(first)


# What is refused.


def test_inputs_beside_the_text(model):
    prompt = Prompt(ids=torch.tensor([5]), key=31, extra={"pixel_values": torch.ones(1)})
    with pytest.raises(ValueError, match="row 31 comes with pixel_values, but NativeGenerator reads text only"):
        answer(model, [*make_prompts(), prompt])


def test_stop_strings_need_a_tokenizer(model):
    with pytest.raises(ValueError, match="pass tokenizer= to NativeGenerator"):
        answer(model, stop_strings=("x",))


@pytest.mark.parametrize("bounds", [{"max_rows": 0}, {"max_batch_tokens": 0}])
def test_bounds_below_1(model, bounds):
    with pytest.raises(ValueError, match=rf"NativeGenerator: {next(iter(bounds))}=0; allowed: 1 or more"):
        NativeGenerator(model, pad_token_id=0, **bounds)


def test_no_samples(model):
    with pytest.raises(ValueError, match="num_samples=0; allowed: 1 or more"):
        answer(model, num_samples=0)


def test_weights_that_are_not_finite(model):
    """The model is back in its mode after the error."""
    model.train()
    generator = NativeGenerator(model, pad_token_id=0)
    answer(model, generator=generator)
    with torch.no_grad():
        model.model.norm.weight[3] = math.nan
    with pytest.raises(FloatingPointError, match="no token can be drawn"):
        answer(model, generator=generator)
    assert model.training
