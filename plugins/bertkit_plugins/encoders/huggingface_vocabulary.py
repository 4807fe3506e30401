"""A Hugging Face folder's tokenizer files as a Vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertkit.errors import EncoderError
from bertkit.tokenizer import Vocabulary
from bertkit_plugins.encoders.sources import read_json

# Their name: ours.
_ROLES = {
    "unk_token": "unknown_token",
    "cls_token": "start_token",
    "sep_token": "separator_token",
    "pad_token": "padding_token",
}
# The last two stand for "whatever tokenizer.json says", and that is checked.
_CLASSES = ("BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
_SPELLING = "Take the file from the original model again."


def read_vocabulary(folder: Path, padding_id: int | None) -> Vocabulary:
    """Read vocab.txt (or the vocabulary in tokenizer.json) and how text is prepared for it.

    Args:
        folder: the model's folder.
        padding_id: the id that its config.json gives to the padding token.

    Raises:
        EncoderError: the files are missing or damaged, disagree, or ask for another tokenizing
            than BERT's.
    """
    options: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            options.update(read_json(folder / name))
    path = folder / "tokenizer_config.json"
    tokenizer = folder / "tokenizer.json"
    whole = read_json(tokenizer) if tokenizer.exists() else {}
    _refuse(options, bool(whole), path)
    if whole:
        _check_tokenizer(whole, tokenizer)
    normalizer = whole.get("normalizer") or {}
    arguments: dict[str, Any] = {
        "lowercase": _flag(options, "do_lower_case", normalizer.get("lowercase"), path),
        "strip_accents": _flag(options, "strip_accents", normalizer.get("strip_accents"), path),
    }
    for theirs, ours in _ROLES.items():
        token = options.get(theirs)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            if not isinstance(token, str):
                raise EncoderError(f"{path}: {theirs} is {token!r}, not a piece. {_SPELLING}")
            arguments[ours] = token
    guess = arguments["lowercase"] is None
    arguments["lowercase"] = guess or arguments["lowercase"]
    if (folder / "vocab.txt").exists():
        vocabulary = Vocabulary.from_file(folder / "vocab.txt", **arguments)
    elif whole:
        vocabulary = Vocabulary(_pieces(whole, tokenizer), **arguments)
    else:
        raise EncoderError(
            f"{folder} has neither vocab.txt nor tokenizer.json, so text cannot become token ids. "
            "Copy one of them from the original model."
        )
    if guess:
        _check_lowercase(vocabulary, path)
    _check_ids(vocabulary, options, padding_id, folder)
    return vocabulary


def _refuse(options: dict[str, Any], has_tokenizer: bool, path: Path) -> None:
    name = options.get("tokenizer_class")
    if name is not None and name not in (_CLASSES if has_tokenizer else _CLASSES[:2]):
        raise EncoderError(
            f"{path}: tokenizer_class is {name!r}, and only BertTokenizer's tokenizing can be "
            "done. Choose a model that uses it."
        )
    for field, only in (("tokenize_chinese_chars", True), ("do_basic_tokenize", True)):
        if options.get(field, only) is not only:
            raise EncoderError(
                f"{path}: {field} is {options[field]!r}, and the tokenizer does only {only}. "
                "Choose a model without it."
            )
    if options.get("never_split"):
        raise EncoderError(
            f"{path}: never_split is {options['never_split']!r}; words that are never split are "
            "not read yet. Remove the field to have them split as any other."
        )


def _check_tokenizer(whole: dict[str, Any], path: Path) -> None:
    model = whole.get("model")
    kind = model.get("type", "WordPiece") if isinstance(model, dict) else None
    normalizer = whole.get("normalizer") or {"type": "BertNormalizer"}
    splitter = whole.get("pre_tokenizer") or {"type": "BertPreTokenizer"}
    for name, got, wanted in (
        ("model", kind, "WordPiece"),
        ("normalizer", normalizer.get("type"), "BertNormalizer"),
        ("pre_tokenizer", splitter.get("type"), "BertPreTokenizer"),
    ):
        if got != wanted:
            raise EncoderError(
                f"{path}: the {name} is {got!r}, and only BERT's {wanted} can be done. Choose a "
                "model that uses it."
            )
    for name in ("handle_chinese_chars", "clean_text"):
        if normalizer.get(name, True) is not True:
            raise EncoderError(
                f"{path}: the normalizer's {name} is {normalizer[name]!r}, and the tokenizer does "
                "only True. Choose a model without it."
            )


def _flag(options: dict[str, Any], name: str, default: Any, path: Path) -> bool | None:
    value = options.get(name)
    value = default if value is None else value
    if value is not None and not isinstance(value, bool):
        raise EncoderError(f"{path}: {name} is {value!r}; it must be true, false or null.")
    return value


def _pieces(whole: dict[str, Any], path: Path) -> tuple[str, ...]:
    ids = whole["model"].get("vocab")
    if not isinstance(ids, dict) or sorted(ids.values(), key=str) != sorted(
        range(len(ids)), key=str
    ):
        raise EncoderError(
            f"{path}: the vocabulary does not give the ids 0 to n-1 to n pieces. {_SPELLING}"
        )
    return tuple(sorted(ids, key=ids.__getitem__))


def _check_lowercase(vocabulary: Vocabulary, path: Path) -> None:
    for token in vocabulary.tokens:
        if token != token.lower() and not (token.startswith("[") and token.endswith("]")):
            raise EncoderError(
                f"{path} does not say whether text is lowercased, and the vocabulary holds "
                f'capitals ({token!r}). Add "do_lower_case": false to it for a cased model, or '
                "true for an uncased one."
            )


def _check_ids(
    vocabulary: Vocabulary, options: dict[str, Any], padding_id: int | None, folder: Path
) -> None:
    padding = vocabulary.padding_token
    if padding_id is not None and vocabulary.id_of(padding) != padding_id:
        raise EncoderError(
            f"{folder}: config.json says pad_token_id {padding_id}, but {padding!r} is piece "
            f"{vocabulary.id_of(padding)} of the vocabulary. Take both from the same model."
        )
    added = options.get("added_tokens_decoder") or {}
    known = set(vocabulary.tokens)
    for index, token in added.items() if isinstance(added, dict) else ():
        content = token.get("content") if isinstance(token, dict) else token
        if content not in known:
            raise EncoderError(
                f"{folder}: tokenizer_config.json adds the token {content!r} (id {index}), which "
                "the vocabulary lacks; added tokens are not read yet. Remove it from "
                "added_tokens_decoder to have it split as any other word."
            )
