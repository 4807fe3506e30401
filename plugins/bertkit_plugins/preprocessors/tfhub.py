"""A preprocessing SavedModel of TF Hub: its own graph tokenizes and packs the text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tensorflow as tf

from bertkit.encoder import Encoder
from bertkit.errors import InputError
from bertkit.preprocessor import Encoded, Preprocessor
from bertkit_plugins.encoders.tfhub_resolve import resolve
from bertkit_plugins.preprocessors.tfhub_model import PreprocessingModel, mismatch, read


class TFHubPreprocessor(Preprocessor):
    """One or two texts a row, tokenized and packed by a preprocessing model of TF Hub.

    It truncates as that model does. What it pads is cut off again, so that batches are padded to
    their longest row. A saved model carries the preprocessing model with it.

    Args:
        source: an address with a version number, a folder or an archive of a SavedModel that has
            `tokenize` and `bert_pack_inputs`.
        sequence_length: the longest sequence, in tokens, special tokens included.
        text_columns: how many texts a row has, 1 or 2.

    Raises:
        EncoderError: there is no such SavedModel, it is damaged, or it is of another kind.
        InputError: `sequence_length` leaves no room for text.
    """

    def __init__(
        self,
        # None in the config of a saved model, where the SavedModel is an asset.
        source: Annotated[str | None, "text"],
        sequence_length: int = 128,
        text_columns: Literal[1, 2] = 1,
    ) -> None:
        if text_columns not in (1, 2):
            raise InputError(f"text_columns is {text_columns!r}. Give 1, or 2 for pairs.")
        self.text_columns = text_columns
        super().__init__(sequence_length)
        self._model = None if source is None else read(resolve(source), text_columns)

    def bind(self, encoder: Encoder) -> None:
        """Take the encoder that the token ids are for.

        Raises:
            InputError: it has no positions for `sequence_length` tokens, too few segments, or
                another vocabulary.
        """
        super().bind(encoder)
        if self._model is not None:
            self.prepare()

    def serving(self, encoder: Encoder) -> Preprocessor:
        mine = super().serving(encoder)
        if isinstance(mine, TFHubPreprocessor) and mine is not self:
            mine._model = self._model
            if mine._model is not None:
                mine.prepare()
        return mine

    def prepare(self) -> None:
        """Compare the vocabulary with the encoder's, as far as both are known."""
        wrong = self._encoder and mismatch(self.model, self._encoder)
        if wrong:
            raise InputError(
                f"The preprocessor does not fit the encoder: {wrong}. Take the preprocessing "
                "model that belongs to the encoder, or the plugin single_text or sentence_pair, "
                "which tokenize with the encoder's own vocabulary."
            )

    @property
    def model(self) -> PreprocessingModel:
        """The SavedModel.

        Raises:
            InputError: there is none.
        """
        if self._model is None:
            raise InputError(
                f"{type(self).__name__} was made from a config alone, without its SavedModel. "
                "Give it a `source`, or give a new BertClassifier the preprocessor of the model "
                "this one was cloned from."
            )
        return self._model

    @property
    def padding_id(self) -> int:
        """The token id that fills the rest of a row."""
        return self.model.padding_id

    def encode(self, texts: tf.Tensor) -> Encoded:
        model = self.model
        single = self.text_columns == 1
        columns = [texts] if single else [texts[:, 0], texts[:, 1]]  # (B,) each
        tokens = [model.tokenize(column) for column in columns]
        packed = model.pack(tokens, self.sequence_length)  # (B, sequence_length) each
        real = tf.cast(packed["input_mask"], tf.bool)
        counts = [model.count(rows) for rows in tokens]
        return Encoded(
            tf.ragged.boolean_mask(tf.cast(packed["input_word_ids"], tf.int32), real),
            tf.ragged.boolean_mask(tf.cast(packed["input_type_ids"], tf.int32), real),
            tf.add_n(counts) + model.special_tokens,
        )

    def save_assets(self, folder: str) -> None:
        """Write the SavedModel."""
        for name, content in self.model.files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def write_saved_model(self, folder: str) -> bool:
        """Write the SavedModel, as it came; return that it was written."""
        self.save_assets(folder)
        return True

    def load_assets(self, folder: str) -> None:
        """Read the SavedModel."""
        self._model = read(Path(folder), self.text_columns)
        self._traced = None

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments; without the source, which need not stay there."""
        return {"source": None, **super().get_config(), "text_columns": self.text_columns}
