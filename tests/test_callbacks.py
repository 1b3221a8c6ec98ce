"""Routing is logged while a model trains, and training goes on as if nobody had looked."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from moe_probe import dynamic, load
from moe_probe.callbacks import RoutingCallback
from moe_probe.errors import OutOfRange, WrongType

CKPT = Path(__file__).parents[1] / "ckpt" / "tiny-mixtral"
TEXTS = [[4, 9, 5, 9, 7, 11, 30, 31], [8, 9, 4, 12, 6, 50, 60]]


def trainer(folder, steps=4):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(CKPT, dtype=torch.float32)
    data = [
        {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)}
        for ids in np.random.default_rng(0).integers(5, 500, (16, 8))
    ]
    arguments = TrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=2,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        learning_rate=1e-2,
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    return Trainer(model, arguments, train_dataset=data)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    one = trainer(tmp_path_factory.mktemp("watched"))
    callback = RoutingCallback(one, TEXTS, every=2, share=None, most_drift=1.0, least_entropy=0.0)
    one.add_callback(callback)
    one.train()
    return one, callback


def test_numbers_are_in_the_trainers_history_with_their_steps(watched):
    history = [entry for entry in watched[0].state.log_history if "routing/entropy" in entry]
    assert [entry["step"] for entry in history] == [0, 2, 4]
    assert history[0]["routing/drift"] == 0
    assert history[-1]["routing/drift"] > 0


def test_numbers_are_those_of_the_analysis(watched):
    one, callback = watched
    ds = dynamic.expert_load(load(one.model), TEXTS, progress=False)
    found = callback.measure()
    assert found["routing/entropy"] == pytest.approx(float(ds.entropy.min()))
    assert found["routing/dead"] == int((ds.selections == 0).sum())


def test_training_is_that_of_a_trainer_that_nobody_watches(watched, tmp_path):
    alone = trainer(tmp_path)
    alone.train()
    for (name, one), other in zip(alone.model.named_parameters(), watched[0].model.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert watched[0].model.training == alone.model.training


def test_looks_that_take_too_long_are_left_out(tmp_path):
    one = trainer(tmp_path)
    one.add_callback(RoutingCallback(one, TEXTS, every=1, share=0.0))
    one.train()
    assert [entry["step"] for entry in one.state.log_history if "routing/entropy" in entry] == [0]


def test_thresholds_warn(tmp_path):
    one = trainer(tmp_path)
    one.add_callback(RoutingCallback(one, TEXTS, every=4, share=None, least_entropy=1.0))
    with pytest.warns(UserWarning, match=r"Step 0: the entropy of a layer's load is 0\.\d\d"):
        one.train()


def test_numbers_out_of_range_are_refused(tmp_path):
    one = trainer(tmp_path)
    with pytest.raises(OutOfRange, match="every is 0"):
        RoutingCallback(one, TEXTS, every=0)
    with pytest.raises(OutOfRange, match="share is 2"):
        RoutingCallback(one, TEXTS, share=2)
    with pytest.raises(WrongType, match="needs texts"):
        RoutingCallback(one)
