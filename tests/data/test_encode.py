"""Tokens and masks of one text: boundaries, special tokens, end-of-turn tokens."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from burnish.data.chat import Rendered, render_text
from burnish.data.encode import encode_texts, special_prefix, train_tokens
from conftest import make_tokenizer

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
EOS = 1


def merging_tokenizer(*merges, trim_offsets=None, bos=False):
    """Bytes, the pairs merged as given, and <s>, </s>; Ġ stands for a space."""
    tokens = ["<s>", "</s>", *BYTES, *["".join(pair) for pair in merges]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(merges)))
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if trim_offsets is not None:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


class SlowBytes(PreTrainedTokenizer):
    """The byte tokenizer of the tests without offsets."""

    def __init__(self, **settings):
        self.fast = make_tokenizer()
        super().__init__(pad_token="<pad>", eos_token="<|im_end|>", **settings)

    @property
    def vocab_size(self):
        return 259

    def get_vocab(self):
        return self.fast.get_vocab()

    def _tokenize(self, text, **_):
        return self.fast.tokenize(text)

    def _convert_token_to_id(self, token):
        return self.fast.convert_tokens_to_ids(token)

    def _convert_id_to_token(self, index):
        return self.fast.convert_ids_to_tokens(index)

    def convert_tokens_to_string(self, tokens):
        return self.fast.convert_tokens_to_string(tokens)


def trained(tokenizer, prompt, completion, **settings):
    rendered = render_text(prompt, completion)
    [tokens] = encode_texts(tokenizer, [rendered.text])
    settings = {"prefix": special_prefix(tokenizer), "end_ids": (EOS,), **settings}
    result = train_tokens(tokenizer, rendered, tokens, **settings)
    return result, tokenizer.convert_ids_to_tokens([i for i, m in zip(result.ids, result.mask, strict=True) if m])


def test_text_gets_one_eos_that_is_trained():
    tokenizer = merging_tokenizer()
    result, tokens = trained(tokenizer, "ab", "cd")
    assert tokens == ["c", "d", "</s>"]
    assert result.mask == [False, False, True, True, True]
    assert result.num_prompt == 2
    result, tokens = trained(tokenizer, "ab", "cd</s>")
    assert tokens == ["c", "d", "</s>"]
    assert result.num_without_eos == 0


def test_bos_once_and_no_second_eos_from_the_post_processor():
    tokenizer = merging_tokenizer(bos=True)
    assert special_prefix(tokenizer) == [0]
    for prompt in ("ab", "<s>ab"):
        result, _ = trained(tokenizer, prompt, "c")
        assert tokenizer.convert_ids_to_tokens(result.ids) == ["<s>", "a", "b", "c", "</s>"]
        assert result.mask == [False, False, False, True, True]


def test_another_end_token_is_not_followed_by_eos():
    result, tokens = trained(merging_tokenizer(), "ab", "c<s>", end_ids=(0, 1))
    assert tokens == ["c", "<s>"]
    assert result.num_without_eos == 0


@pytest.mark.parametrize("completion", [" b</s>", " b</s>\n", " b</s> \n\n"])
def test_a_text_that_a_template_made_ends_once(completion):
    """The white space behind its end token goes, as in a chat, instead of being trained before a second end token."""
    tokenizer = merging_tokenizer()
    result, _ = trained(tokenizer, "a", completion)
    assert tokenizer.decode(result.ids) == "a b</s>"
    assert result.mask == [False, True, True, True]
    assert (result.num_template_removed, result.num_without_eos) == (len(completion) - len(" b</s>"), 0)
    kept, _ = trained(tokenizer, "a", completion, keep_template_end=True)
    assert tokenizer.decode(kept.ids) == f"a{completion}"


def test_straddling_token_is_counted_and_not_trained():
    """'bc' is one token on both sides of the boundary."""
    result, tokens = trained(merging_tokenizer(("b", "c")), "ab", "cd")
    assert tokens == ["d", "</s>"]
    assert (result.num_straddling, result.num_prompt) == (1, 2)


@pytest.mark.parametrize("trim_offsets", [None, True, False])
def test_space_of_the_prompt_inside_the_first_answer_token(trim_offsets):
    """'Ġc' holds the prompt's space, whether or not its offsets say so."""
    tokenizer = merging_tokenizer(("Ġ", "c"), trim_offsets=trim_offsets)
    result, tokens = trained(tokenizer, "ab ", "cd")
    assert tokens == ["d", "</s>"]
    assert result.num_straddling == 1
    result, tokens = trained(tokenizer, "ab", " cd")
    assert tokens == ["Ġc", "d", "</s>"]
    assert result.num_straddling == 0


