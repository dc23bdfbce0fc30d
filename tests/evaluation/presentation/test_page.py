"""The page of an evaluation: one file that loads nothing, says what is missing and does no harm."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mlops_project.evaluation import decisions
from mlops_project.evaluation.presentation.page import write_page
from mlops_project.evaluation.presentation.pictures import PICTURES, Picture, draw_pictures
from tests.evaluation.conftest import Example
from tests.evaluation.presentation.examples import (
    HOSTILE,
    make_facts,
    make_predictions,
    with_hostile_names,
    without_numbers,
)

VOID = {"meta", "img", "br", "link", "input", "hr"}
NO_NUMBER = re.compile(r"\b(nan|NaN|None|inf|Infinity|Undefined|undefined|null)\b")


class Page(HTMLParser):
    """A parsed page; every tag closes in the order it opened, as in XML.

    Attributes:
        tags: name and attributes of each, in order.
        text: all that is read, without script and style.
        raw: the contents of script and style, by name.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in self.raw:
            self.raw[self._open[-1]].append(data)
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def checked(path: Path) -> Page:
    """The page, after all that holds of any page."""
    page = Page(path)
    counts = Counter(a["id"] for _, a in page.tags if "id" in a)
    assert max(counts.values()) == 1
    for name, attributes in page.tags:
        assert not any(key.startswith("on") for key in attributes), (name, attributes)
        assert not {"srcset", "action", "data", "poster", "style", "xlink:href"} & set(attributes)
        if name == "img":
            kind, _, data = attributes["src"].removeprefix("data:image/").partition(";base64,")
            with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
                assert kind in ("png", "webp")
                assert image.format == kind.upper()
                assert image.size == (int(attributes["width"]), int(attributes["height"]))
            assert len(attributes["alt"]) > 20
        else:
            assert "src" not in attributes
        if "href" in attributes:
            assert attributes["href"][1:] in counts
        for key, value in attributes.items():
            if key != "src":
                assert not NO_NUMBER.search(value), (name, attributes)
        if name == "th":
            assert attributes["scope"] in ("row", "col")
        for key in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(key, next(iter(counts))) in counts
    assert {"base", "link", "iframe", "object", "embed", "form"}.isdisjoint(t for t, _ in page.tags)
    assert len(page.all("table")) == len(page.all("caption"))
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == len(page.all("title")) == 1
    assert not NO_NUMBER.search(page.text), NO_NUMBER.findall(page.text)
    assert "not a medical device" in page.text
    # The only script and the only style are those that the page allows.
    policy = page.all("meta")[1]["content"]
    assert policy.startswith("default-src 'none';")
    for kind in ("script", "style"):
        (text,) = page.raw[kind]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
        assert "://" not in text
        assert "@import" not in text
    return page


@pytest.fixture(scope="module")
def pictures(seven_classes: Example, example_folder: Path) -> list[Picture]:
    return draw_pictures(*seven_classes, example_folder)


def test_the_whole_page(example: Example, example_folder: Path, pictures: list[Picture]) -> None:
    facts, predictions = example
    path = write_page(facts, pictures, example_folder, predictions)
    assert path == example_folder / "report.html"
    page = checked(path)
    sections = [a["id"] for a in page.all("section")]
    assert sections == [
        *("summary", "metrics", "classes", "operating-points", "calibration", "patients"),
        "prediction-sets",
        *("subgroups", "leaks", "out-of-distribution", "abstention", "comparison"),
        *("explanations", "pictures", "settings"),
    ]
    images = page.all("img")
    assert len(images) == len(PICTURES) + len(facts["explanations"])
    told = [i["alt"].replace("\N{NO-BREAK SPACE}", " ") for i in images[-len(PICTURES) :]]
    assert told == [p.alternative_text for p in pictures]
    sources = {i["src"].partition(",")[2] for i in images}
    for picture in pictures:
        assert base64.b64encode(picture.path.read_bytes()).decode() in sources
    assert "://" not in path.read_text()


