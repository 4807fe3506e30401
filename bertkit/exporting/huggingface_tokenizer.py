"""A vocabulary as the files of a Hugging Face tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bertkit.tokenizer import Vocabulary


def write_tokenizer(vocabulary: Vocabulary, max_length: int, folder: Path) -> None:
    """Write vocab.txt, tokenizer_config.json and tokenizer.json.

    Args:
        vocabulary: the pieces.
        max_length: the longest sequence, in tokens.
        folder: must exist.
    """
    (folder / "vocab.txt").write_bytes("\n".join([*vocabulary.tokens, ""]).encode("utf-8"))
    roles = {
        "unk_token": vocabulary.unknown_token,
        "cls_token": vocabulary.start_token,
        "sep_token": vocabulary.separator_token,
        "pad_token": vocabulary.padding_token,
    }
    if vocabulary.mask_token in vocabulary.tokens:
        roles["mask_token"] = vocabulary.mask_token
    options = {
        "do_lower_case": vocabulary.lowercase,
        "strip_accents": vocabulary.strip_accents,
        "tokenize_chinese_chars": True,
        "model_max_length": max_length,
        "tokenizer_class": "BertTokenizer",
        **roles,
    }
    for name, content in (
        ("tokenizer_config.json", options),
        ("tokenizer.json", _whole(vocabulary)),
    ):
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def _whole(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return tokenizer.json: every step of BERT's tokenizing."""

    def token(name: str, segment: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": segment}}

    def text(name: str, segment: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": segment}}

    start, end = vocabulary.start_token, vocabulary.separator_token
    single = [token(start, 0), text("A", 0), token(end, 0)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocabulary.id_of(name), "content": name, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": True}
            for name in sorted(vocabulary.special_tokens, key=vocabulary.id_of)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": vocabulary.strip_accents,
            "lowercase": vocabulary.lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, text("B", 1), token(end, 1)],
            "special_tokens": {
                name: {"id": name, "ids": [vocabulary.id_of(name)], "tokens": [name]}
                for name in (start, end)
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": vocabulary.unknown_token,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {piece: index for index, piece in enumerate(vocabulary.tokens)},
        },
    }  # fmt: skip
