"""Where an answer ends besides its length: end tokens, and strings in its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARGIN = 4  # tokens; some tokenizers drop the space that a text begins with, and it may be part of a stop string


class StopStrings:
    """Finds the token that completes a stop string, from the last few tokens of an answer.

    A token stands for at least one byte, so that a string of n bytes lies in the last n tokens. A few more are decoded.

    Args:
        tokenizer: decodes; special tokens have their text, so that they can be part of a stop string.
        strings: any of them ends an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> None:
        self.tokenizer, self.strings = tokenizer, tuple(strings)
        self.window = max(len(string.encode()) for string in strings) + MARGIN

    def completed_by_last(self, ids: Sequence[int]) -> bool:
        """The last token completes one of the strings: there is one more of it in the text than before.

        Args:
            ids: of the answer, or its last `window` tokens.
        """
        tail = list(ids[-self.window :])
        text = self._decode(tail)
        return any(
            text.count(string) > self._decode(tail[:-1]).count(string) for string in self.strings if string in text
        )

    def _decode(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text if isinstance(text, str) else "".join(text)
