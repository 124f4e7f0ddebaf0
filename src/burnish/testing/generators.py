"""The contract of generators: prompts and sampling parameters -> completions, and a tiny model to try it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from burnish.generation.base import Generator, Prompt, SamplingParams
from burnish.testing.contract import Law, assert_laws
from burnish.testing.tiny import END_TOKENS, tiny_model

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.types import Completion

SEED, ROUND = 11, 3
LOGP_TOLERANCE = 2e-4  # nats, in float32
LEAST_CHANCE = 1e-6  # that a sound generator has such draws
LEAST_EXPECTED = 5.0  # draws of a cell of the chi-square test
FINISH_REASONS = ("stop", "stop_string", "length")


@dataclass(frozen=True, eq=False)
class Engine:
    """What is tried.

    Attributes:
        generator: answers with `model`.
        model: whose answers they are.
        other: another one of its kind, for `update_policy`.
        num_draws: answers of the test of the distribution.
    """

    generator: Generator
    model: Any
    other: Any
    num_draws: int

    def answer(self, draw: Draw, *, seed: int = SEED, round_index: int = ROUND) -> list[Completion]:
        """The answers to the prompts of a case."""
        return self.generator.generate(
            draw.prompts, draw.params, num_samples=draw.num_samples, seed=seed, round_index=round_index
        )


@dataclass(frozen=True, eq=False)
class Draw:
    """Prompts, and how they are answered."""

    prompts: Sequence[Prompt]
    params: SamplingParams
    num_samples: int

    def show(self) -> str:
        """For the message."""
        lines = [f"  prompt of key {prompt.key}: ids {prompt.ids.tolist()}" for prompt in self.prompts]
        params = self.params
        how = f"temperature {params.temperature:g}, at most {params.max_new_tokens} tokens, ends {params.end_token_ids}"
        return "\n".join([*lines, f"  {self.num_samples} answers each, {how}"])


def assert_generator_contract(
    make_generator: Callable[[Any], Generator],
    *,
    make_model: Callable[..., Any] = tiny_model,
    end_token_ids: tuple[int, ...] = END_TOKENS,
    num_draws: int = 2000,
) -> None:
    """A generator keeps the laws of generators.

    It gives every prompt its answers, in order; they end with an end token, or are cut at the limit, and say which;
    their log-probs are the model's; they are drawn from its distribution; they are the same again, whatever stands
    beside them, and others in another round; greedy ones are the likeliest tokens; and after `update_policy` the new
    weights answer, under the new version.

    Args:
        make_generator: (model) -> a generator that answers with it.
        make_model: (seed, dtype) -> a model of transformers; a tiny random one if not given.
        end_token_ids: of that model.
        num_draws: answers of the test of the distribution; a slow generator may have fewer.

    Raises:
        ContractError: a law is broken; the message says which, and shows the smallest case.

    >>> from burnish import NativeGenerator
    >>> assert_generator_contract(lambda model: NativeGenerator(model, pad_token_id=0), num_draws=500)
    """
    model, other = make_model(0, torch.float32), make_model(1, torch.float32)
    generator = make_generator(model)
    engine = Engine(generator, model, other, num_draws)
    name = f"the generator {type(generator).__name__}"
    assert_laws(name, engine, LAWS, make_draws(end_token_ids), show=Draw.show)


def make_draws(end_token_ids: tuple[int, ...]) -> Iterator[Draw]:
    """One prompt and one answer; then prompts of different lengths, at two temperatures."""
    ids = ([4, 5, 6], [5], [9, 4, 8, 6, 5], [10, 11])
    prompts = [Prompt(ids=torch.tensor(tokens), key=100 + 7 * number) for number, tokens in enumerate(ids)]
    for count, num_samples, length, temperature in ((1, 1, 4, 1.0), (2, 2, 4, 1.0), (4, 3, 7, 0.7)):
        params = SamplingParams(max_new_tokens=length, temperature=temperature, end_token_ids=end_token_ids)
        yield Draw(prompts[:count], params, num_samples)


def rescore(model: Any, completion: Completion, temperature: float) -> Tensor:
    """Log-probs (t, V) before each token of an answer, by one plain forward of the model."""
    ids = torch.cat([completion.prompt_ids, completion.token_ids]).to(model.device)
    with torch.no_grad():
        logits = model(ids[None]).logits[0].float().cpu()
    start = len(completion.prompt_ids) - 1
    return (logits[start : start + len(completion)] / (temperature or 1.0)).log_softmax(-1)


def _order(engine: Engine, draw: Draw) -> str:
    found = engine.answer(draw)
    expected = [prompt for prompt in draw.prompts for _ in range(draw.num_samples)]
    if len(found) != len(expected):
        return f"it returned {len(found)} answers; {len(draw.prompts)} prompts have {len(expected)}"
    for place, (answer, prompt) in enumerate(zip(found, expected, strict=True)):
        if not torch.equal(answer.prompt_ids.cpu(), prompt.ids):
            return f"answer {place} is to {answer.prompt_ids.tolist()}, not to {prompt.ids.tolist()}"
        for name in ("logps", "kept_mass", "loss_mask"):
            if (shape := tuple(getattr(answer, name).shape)) != (len(answer),):
                return f"answer {place} has {len(answer)} tokens, and {name} of shape {shape}"
    return ""


def _ends(engine: Engine, draw: Draw) -> str:
    ends, limit = set(draw.params.end_token_ids), draw.params.max_new_tokens
    for place, answer in enumerate(engine.answer(draw)):
        ids = answer.token_ids.tolist()
        told = f"answer {place} is {ids}, finish_reason {answer.finish_reason!r}"
        if answer.finish_reason not in FINISH_REASONS:
            return f"{told}; allowed: {', '.join(FINISH_REASONS)}"
        if answer.turns is not None:
            continue  # a turn ends, and the answer goes on
        if not ids or len(ids) > limit:
            return f"{told}: it has 1 to {limit} tokens"
        if ends & set(ids[:-1]):
            return f"{told}: it goes on after an end token"
        right = "stop" if ids[-1] in ends else "length" if len(ids) == limit else None
        if right != answer.finish_reason:
            return f"{told}: {'it has no end' if right is None else f'right is {right!r}'}"
    return ""


def _logps(engine: Engine, draw: Draw) -> str:
    return _unlike(engine.model, draw, engine.answer(draw))


def _unlike(model: Any, draw: Draw, answers: Sequence[Completion]) -> str:
    for place, answer in enumerate(answers):
        expected = rescore(model, answer, draw.params.temperature).gather(1, answer.token_ids[:, None])[:, 0]
        found = answer.logps.float() + answer.kept_mass.float().log()
        wrong = ((found - expected).abs() > LOGP_TOLERANCE) & answer.loss_mask
        if bool(wrong.any()):
            token = int(wrong.nonzero()[0])
            return (
                f"token {token} of answer {place} has the log-prob {float(found[token]):.5f}, and "
                f"{float(expected[token]):.5f} when the model scores it again"
            )
    return ""


def _distribution(engine: Engine, draw: Draw) -> str:
    """The first two tokens of many answers to the first prompt, against the model's own softmax."""
    if draw.num_samples > 1:
        return ""  # one prompt is enough
    ends = set(draw.params.end_token_ids)
    many = replace(draw, params=replace(draw.params, max_new_tokens=2), num_samples=engine.num_draws)
    counts: dict[tuple[int, ...], int] = {}
    for answer in engine.answer(many):
        counts[tuple(answer.token_ids.tolist())] = counts.get(tuple(answer.token_ids.tolist()), 0) + 1
    prompt, temperature = draw.prompts[0].ids, draw.params.temperature
    first = _next(engine.model, prompt, temperature)
    cells: dict[tuple[int, ...], float] = {}
    for token, chance in enumerate(first.tolist()):
        if token in ends:
            cells[token,] = chance
        else:
            second = _next(engine.model, torch.cat([prompt, torch.tensor([token])]), temperature)
            cells.update({(token, after): chance * p for after, p in enumerate(second.tolist())})
    return _chi_square(counts, cells, engine.num_draws)


