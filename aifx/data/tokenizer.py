"""Text to tokens and back: byte-level BPE, characters or bytes of the project's own, or any tokenizer.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from aifx.core.errors import DataError
from aifx.data.readers.sources import check_regular
from aifx.data.tokenizer_checks import check_description, check_vocabulary, library_errors, most_bytes_of_token

END_OF_TEXT = "<|endoftext|>"
# The ends of documents in tokenizers that people bring: GPT-2 and kin, Llama 3, Llama 2 and Mistral, Gemma, BERT.
KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
# GPT-4's division of text (tiktoken, cl100k_base) without its rule for English contractions, which takes the first
# letters of 'quoted words: a word takes the mark or space before it, digits go in threes, newlines are separate. On
# Moby-Dick it needs 2 (vocabulary 1,024) to 3 % (2,048) fewer tokens than GPT-2's division.
# A word ends after 128 characters of a kind, since the time to learn from a word grows with the square of its length:
# text without spaces would take for ever.
WORDS = (
    r"[^\r\n\p{L}\p{N}]?\p{L}{1,128}|\p{N}{1,3}| ?[^\s\p{L}\p{N}]{1,128}[\r\n]{0,128}"
    r"|\s{0,128}[\r\n]{1,128}|\s{1,128}(?!\S)|\s{1,128}"
)
CHARACTER = r"[\s\S]"
LOOKS_AHEAD = 3 * 128  # characters beyond the beginning of a word that decide where it ends, at the most
PART_CHARACTERS = 1 << 18
NUM_BYTES = 256
BYTE_TOKENS = NUM_BYTES + 1  # END_OF_TEXT and the bytes
_SPLITTER = pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated")
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


class Tokenizer:
    """A tokenizer with a token that ends documents. Text that spells a special token is text."""

    def __init__(self, data: bytes, name: str, *, ends: Sequence[str] = (), begin: str | None = None) -> None:
        """Check and load a tokenizer. Raises DataError.

        Args:
            data: the content of a tokenizer.json, which messages call `name`.
            ends: tokens that end a text, of which the first ends documents; a known one by default.
            begin: the token before each text that a model reads, if there is one.
        """
        try:
            self._description: dict[str, Any] = json.loads(data)
            check_description(self._description, name)
            self._inner = tokenizers.Tokenizer.from_buffer(data)
        except DataError:
            raise
        except Exception as error:  # the library raises bare Exception
            hint = "it takes a tokenizer.json as Hugging Face's `tokenizers` saves it"
            raise DataError(f"{name}: not a tokenizer", str(error).splitlines()[0], hint) from None
        self.data = data
        self.name = name
        vocabulary = self._inner.get_vocab(with_added_tokens=True)
        check_vocabulary(vocabulary, name)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        named = [*ends, *([begin] if begin is not None else [])]
        if missing := [token for token in named if token not in vocabulary]:
            why = "data.end_tokens and data.begin_token name tokens of the vocabulary"
            raise DataError(f"{name}: no token {missing[0]!r}", why, "aifx config keys data")
        found = [vocabulary[token] for token in ends or KNOWN_ENDS if token in vocabulary]
        if not found:
            why = f"looked for {', '.join(KNOWN_ENDS)}"
            raise DataError(f"{name}: no token ends a document", why, "name it: data.end_tokens")
        self.eos_id: int = found[0]
        self.end_ids = frozenset(found if ends else found[:1])  # generation ends before any of them
        self.begin_ids: tuple[int, ...] = () if begin is None else (vocabulary[begin],)
        special = {index for index, token in self._inner.get_added_tokens_decoder().items() if token.special}
        used = (index for index in vocabulary.values() if index not in special or index in self.end_ids)
        self.special_ids = frozenset(special)
        self.text_vocab_size = max([*used, *self.begin_ids], default=-1) + 1  # what a text and its ends can become
        self._inner.encode_special_tokens = True
        self._inner.no_padding()
        self._inner.no_truncation()
        self._inner.post_processor = None  # aifx adds special tokens itself; it takes spaces out of offsets
        if getattr(self._inner.model, "dropout", None):  # it would encode the same text differently each time
            self._inner.model.dropout = None
        # A text must not become the token that ends documents: as text, it has bytes.
        self.is_byte_level = _is_byte_level(self._description) and self.eos_id in special
        self.most_bytes = most_bytes_of_token(self._description)  # of text that one token covers
        steps = (self._description.get("pre_tokenizer") or {}).get("pretokenizers") or [{}]
        self._has_bounded_words = self.can_cut and steps[0].get("pattern") in ({"Regex": WORDS}, {"Regex": CHARACTER})

    @classmethod
    def load(cls, path: Path, *, ends: Sequence[str] = (), begin: str | None = None) -> Tokenizer:
        """The tokenizer in a file. Raises DataError if it is missing or holds none."""
        hint = 'data.tokenizer is "bpe", "char", "byte" or the path of a tokenizer.json'
        check_regular(path, str(path), "a tokenizer is one file", hint)
        try:
            return cls(path.read_bytes(), str(path), ends=ends, begin=begin)
        except OSError as error:
            raise DataError(f"{path} cannot be read", error.strerror or str(error), hint) from None

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special token added."""
        with library_errors(self.name):
            ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """The ids that a model reads before it continues `text`: never empty."""
        return self.as_prompt(self.encode(text))

    def as_prompt(self, ids: Sequence[int]) -> list[int]:
        """The ids that a model reads before it continues the text of `ids`: never empty."""
        return [*self.begin_ids, *ids] or [self.eos_id]

    def encode_batch(self, texts: Sequence[str], *, offsets: bool = False) -> list[tokenizers.Encoding]:
        """The encodings of `texts`, made on all cores. `offsets` says whether they have the offsets of their tokens."""
        encode = self._inner.encode_batch if offsets else self._inner.encode_batch_fast
        with library_errors(self.name):
            return encode(texts, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        with library_errors(self.name):
            return self._inner.decode(list(ids), skip_special_tokens=False)

    def token(self, index: int) -> str:
        """The name of a token."""
        return str(self._inner.id_to_token(index))

    def divide(self, text: str) -> Iterator[str]:
        """Parts of `text` that together have the tokens of the whole: one, unless the tokenizer bounds its words.

        Parts have about PART_CHARACTERS. Encoding needs about 130 bytes of memory for a character, and one core takes a
        whole text.
        """
        start = 0
        while self._has_bounded_words and len(text) - start > 2 * PART_CHARACTERS:
            window = text[start : start + PART_CHARACTERS]
            words = _SPLITTER.pre_tokenize_str(window)
            cut = next(begin for _, (begin, _) in reversed(words) if begin <= len(window) - LOOKS_AHEAD)
            yield window[:cut]
            start += cut
        yield text[start:]

    def token_bytes(self) -> np.ndarray:
        """Bytes of each token of a byte-level tokenizer, int64 `[vocab_size]`; 0 for the token that ends documents.

        Those of a text's tokens add up to its length. The tokens of other tokenizers have no fixed size: see
        `text_sizes`.
        """
        assert self.is_byte_level
        sizes = np.zeros(self.vocab_size, np.int64)
        added = self._inner.get_added_tokens_decoder()
        for token, index in self._inner.get_vocab(with_added_tokens=True).items():
            is_text = index in added and not added[index].special
            sizes[index] = len(token.encode()) if is_text else len(token)  # otherwise one character is one byte
        sizes[self.eos_id] = 0
        return sizes

    @property
    def can_cut(self) -> bool:
        """Whether text cut by `files.find_cut` has the tokens of the whole: nothing but words decides them."""
        added = self._description.get("added_tokens", ())
        return self.is_byte_level and all(" " not in token["content"] for token in added)


def text_sizes(text: str, encoding: tokenizers.Encoding) -> np.ndarray:
    """Bytes of UTF-8 of `text` that each token of its encoding stands for, int64 `[tokens]`: they add up to all of it.

    A token's text ends where that of the next token begins, so text that the tokenizer drops counts with the token
    before it. Tokens of one character share its bytes. `encoding` needs offsets.
    """
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (characters > 0x7F) + (characters > 0x7FF) + (characters > 0xFFFF)
    places = np.concatenate([[0], np.cumsum(widths)])  # of each character in the bytes, and of the end
    count = len(encoding.ids)
    starts = np.maximum.accumulate(np.fromiter((start for start, _ in encoding.offsets), np.int64, count))
    starts[:1] = 0
    first = np.flatnonzero(np.diff(starts, prepend=-1))  # the first token at each place
    edges = np.interp(np.arange(count + 1), np.append(first, count), np.append(places[starts[first]], places[-1]))
    return np.diff(edges.astype(np.int64))


def train_tokenizer(texts: Iterable[str], vocab_size: int, special: Sequence[str] = (END_OF_TEXT,)) -> bytes:
    """A byte-level BPE as tokenizer.json: lossless, the same for the same texts, `special` its first tokens.

    Without texts its other tokens are the 256 bytes.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([_SPLITTER, _BYTES])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    parts = (text[at : at + PART_CHARACTERS] for text in texts for at in range(0, len(text), PART_CHARACTERS))
    tokenizer.train_from_iterator(parts, trainer)
    return tokenizer.to_str(pretty=True).encode()


def character_tokenizer(texts: Iterable[str], vocab_size: int | None, special: Sequence[str] = (END_OF_TEXT,)) -> bytes:
    """Characters as tokenizer.json: `special`, the 256 bytes, and the characters of `texts` that are longer.

    Any other character is written as its bytes, so no text is lost. `vocab_size` keeps the most frequent characters.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    longer = sorted((c for c in counts if not c.isascii()), key=lambda c: (-counts[c], c))
    kept = longer if vocab_size is None else longer[: vocab_size - NUM_BYTES - len(special)]
    spelled = (_BYTES.pre_tokenize_str(c)[0][0] for c in kept)
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *spelled]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))  # a pre-token in it is a token
    tokenizer.add_special_tokens(list(special))
    characters = pre_tokenizers.Split(tokenizers.Regex(CHARACTER), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([characters, _BYTES])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str(pretty=True).encode()


def _is_byte_level(description: dict[str, Any]) -> bool:
    """Whether the tokens of any text are exactly its bytes: none is added, dropped, replaced or unknown."""
    model = description["model"]
    added = description.get("added_tokens", ())
    # An added token that the model also has covers two texts: "Ġthe" is also how the model spells " the".
    texts = [token["content"] for token in added if not token.get("special")]
    steps = description.get("pre_tokenizer") or {}
    *splits, last = steps.get("pretokenizers") or [steps]
    return (
        model.get("type") == "BPE"
        and not description.get("normalizer")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and not any(token.get("lstrip") or token.get("rstrip") for token in added)
        and not any(text in model["vocab"] and not text.isascii() for text in texts)
        and last.get("type") == "ByteLevel"
        and not last.get("add_prefix_space")
        and all(part.get("type") == "Split" and part.get("behavior") == "Isolated" for part in splits)
        and model["vocab"].keys() >= set(pre_tokenizers.ByteLevel.alphabet())
    )
