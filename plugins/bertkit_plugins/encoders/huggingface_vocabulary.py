"""A Hugging Face folder's tokenizer files as a Vocabulary."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from bertkit.errors import EncoderError
from bertkit.tokenizer import Vocabulary
from bertkit_plugins.encoders.choices import capitals, small_letters
from bertkit_plugins.encoders.huggingface_tokenizer import Tokenizer, read_tokenizer
from bertkit_plugins.encoders.sources import read_json

# Their name: ours.
_ROLES = {
    "unk_token": "unknown_token",
    "cls_token": "start_token",
    "sep_token": "separator_token",
    "pad_token": "padding_token",
    "mask_token": "mask_token",
}
_MODELS = ("Bert", "DistilBert", "Electra")
_CLASSES = tuple(f"{model}Tokenizer{fast}" for model in _MODELS for fast in ("", "Fast"))
# These stand for "whatever tokenizer.json says", and that is checked.
_ANY_CLASS = ("PreTrainedTokenizerFast", "TokenizersBackend")
_AGAIN = "Take the file from the original model again."


def read_vocabulary(folder: Path, padding_id: int | None) -> Vocabulary:
    """Read vocab.txt (or the vocabulary in tokenizer.json) and how text is prepared for it.

    A casing that does not fit the pieces is warned of, and kept: it is what the model's own
    program does.

    Args:
        folder: the model's folder.
        padding_id: the id that its config.json gives to the padding token.

    Raises:
        EncoderError: the files are missing or damaged, contradict each other, or ask for another
            tokenizing than BERT's.
    """
    options: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            options.update(read_json(folder / name))
    config, whole = folder / "tokenizer_config.json", folder / "tokenizer.json"
    tokenizer = read_tokenizer(whole) if whole.exists() else None
    _refuse(options, tokenizer is not None, config)
    lowercase, strip_accents = _casing(options, tokenizer, config)
    vocabulary = _read(
        folder,
        tokenizer,
        lowercase=lowercase is not False,
        strip_accents=strip_accents,
        **_roles(options, tokenizer, config),
    )
    _check_casing(vocabulary, lowercase is None, tokenizer.path if tokenizer else config)
    _check_padding(vocabulary, padding_id, folder)
    _check_added(vocabulary, options, tokenizer, folder)
    return vocabulary


def _refuse(options: dict[str, Any], has_tokenizer: bool, path: Path) -> None:
    name = options.get("tokenizer_class")
    if name is not None and name not in (*_CLASSES, *(_ANY_CLASS if has_tokenizer else ())):
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


def _casing(
    options: dict[str, Any], tokenizer: Tokenizer | None, config: Path
) -> tuple[bool | None, bool | None]:
    """Return what the files say of lowercasing and of accents; `None` is what nobody says."""
    for name in ("do_lower_case", "strip_accents"):
        if not isinstance(options.get(name), (bool, type(None))):
            raise EncoderError(
                f"{config}: {name} is {options[name]!r}; it must be true, false or null."
            )
    lowercase, strip = options.get("do_lower_case"), options.get("strip_accents")
    if tokenizer is None:
        return lowercase, strip
    if lowercase is None:
        lowercase = tokenizer.lowercase
    if "strip_accents" not in options:
        strip = tokenizer.strip_accents
    # Accents of which nothing is said go with the capitals.
    here = {"do_lower_case": lowercase, "strip_accents": lowercase if strip is None else strip}
    there = {
        "lowercase": tokenizer.lowercase,
        "strip_accents": tokenizer.lowercase
        if tokenizer.strip_accents is None
        else tokenizer.strip_accents,
    }
    for ours, theirs in zip(here, there, strict=True):
        if here[ours] != there[theirs]:
            raise EncoderError(
                f"{config} means {ours} {here[ours]}, but the normalizer in {tokenizer.path} "
                f"means {theirs} {there[theirs]}, so that the same text has two encodings. Set "
                "both to what the model was trained with."
            )
    return lowercase, strip


def _read(folder: Path, tokenizer: Tokenizer | None, **arguments: Any) -> Vocabulary:
    path = folder / "vocab.txt"
    if path.exists():
        vocabulary = Vocabulary.from_file(path, **arguments)
        if tokenizer is not None and tokenizer.pieces != vocabulary.tokens:
            raise EncoderError(
                f"{path} and {tokenizer.path} hold other pieces, or in another order. Take both "
                "from the same model, or remove the one that is not the model's."
            )
        return vocabulary
    if tokenizer is not None:
        return Vocabulary(tokenizer.pieces, **arguments)
    raise EncoderError(
        f"{folder} has neither vocab.txt nor tokenizer.json, so text cannot become token ids. "
        "Copy one of them from the original model."
    )


def _roles(options: dict[str, Any], tokenizer: Tokenizer | None, path: Path) -> dict[str, str]:
    roles = {}
    if tokenizer is not None and tokenizer.unknown_token is not None:
        roles["unknown_token"] = tokenizer.unknown_token
    for theirs, ours in _ROLES.items():
        token = options.get(theirs)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            if not isinstance(token, str):
                raise EncoderError(f"{path}: {theirs} is {token!r}, not a piece. {_AGAIN}")
            roles[ours] = token
    return roles


def _check_casing(vocabulary: Vocabulary, guessed: bool, path: Path) -> None:
    tokens = vocabulary.tokens
    large, small = capitals(tokens), small_letters(tokens)
    if guessed and large:
        raise EncoderError(
            f"{path} does not say whether text is lowercased, and the vocabulary holds capitals "
            f'({large[0]!r}). Add "do_lower_case": false to it for a cased model, or true for an '
            "uncased one."
        )
    if vocabulary.lowercase and large:
        what = (
            f"text is lowercased, but {len(large)} of the {len(tokens)} pieces hold capitals "
            f"({large[0]!r}), which no text then becomes. For a cased model set do_lower_case to "
            "false"
        )
    elif not vocabulary.lowercase and small and not large:
        what = (
            f"text is not lowercased, but none of the {len(tokens)} pieces holds a capital, so "
            f"words with capitals become {vocabulary.unknown_token}. For an uncased model set "
            "do_lower_case to true"
        )
    else:
        return
    warnings.warn(f"{path} says that {what}, in all files that say it.", stacklevel=4)


def _check_padding(vocabulary: Vocabulary, padding_id: int | None, folder: Path) -> None:
    padding = vocabulary.padding_token
    if padding_id is not None and vocabulary.id_of(padding) != padding_id:
        raise EncoderError(
            f"{folder}: config.json says pad_token_id {padding_id}, but {padding!r} is piece "
            f"{vocabulary.id_of(padding)} of the vocabulary. Take both from the same model."
        )


def _check_added(
    vocabulary: Vocabulary, options: dict[str, Any], tokenizer: Tokenizer | None, folder: Path
) -> None:
    """Refuse added tokens that the tokenizer does not find in a text, or of another id."""
    added: dict[str, list[tuple[Any, Any]]] = {}
    listed = options.get("added_tokens_decoder")
    if isinstance(listed, dict):
        contents = (t.get("content") if isinstance(t, dict) else t for t in listed.values())
        ids = (int(index) if index.isdecimal() else index for index in listed)
        added["tokenizer_config.json"] = list(zip(ids, contents, strict=True))
    if tokenizer is not None:
        added["tokenizer.json"] = tokenizer.added
    if (folder / "added_tokens.json").exists():
        listed = read_json(folder / "added_tokens.json")
        added["added_tokens.json"] = [(index, content) for content, index in listed.items()]
    for name, tokens in added.items():
        for index, content in tokens:
            if content not in vocabulary.special_tokens:
                raise EncoderError(
                    f"{folder}: {name} adds the token {content!r} (id {index}); of the tokens "
                    f"that are never split, only {', '.join(vocabulary.special_tokens)} are read "
                    "yet. Remove it from all files that add it to have it split as any other word."
                )
            if vocabulary.id_of(content) != index:
                raise EncoderError(
                    f"{folder}: {name} gives {content!r} the id {index}, but it is piece "
                    f"{vocabulary.id_of(content)} of the vocabulary. Take both from the same "
                    "model."
                )
