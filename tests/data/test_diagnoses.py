"""From diagnoses to class indices."""

from __future__ import annotations

import pytest

from mlops_project.data.diagnoses import DIAGNOSES, class_names, labels
from mlops_project.errors import InputError


@pytest.mark.parametrize("num_classes", [2, 7])
def test_a_label_is_the_index_of_its_class_name(num_classes: int) -> None:
    names = class_names(num_classes)
    assert len(names) == num_classes
    named = [names[label] for label in labels(DIAGNOSES, num_classes)]
    if num_classes == 7:
        assert named == sorted(DIAGNOSES)
    else:  # Sci. Data 5:180161: melanoma and the carcinomata are malignant
        malignant = [dx for dx, name in zip(DIAGNOSES, named, strict=True) if name == "malignant"]
        assert malignant == ["akiec", "bcc", "mel"]


def test_unknown_diagnoses_are_counted_and_named() -> None:
    with pytest.raises(InputError) as refusal:
        labels(["nv", "scc", "mel", "scc", ""], 7)
    assert "3 images have an unknown diagnosis: 'scc' (2), '(empty)' (1)" in str(refusal.value)
    assert "Known: akiec, bcc" in str(refusal.value)
