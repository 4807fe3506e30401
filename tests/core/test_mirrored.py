"""What varies a training, on two devices: it ends as on one."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.processes import ROOT, run

PROGRAM = """
import sys, tempfile
sys.path.insert(0, {root!r})
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

import bertkit
from bertkit.training.averaging import AveragedWeights
from bertkit.training.best import RestoreBest
from bertkit.training.groups import ParameterGroup
from bertkit.training.optimizer import AdamW
from bertkit.training.unfreezing import GradualUnfreezing
from tests.tiny_models import LABELS, TEXTS, tiny_model

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
ROWS, Y = TEXTS[:8] * 2, LABELS["binary"][:8] * 2  # even batches, whose halves count the same

def made(lora=False, **options):
    # Weights this large have gradients that matter.
    model = tiny_model(dropout=0.0, attention_dropout=0.0, initializer_range=0.3)
    model.head.dropout = 0.0
    if lora:
        model.encoder.enable_lora(2, 4)
    # With a larger epsilon no tiny difference of gradients becomes one of updates.
    model.compile(AdamW(3e-2, epsilon=0.01, use_ema=True, ema_momentum=0.5, **options))
    return model

def mirrored(**options):
    with strategy.scope():
        return made(**options)

class Interrupt(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if self.model.optimizer.iterations == 3:
            raise KeyboardInterrupt

def weights_of(model):
    return [np.array(weight) for weight in model.weights if weight.dtype.startswith("float")]

def results(model, *callbacks):
    history = model.fit(
        ROWS, Y, batch_size=8, epochs=2, verbose=0, callbacks=[AveragedWeights(), *callbacks],
        validation_data=(TEXTS[:8], LABELS["binary"][:8]),
    ).history
    return [*weights_of(model), history["val_loss"]]

def assert_close(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)

group = ParameterGroup("head|lora_up", 0.5, 0.1)
options = {{"lora": True, "parameter_groups": [group], "global_clipnorm": 0.5}}
two = mirrored(**options)
ended = results(two, RestoreBest())
one = made(**options)  # now, since it seeds the order of the rows
assert_close(ended, results(one, RestoreBest()))
for model in (two, one):
    model.encoder.merge_lora()
assert_close(weights_of(two), weights_of(one))
print("lora, groups, averages, the best")

whole = results(mirrored(), GradualUnfreezing())
assert_close(whole, results(made(), GradualUnfreezing()))
print("unfreezing")

with tempfile.TemporaryDirectory() as folder:
    def checkpointed(*callbacks):
        checkpoint = bertkit.Checkpoint(folder, 0, on_note=print)
        return results(mirrored(), GradualUnfreezing(), checkpoint, *callbacks)

    try:
        checkpointed(Interrupt())
    except KeyboardInterrupt:
        print("interrupted")
    assert_close(checkpointed(), whole)
"""


def test_two_devices(tmp_path: Path) -> None:
    program = tmp_path / "mirrored.py"
    program.write_text(PROGRAM.format(root=str(ROOT)))
    printed = run([sys.executable, program], tmp_path).splitlines()
    assert printed == [
        "lora, groups, averages, the best",
        "unfreezing",
        "interrupted",
        "Going on from a checkpoint: epoch 2 of 2, 1 of 2 batches done.",
    ]
