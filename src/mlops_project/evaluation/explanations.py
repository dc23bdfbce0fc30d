"""Where in an image a network finds what speaks for its answer: Grad-CAM of telling images."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from mlops_project.data.augmentation import BatchAugmentation
from mlops_project.evaluation.predictions_table import columns_of
from mlops_project.evaluation.trained_model import TrainedModel
from mlops_project.files import atomic_write
from mlops_project.printable import printable

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = "explanations"
MISTAKE, SUCCESS = "mistake", "success"
FACTS = ("image_id", "lesion_id", "y_true", "y_pred", "probability", "kind")  # of each picture
EACH = 2  # images of a kind and class
BATCH = 16  # images at once
NO_PICTURES = "no pictures of what the network looks at: "

# Of a picture, pixels.
SIDE, GAP, FONT_SIZE, LINE = 224, 8, 13, 19
# Perceptually uniform, and none of its bright colours is one of skin.
COLOURS = "viridis"
STRONGEST = 0.6  # opacity of the largest heat


def choose(predictions: pd.DataFrame, class_names: Sequence[str], each: int = EACH) -> pd.DataFrame:
    """The images to explain: each class's worst mistakes, then its typical successes.

    A mistake is the worse the more probable its wrong class is. A success is the more typical the
    nearer its probability is to the median of the class's successes; the most certain ones would
    flatter. Of one lesion there is one image of a kind. What ties is ordered by image_id.

    Args:
        predictions: image_id, lesion_id, y_true and y_pred (names), probability_<class>; [N] rows.
        class_names: K.
        each: images of a kind and class, at most.

    Returns:
        image_id, lesion_id, y_true, y_pred, probability (of y_pred), kind ("mistake" or "success")
        and row (position in `predictions`), in the order of the classes; fewer where there are
        no more.
    """
    rows = np.arange(len(predictions))
    probabilities = predictions[columns_of(class_names)].to_numpy(dtype=float)
    predicted = pd.Index(class_names).get_indexer(pd.Index(predictions["y_pred"]))
    table = predictions[["image_id", "lesion_id", "y_true", "y_pred"]].assign(
        probability=probabilities[rows, predicted], row=rows
    )
    right = table["y_true"] == table["y_pred"]
    parts = []
    for name in class_names:
        own = table["y_true"] == name
        wrong, typical = table[own & ~right], table[own & right]
        distance = (typical["probability"] - typical["probability"].median()).abs()
        for kind, part, order in (
            (MISTAKE, wrong, -wrong["probability"]),
            (SUCCESS, typical, distance),
        ):
            ordered = part.assign(kind=kind, order=order).sort_values(["order", "image_id"])
            parts.append(ordered.drop_duplicates("lesion_id").head(each))
    return pd.concat(parts, ignore_index=True).drop(columns="order")


class _Watched(nn.Module):
    """A network whose last feature map, float [B, C, h, w], passes through `map`.

    Only what comes after the map is differentiated, so a gradient costs little time and memory.

    Args:
        network: in evaluation mode.
        tokens: whether the map is made of a transformer's tokens: those that its last block
            attends to, since most of its very last tokens no longer reach the head.
    """

    def __init__(self, network: nn.Module, *, tokens: bool) -> None:
        super().__init__()
        self.network: Any = network
        self.map = nn.Identity()
        self.tokens = tokens

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised float images [B, 3, S, S] to logits [B, K]."""
        if self.tokens:
            return self._through_tokens(images)
        with torch.no_grad():
            features = self.network.forward_features(images)
        if getattr(self.network, "output_fmt", "NCHW") == "NHWC":
            features = self.map(features.movedim(3, 1)).movedim(1, 3)
        else:
            features = self.map(features)
        return self.network.forward_head(features)

    def _through_tokens(self, images: torch.Tensor) -> torch.Tensor:
        first = getattr(self.network, "num_prefix_tokens", 0)  # such as that of the class

        def watch(_: nn.Module, __: Any, tokens: torch.Tensor) -> torch.Tensor:
            side = math.isqrt(tokens.shape[1] - first)
            grid = tokens[:, first:].mT.unflatten(2, (side, side))
            return torch.cat([tokens[:, :first], self.map(grid).flatten(2).mT], dim=1)

        fixed = {name: p.detach() for name, p in self.network.named_parameters()}
        hook = self.network.blocks[-1].norm1.register_forward_hook(watch)
        try:
            return torch.func.functional_call(self.network, fixed, (images,))
        finally:
            hook.remove()


