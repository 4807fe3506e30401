"""The tokenizer's files of a Hugging Face folder: read as they are meant, or refused."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
import tokenizers

from bertkit.errors import EncoderError
from bertkit.tokenizer import WordPieceTokenizer
from bertkit_plugins.encoders.huggingface import huggingface
from tests.tiny import TOKENIZER_CONFIG, VOCABULARY, write_huggingface_folder

CASED = {"do_lower_case": False, "strip_accents": False, "tokenizer_class": "BertTokenizerFast"}


def test_the_tokenizer_config_is_honoured(tmp_path: Path) -> None:
    pieces = ["<pad>", "<unk>", "<s>", "</s>", "<mask>", *VOCABULARY[5:], "Film"]
    roles = {"pad_token": "<pad>", "unk_token": {"content": "<unk>"}, "cls_token": "<s>",
             "mask_token": "<mask>"}  # fmt: skip
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "special_tokens_map.json").write_text('{"sep_token": "</s>"}')
    folder = write_huggingface_folder(
        tmp_path / "f",
        vocabulary=pieces,
        tokenizer_config={**CASED, **roles},
        vocab_size=len(pieces),
    )
    vocabulary = huggingface(str(folder)).vocabulary
    assert vocabulary is not None
    assert vocabulary.tokens == tuple(pieces)
    assert (vocabulary.lowercase, vocabulary.strip_accents) == (False, False)
    assert (vocabulary.padding_token, vocabulary.unknown_token) == ("<pad>", "<unk>")
    assert (vocabulary.start_token, vocabulary.separator_token) == ("<s>", "</s>")
    assert vocabulary.mask_token == "<mask>"


# Pieces of which each is reached by one way of treating capitals and accents alone.
ACCENTS = "É é E ü Über über uber Uber ß 中 И"
MULTILINGUAL = (*VOCABULARY, *ACCENTS.split())
TEXTS = ["É é E e", "Über über uber Uber", "U\u0308ber u\u0308ber", "ß 中中 И Й", "the film"]


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip", [None, True, False])
@pytest.mark.filterwarnings("ignore:.*pieces hold capitals")
def test_capitals_and_accents(tmp_path: Path, lowercase: bool, strip: bool | None) -> None:
    folder = write_huggingface_folder(
        tmp_path,
        vocabulary=MULTILINGUAL,
        vocab_size=len(MULTILINGUAL),
        tokenizer_config={"do_lower_case": lowercase, "strip_accents": strip},
    )
    reference = tokenizers.BertWordPieceTokenizer(
        str(folder / "vocab.txt"), lowercase=lowercase, strip_accents=strip
    )
    encoder = huggingface(str(folder))
    assert encoder.vocabulary is not None
    ids = WordPieceTokenizer(encoder.vocabulary)(tf.constant(TEXTS)).to_list()
    assert ids == [reference.encode(text, add_special_tokens=False).ids for text in TEXTS]


@pytest.mark.parametrize(
    ("pieces", "lowercase", "warning"),
    [
        ((*VOCABULARY, "Film", "A"), True, "is lowercased, but 2 of the 190 .*'Film'.*to false"),
        (VOCABULARY, False, "not lowercased, but none of the 188 .*become .UNK..*to true"),
        ((*VOCABULARY, "Film"), False, None),
        ((*VOCABULARY, "<S>", "[unused1]"), True, None),
        (("[PAD]", "[UNK]", "[CLS]", "[SEP]", "中", "1"), False, None),
    ],
)
def test_a_casing_that_contradicts_the_pieces_is_warned_of(
    tmp_path: Path, pieces: Any, lowercase: bool, warning: str | None
) -> None:
    folder = write_huggingface_folder(
        tmp_path,
        vocabulary=pieces,
        vocab_size=len(pieces),
        tokenizer_config={"do_lower_case": lowercase},
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        huggingface(str(folder))
    messages = [str(w.message) for w in caught if "pieces" in str(w.message)]
    assert len(messages) == (warning is not None)
    assert all(re.search(str(warning), message) and str(folder) in message for message in messages)


def tokenizer_json(**changes: Any) -> dict[str, Any]:
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    whole = {
        "model": {"type": "WordPiece", "vocab": vocabulary},
        "normalizer": {"type": "BertNormalizer", "lowercase": False, "strip_accents": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
    }
    return {**whole, **changes}


def test_the_vocabulary_of_tokenizer_json(tmp_path: Path) -> None:
    folder = write_huggingface_folder(tmp_path, tokenizer_config=None)
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    vocabulary = huggingface(str(folder)).vocabulary
    assert vocabulary is not None and vocabulary.tokens == VOCABULARY
    assert (vocabulary.lowercase, vocabulary.strip_accents) == (False, True)


UNCASED = {"type": "BertNormalizer", "lowercase": True, "strip_accents": None}


@pytest.mark.parametrize(
    ("config", "normalizer", "message"),
    [
        ({"do_lower_case": True}, {"lowercase": False}, "do_lower_case True, .* lowercase False"),
        ({"do_lower_case": False}, {}, "do_lower_case False, .* means lowercase True"),
        ({"strip_accents": False}, {}, "strip_accents False, .* strip_accents True"),
        ({"strip_accents": None}, {"strip_accents": False}, "strip_accents True, .* False"),
        ({"strip_accents": True}, {}, None),
        ({"strip_accents": None}, {"strip_accents": True}, None),
        ({}, {"strip_accents": False}, None),
        ({}, {"lowercase": None}, "lowercase is None"),
    ],
)
def test_tokenizer_files_that_contradict_each_other(
    tmp_path: Path, config: Any, normalizer: Any, message: str | None
) -> None:
    folder = write_huggingface_folder(tmp_path, tokenizer_config=config)
    whole = tokenizer_json(normalizer={**UNCASED, **normalizer})
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    if message is None:
        vocabulary = huggingface(str(folder)).vocabulary
        assert vocabulary is not None and vocabulary.lowercase
        return
    with pytest.raises(EncoderError, match=message) as caught:
        huggingface(str(folder))
    assert str(folder / "tokenizer.json") in str(caught.value)


def test_vocabularies_that_contradict_each_other(tmp_path: Path) -> None:
    folder = write_huggingface_folder(tmp_path)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(normalizer=UNCASED)))
    huggingface(str(folder))
    (folder / "vocab.txt").write_text("\n".join([*VOCABULARY[:-2], VOCABULARY[-1]]))
    with pytest.raises(EncoderError, match=r"vocab.txt and .*tokenizer.json hold other pieces"):
        huggingface(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "BPE", "vocab": {}}}, "the model is 'BPE', and only BERT's WordPiece"),
        ({"model": None}, "the model is None"),
        ({"normalizer": {"type": "NFKC"}}, "the normalizer is 'NFKC'"),
        ({"normalizer": {"type": "BertNormalizer", "clean_text": False}}, "clean_text is False"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "the pre_tokenizer is 'Metaspace'"),
        ({"model": {"vocab": {"[PAD]": 0, "[UNK]": 2}}}, "does not give the ids 0 to n-1"),
        ({"model": {"vocab": {"[PAD]": 0, "[UNK]": "1"}}}, "does not give the ids 0 to n-1"),
        ({"normalizer": None}, "the normalizer is None, and only"),
        ({"model": {"vocab": {}, "max_input_chars_per_word": 9}}, "chars_per_word is 9.*only 100"),
        ({"added_tokens": [{"id": 9, "content": "[SEP]"}]}, r"'\[SEP\]' the id 9, but it is piece"),
        ({"added_tokens": [{"id": 188, "content": "<x>"}]}, "tokenizer.json adds the token '<x>'"),
        ({"model": {"vocab": {"[PAD]": 0}}}, r"lacks \[UNK\], \[CLS\], \[SEP\]"),
    ],
)
def test_a_tokenizer_json_that_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = write_huggingface_folder(tmp_path, tokenizer_config=None)
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(**changes)))
    with pytest.raises(EncoderError, match=message):
        huggingface(str(folder))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenize_chinese_chars": False}, "tokenize_chinese_chars is False"),
        ({"do_basic_tokenize": False}, "do_basic_tokenize is False"),
        ({"never_split": ["film"]}, "never_split is"),
        (
            {"tokenizer_class": "BertJapaneseTokenizer"},
            "tokenizer_class is 'BertJapaneseTokenizer'",
        ),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "is 'PreTrainedTokenizerFast'"),
        ({"do_lower_case": "yes"}, "do_lower_case is 'yes'; it must be true, false or null"),
        ({"cls_token": "<s>"}, "lacks <s>"),
        ({"cls_token": 3}, "cls_token is 3, not a piece"),
        ({"added_tokens_decoder": {"188": {"content": "<x>"}}}, "adds the token '<x>' .id 188"),
        ({"added_tokens_decoder": {"70": {"content": "film"}}}, "adds the token 'film' .id 70"),
        ({"added_tokens_decoder": {"2": {"content": "[SEP]"}}}, "the id 2, but it is piece 3"),
    ],
)
def test_a_tokenizer_config_that_is_refused(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    tokenizer_config = {**TOKENIZER_CONFIG, **fields}
    folder = write_huggingface_folder(tmp_path, tokenizer_config=tokenizer_config)
    with pytest.raises(EncoderError, match=message):
        huggingface(str(folder))


def test_added_tokens_that_are_known(tmp_path: Path) -> None:
    special = {str(i): {"content": VOCABULARY[i], "special": True} for i in range(5)}
    config = {**TOKENIZER_CONFIG, "added_tokens_decoder": special}
    folder = write_huggingface_folder(tmp_path, tokenizer_config=config)
    (folder / "added_tokens.json").write_text('{"[MASK]": 4}')
    huggingface(str(folder))
    (folder / "added_tokens.json").write_text('{"[MASK]": 188}')
    with pytest.raises(EncoderError, match=r"added_tokens.json gives '\[MASK\]' the id 188"):
        huggingface(str(folder))


def test_casing_is_not_guessed_for_a_vocabulary_with_capitals(tmp_path: Path) -> None:
    folder = write_huggingface_folder(tmp_path / "a", tokenizer_config=None)
    vocabulary = huggingface(str(folder)).vocabulary
    assert vocabulary is not None and vocabulary.lowercase
    pieces = [*VOCABULARY[:-1], "Film"]
    folder = write_huggingface_folder(tmp_path / "b", tokenizer_config=None, vocabulary=pieces)
    with pytest.raises(EncoderError, match=r"capitals \('Film'\). Add \"do_lower_case\": false"):
        huggingface(str(folder))


def test_a_vocabulary_larger_than_the_embeddings(tmp_path: Path) -> None:
    folder = write_huggingface_folder(tmp_path, vocab_size=100)
    with pytest.raises(EncoderError, match=r"has 188 pieces, but .* has embeddings for 100"):
        huggingface(str(folder))


def test_no_vocabulary(tmp_path: Path) -> None:
    (write_huggingface_folder(tmp_path) / "vocab.txt").unlink()
    with pytest.raises(EncoderError, match=r"neither vocab.txt nor tokenizer.json"):
        huggingface(str(tmp_path))
