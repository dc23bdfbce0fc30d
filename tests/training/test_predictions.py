import io

import torch

from mlops_project.training.predictions import START, Predictions


def _batches(sizes):
    start = 0
    for size in sizes:
        rows = torch.arange(start, start + size)
        yield {"rows": rows, "probabilities": torch.stack([rows / 7, 1 - rows / 7], dim=1)}
        start += size


def test_batches_are_joined_in_their_order():
    # Of different sizes, and more than there is room for at first.
    batches = list(_batches([32] * (START // 16) + [5, 1, 0]))
    predictions = Predictions()
    for batch in batches:
        predictions.add(batch)
    joined = predictions.joined()
    for name in ("rows", "probabilities"):
        assert torch.equal(joined[name], torch.cat([batch[name] for batch in batches]))


def test_a_batch_may_change_afterwards():
    predictions = Predictions()
    (batch,) = _batches([3])
    predictions.add(batch)
    batch["rows"].fill_(-1)
    joined = predictions.joined()
    predictions.add({name: values + 1 for name, values in batch.items()})
    assert joined["rows"].tolist() == [0, 1, 2]


def test_a_file_holds_the_images_and_not_the_room_for_more():
    predictions = Predictions()
    for batch in _batches([4]):
        predictions.add(batch)
    file = io.BytesIO()
    torch.save(predictions.joined()["rows"], file)
    assert len(file.getvalue()) < 8 * START


def test_without_a_batch_there_is_nothing():
    assert Predictions().joined() == {}
