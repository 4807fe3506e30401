"""bertkit: fine-tune BERT as a text classifier in Keras 3 on TensorFlow.

Public names are loaded on first use (PEP 562), so that `import bertkit` imports neither
TensorFlow nor a plugin.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name: the module that defines it
_PUBLIC = {
    "BertClassifier": "bertkit.classifier",
    "BertEncoder": "bertkit.bert",
    "BertkitError": "bertkit.errors",
    "Encoder": "bertkit.encoder",
    "Head": "bertkit.head",
    "Objective": "bertkit.objective",
    "Preprocessor": "bertkit.preprocessor",
    "Vocabulary": "bertkit.tokenizer",
    "build": "bertkit.experiment",
    "encoders": "bertkit.registry",
    "export": "bertkit.exporting",
    "heads": "bertkit.registry",
    "load": "bertkit.artifact",
    "objectives": "bertkit.registry",
    "preprocessors": "bertkit.registry",
    "run": "bertkit.experiment",
    "save": "bertkit.artifact",
}

__all__ = [
    "BertClassifier",
    "BertEncoder",
    "BertkitError",
    "Encoder",
    "Head",
    "Objective",
    "Preprocessor",
    "Vocabulary",
    "build",
    "encoders",
    "export",
    "heads",
    "load",
    "objectives",
    "preprocessors",
    "run",
    "save",
]

if TYPE_CHECKING:
    from bertkit.artifact import load, save
    from bertkit.bert import BertEncoder
    from bertkit.classifier import BertClassifier
    from bertkit.encoder import Encoder
    from bertkit.errors import BertkitError
    from bertkit.experiment import build, run
    from bertkit.exporting import export
    from bertkit.head import Head
    from bertkit.objective import Objective
    from bertkit.preprocessor import Preprocessor
    from bertkit.registry import encoders, heads, objectives, preprocessors
    from bertkit.tokenizer import Vocabulary


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bertkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