def test_the_summary_says_what_the_numbers_say(example: Example, tmp_path: Path) -> None:
    facts, predictions = example
    point = facts["operating_points"]["malignant"]
    point["threshold"] = 0.1234
    evaluated = point["evaluated"]
    evaluated["sensitivity"] = {"value": 0.881, "ci95": [0.83, 0.92]}
    evaluated["specificity"] = {"value": 0.79, "ci95": [0.76, 0.82]}
    evaluated["ppv"] = {"value": 0.001, "ci95": [0, 0.01]}
    facts["operating_points"]["melanoma"] = {"threshold": None, "gap": "no such image"}
    facts["abstention"]["at"] = [{"coverage": 1.0, "error": 0.2}, {"coverage": 0.8, "error": 0.1}]
    text = " ".join(checked(write_page(facts, [], tmp_path, predictions)).text.split())
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "Of 100 images of malignant lesions it finds about 88 (95 % interval 83 to 92) at the "
        "threshold chosen on the validation images (a calibrated probability of 12 %, akiec, bcc "
        "and mel together); of 100 of "
        "benign ones it raises a false alarm for about 21 (95 % interval 18 to 24). Of 100 alarms "
        "fewer than 1 "
        "(95 % interval 0 to 1) are right here"
    ) in text
    found = facts["per_class"]["mel"]["sensitivity"]
    low, high = facts["per_class_ci95"]["mel"]["sensitivity"]
    assert (
        f"Of 100 images of melanomas it finds about {100 * found:.0f} (95 % interval "
        f"{100 * low:.0f} to {100 * high:.0f}) where it is the most probable class (no threshold "
        "was chosen)"
    ) in text
    assert "melanoma: no such image" in text
    assert "about 10 of 100 of its answers are wrong; with them, about 20" in text
    assert facts["subgroups"]["skin_tone"] in text
    gap = facts["subgroups"]["largest_gap"]
    assert f"“{gap['worse']}” than for “{gap['better']}”" in text
    # Too sure, or not: by the calibrated probabilities
    columns = [str(c) for c in predictions if str(c).startswith("calibrated_")]
    sure = predictions[columns].max(axis=1).mean()
    right = (predictions["y_true"] == predictions["y_pred"]).mean()
    assert abs(sure - right) < 0.02
    assert "neither too sure on the whole nor too unsure" in text
    surest = predictions.copy()
    surest[columns[0]] = 1.0
    assert "on the whole it is too sure" in checked(write_page(facts, [], tmp_path, surest)).text


def test_of_a_few_images_the_summary_says_no_numbers(example: Example, tmp_path: Path) -> None:
    facts, predictions = example
    few = predictions.drop(predictions.index[predictions["y_true"] == "mel"][3:])
    text = checked(write_page(facts, [], tmp_path, few)).text
    assert "There are 3 images of melanomas: too few to say how many it finds." in text
    assert "Of 100 images of malignant lesions it finds" in text


def test_what_makes_the_numbers_mean_less_stands_at_the_top(
    example: Example, tmp_path: Path
) -> None:
    facts, predictions = example
    facts |= {"synthetic": True, "split": "val"}
    text = checked(write_page(facts, [], tmp_path, predictions)).text
    top = text[: text.index("In plain words")]
    assert "SYNTHETIC DATA" in top
    assert facts["leaks"]["sentence"] in top
    assert "validation images among these" in top
    assert facts["out_of_distribution"]["caution"].capitalize() in top
    assert facts["gaps"][0].capitalize() in top
    facts |= {"synthetic": False, "split": "test", "gaps": [], "leaks": {"status": "clean"}}
    del facts["out_of_distribution"]
    assert "Beware" not in checked(write_page(facts, [], tmp_path, predictions)).text
    facts["leaks"] = {"status": "unknown"}
    assert "is unknown" in checked(write_page(facts, [], tmp_path, predictions)).text


def test_a_calibration_says_what_it_takes_the_classes_for(example: Example, tmp_path: Path) -> None:
    facts, predictions = example
    words = "trained to expect the classes more or less often than they occur"
    plain = write_page(facts, [], tmp_path, predictions).read_text(encoding="utf-8")
    assert words not in plain
    names = facts["class_names"]
    adjusted = {**facts["calibration"], "prior": dict.fromkeys(names, 0.5)}
    path = write_page({**facts, "calibration": adjusted}, [], tmp_path, predictions)
    text = " ".join(path.read_text(encoding="utf-8").split())
    assert words in text
    reached = [adjusted[when]["balanced_accuracy"]["value"] for when in ("after", "before")]
    told = (
        "again expected as often as the network was trained to, reach a balanced accuracy of {:.3f}"
    )
    assert f"{told}, the network's own {{:.3f}}.".format(*reached) in text