def _next(model: Any, ids: Tensor, temperature: float) -> Tensor:
    with torch.no_grad():
        logits = model(ids[None].to(model.device)).logits[0, -1].double().cpu()
    return (logits / temperature).softmax(-1)


def _chi_square(counts: dict[tuple[int, ...], int], cells: dict[tuple[int, ...], float], total: int) -> str:
    """Pearson's test; cells that expect few draws are one."""
    large = {cell: total * chance for cell, chance in cells.items() if total * chance >= LEAST_EXPECTED}
    rest = total - sum(large.values())
    pairs = [(counts.get(cell, 0), expected) for cell, expected in large.items()]
    if rest >= LEAST_EXPECTED:
        pairs.append((total - sum(found for found, _ in pairs), rest))
    statistic = sum((found - expected) ** 2 / expected for found, expected in pairs)
    freedom = max(len(pairs) - 1, 1)
    chance = float(torch.special.gammaincc(torch.tensor(freedom / 2.0).double(), torch.tensor(statistic / 2).double()))
    if chance >= LEAST_CHANCE:
        return ""
    worst = max(large, key=lambda cell: abs(counts.get(cell, 0) - large[cell]) / large[cell] ** 0.5)
    return (
        f"of {total} answers {counts.get(worst, 0)} begin with the tokens {list(worst)}, and the model's softmax "
        f"expects {large[worst]:.0f}; a sound generator has such draws with probability {chance:.1e}"
    )


