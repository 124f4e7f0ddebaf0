"""The laws of references: what they say, what they leave alone, and what they remember."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from burnish.models.adapters import plain_model
from burnish.models.forward import install_forward
from burnish.models.head import score_tokens
from burnish.models.reference import ModelReference, Reference
from burnish.runtime.rng import rng_state
from burnish.runtime.state import Stateful
from burnish.runtime.tree import load_tree, save_tree
from burnish.testing.contract import Law, tensors_of
from burnish.testing.trials import garbled, reversed_rows
from burnish.types import PreferenceBatch

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-5  # nats
HOT = 2.0  # the temperature at which it is asked again
STEPS, STOP = 4, 2  # of a policy that is followed, and where the run is stopped in between


@dataclass(frozen=True, eq=False)
class Side:
    """A policy with its reference.

    Attributes:
        trained: the weights of the policy that were trained before there was a reference.
    """

    policy: Any
    reference: Reference
    trained: Sequence[Tensor]

    @torch.no_grad()
    def learn(self, step: int) -> None:
        """Move every trained weight, as the optimizer step of that number would."""
        generator = torch.Generator().manual_seed(step)
        for weight in self.trained:
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))

    def follow(self, steps: Sequence[int]) -> None:
        """Learn and be followed."""
        for step in steps:
            self.learn(step)
            self.reference.follow(self.policy, step=step)

    def say(self, batch: PreferenceBatch) -> Tensor:
        """The log-probs of tokens (N, T), or (N, 1) sums, of a reference that knows no tokens."""
        reference = self.reference
        return reference.token_logps(batch) if reference.knows_tokens else reference.logps(batch)[:, None]


@dataclass(frozen=True, eq=False)
class Source:
    """What makes policies, and references of them."""

    make_model: Callable[..., Any]
    make_reference: Callable[[Any], Reference]

    def policy(self, seed: int = 0) -> Any:
        """A policy before its first step."""
        policy = self.make_model(seed, torch.float64)
        install_forward(plain_model(policy))
        return policy

    def begin(self, seed: int = 0) -> Side:
        """A policy and its reference, before the first step."""
        policy = self.policy(seed)
        trained = [weight for weight in policy.parameters() if weight.requires_grad]
        return Side(policy, self.make_reference(policy), trained)


def _near(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool(((found - expected).abs() <= TOLERANCE).all())


def _result(source: Source, batch: PreferenceBatch) -> str:
    reference = source.begin().reference
    sums = reference.logps(batch)
    found: dict[str, tuple[Tensor, tuple[int, ...]]] = {"logps": (sums, (len(batch),))}
    if reference.knows_tokens:
        found["token_logps"] = (reference.token_logps(batch), tuple(batch.loss_mask.shape))
    for name, (values, shape) in found.items():
        if tuple(values.shape) != shape:
            return f"{name} has shape {tuple(values.shape)}; allowed: {shape}"
        if values.requires_grad:
            return f"{name} has a gradient: the reference is not trained. Decorate with torch.no_grad()"
        if not bool(values.isfinite().all()) or bool((values > TOLERANCE).any()):
            return f"{name} is {values.tolist()}; allowed: finite nats, 0 or less"
    if not reference.knows_tokens:
        return ""
    tokens, _ = found["token_logps"]
    if bool((tokens[~batch.loss_mask] != 0).any()):
        return f"token_logps is {tokens.tolist()}, and 0 outside loss_mask {batch.loss_mask.tolist()}"
    return "" if _near(sums, tokens.sum(1)) else f"logps is {sums.tolist()}, and token_logps sum up to {tokens.sum(1)}"


def _again(source: Source, batch: PreferenceBatch) -> str:
    side = source.begin()
    own = batch.mapped(torch.clone)
    first, second = side.say(own), side.say(own)
    changed = [name for name, values in tensors_of(batch).items() if not torch.equal(values, own[name])]
    if changed:
        return f"it changed {', '.join(changed)} of the parcel in place"
    return "" if torch.equal(first, second) else "asked twice about the same rows, it says two things"


def _padding(source: Source, batch: PreferenceBatch) -> str:
    side = source.begin()
    expected = side.say(batch)
    found = side.say(garbled(batch))[:, : expected.shape[1]]
    return _differ(found, expected, "with other ids in the padding, and more of it")


def _order(source: Source, batch: PreferenceBatch) -> str:
    side = source.begin()
    return _differ(side.say(reversed_rows(batch)).flip(0), side.say(batch), "with the rows in reverse order")


def _split(source: Source, batch: PreferenceBatch) -> str:
    side = source.begin()
    beside = side.say(batch)
    for row in range(len(batch)):
        alone = side.say(batch.take(torch.tensor([row])))
        if problem := _differ(alone, beside[row : row + 1, : alone.shape[1]], "alone"):
            return f"row {row}: {problem}"
    return ""


def _differ(found: Tensor, expected: Tensor, when: str) -> str:
    if _near(found, expected):
        return ""
    return f"the log-probs are {_rounded(expected)}, and {_rounded(found)} {when}"


def _rounded(values: Tensor) -> list[Any]:
    return values.double().round(decimals=4).tolist()


def every_token(batch: PreferenceBatch, count: int) -> PreferenceBatch:
    """A parcel of each token as an answer to the first prompt."""
    first = batch.take(torch.zeros(count, dtype=torch.long))
    there = torch.ones(count, 1, dtype=torch.bool)
    return replace(
        first,
        completion_ids=torch.arange(count)[:, None],
        completion_mask=there,
        loss_mask=there,
        pairs=torch.zeros(0, 2, dtype=torch.long),
        ref_logps=None,
    )


def _distribution(source: Source, batch: PreferenceBatch) -> str:
    side = source.begin()
    if not isinstance(side.reference, ModelReference):
        return ""
    chances = side.reference.score(_all_answers(side, batch)).logps.exp()
    total = float(chances.sum())
    if abs(total - 1) < TOLERANCE:
        return ""
    return f"the probabilities of all {len(chances)} tokens after the first prompt sum up to {total:.6g}"


def _temperature(source: Source, batch: PreferenceBatch) -> str:
    side = source.begin()
    if not isinstance(side.reference, ModelReference):
        return ""
    answers = _all_answers(side, batch)
    plain, hot = (side.reference.score(answers, temperature=t).logps[:, 0] for t in (1.0, HOT))
    expected = (plain / HOT).log_softmax(0)
    return _differ(hot, expected, f"at temperature {HOT:g}, of all tokens after the first prompt")


def _all_answers(side: Side, batch: PreferenceBatch) -> PreferenceBatch:
    return every_token(batch, plain_model(side.policy).config.get_text_config().vocab_size)


def _teacher(source: Source, batch: PreferenceBatch) -> str:
    side = source.begin()
    if not isinstance(side.reference, ModelReference):
        return ""
    try:
        teacher = side.reference.teacher(batch)
    except ValueError:
        return ""  # it has none, and says so
    mask = batch.loss_mask
    states, ids = teacher.hidden[:, :-1][mask], batch.completion_ids[mask]
    found = score_tokens(states, teacher.weight, teacher.bias, ids, spec=teacher.spec)["logps"].detach()
    return _differ(found, side.say(batch)[mask], "of its teacher's head, at the trained tokens")


def _watch(policy: Any) -> Callable[[], str]:
    """A function that says what has changed of a policy since; what a copy of an adapter adds is not the policy's."""
    tensors, modules = [*policy.parameters(), *policy.buffers()], list(policy.modules())

    def state() -> dict[str, list[Any]]:
        return {
            "its weights": [tensor.detach().clone() for tensor in tensors],
            "which of them are trained": [tensor.requires_grad for tensor in tensors],
            "their gradients": [tensor.grad is None for tensor in tensors],
            "its mode (train or eval)": [module.training for module in modules],
            "the random numbers": [torch.get_rng_state(), str(rng_state())],
        }

    before = state()
    return lambda: " and ".join(name for name, now in state().items() if not _equal(now, before[name]))


