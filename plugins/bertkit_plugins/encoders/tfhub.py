"""BERT from TF Hub: any SavedModel with the text-encoder interface."""

from __future__ import annotations

from typing import Literal, get_args

from bertkit.encoder import Encoder
from bertkit.errors import EncoderError
from bertkit.pooling import PoolingName
from bertkit_plugins.encoders.saved_model import SavedModelEncoder
from bertkit_plugins.encoders.saved_model_graph import Graph
from bertkit_plugins.encoders.saved_model_interface import read_vocabulary
from bertkit_plugins.encoders.tfhub_bert import read_bert
from bertkit_plugins.encoders.tfhub_resolve import resolve

Form = Literal["auto", "bert", "graph"]
_DROPOUT = 0.1  # of every published BERT; the variables do not tell


def tfhub(
    source: str,
    pooling: PoolingName = "pooler",
    dropout: float | None = None,
    attention_dropout: float | None = None,
    form: Form = "auto",
    trainable: bool = True,
) -> Encoder:
    """BERT from TF Hub or Kaggle: any SavedModel with the text-encoder interface.

    A SavedModel whose variables are those of a plain BERT becomes a `BertEncoder`, which is
    checked against the graph's own outputs, and is faster. Any other is trained as the graph that
    it is.

    Args:
        source: an address with a version number ("https://tfhub.dev/…/3", or one of Kaggle), a
            local folder, or an archive (.tar.gz).
        pooling: what "pooled" is: "pooler", "cls", "mean", "max", "attention" or "layers"; see
            `BertEncoder`.
        dropout: 0.1 if `None`; a graph has its own.
        attention_dropout: 0.1 if `None`; a graph has its own.
        form: "bert" to insist on a `BertEncoder`, "graph" to train the graph in any case.
        trainable: whether the encoder is trained; a SavedModel that cannot be fine-tuned is
            accepted only if not.

    Returns:
        The encoder, with the vocabulary of the SavedModel if it has one.

    Raises:
        EncoderError: the model is not to be had, is not whole, is no text encoder, cannot be
            fine-tuned, or is not what `form` asks for.
    """
    if form not in get_args(Form):
        raise EncoderError(f"form is {form!r}. Known: {', '.join(get_args(Form))}.")
    folder = resolve(source)
    graph = Graph.from_folder(folder)
    encoder: Encoder | None = None
    if form != "graph":
        rates = (_DROPOUT if rate is None else rate for rate in (dropout, attention_dropout))
        found = read_bert(graph, pooling, *rates)
        if isinstance(found, Encoder):
            encoder = found
        elif form == "bert":
            raise EncoderError(
                f"The SavedModel in {folder} is no plain BERT: {found}. Leave form out, and its "
                "own graph is trained."
            )
    if encoder is None:
        if dropout is not None or attention_dropout is not None:
            raise EncoderError(
                f"The SavedModel in {folder} is trained as a graph, whose dropout is fixed. Leave "
                "dropout and attention_dropout out."
            )
        encoder = SavedModelEncoder(graph, pooling=pooling, trainable=trainable)
    encoder.vocabulary = read_vocabulary(graph.loaded)
    encoder.trainable = trainable
    return encoder
