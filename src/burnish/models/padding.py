"""What fills the places of a batch that no mask covers, and a padding token of its own: one that ends no text."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def own_pad_token(tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int] = ()) -> str:
    """The tokenizer's padding token if it ends no text, else a special token that has no other use.

    Sequence classifiers of transformers read a text's score at its last token that is not padding, whatever the mask
    says: were the end-of-sequence token the padding, that would be the token before it.

    Args:
        tokenizer: is not changed.
        end_ids: ids that end an answer, beside the tokenizer's own.

    Raises:
        ValueError: every special token has a use.
    """
    ends = {str(tokenizer.eos_token), *(str(tokenizer.convert_ids_to_tokens(index)) for index in end_ids)}
    if tokenizer.pad_token is not None and tokenizer.pad_token not in ends:
        return str(tokenizer.pad_token)
    in_use, template = {*ends, str(tokenizer.bos_token)}, str(tokenizer.chat_template)
    special = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    free = [token for token in special if token not in in_use and token not in template]
    without_role = [token for token in free if token != tokenizer.unk_token] or free
    if not without_role:
        raise ValueError(
            f"the tokenizer pads with {tokenizer.pad_token!r}, which ends answers as well, and has no special token to "
            "spare: a classifier that pads with it reads each score one token too early. Add one: "
            'tokenizer.add_special_tokens({"pad_token": "<pad>"}), then model.resize_token_embeddings(len(tokenizer)), '
            "and give both to the trainer"
        )
    named = [token for token in without_role if "pad" in token.lower()]
    return (named or without_role)[-1]


def filling_id(tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int] = ()) -> int:
    """A token id for places that no mask covers, where any will do that the model has an embedding for.

    That is the tokenizer's padding, unless it is not there, or was added to the tokenizer and perhaps not to the model;
    then a token that ends an answer, else the first one.
    """
    own: Any = tokenizer.pad_token_id
    return own if own is not None and own < tokenizer.vocab_size else min(end_ids, default=0)