def test_chat_keeps_the_newline_between_turns_untrained_and_removes_the_last():
    tokenizer = merging_tokenizer()
    rendered = Rendered("ab</s>\ncd</s>\n", ((1, 7), (8, 14)), is_chat=True)
    [tokens] = encode_texts(tokenizer, [rendered.text])
    result = train_tokens(tokenizer, rendered, tokens, prefix=[0], end_ids=(EOS,))
    assert tokenizer.convert_ids_to_tokens(result.ids) == ["a", "b", "</s>", "Ċ", "c", "d", "</s>"]
    assert result.mask == [False, True, True, False, False, True, True]
    assert (result.num_template_removed, result.num_without_eos) == (1, 0)


def test_what_the_template_puts_last_may_stay():
    """Not trained by a policy, and read by a reward model."""
    tokenizer = merging_tokenizer()
    rendered = Rendered("ab</s>\n", ((1, 7),), is_chat=True)
    [tokens] = encode_texts(tokenizer, [rendered.text])
    result = train_tokens(tokenizer, rendered, tokens, prefix=[], end_ids=(EOS,), keep_template_end=True)
    assert tokenizer.convert_ids_to_tokens(result.ids) == ["a", "b", "</s>", "Ċ"]
    assert result.mask == [False, True, True, False]
    assert (result.num_template_removed, result.num_without_eos) == (0, 0)


def test_chat_without_an_end_token_is_left_as_it_is_and_counted():
    tokenizer = merging_tokenizer()
    rendered = Rendered("ab\n", ((1, 3),), is_chat=True)
    [tokens] = encode_texts(tokenizer, [rendered.text])
    result = train_tokens(tokenizer, rendered, tokens, prefix=[], end_ids=(EOS,))
    assert result.mask == [False, True, True]
    assert (result.num_template_removed, result.num_without_eos) == (0, 1)


def test_token_across_the_end_of_a_turn_is_not_trained():
    tokenizer = merging_tokenizer(("b", "c"))
    rendered = Rendered("abcd", ((0, 2), (3, 4)), is_chat=True)
    [tokens] = encode_texts(tokenizer, [rendered.text])
    result = train_tokens(tokenizer, rendered, tokens, prefix=[], end_ids=())
    assert result.mask == [True, False, True]
    assert result.num_straddling == 1


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("Sky?", " blue"), ("天空是什么颜色？", "蓝色。"), ("naïve ", "café 🙂"), ("a<|im_end|>\n", "b<|im_end|>")],
)
def test_offsets_agree_with_decoded_prefixes(prompt, completion):
    fast, slow = make_tokenizer(), SlowBytes()
    settings = {"prefix": [], "end_ids": (2,)}
    expected, _ = trained(fast, prompt, completion, **settings)
    result, _ = trained(slow, prompt, completion, **settings)
    assert not slow.is_fast
    assert result == expected
    assert sum(result.mask) == len(completion.replace("<|im_end|>", "").encode()) + 1


def test_pad_equal_to_eos_changes_nothing():
    tokenizer = merging_tokenizer()
    expected, _ = trained(tokenizer, "ab", "cd")
    tokenizer.pad_token = "</s>"
    assert trained(tokenizer, "ab", "cd")[0] == expected
