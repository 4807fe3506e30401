"""Checkers that anyone can run on a plugin of their own: does it keep its contract?

    from bertkit.testing import check_head

    def test_my_head():
        check_head(MyHead)

Each raises an `AssertionError` that names the check and what the contract wants. They need no
test framework, no network and no files but a temporary one, and take a few seconds. The plugin
must be registered, since a saved model names its parts.
"""

from bertkit.testing.encoders import check_encoder
from bertkit.testing.heads import check_head
from bertkit.testing.objectives import check_objective
from bertkit.testing.preprocessors import check_preprocessor

__all__ = ["check_encoder", "check_head", "check_objective", "check_preprocessor"]
