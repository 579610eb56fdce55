"""The table of backbones: network, published weights, published preprocessing, feature layer.

A backbone is written NAME or NAME@SIZE, its store's folder is NAME_SIZE. Features are taken at
the penultimate layer, after global pooling. GFLOPs and parameters are those of the whole
published network, classifier included, as in the papers.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from extract import flops
from extract.preprocess import Preprocessing
from extract.sampling import SNIPPET_FRAMES
from extract.store import StoreIdentity

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_256_224 = Preprocessing(256, 224, IMAGENET_MEAN, IMAGENET_STD)
RANDOM_SEED = 0
FOLDED_GAP = 1e-4  # measured: 6e-6


class BackboneError(Exception):
    """A backbone or its weights cannot be had; the message says what to give instead."""


def _one_pathway(pixels: Tensor) -> Tensor:
    """By name and no lambda: backbones travel to other processes."""
    return pixels


@dataclass(frozen=True)
class Architecture:
    """A row of the table of backbones."""

    build: Callable[[], nn.Module]
    build_published: Callable[[], nn.Module]
    published: str  # the name of the published weights
    classifier: tuple[str, ...]  # the submodules that turn features into class scores
    preprocessing: Preprocessing
    default_size_px: int
    minimum_size_px: int = 32
    paper_gflops: float | None = None
    paper_size_px: int | None = None  # at which the paper counted; None: the default size
    segment_consensus: bool = False  # finetuned on the mean scores of a video's segments
    pathways: Callable[[Tensor], Any] = _one_pathway  # (N, 3, …) → the network's input


def _torchvision(name: str, classifier: str, size_px: int, paper_gflops: float) -> Architecture:
    return Architecture(
        build=lambda: torchvision.models.get_model(name, weights=None),
        build_published=lambda: torchvision.models.get_model(name, weights="IMAGENET1K_V1"),
        published="torchvision IMAGENET1K_V1",
        classifier=(classifier,),
        preprocessing=IMAGENET_256_224,
        default_size_px=size_px,
        paper_gflops=paper_gflops,
    )


def _timm(
    name: str, paper_gflops: float | None = None, *, segment_consensus: bool = False
) -> Architecture:
    """A model of timm with the preprocessing of its pretrained configuration.

    Raises: BackboneError if timm has no such model or its preprocessing is not a centre crop.
    """
    import timm

    if not timm.is_model(name.partition(".")[0]):
        near = ", ".join(timm.list_models(f"*{name.partition('.')[0][:8]}*")[:5])
        raise BackboneError(f"timm has no model {name!r}; near: {near or 'none'}")
    try:
        found = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise BackboneError(f"timm:{name}: {error}") from error
    if found is None:
        raise BackboneError(f"timm has no pretrained configuration {name!r}")
    config = found.to_dict()
    _, height, width = config["input_size"]
    mode, crop_pct = config.get("crop_mode", "center"), config["crop_pct"]
    inside = height == width and mode == "center" and crop_pct <= 1
    if not inside or config["interpolation"] not in ("bilinear", "bicubic"):
        raise BackboneError(
            f"timm:{name}: only square centre crops that lie inside the picture, bilinear or "
            f"bicubic, are supported; its own is {width} × {height}, {mode}, crop_pct {crop_pct}, "
            f"{config['interpolation']}"
        )
    classifier = config["classifier"]
    return Architecture(
        build=lambda: timm.create_model(name, pretrained=False),
        build_published=lambda: timm.create_model(name, pretrained=True),
        published=f"timm {name}",
        classifier=(classifier,) if isinstance(classifier, str) else tuple(classifier),
        preprocessing=Preprocessing(
            resize_px=int(height / crop_pct),
            crop_px=height,
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config["interpolation"],
        ),
        default_size_px=height,
        paper_gflops=paper_gflops,
        segment_consensus=segment_consensus,
    )


SLOWFAST_WEIGHTS = (
    "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/SLOWFAST_8x8_R50.pyth"
)


def _build_slowfast() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an import that this torchvision has outgrown
        from pytorchvideo.models.slowfast import create_slowfast
    network: nn.Module = create_slowfast(slowfast_fusion_conv_kernel_size=(7, 1, 1))
    return network


def _build_published_slowfast() -> nn.Module:
    network = _build_slowfast()
    state = torch.hub.load_state_dict_from_url(
        SLOWFAST_WEIGHTS, map_location="cpu", weights_only=True
    )
    network.load_state_dict(state["model_state"])
    return network


def _slow_and_fast(clip: Tensor) -> list[Tensor]:
    """(N, 3, 32, S, S) → the slow path's 8 frames, as pytorchvideo picks them, and all 32."""
    picks = torch.linspace(0, clip.shape[2] - 1, 8, device=clip.device).long()
    return [clip.index_select(2, picks), clip]