def _watch(network: nn.Module, image: torch.Tensor) -> _Watched | None:
    """The network with its last feature map in view; None where it has none, or not a known one.

    Args:
        network: of `models.build`, in evaluation mode.
        image: normalised, float [1, 3, S, S], to try it with.
    """
    with torch.no_grad():
        expected = network(image)
        for tokens in (False, True):
            watched = _Watched(network, tokens=tokens)
            seen: list[Any] = []
            hook = watched.map.register_forward_hook(lambda _, inputs, __, s=seen: s.extend(inputs))
            try:
                logits = watched(image)
                shape = seen[0].shape
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
                continue  # it is built otherwise
            finally:
                hook.remove()
            same = torch.allclose(logits, expected, rtol=1e-3, atol=1e-4, equal_nan=True)
            # The images are square, and so are their maps; another shape is not [B, C, h, w].
            if same and len(shape) == 4 and shape[2] == shape[3]:
                return watched
    return None


def activation_maps(
    network: nn.Module, images: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor | None:
    """Grad-CAM of the last feature map: where a network finds what speaks for a class.

    Selvaraju et al., Grad-CAM, ICCV 2017: the channels of the map, weighted with the mean gradient
    of the class's logit, summed; what speaks against the class is cut off. The network stays as it
    is, its parameters' gradients included.

    Args:
        network: of `models.build`, in evaluation mode.
        images: normalised, float [B, 3, S, S], on the network's device, as the targets.
        targets: class to explain in each, int64 [B].

    Returns:
        Not negative, float [B, 1, h, w]; None where the network has no feature map.
    """
    from captum.attr import LayerGradCam

    watched = _watch(network, images[:1])
    if watched is None:
        return None
    method = LayerGradCam(watched, watched.map)
    maps = [
        method.attribute(part, target=target, relu_attributions=True).detach()
        for part, target in zip(images.split(BATCH), targets.split(BATCH), strict=True)
    ]
    return torch.cat(maps)


def explain(
    model: TrainedModel,
    chosen: pd.DataFrame,
    images: torch.Tensor,
    folder: Path,
    n_models: int = 1,
) -> tuple[list[dict[str, Any]], str | None]:
    """Draws each image beside itself with the evidence for its predicted class over it.

    The pictures are written to explanations/ in the folder, those of an earlier evaluation removed.

    Args:
        model: to explain; of an ensemble the first.
        chosen: of `choose`, [n] rows.
        images: of its rows, in its order, uint8 [n, 3, S, S].
        folder: of the evaluation, which exists.
        n_models: that the predictions come from.

    Returns:
        For each picture image_id, lesion_id, y_true, y_pred, probability, kind and picture (its
        path from the folder); and why there are none, if they cannot be made.
    """
    pictures = folder / FOLDER
    strengths, gap = _strengths(model, chosen, images) if len(chosen) else (np.empty(0), None)
    found: list[dict[str, Any]] = []
    if gap is None and len(chosen):
        pictures.mkdir(exist_ok=True)
        shown = images.cpu().numpy()
        rows = chosen.astype({"image_id": str, "lesion_id": str}).to_dict("records")
        for i, row in enumerate(rows):
            name = _file_name(i + 1, row["kind"], row["image_id"])
            picture = _draw(shown[i], strengths[i], _caption(row, strengths[i].any(), n_models))
            with atomic_write(pictures / name, "wb") as file:
                picture.save(file, format="png")
            facts = {key: row[key] for key in FACTS}
            found.append({**facts, "picture": f"{FOLDER}/{name}"})
    remove_others(pictures, {Path(facts["picture"]).name for facts in found})
    return found, gap


def _strengths(
    model: TrainedModel, chosen: pd.DataFrame, images: torch.Tensor
) -> tuple[np.ndarray, str | None]:
    """The evidence as share of its largest in the image, float32 [n, SIDE, SIDE]; or why none.

    All zero where nothing speaks for the predicted class.
    """
    from captum.attr import LayerAttribution

    device = next(model.network.parameters()).device
    facts = model.facts["preprocessing"]
    prepare = BatchAugmentation(mean=tuple(facts["mean"]), std=tuple(facts["std"])).to(device)
    batch = prepare(images.to(device), torch.zeros(len(images)), 0, training=False)
    targets = pd.Index(model.class_names).get_indexer(pd.Index(chosen["y_pred"]))
    maps = activation_maps(model.network, batch, torch.from_numpy(targets).to(device))
    name = model.config.model.variant or model.config.model.name
    if maps is None:
        return np.empty(0), f"{NO_PICTURES}{name} has no feature map that Grad-CAM can be made of"
    if maps[0].numel() == 1:
        size = f"images of {images.shape[-1]} pixels"
        return np.empty(0), f"{NO_PICTURES}the last feature map of {name} is 1 × 1 for {size}"
    # What overflows is no evidence.
    maps = maps.nan_to_num(0.0, posinf=0.0)
    heat = LayerAttribution.interpolate(maps, (SIDE, SIDE), "bilinear")
    assert isinstance(heat, torch.Tensor)
    peaks = heat.amax(dim=(2, 3), keepdim=True)
    return (heat / peaks.where(peaks > 0, 1.0))[:, 0].cpu().numpy(), None


def _caption(row: dict[Any, Any], has_heat: bool, n_models: int) -> list[str]:
    true, predicted = printable(row["y_true"], 20), printable(row["y_pred"], 20)
    lines = [f"true: {true}, predicted: {predicted} (probability {row['probability']:.3f})"]
    if has_heat:
        lines.append(f"yellow: speaks for {predicted}")
    else:
        lines.append(f"no positive evidence for {predicted}, so no heat")
    if n_models > 1:
        lines.append(f"heat of model 1 of {n_models}, probability of all")
    return lines


def _draw(image: np.ndarray, strength: np.ndarray, caption: Sequence[str]) -> Image:
    """An image beside itself with heat over it, and lines of text below.

    Args:
        image: uint8 [3, S, S].
        strength: of the heat, 0 to 1, float [SIDE, SIDE].
        caption: lines.
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    plain = Image.fromarray(image.transpose(1, 2, 0)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    opacity = STRONGEST * strength[..., None]
    colours = 255 * matplotlib.colormaps[COLOURS](strength)[..., :3]
    heated = np.asarray(plain) * (1 - opacity) + colours * opacity
    size = (2 * SIDE + 3 * GAP, SIDE + 3 * GAP + LINE * len(caption))
    picture = Image.new("RGB", size, "white")
    picture.paste(plain, (GAP, GAP))
    picture.paste(Image.fromarray(heated.round().astype(np.uint8)), (SIDE + 2 * GAP, GAP))
    # matplotlib's own font is the same everywhere and has the letters of most languages.
    file = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    text, font = ImageDraw.Draw(picture), ImageFont.truetype(str(file), FONT_SIZE)
    for i, line in enumerate(caption):
        text.text((GAP, SIDE + 2 * GAP + i * LINE), line, fill="black", font=font)
    return picture


def _file_name(number: int, kind: str, image_id: str) -> str:
    """The name of a picture's file, safe in a folder and in a link, however the image is called."""
    return f"{number:02d}_{kind}_{re.sub('[^A-Za-z0-9-]+', '_', image_id)[:60]}.png"


def remove_others(folder: Path, kept: Collection[str] = ()) -> None:
    """Removes the pictures of an earlier evaluation."""
    for path in folder.glob("*.png"):
        if path.name not in kept and re.match(rf"\d+_({MISTAKE}|{SUCCESS})_", path.name):
            path.unlink(missing_ok=True)