def _equal(first: Sequence[Any], second: Sequence[Any]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(a.equal(b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def _untouched(source: Source, batch: PreferenceBatch) -> str:
    said: list[Tensor] = []
    for mode in (True, False):
        policy = source.policy().train(mode)
        changed = _watch(policy)
        side = Side(policy, source.make_reference(policy), ())
        if what := changed():
            return f"making it changes {what} of the policy"
        said.append(side.say(batch))
        side.reference.fingerprint()
        with side.reference.answering():
            pass
        if what := changed():
            return f"asking it changes {what} of the policy"
    training, evaluating = said
    return _differ(
        training, evaluating, "once the policy is in evaluation mode: it has dropout, or reads the policy's mode"
    )


def _independent(source: Source, batch: PreferenceBatch) -> str:
    side = source.begin()
    before = side.say(batch)
    side.learn(1)
    return _differ(side.say(batch), before, "after a step of the policy that it did not follow. Does it share weights?")


def _fingerprint(source: Source, batch: PreferenceBatch) -> str:
    side, again, other = source.begin(), source.begin(), source.begin(seed=1)
    first = side.reference.fingerprint()
    if again.reference.fingerprint() != first:
        return "two references of the same weights have two fingerprints: no run could be resumed"
    if not torch.equal(side.say(batch), other.say(batch)) and other.reference.fingerprint() == first:
        return f"references of other weights have the same fingerprint {first!r}"
    side.follow(range(1, STEPS + 1))
    return "" if side.reference.fingerprint() == first else "its fingerprint changes while it follows the policy"


def _following(source: Source, batch: PreferenceBatch) -> str:
    del batch
    side = source.begin()
    for step in range(1, STEPS + 1):
        side.learn(step)
        changed = _watch(side.policy)
        side.reference.follow(side.policy, step=step)
        if what := changed():
            return f"following the policy changes {what} of it"
    return ""


def _resume(source: Source, batch: PreferenceBatch) -> str:
    """4 steps at once; and 2, a checkpoint, and 2 more of another process."""
    whole, steps = source.begin(), range(1, STEPS + 1)
    before = whole.say(batch)
    whole.follow(steps)
    if not isinstance(whole.reference, Stateful):
        if torch.equal(whole.say(batch), before):
            return ""
        return "it moves while it follows the policy, and has no state_dict and load_state_dict for checkpoints"
    first, second = source.begin(), source.begin()
    first.follow(steps[:STOP])
    assert isinstance(first.reference, Stateful)
    assert isinstance(second.reference, Stateful)
    with tempfile.TemporaryDirectory(prefix="burnish-contract-") as place:
        save_tree(place, "reference", first.reference.state_dict())
        second.reference.load_state_dict(load_tree(place, "reference"))
    for step in steps[:STOP]:
        second.learn(step)
    second.follow(steps[STOP:])
    if torch.equal(second.say(batch), whole.say(batch)):
        return ""
    found, expected = _rounded(second.say(batch)), _rounded(whole.say(batch))
    return (
        f"after {STEPS} steps at once the log-probs are {expected}, and {found} after {STOP}, a checkpoint and "
        f"{STEPS - STOP} more: all that moves belongs in state_dict()"
    )


LAWS: tuple[Law[Source, PreferenceBatch], ...] = (
    Law("a log-prob a token", "They are taken off the policy's, token by token.", _result),
    Law("the same again", "The parcel goes on to the policy; a resumed run asks again.", _again),
    Law("padding", "Rows of one micro-batch have different lengths.", _padding),
    Law("order of rows", "Rows are shuffled and dealt to processes.", _order),
    Law("split into micro-batches", "The size of a micro-batch would change what is compared with.", _split),
    Law("a distribution over the vocabulary", "The KL to it would be no KL.", _distribution),
    Law("temperature", "Answers are drawn at a temperature, and compared at it.", _temperature),
    Law("teacher", "A divergence would be from another model than the log-probs are of.", _teacher),
    Law("the policy is left alone", "The run would not be the run without it.", _untouched),
    Law("independent of the policy", "A policy that is compared with itself is not held by anything.", _independent),
    Law("fingerprint", "A run would be resumed with another reference, or not at all.", _fingerprint),
    Law("following changes the reference alone", "The policy would be trained by another than the loss.", _following),
    Law("exact resume", "A run that was stopped would be another run.", _resume),
)