def _ids(answers: Sequence[Completion]) -> list[list[int]]:
    return [answer.token_ids.tolist() for answer in answers]


def _again(engine: Engine, draw: Draw) -> str:
    expected, count = _ids(engine.answer(draw)), draw.num_samples
    if (found := _ids(engine.answer(draw))) != expected:
        return f"with the same seed and round it answers {expected}, and then {found}"
    for place, prompt in enumerate(draw.prompts):
        own = expected[place * count : (place + 1) * count]
        if (alone := _ids(engine.answer(replace(draw, prompts=[prompt])))) != own:
            return f"the prompt of key {prompt.key} is answered {own} beside the others, and {alone} alone"
    back = _ids(engine.answer(replace(draw, prompts=draw.prompts[::-1])))
    moved = [answer for place in reversed(range(len(draw.prompts))) for answer in back[place * count :][:count]]
    return "" if moved == expected else f"in reverse order the answers are {moved}, not {expected}"


def _others(engine: Engine, draw: Draw) -> str:
    many = replace(draw, num_samples=8)
    expected = _ids(engine.answer(many))
    if _ids(engine.answer(many, round_index=ROUND + 1)) == expected:
        return "another round_index gives the same answers"
    if _ids(engine.answer(many, seed=SEED + 1)) == expected:
        return "another seed gives the same answers"
    moved = [replace(prompt, key=prompt.key + 1) for prompt in many.prompts]
    if _ids(engine.answer(replace(many, prompts=moved))) == expected:
        return "prompts of other keys have the same answers: two rows of one text would be one"
    if all(answer == expected[0] for answer in expected[:8]):
        return "all 8 answers to a prompt are the same"
    return ""


def _greedy(engine: Engine, draw: Draw) -> str:
    greedy = replace(draw, params=replace(draw.params, temperature=0.0))
    for place, answer in enumerate(engine.answer(greedy)):
        logps = rescore(engine.model, answer, 1.0)
        gap = logps.amax(1) - logps.gather(1, answer.token_ids[:, None])[:, 0]
        if bool((gap > LOGP_TOLERANCE).any()):
            token = int((gap > LOGP_TOLERANCE).nonzero()[0])
            return (
                f"at temperature 0 token {token} of answer {place} is {int(answer.token_ids[token])}, and the "
                f"likeliest is {int(logps[token].argmax())}"
            )
    return ""


def _updated(engine: Engine, draw: Draw) -> str:
    engine.generator.update_policy(engine.other, version=5)
    try:
        answers = engine.answer(draw)
        problem = _unlike(engine.other, draw, answers)
    finally:
        engine.generator.update_policy(engine.model, version=6)
    if versions := {answer.policy_version for answer in answers} - {5}:
        return f"after update_policy(version=5) the answers have policy_version {versions.pop()}"
    return f"after update_policy the old weights answer, or something else: {problem}" if problem else ""


LAWS: tuple[Law[Engine, Draw], ...] = (
    Law("answers in the order of their prompts", "Rewards and advantages would go to others.", _order),
    Law("where answers end", "Cut answers are counted, masked or punished by their finish_reason.", _ends),
    Law("log-probs of the model", "The ratio of policy to sampler would correct for what is not there.", _logps),
    Law("drawn from the model", "The gradient would be that of another policy's rewards.", _distribution),
    Law("the same again, whatever is beside", "A resumed run, or more processes, would be another run.", _again),
    Law("other rounds, other answers", "A prompt that comes again would teach nothing new.", _others),
    Law("greedy is greedy", "Evaluation at temperature 0 would not measure the model.", _greedy),
    Law("update_policy", "The run would train on answers of old weights.", _updated),
)
