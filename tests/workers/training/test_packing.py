"""What of a batch reaches a model's passes."""

from __future__ import annotations

import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict

from workers.training.packing import without_row_objects


def batch(images) -> TensorDict:
    data = TensorDict({"input_ids": torch.tensor([[1, 2], [3, 4]])}, batch_size=2)
    data["temperature"] = NonTensorData(0.7)
    data["raw_prompt"] = NonTensorStack.from_list([NonTensorData("a"), NonTensorData("b")])
    data["multi_modal_inputs"] = NonTensorStack.from_list([NonTensorData(row) for row in images])
    return data


def test_rows_leave_their_objects_behind():
    data = batch([{}, {}])
    kept = without_row_objects(data)
    assert set(kept.keys()) == {"input_ids", "temperature"} and kept["temperature"] == 0.7
    assert kept["input_ids"] is data["input_ids"] and "raw_prompt" in data  # no copy, and the batch is as it was


def test_inputs_of_another_modality_stay():
    kept = without_row_objects(batch([{}, {"pixels": torch.ones(3)}]))
    assert set(kept.keys()) == {"input_ids", "temperature", "multi_modal_inputs"}
