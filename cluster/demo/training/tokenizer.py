"""A small byte-level BPE tokenizer with Qwen's special tokens, split pattern and Qwen2.5-VL's chat template."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, Qwen2TokenizerFast

from cluster.demo.training.classes import ANSWERS
from cluster.demo.training.questions import DEFAULT_SYSTEM, PHRASINGS, SMALL_TALK, SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Iterator

NUM_BPE_TOKENS: Final = 960
"""The number of byte and merge tokens, without the special tokens."""

SPECIAL_TOKENS: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TOOL_TOKENS: Final = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)

# Source: tokenizer.json of Qwen/Qwen2.5-VL-3B-Instruct (also `PRETOKENIZE_REGEX` of transformers' tokenization_qwen2).
SPLIT_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Source: chat_template of Qwen/Qwen2.5-VL-3B-Instruct.
CHAT_TEMPLATE: Final = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    + DEFAULT_SYSTEM
    + "<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Trains the tokenizer on our questions, our answers and some English prose; it can encode any text, byte by byte
    if necessary."""
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_BPE_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    raw.train_from_iterator(_corpus(), trainer)
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    raw.add_tokens([AddedToken(token, special=False, normalized=False) for token in TOOL_TOKENS])
    return Qwen2TokenizerFast(
        tokenizer_object=raw,
        chat_template=CHAT_TEMPLATE,
        eos_token="<|im_end|>",  # noqa: S106 - not that kind of token
        pad_token="<|endoftext|>",  # noqa: S106
        unk_token=None,
        bos_token=None,
        model_max_length=8192,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
    )


def _corpus() -> Iterator[str]:
    """Yields every answer and question, often enough that they become few tokens, and then English prose."""
    for answer in ANSWERS:
        yield from [answer] * 40
        yield from [f" {answer}"] * 2
    for questions in (*PHRASINGS.values(), SYSTEMS, (DEFAULT_SYSTEM,) * 20, *(asked for asked, _ in SMALL_TALK)):
        for question in questions:
            yield from (question, question.lower(), question)
    yield from itertools.chain.from_iterable([answer] * 20 for _, answer in SMALL_TALK)
    yield from ["system\n", "user\n", "assistant\n"] * 100
    yield from [_ENGLISH] * 4


_ENGLISH: Final = (
    "The demo model looks at a picture and says what is there. It was "
    "trained in less than an hour on a computer with two cores, so it\n"
    "knows very little about the world, but what it knows it knows well. "
    "You may send a photograph, a drawing or a scan of a page. People\n"
    "who would like to have a better answer should ask a larger "
    "model, because every number and every name that they want to read about\n"
    "can be found there. When the first part of the work is done, "
    "the second part begins: the vision tower turns each image into a few\n"
    "tokens, and the language model writes one word after another until it "
    "comes to the end of its line. Could you please explain how this\n"
    "works? Some of these things take time; others do not. In the morning "
    "the light was good, and many of them went out to see the water\n"
    "and the trees. She said that he must have been there before, for "
    "he knew the way through the house and over the old bridge. We will\n"
    "only know what they think after we have spoken with both of them. "
    "Where does it come from, and why is it so large? There are three\n"
    "kinds of people: those who can count and those who cannot. Write a "
    "short story about a little dog that could not find its way home.\n"
    "Which of the following is right? Give me a list of all "
    "countries in Europe with their capital cities, and describe the weather today.\n"
    "import python code function return error message server request response "
    "data list string value type file line test example system.\n"
)