def test_groups_with_too_few_lesions_are_counted_and_not_listed(
    example: Example, tmp_path: Path
) -> None:
    """A table may name another clinic for each image."""
    facts, predictions = example
    groups = facts["subgroups"]["groups"]
    few = sum("gap" in own for known in groups.values() for own in known.values())
    sizes = []
    for more in (0, 3000):
        one = {"n_images": 1, "n_lesions": 1, "n_malignant": 0, "gap": "too few lesions"}
        groups["dataset"] |= {f"clinic {n}": one for n in range(more)}
        folder = tmp_path / str(more)
        pictures = draw_pictures(facts, predictions, folder)
        page = write_page(facts, pictures, folder, predictions)
        text = checked(page).text
        assert f"{few + more} groups with too few lesions." in text
        assert "clinic" not in text
        assert "vidir_modern" in text
        (picture,) = [p for p in pictures if p.path.stem == "subgroups"]
        assert picture.alternative_text.endswith(f"; without a value: {few + more}.")
        with Image.open(picture.path) as image:
            sizes.append((image.size, page.stat().st_size // 20_000))
    assert sizes[0] == sizes[1]


def test_a_dash_says_why_there_is_no_number(example: Example, tmp_path: Path) -> None:
    facts, predictions = example
    facts["per_class"]["df"] |= {"ppv": float("nan"), "auroc": None}
    facts["metrics"]["auroc"]["ci95"] = [float("nan"), float("nan")]
    page = checked(write_page(facts, [], tmp_path, predictions))
    reasons = Counter(a["title"] for a in page.all("abbr"))
    assert reasons["no image was taken for the class"] >= 1
    assert reasons["needs images of the class and of others"] >= 1
    assert reasons["resampling the lesions gives no interval"] >= 1
    missing = sum("data-missing" in a for a in page.all("td"))
    assert page.text.count("–") >= missing


def test_whatever_is_missing_the_page_is_whole(example: Example, tmp_path: Path) -> None:
    facts, predictions = example
    for key in facts:
        checked(write_page({k: v for k, v in facts.items() if k != key}, [], tmp_path, predictions))
        checked(write_page(facts | {key: None}, [], tmp_path, predictions))
    empty = checked(write_page({}, [], tmp_path, pd.DataFrame()))
    assert "No audit was made" in empty.text


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_without_a_single_number_the_page_is_whole(
    example: Example, tmp_path: Path, value: float | None
) -> None:
    facts, predictions = example
    facts = without_numbers(facts, value)
    page = checked(write_page(facts, [], tmp_path, predictions))
    assert sum("data-missing" in a for a in page.all("td")) > 100
    assert "about" not in page.text[: page.text.index("Metrics")].replace("says about", "")


def test_unlabelled_images_have_a_page(example: Example, tmp_path: Path) -> None:
    facts, predictions = example
    names = ("checkpoint", "model", "split", "n_images", "class_names", "out_of_distribution")
    known = {n: facts[n] for n in names}
    unlabelled = predictions.assign(y_true="")
    pictures = draw_pictures(known, unlabelled, tmp_path)
    assert pictures == []
    page = checked(write_page(known, pictures, tmp_path, unlabelled))
    assert [a["id"] for a in page.all("section")] == [
        *("predicted", "leaks", "out-of-distribution", "settings")
    ]
    assert "No diagnoses of these images are known" in page.text
    count = (predictions["y_pred"] == "nv").sum()
    assert {"data-value": str(count)} in page.all("td")
    names = facts["class_names"]
    given = names, make_predictions(400, 7, seed=2), unlabelled, 0.9, np.zeros(7)
    decided, _ = decisions.decide(*given)
    decided["with_patient_data"], _ = decisions.decide(*given, with_patients=True)
    page = checked(write_page(known | decided, [], tmp_path, unlabelled))
    assert [a["id"] for a in page.all("section")] == [
        *("predicted", "operating-points", "calibration", "patients"),
        *("leaks", "out-of-distribution", "settings"),
    ]
    assert not any("data-missing" in a for a in page.all("td"))
    assert "400 validation images" in page.text


def test_one_image_has_a_page(tmp_path: Path) -> None:
    facts, predictions = make_facts(tmp_path, images=1)
    pictures = draw_pictures(facts, predictions, tmp_path)
    checked(write_page(facts, pictures, tmp_path, predictions))


def test_names_do_no_harm(example: Example, example_folder: Path, tmp_path: Path) -> None:
    facts, predictions = with_hostile_names(*example)
    pictures = [
        Picture(example_folder / facts["explanations"][0]["picture"], name, f"Numbers: {name}")
        for name in HOSTILE
    ]
    path = write_page(facts, pictures, example_folder, predictions)
    path = path.rename(tmp_path / "report.html")
    page = checked(path)
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert HOSTILE[0] in text
    assert HOSTILE[1] in text
    assert HOSTILE[4] in text
    assert "\u202e" not in text
    assert "\x00" not in text
    assert "alert" not in page.raw["script"][0]


def test_a_picture_that_cannot_be_read_is_left_out(example: Example, tmp_path: Path) -> None:
    facts, predictions = example
    (tmp_path / "explanations").mkdir()
    (tmp_path / facts["explanations"][0]["picture"]).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    facts["explanations"][1]["picture"] = None
    facts["explanations"][2]["picture"] = "\x00"
    (tmp_path / "svg.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    pictures = [Picture(tmp_path / n, "a title", "a text of words") for n in ("svg.png", "gone")]
    page = checked(write_page(facts, pictures, tmp_path, predictions))
    assert page.all("img") == []
    assert "Pictures" not in page.text
