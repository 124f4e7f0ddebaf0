"""Prompts and their completions as one row: where each token stands, and at which position.

Prompts come first, then the completions, prompt by prompt: for one prompt of two tokens with completions of two and
one tokens the row is [p0 p1 | a0 a1 | b0], at positions [0 1 | 2 3 | 2]. What rounds its length up is prompts without
completions, of which nobody reads anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from burnish.models.rounded import round_up

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor
    from torch.nn.attention.flex_attention import BlockMask

    from burnish.models.spans import Span
    from burnish.types import TokenBatch


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenTree:
    """A batch as a row of S tokens. G is the largest number of completions of one prompt; blocks are right-padded.

    P counts the prompts that only round S up too. They come after the others.

    Attributes:
        source: (S,) the place of each token in the prompts' block, flattened, followed by the completions'.
        prompts: (P, L) the place of each token in the row; 0 for padding, as below.
        prompt_mask: (P, L) a token is there.
        answers: (P, G, T) the places of each prompt's completions.
        answer_mask: (P, G, T) a token is there.
        order: (N,) where in (P, G), flattened, each completion is.
        windows: the sliding window of each layer that has one, in the order of the layers; filled by attention.
        masks: of each window what flex attention keeps of the tree; filled by attention.
        spans: of each window what the attention on a CPU is put together from; filled by attention.
    """

    source: Int[Tensor, "S"]
    prompts: Int[Tensor, "P L"]
    prompt_mask: Bool[Tensor, "P L"]
    answers: Int[Tensor, "P G T"]
    answer_mask: Bool[Tensor, "P G T"]
    order: Int[Tensor, "N"]
    windows: list[int] = field(default_factory=list[int])
    masks: dict[int | None, BlockMask] = field(default_factory=dict)
    spans: dict[int | None, tuple[Span, Span, Span]] = field(default_factory=dict)

    def input_ids(self, batch: TokenBatch) -> Int[Tensor, "1 S"]:
        """The batch's tokens in the order of the row; what rounds it up repeats the first one."""
        prompts = _right_padded(batch.prompt_ids, batch.prompt_mask)
        more = len(self.prompts) - len(prompts)
        prompts = torch.cat([prompts, prompts[:1, :1].expand(more, prompts.shape[1])])
        answers = batch.completion_ids.new_zeros(self.answers.shape).flatten(0, 1)
        answers[self.order] = batch.completion_ids
        return torch.cat([prompts.flatten(), answers.flatten()])[self.source][None]

    def position_ids(self) -> Int[Tensor, "1 S"]:
        """How many tokens precede each one in its own completion: those of other completions do not count."""
        lengths = self.prompt_mask.sum(1)  # (P,)
        columns = torch.arange(self.answers.shape[2], device=lengths.device)
        of_prompts = torch.arange(self.prompts.shape[1], device=lengths.device).expand(self.prompts.shape)
        of_answers = (lengths[:, None, None] + columns).expand(self.answers.shape)
        return torch.cat([of_prompts.flatten(), of_answers.flatten()])[self.source][None]

    def owners(self) -> tuple[Int[Tensor, "S"], Int[Tensor, "S"]]:
        """Of each token of the row its prompt, and its place among all completions; -1 for a prompt's own tokens."""
        (num_prompts, num_answers, _), device = self.answers.shape, self.source.device
        prompt, answer = (torch.arange(n, device=device) for n in (num_prompts, num_prompts * num_answers))
        of_prompts = (prompt[:, None].expand_as(self.prompts), torch.full_like(self.prompts, -1))
        of_answers = (
            prompt[:, None, None].expand_as(self.answers),
            answer.view(num_prompts, num_answers, 1).expand_as(self.answers),
        )
        prompts, answers = (
            torch.cat([one.flatten(), two.flatten()])[self.source]
            for one, two in zip(of_prompts, of_answers, strict=True)
        )
        return prompts, answers

    def states(self) -> Int[Tensor, "N T1"]:
        """The place before each completion token and after the last: the prompt's last one, then the completion's."""
        last = self.prompts.gather(1, self.prompt_mask.sum(1, keepdim=True) - 1)  # (P, 1)
        places = torch.cat([last[:, None].expand(-1, self.answers.shape[1], -1), self.answers], dim=2)
        return places.flatten(0, 1)[self.order]

    def rows(self) -> tuple[Int[Tensor, "N LT"], Bool[Tensor, "N LT"]]:
        """Of each completion the places of its prompt and of its own tokens, and where a token is."""
        num_answers = self.answers.shape[1]
        places = torch.cat([self.prompts[:, None].expand(-1, num_answers, -1), self.answers], dim=2)
        mask = torch.cat([self.prompt_mask[:, None].expand(-1, num_answers, -1), self.answer_mask], dim=2)
        return places.flatten(0, 1)[self.order], mask.flatten(0, 1)[self.order]


def make_tree(batch: TokenBatch) -> TokenTree:
    """The tree of a batch; every prompt has a token, and every completion a prompt."""
    prompt_mask = _rounded_up(_right_padded(batch.prompt_mask, batch.prompt_mask), int(batch.completion_mask.sum()))
    num_prompts = len(prompt_mask)
    counts = torch.bincount(batch.prompt_index, minlength=num_prompts)  # (P,)
    num_answers = int(counts.max())
    by_prompt = batch.prompt_index.argsort(stable=True)  # (N,)
    starts = counts.cumsum(0) - counts  # (P,)
    rank = torch.empty_like(by_prompt)
    rank[by_prompt] = torch.arange(len(by_prompt), device=rank.device) - starts[batch.prompt_index[by_prompt]]
    order = batch.prompt_index * num_answers + rank  # (N,)
    answer_mask = prompt_mask.new_zeros(num_prompts * num_answers, batch.completion_mask.shape[1])
    answer_mask[order] = batch.completion_mask
    mask = torch.cat([prompt_mask.flatten(), answer_mask.flatten()])
    places = (mask.cumsum(0) - 1) * mask
    of_prompts, of_answers = places.split([prompt_mask.numel(), answer_mask.numel()])
    shape = (num_prompts, num_answers, answer_mask.shape[1])
    return TokenTree(
        source=mask.nonzero().squeeze(1),
        prompts=of_prompts.view(prompt_mask.shape),
        prompt_mask=prompt_mask,
        answers=of_answers.view(shape),
        answer_mask=answer_mask.view(shape),
        order=order,
    )


def _rounded_up(mask: Bool[Tensor, "P L"], others: int) -> Bool[Tensor, "P L"]:
    """With the prompts, none longer than the others, that round up all tokens together."""
    size, width = int(mask.sum()) + others, mask.shape[1]
    missing = round_up(size) - size
    more = torch.arange(-(-missing // width) * width, device=mask.device).view(-1, width) < missing
    return torch.cat([mask, more])


def _right_padded(values: Int[Tensor, "P L"], mask: Bool[Tensor, "P L"]) -> Int[Tensor, "P L"]:
    """Left-padded rows moved to the left."""
    width = mask.shape[1]
    padding = width - mask.sum(1, keepdim=True)  # (P, 1)
    return values.gather(1, (torch.arange(width, device=mask.device) + padding) % width)