ARCHITECTURES: dict[str, Callable[[], Architecture]] = {
    "mobilenet_v2": lambda: _torchvision("mobilenet_v2", "classifier", 112, 0.08),
    "resnet101": lambda: _torchvision("resnet101", "fc", 224, 7.82),
    "dpn107": lambda: _timm("dpn107.mx_in1k", 18.34, segment_consensus=True),
    "slowfast_r50": lambda: Architecture(
        build=_build_slowfast,
        build_published=_build_published_slowfast,
        published="pytorchvideo SLOWFAST_8x8_R50",
        classifier=("blocks.6.proj",),
        preprocessing=Preprocessing(
            256, 256, (0.45,) * 3, (0.225,) * 3, antialias=False, frames=SNIPPET_FRAMES
        ),
        default_size_px=224,
        minimum_size_px=224,  # its pooling window is 7 × 7 at stride 32
        paper_gflops=65.71,
        paper_size_px=256,
        pathways=_slow_and_fast,
    ),
}


@functools.cache
def architecture_of(name: str) -> Architecture:
    """The architecture of a name of the table, or of timm:NAME.

    Raises: BackboneError naming the known backbones.
    """
    if name.startswith("timm:"):
        return _timm(name.removeprefix("timm:"))
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise BackboneError(f"unknown backbone {name!r}; known: {known} and timm:NAME")
    return ARCHITECTURES[name]()


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone at a size, as written on the command line: mobilenet_v2@112."""

    name: str
    size_px: int

    @property
    def store_name(self) -> str:
        return f"{self.name.replace(':', '-')}_{self.size_px}"

    @property
    def preprocessing(self) -> Preprocessing:
        return architecture_of(self.name).preprocessing.at_size(self.size_px)

    def __str__(self) -> str:
        return f"{self.name}@{self.size_px}"


def parse_backbone(text: str) -> BackboneSpec:
    """NAME or NAME@SIZE.

    Raises: BackboneError naming the known backbones.
    """
    name, at, size = text.partition("@")
    architecture = architecture_of(name)
    if not at:
        return BackboneSpec(name, architecture.default_size_px)
    least = architecture.minimum_size_px
    if not size.isdecimal() or not least <= int(size) <= 1024:
        raise BackboneError(f"{text!r}: the size must be a number of pixels from {least} to 1024")
    return BackboneSpec(name, int(size))


def parse_weights(options: Sequence[str], specs: Sequence[BackboneSpec]) -> dict[str, str]:
    """NAME=W and NAME@SIZE=W for each backbone: {"mobilenet_v2@112": "random"}.

    Raises: BackboneError on a form that is not NAME=W or a name that is not extracted.
    """
    given: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not value:
            raise BackboneError(f"--weights {option}: expected NAME=FILE or NAME=random")
        if not any(name in (spec.name, str(spec)) for spec in specs):
            wanted = ", ".join(map(str, specs))
            raise BackboneError(f"--weights {option}: {name} is not among the backbones ({wanted})")
        given[name] = value
    return {str(spec): given.get(str(spec), given.get(spec.name, "published")) for spec in specs}


class FeatureExtractor(nn.Module):
    """uint8 pixels in, penultimate features out; normalisation runs on the device."""

    def __init__(self, network: nn.Module, spec: BackboneSpec) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.network = network
        self._pathways = architecture_of(spec.name).pathways
        shape = (1, 3, *[1] * (len(spec.preprocessing.row_shape) - 1))
        self.register_buffer("mean", torch.tensor(spec.preprocessing.mean).view(shape))
        self.register_buffer("std", torch.tensor(spec.preprocessing.std).view(shape))

    def channels_last(self) -> FeatureExtractor:
        """Itself, its weights in the order that is fast; of a network on clips, that of clips."""
        of_clips = any(parameter.dim() == 5 for parameter in self.parameters())
        return self.to(memory_format=torch.channels_last_3d if of_clips else torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, S, S, 3) or (N, 32, S, S, 3) uint8 → (N, D)."""
        scaled = pixels.movedim(-1, 1).to(self.mean.dtype) / 255
        features: Tensor = self.network(self._pathways((scaled - self.mean) / self.std))
        return features


