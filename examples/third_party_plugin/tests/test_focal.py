"""The head keeps bertkit's contract, and its loss is the one of the paper."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from bertkit_focal import FocalHead

from bertkit import BertkitError, heads
from bertkit.testing import check_head

LOGITS = np.array([[3.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-40.0, 40.0, 0.0]], "float32")
TARGETS = np.array([0, 1, 1])


def test_it_is_found_by_name() -> None:
    assert heads.get("focal") is FocalHead


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_it_keeps_the_contract(gamma: float) -> None:
    check_head("focal", gamma=gamma)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_its_loss_is_that_of_keras_on_one_hot_targets(gamma: float) -> None:
    head = FocalHead(labels=["a", "b", "c"], gamma=gamma)
    reference = keras.losses.CategoricalFocalCrossentropy(1.0, gamma, from_logits=True)
    found = head.make_loss()(TARGETS, LOGITS)
    np.testing.assert_allclose(found, reference(np.eye(3)[TARGETS], LOGITS), rtol=1e-5)


def test_a_negative_gamma_is_refused() -> None:
    with pytest.raises(BertkitError, match=r"gamma is -1; it must be 0 or more\."):
        FocalHead(gamma=-1)
