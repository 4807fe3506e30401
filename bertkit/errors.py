"""The errors that bertkit raises on purpose, each a cause and a fix in one message.

Every class also inherits the built-in exception that a caller would expect, so that
`except ValueError` goes on working. The command line prints the message alone and exits with 2.
"""


class BertkitError(Exception):
    """Base of all errors that name their own fix."""

    # Keras wraps a page about a call's arguments around any error without this mark.
    _keras_call_info_injected = True


class PluginError(BertkitError, LookupError):
    """A plugin is unknown, broken, or clashes with another."""


class ConfigError(BertkitError, ValueError):
    """A configuration is wrong; the message lists every mistake in it."""


class DataError(BertkitError, ValueError):
    """A file or a row of it cannot be used; the message names the file and the line."""


class InputError(BertkitError, ValueError):
    """A text, a tensor or a label given to a model, head or preprocessor cannot be used.

    Attributes:
        row: the index of the row at fault, where there is one.
    """

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class EncoderError(BertkitError, ValueError):
    """A source of weights is missing, damaged, or not a BERT that bertkit can run."""


class TrainingError(BertkitError, RuntimeError):
    """Training would go wrong, or has gone wrong, without anyone noticing."""


class DivergenceError(TrainingError):
    """A loss or a gradient is not finite, or beyond a limit, so going on would be of no use.

    Attributes:
        final: whether a lower learning rate from a checkpoint on would be of no use either.
    """

    final = False


class ArtifactError(BertkitError, ValueError):
    """A run folder or a saved model is missing, incomplete, damaged or in the way."""


class ExportError(BertkitError, ValueError):
    """A model cannot be written in the format asked for."""


def shown(value: object) -> str:
    """Return a value as it stands in messages: one line of at most 60 characters."""
    line = " ".join(repr(value).split())
    return line if len(line) <= 60 else f"{line[:57]}…"