@dataclass(frozen=True)
class Backbone:
    """A network ready to extract, and all that identifies its features."""

    spec: BackboneSpec
    extractor: FeatureExtractor
    weights: str
    weights_sha256: str
    feature_dim: int
    gflops_per_frame: float
    parameters: int

    def identity(self, *, sample_fps: float, precision: str) -> StoreIdentity:
        return StoreIdentity(
            backbone=self.spec.name,
            input_size_px=self.spec.size_px,
            weights=self.weights,
            weights_sha256=self.weights_sha256,
            preprocessing={**self.spec.preprocessing.to_dict(), "precision": precision},
            sample_fps=sample_fps,
            feature_dim=self.feature_dim,
            gflops_per_frame=self.gflops_per_frame,
            flop_convention=flops.CONVENTION,
            parameters=self.parameters,
            versions=library_versions(),
        )


@dataclass(frozen=True)
class LoadedNetwork:
    """A whole network, classifier included, and where its weights are from."""

    network: nn.Module
    weights: str
    sha256: str


def load_network(spec: BackboneSpec, weights: str = "published") -> LoadedNetwork:
    """Build a network and load its weights.

    Args:
        weights: "published", "random" (seeded), or the path of a state dict.

    Raises: BackboneError if the weights cannot be read, do not fit, or cannot be downloaded.
    """
    architecture = architecture_of(spec.name)
    if weights == "published":
        network = _published(spec, architecture)
        return LoadedNetwork(network, architecture.published, _hash_state(network))
    if weights == "random":
        network = _seeded(architecture)
        sha256 = _hash_state(network)
        _calibrate_normalisation(network, spec)
        return LoadedNetwork(network, f"random:{RANDOM_SEED}", sha256)
    path = Path(weights)
    network, sha256 = architecture.build(), _hash_file(path)
    _load_weights(network, architecture, path)
    return LoadedNetwork(network, path.name, sha256)


def load_backbone(spec: BackboneSpec, weights: str = "published") -> Backbone:
    """`load_network` without its classifier, and what identifies its features."""
    loaded = load_network(spec, weights)
    size = _measure_and_strip(loaded.network, spec)
    extractor = FeatureExtractor(loaded.network, spec).eval().requires_grad_(False)
    return Backbone(spec, extractor, loaded.weights, loaded.sha256, **size)


def fold_normalisation(backbone: Backbone) -> FeatureExtractor:
    """The extractor with each batch normalisation folded into the convolution before it.

        γ (W x − μ) / σ + β  =  (γ W / σ) x + (β − γ μ / σ)

    Rows are the same to FOLDED_GAP of their length, which is tried on seeded noise; MobileNetV2
    is a fifth faster on a CPU (benchmarks/networks.py). The extractor itself is given where there
    is nothing to fold, its network cannot be traced, or its rows would not be the same.
    """
    original = backbone.extractor
    if not any(type(m) in (nn.BatchNorm2d, nn.BatchNorm3d) for m in original.network.modules()):
        return original
    try:
        network = fuse(original.network)
    except Exception:  # tracing fails in many ways where a network's code looks at its input
        return original
    folded = FeatureExtractor(network, backbone.spec).to(original.mean.device)
    folded.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    shape = (2, *backbone.spec.preprocessing.row_shape)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        expected, found = (e(pixels.to(original.mean.device)) for e in (original, folded))
    gaps = (found - expected).norm(dim=1) / expected.norm(dim=1)
    return folded if bool((gaps <= FOLDED_GAP).all()) else original


