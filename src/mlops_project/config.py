"""The one typed schema of `configs/`: meaning, unit, range and default of every key.

`--help`, the range checks and the did-you-mean suggestions are all made from these fields.
Hydra composes the YAML files of `configs/` and the command line onto them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional, Union

METRICS = ("loss", "accuracy", "balanced_accuracy", "f1_score", "auroc")  # of each epoch
DEFAULT_IMAGE_SIZE = 224  # pixels, of a network that was not designed for another one
MONITORABLE = tuple(f"{split}_{name}" for split in ("val", "train") for name in METRICS)


def key(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[Any, ...] = (),
    words: tuple[str, ...] = (),
    source: str = "",
    resume: str = "same",
) -> Any:
    """A dataclass field with what a user needs to know about it.

    Args:
        default: value where neither a YAML file nor the command line gives one.
        meaning: one sentence for `--help`.
        unit: unit of a number, e.g. ``"degrees"``.
        minimum: smallest number allowed; `maximum`: largest; `above`, `below`: exclusive bounds.
        choices: the only values allowed.
        words: words allowed beside numbers, e.g. ``("auto",)``.
        source: publication or library a default comes from.
        resume: what a resumed run may be given: "same" value only; "fixed", the same even with
            training.allow_changes, for what a checkpoint holds is made for it; "longer" (not
            smaller); or "free", where the value only lengthens or watches the run, or says where
            things are.
    """
    metadata = {
        "meaning": meaning,
        "unit": unit,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "below": below,
        "choices": choices,
        "words": words,
        "source": source,
        "resume": resume,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ArchitectureConfig:
    """Layers of baseline_cnn (no other model reads them)."""

    conv_blocks: int = key(
        4, "convolution blocks, each halving the image", minimum=1, maximum=8, resume="fixed"
    )
    channels: list[int] = key(
        [32, 64, 128, 256], "output channels of each block", minimum=1, resume="fixed"
    )
    classifier_hidden: int = key(
        128, "units of the hidden layer before the head", minimum=1, resume="fixed"
    )


@dataclass
class ModelConfig:
    """The network, and the learning rate that suits it."""

    name: str = key(
        "baseline_cnn",
        "which network",
        choices=("baseline_cnn", "resnet", "efficientnet", "timm"),
        resume="fixed",
    )
    num_classes: int = key(
        2,
        "2: benign or malignant (mel, bcc, akiec); 7: the diagnoses",
        choices=(2, 7),
        resume="fixed",
    )
    variant: Optional[str] = key(
        None,
        "resnet: 18, 34, 50, 101; efficientnet: b0 to b4; timm: any name timm knows",
        resume="fixed",
    )
    pretrained: Union[bool, str] = key(
        "auto",
        "ImageNet weights: auto takes them when they can be had within 5 s, true insists",
        choices=("auto", True, False),
    )
    pretrained_path: Optional[str] = key(
        None, "local .safetensors or .pth file with the weights to start from"
    )
    init_from: Optional[str] = key(None, "checkpoint of an earlier run whose weights to start from")
    dropout_rate: Optional[float] = key(
        None, "dropout before the head (none: the network's own)", minimum=0, below=1
    )
    drop_path_rate: Optional[float] = key(
        None,
        "about the chance that a training image skips the last residual block; earlier blocks "
        "less, in proportion to their depth (none: the network's own)",
        minimum=0,
        below=1,
        source="Huang et al., Deep Networks with Stochastic Depth, ECCV 2016",
    )
    learning_rate: float = key(
        1e-3, "learning rate, where training.learning_rate is not set", above=0
    )
    weight_decay: float = key(
        1e-2, "weight decay, where training.weight_decay is not set", minimum=0, resume="fixed"
    )
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)


@dataclass
class DataConfig:
    """From files to batches: where the images are, how they are split, sized and augmented."""

    name: str = key(
        "ham10000", "which data: demo generates synthetic images", choices=("ham10000", "demo")
    )
    data_dir: str = key("data/ham10000", "folder with the images and the table", resume="free")
    cache: str = key(
        "auto",
        "folder for decoded images (auto: data/cache; off: decode each image whenever it is shown)",
        words=("auto", "off"),
        resume="free",
    )
    device_cache: Union[bool, str] = key(
        "auto",
        "keep the decoded images in the device's memory (auto: on a GPU with room for them)",
        choices=("auto", True, False),
        resume="free",
    )
    image_size: Optional[int] = key(
        None,
        f"side of the square the network sees (none: the variant's own, else {DEFAULT_IMAGE_SIZE})",
        unit="pixels",
        minimum=16,
        maximum=1024,
    )
    start_size: Optional[int] = key(
        None,
        "side of the training images in the first epoch, which grows evenly to data.image_size in "
        "the last: early epochs are cheaper (none: all epochs alike)",
        unit="pixels",
        minimum=16,
        maximum=1024,
        source="Tan, Le, EfficientNetV2, ICML 2021",
    )
    crop_fraction: float = key(
        0.875,
        "share of the resized image's side that a crop keeps: random in training, else the centre",
        above=0.3,
        maximum=1,
        source="timm's crop_pct of ResNet and EfficientNet-B0",
    )
    batch_size: Union[int, str] = key(
        32,
        "images a step (auto: by trial, the smallest that is about as fast as any)",
        minimum=1,
        words=("auto",),
    )
    num_workers: Union[int, str] = key(
        "auto",
        "processes that prepare batches (auto: by trial; none where the cache is faster without)",
        minimum=0,
        words=("auto",),
        resume="free",
    )
    pin_memory: Union[bool, str] = key(
        "auto",
        "page-locked batches, for copies to a GPU",
        choices=("auto", True, False),
        resume="free",
    )
    persistent_workers: bool = key(False, "keep the workers between epochs", resume="free")
    val_fraction: float = key(0.15, "share of the images for validation", above=0, below=0.5)
    test_fraction: float = key(
        0.15, "share of the images for the test; 0: no test split", minimum=0, below=0.5
    )
    folds: Optional[int] = key(
        None,
        "cross-validation: parts that all but the test split is dealt into, instead of "
        "data.val_fraction",
        minimum=2,
        maximum=100,
    )
    fold: int = key(0, "which of data.folds is the validation split, from 0", minimum=0)
    subsample_percentage: float = key(
        1.0, "fraction of the data to use (0.1 = 10 %), in whole lesions", above=0, maximum=1
    )
    stratified_sampling: bool = key(True, "subsampling keeps the class balance")
    augment: bool = key(True, "augment the training images (false switches all of it off)")
    horizontal_flip: float = key(0.5, "probability of a left-right flip", minimum=0, maximum=1)
    vertical_flip: float = key(0.5, "probability of an up-down flip", minimum=0, maximum=1)
    transpose: float = key(0.0, "probability of exchanging rows and columns", minimum=0, maximum=1)
    rotation_degrees: float = key(
        15.0, "rotation by an angle from minus to plus this", unit="degrees", minimum=0, maximum=180
    )
    zoom: float = key(
        0.0, "scale by a factor from 1 / (1 + this) to 1 + this", minimum=0, maximum=1
    )
    color_jitter: float = key(
        0.1,
        "brightness, contrast and saturation times a factor from 1 minus to 1 plus this",
        minimum=0,
        maximum=1,
    )
    hue: float = key(
        0.0,
        "turn of all hues by a share of the colour circle from minus to plus this (0: off, for "
        "colour is diagnostic here)",
        minimum=0,
        maximum=0.5,
    )
    random_erasing: float = key(
        0.0, "probability of erasing a rectangle of an image", minimum=0, maximum=1
    )
    randaugment: int = key(
        0,
        "magnitude of two random operations an image (0: off)",
        minimum=0,
        maximum=30,
        source="Cubuk et al., RandAugment, NeurIPS 2020",
    )
    mixup: float = key(
        0.0,
        "alpha of the blend of two images and their labels (0: off)",
        minimum=0,
        source="Zhang et al., mixup, ICLR 2018",
    )
    cutmix: float = key(
        0.0,
        "alpha of the rectangle pasted from another image (0: off)",
        minimum=0,
        source="Yun et al., CutMix, ICCV 2019",
    )
    sampler: str = key(
        "shuffle",
        "shuffle: each image once an epoch; balanced: each class equally often; square_root: each "
        "as often as the square root of its number of images",
        choices=("shuffle", "square_root", "balanced"),
    )
    preview: bool = key(
        False, "save a picture of images before and after augmentation", resume="free"
    )


@dataclass
class TrainingConfig:
    """From a network and batches to a run."""

    # Optimisation
    learning_rate: Optional[Union[float, str]] = key(
        None,
        "learning rate of the head (none: the model's; auto: found by a range test)",
        above=0,
        words=("auto",),
    )
    weight_decay: Optional[float] = key(
        None, "weight decay, not on norms and biases (none: the model's)", minimum=0, resume="fixed"
    )
    optimizer: str = key(
        "adamw", "adamw, adam, sgd, rmsprop, lion, or any name timm knows", resume="fixed"
    )
    lr_scheduler: str = key(
        "cosine",
        "how the learning rate changes after the warm-up",
        choices=("none", "cosine", "reduce_on_plateau", "step", "onecycle", "polynomial"),
    )
    warmup_epochs: float = key(
        0.0,
        "epochs over which the learning rate rises linearly",
        unit="epochs",
        minimum=0,
        maximum=1_000_000,
    )
    min_learning_rate: float = key(0.0, "floor of the learning rate's schedule", minimum=0)
    lr_patience: int = key(
        5, "reduce_on_plateau: epochs without improvement it waits", unit="epochs", minimum=0
    )
    lr_factor: float = key(
        0.1, "reduce_on_plateau and step: factor of each reduction", above=0, below=1
    )
    lr_step_epochs: int = key(10, "step: epochs between reductions", unit="epochs", minimum=1)
    lr_power: float = key(
        0.9, "polynomial: exponent", above=0, source="Chen et al., DeepLab, TPAMI 2018"
    )
    accumulate_grad_batches: int = key(1, "batches whose gradients make one step", minimum=1)
    gradient_clip_val: Optional[float] = key(None, "largest gradient norm or value", above=0)
    gradient_clip_algorithm: str = key(
        "norm", "clip the norm of all gradients, or each value", choices=("norm", "value")
    )
    ema_decay: float = key(
        0.0,
        "decay a step of the weights' moving average, which is evaluated and saved (0: off)",
        minimum=0,
        below=1,
    )

    # Loss
    loss: str = key("cross_entropy", "loss of an image", choices=("cross_entropy", "focal"))
    focal_gamma: float = key(
        2.0, "focal: focus on hard images", minimum=0, source="Lin et al., Focal Loss, ICCV 2017"
    )
    class_weights: str = key(
        "none",
        "balanced: weight the classes by the inverse of their frequency",
        choices=("none", "balanced"),
    )
    logit_adjustment: float = key(
        0.0,
        "tau: in training, tau log(frequency) of each class is added to its logit, so that the "
        "network itself takes all classes for equally frequent (0: off; 1: wholly; above 1: rare "
        "ones for more frequent)",
        minimum=0,
        source="Menon et al., Long-tail learning via logit adjustment, ICLR 2021",
    )
    label_smoothing: float = key(
        0.0,
        "share of the target spread over the classes: evenly, or with logit_adjustment as often as "
        "they are shown, to the power of tau",
        minimum=0,
        below=1,
    )

    # How long, and what is kept
    max_epochs: int = key(
        20, "passes over the training images", unit="epochs", minimum=1, resume="longer"
    )
    max_time: Optional[str] = key(None, "stop after this long, as DD:HH:MM:SS", resume="free")
    early_stopping_patience: int = key(
        10,
        "epochs without improvement before stopping (0: never)",
        unit="epochs",
        minimum=0,
        resume="free",
    )
    monitor_metric: str = key(
        "val_loss",
        "metric that picks the best epoch and stops early",
        choices=MONITORABLE,
        resume="fixed",
    )
    save_top_k: int = key(
        3, "best checkpoints to keep (0: only last.ckpt)", minimum=0, resume="free"
    )
    save_last: bool = key(True, "keep last.ckpt, which a run resumes from", resume="free")
    checkpoint_every_n_steps: Optional[int] = key(
        None, "also save last.ckpt after each so many steps", unit="steps", minimum=1, resume="free"
    )
    checkpoint_every_minutes: Optional[float] = key(
        10.0,
        "also save last.ckpt this often within an epoch",
        unit="minutes",
        above=0,
        resume="free",
    )
    resume_from_checkpoint: Optional[str] = key(
        None,
        "checkpoint of a run to continue (auto: of the newest unfinished one with these settings)",
        resume="free",
    )
    allow_changes: bool = key(
        False, "let a resumed run have other settings than before", resume="free"
    )
    limit_train_batches: Optional[int] = key(None, "training batches an epoch", minimum=1)
    limit_val_batches: Optional[int] = key(None, "validation batches an epoch", minimum=1)
    on_nonfinite: str = key(
        "stop",
        "what a loss that is not finite does: stop the run, or skip the step",
        choices=("stop", "skip"),
        resume="free",
    )
    max_skipped_steps: int = key(
        10, "steps that on_nonfinite=skip may skip in a run", unit="steps", minimum=1, resume="free"
    )

    # Transfer learning
    freeze_backbone_epochs: int = key(
        0, "epochs that train only the head", unit="epochs", minimum=0
    )
    unfreeze_lr_factor: float = key(
        1.0,
        "learning rate of the backbone as a factor of the head's",
        above=0,
        maximum=10,
        resume="fixed",
    )
    progressive_unfreezing: bool = key(
        False, "free the backbone's stages from the head down, at the epochs of unfreeze_schedule"
    )
    unfreeze_schedule: list[int] = key(
        [5, 10, 15],
        "epochs, from 0, that free the next stage; the last one frees the rest",
        minimum=0,
    )
    layer_decay: float = key(
        1.0,
        "learning rate of a stage as a factor of the next one's",
        above=0,
        maximum=1,
        resume="fixed",
    )

    # Device
    accelerator: str = key("auto", "device to train on", choices=("auto", "cpu", "gpu", "mps"))
    devices: Union[int, str] = key("auto", "how many devices", minimum=1, words=("auto",))
    strategy: str = key(
        "auto", "how several devices share the work", choices=("auto", "ddp", "fsdp")
    )
    process_timeout: int = key(
        45,
        "how long a process waits for the others before the job ends (several devices)",
        unit="seconds",
        minimum=5,
        maximum=1_000_000,
        resume="free",
    )
    precision: str = key(
        "auto",
        "numbers of the forward pass (16: float16 on a GPU, bfloat16 on a CPU; auto: bfloat16 "
        "where the device computes faster with it, else 32)",
        choices=("auto", "16", "16-mixed", "bf16", "bf16-mixed", "32", "32-true"),
    )
    amp_backend: str = key(
        "native",
        "mixed precision is PyTorch's own, NVIDIA Apex is no longer needed",
        choices=("native",),
    )
    channels_last: Union[bool, str] = key(
        "auto",
        "keep the channels of a pixel together in memory (auto: where that is faster)",
        choices=("auto", True, False),
    )
    compile: Union[bool, str] = key(
        "auto",
        "compile the network, and on a GPU augmentation, with torch.compile (auto: where it is "
        "faster and the run long enough)",
        choices=("auto", True, False),
    )
    enable_checkpointing: bool = key(
        False, "recompute activations in the backward pass (gradient checkpointing): less memory"
    )

    # What is shown
    progress_bar: str = key(
        "rich", "progress display", choices=("rich", "tqdm", "none"), resume="free"
    )
    log_every_n_steps: int = key(
        10, "steps between logged losses", unit="steps", minimum=1, resume="free"
    )
    profiler: str = key(
        "none",
        "where the time goes, as a file in the run's folder",
        choices=("none", "simple", "advanced", "pytorch"),
        resume="free",
    )


@dataclass
class WandbConfig:
    """Weights & Biases."""

    enabled: bool = key(False, "log the run to Weights & Biases", resume="free")
    project: str = key("skin-lesion-classification", "project the run belongs to", resume="free")
    entity: Optional[str] = key(None, "user or team (none: your default)", resume="free")
    name: Optional[str] = key(None, "name of the run (none: its folder's)", resume="free")
    tags: list[str] = key([], "labels to find the run by", resume="free")
    log_model: bool = key(False, "upload the best checkpoint", resume="free")
    log_code: bool = key(False, "upload the source code", resume="free")
    watch_model: str = key(
        "none",
        "histograms to log",
        choices=("none", "gradients", "parameters", "all"),
        resume="free",
    )


@dataclass
class Config:
    """Everything a run depends on."""

    seed: int = key(42, "seed of every random choice", minimum=0, maximum=2**32 - 1)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