def replace_classifier(network: nn.Module, spec: BackboneSpec, classes: int) -> str:
    """Give a network a linear layer of zeros for other classes in the place of its own.

    Returns: the layer's name: classifier.1, fc, …
    Raises: BackboneError if its classifier is not one linear layer.
    """
    names = [
        f"{module}.{inner}" if inner else module
        for module in architecture_of(spec.name).classifier
        for inner, layer in network.get_submodule(module).named_modules()
        if next(layer.parameters(recurse=False), None) is not None
    ]
    old = network.get_submodule(names[0]) if len(names) == 1 else None
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, classes)
    elif isinstance(old, nn.Conv2d) and old.kernel_size == (1, 1):
        new = nn.Conv2d(old.in_channels, classes, 1)
    else:
        raise BackboneError(
            f"{spec}: its classifier is not one linear layer ({', '.join(names) or 'none'}), "
            "which finetuning needs"
        )
    for parameter in new.parameters():
        nn.init.zeros_(parameter)
    network.set_submodule(names[0], new)
    return names[0]


@contextmanager
def without_classifier(network: nn.Module, spec: BackboneSpec) -> Iterator[None]:
    """Within, the network gives features, as in extraction, instead of class scores."""
    names = architecture_of(spec.name).classifier
    own = {name: network.get_submodule(name) for name in names}
    for name in names:
        network.set_submodule(name, nn.Identity())
    try:
        yield
    finally:
        for name, module in own.items():
            network.set_submodule(name, module)


def describe_backbones() -> list[dict[str, Any]]:
    """The table of backbones at their default sizes, counted from the modules.

    Beside the paper's GFLOPs stand the size that they are for and our count at that size.
    """
    rows = []
    for name in ARCHITECTURES:
        architecture = architecture_of(name)
        spec = BackboneSpec(name, architecture.default_size_px)
        paper = BackboneSpec(name, architecture.paper_size_px or architecture.default_size_px)
        with torch.device("meta"):  # shapes, no values
            network = architecture.build()
        rows.append(
            {
                "backbone": str(spec),
                "gflops_at_paper_size": _gflops(network, paper),
                **_measure_and_strip(network, spec),
                "paper_gflops": architecture.paper_gflops,
                "paper_input_size_px": paper.size_px,
                "weights": architecture.published,
                "preprocessing": spec.preprocessing.to_dict(),
                "flop_convention": flops.CONVENTION,
            }
        )
    return rows


def _gflops(network: nn.Module, spec: BackboneSpec) -> float:
    """Of one row. Raises: BackboneError if the network does not take this size."""
    pixels = torch.empty(1, *spec.preprocessing.row_shape, dtype=torch.uint8)
    try:
        return flops.count_gflops(FeatureExtractor(network, spec), pixels)
    except (AssertionError, RuntimeError) as error:
        raise BackboneError(f"{spec}: does not take pictures of this size ({error})") from error


def _measure_and_strip(network: nn.Module, spec: BackboneSpec) -> dict[str, Any]:
    """GFLOPs and parameters of a whole network; then the row size left without classifier."""
    gflops, parameters = _gflops(network, spec), flops.count_parameters(network)
    for name in architecture_of(spec.name).classifier:
        network.set_submodule(name, nn.Identity())
    pixels = torch.empty(1, *spec.preprocessing.row_shape, dtype=torch.uint8)
    return {
        "feature_dim": flops.output_shape(FeatureExtractor(network, spec), pixels)[1],
        "parameters": parameters,
        "gflops_per_frame": gflops,
    }


def _published(spec: BackboneSpec, architecture: Architecture) -> nn.Module:
    try:
        return architecture.build_published()
    except (URLError, OSError, RuntimeError) as error:
        raise BackboneError(
            f"{spec}: the published weights ({architecture.published}) could not be downloaded "
            f"({error}); pass a file with --weights {spec.name}=FILE, or seeded random weights "
            f"with --weights {spec.name}=random"
        ) from error


def _seeded(architecture: Architecture) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return architecture.build()


def _calibrate_normalisation(network: nn.Module, spec: BackboneSpec) -> None:
    """Give random weights normalisation statistics, from smooth seeded noise.

    A fresh network's statistics are 0 and 1: deep in it activations vanish or overflow float16.
    """
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    preprocessing = spec.preprocessing
    noise = torch.randn(8, 3, 8, 8, generator=generator)
    size = (preprocessing.crop_px, preprocessing.crop_px)
    images = nn.functional.interpolate(noise, size=size, mode="bicubic")
    if preprocessing.frames > 1:
        images = images[:1, :, None].repeat_interleave(preprocessing.frames, dim=2)
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    network.eval()
    for norm in norms:
        norm.momentum = None  # a plain average instead of a moving one
        norm.train()
    with torch.no_grad():
        network(architecture_of(spec.name).pathways(images))
    network.eval()


def _load_weights(network: nn.Module, architecture: Architecture, path: Path) -> None:
    """Load a state dict; a classifier of another number of classes is left out.

    Counts of batches are no weights: old checkpoints lack them and evaluation never reads them.

    Raises: BackboneError naming the first keys that do not fit or are not finite.
    """
    own = _weights_alone(network.state_dict())
    state = _weights_alone(_tensors(_read_state(path), path))
    prefixes = tuple(name + "." for name in architecture.classifier)
    state = {
        key: value
        for key, value in state.items()
        if not (key.startswith(prefixes) and not _fits(value, own.get(key)))
    }
    wrong = [
        f"{key} {tuple(value.shape)} {value.dtype}"
        for key, value in state.items()
        if not _fits(value, own.get(key))
    ]
    missing = [key for key in own if key not in state and not key.startswith(prefixes)]
    if wrong or missing:
        raise BackboneError(
            f"{path}: not weights of this backbone: {len(missing)} keys missing "
            f"{missing[:3]}, {len(wrong)} do not fit {wrong[:3]}"
        )
    network.load_state_dict(state, strict=False)
    loaded = network.state_dict()
    spoilt = [key for key in state if not loaded[key].isfinite().all()]
    if spoilt:
        raise BackboneError(
            f"{path}: {len(spoilt)} tensors hold NaN or infinity, first {spoilt[:3]}; "
            "take a checkpoint from before the training diverged"
        )


def _weights_alone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


def _fits(value: Tensor, own: Tensor | None) -> bool:
    """Whether a tensor can take the place of a network's: plain real numbers of its shape."""
    return (
        own is not None
        and value.shape == own.shape
        and value.layout == own.layout
        and value.is_floating_point() == own.is_floating_point()
        and not (value.is_complex() or value.is_quantized or value.is_meta)
    )


def _read_state(path: Path) -> Any:
    """Whatever is in the file, if it is tensors and plain containers alone.

    Raises: BackboneError. Damage makes torch's reader fail in any way, hence `Exception`.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        with path.open("rb") as file:
            begin = file.read(16)
        if not begin.startswith((b"\x80", b"PK")):  # pickles and zip archives do
            raise BackboneError(
                f"{path}: cannot be read as weights: it begins with {begin!r}, as no file of "
                "torch.save does; is it what you meant to download?"
            ) from error
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise BackboneError(
            f"{path}: holds more than tensors{f' ({named[1]})' if named else ''}; files that may "
            "run code on loading are refused. Save the state dict alone, or as .safetensors"
        ) from error
    except Exception as error:
        reason = re.split(r"\. |\n", str(error))[0]
        raise BackboneError(
            f"{path}: cannot be read as weights ({reason or type(error).__name__})"
        ) from error


def _tensors(state: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint that may nest them and prefix them with `module.`."""
    for key in ("state_dict", "model_state", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise BackboneError(f"{path}: expected a state dict, found a {type(state).__name__}")
    return {
        str(key).removeprefix("module."): value
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise BackboneError(f"{path}: cannot be read ({error.strerror})") from error


def _hash_state(network: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "timm", "pytorchvideo", "av", "decord2", "pillow"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
