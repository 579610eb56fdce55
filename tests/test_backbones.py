"""Backbones: the table's figures, the libraries' own features, weights that load or are refused."""

import pickle
import re
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torch import nn

from extract.backbones import (
    BackboneError,
    _read_state,
    describe_backbones,
    fold_normalisation,
    load_backbone,
    load_network,
    parse_backbone,
    parse_weights,
)

SHARED_WEIGHTS = Path(__file__).parents[2] / "shared/weights/mobilenet_v2_imagenet_fp16.pth"
SHARED_VIDEOS = Path(__file__).parents[2] / "shared/data/ucf11/videos"


def picture(height: int = 240, width: int = 320) -> np.ndarray:
    """Smooth seeded colours, as (H, W, 3) uint8."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def test_the_table_holds_the_contracts_figures() -> None:
    """GFLOPs within 0.5 % of the published counts, row sizes exactly."""
    expected = {
        "mobilenet_v2@112": (1280, 0.0822, 3_504_872),
        "resnet101@224": (2048, 7.8014, 44_549_160),
        "dpn107@224": (2688, 18.2988, 86_917_800),
        "slowfast_r50@224": (2304, 50.3086, 34_566_488),
    }
    found = {row["backbone"]: row for row in describe_backbones()}
    assert found.keys() == expected.keys()
    for name, (dim, gflops, parameters) in expected.items():
        assert found[name]["feature_dim"] == dim
        assert found[name]["gflops_per_frame"] == pytest.approx(gflops, rel=0.005)
        assert found[name]["parameters"] == parameters


@pytest.mark.parametrize(
    ("text", "name", "size", "store"),
    [
        ("mobilenet_v2", "mobilenet_v2", 112, "mobilenet_v2_112"),
        ("mobilenet_v2@224", "mobilenet_v2", 224, "mobilenet_v2_224"),
        ("dpn107", "dpn107", 224, "dpn107_224"),
        ("timm:resnet18.a1_in1k", "timm:resnet18.a1_in1k", 224, "timm-resnet18.a1_in1k_224"),
    ],
)
def test_names_are_parsed(text: str, name: str, size: int, store: str) -> None:
    spec = parse_backbone(text)
    assert (spec.name, spec.size_px, spec.store_name) == (name, size, store)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mobilnet_v2", "known: mobilenet_v2, resnet101"),
        ("mobilenet_v2@big", "must be a number of pixels"),
        ("mobilenet_v2@8", "from 32"),
        ("slowfast_r50@112", "from 224"),
        ("timm:no_such_model", "timm has no model"),
    ],
)
def test_bad_names_say_what_is_known(text: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        parse_backbone(text)


def test_weights_are_matched_by_name_and_by_size() -> None:
    specs = [parse_backbone(t) for t in ("mobilenet_v2@112", "mobilenet_v2@224", "resnet101")]
    chosen = parse_weights(["mobilenet_v2=a.pth", "mobilenet_v2@224=b.pth"], specs)
    assert chosen == {
        "mobilenet_v2@112": "a.pth",
        "mobilenet_v2@224": "b.pth",
        "resnet101@224": "published",
    }
    with pytest.raises(BackboneError, match="dpn107 is not among the backbones"):
        parse_weights(["dpn107=x"], specs)
    with pytest.raises(BackboneError, match="expected NAME=FILE"):
        parse_weights(["mobilenet_v2"], specs)


def test_random_weights_are_seeded_and_give_finite_rows() -> None:
    spec = parse_backbone("mobilenet_v2")
    pixels = torch.tensor(spec.preprocessing.resize_and_crop(picture()))[None]
    first, second = load_backbone(spec, "random"), load_backbone(spec, "random")
    assert first.weights == "random:0"
    assert first.weights_sha256 == second.weights_sha256
    rows = first.extractor(pixels)
    assert torch.equal(rows, second.extractor(pixels))
    assert rows.half().isfinite().all()
    assert rows.std() > 0.01


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet101"])
def test_features_are_torchvisions(name: str) -> None:
    """Against the weights' own transform on a PIL image and the module without classifier."""
    spec = parse_backbone(f"{name}@224")
    backbone = load_backbone(spec, "random")
    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    theirs = torchvision.models.get_model(name)
    setattr(theirs, "classifier" if name == "mobilenet_v2" else "fc", nn.Identity())
    theirs.load_state_dict(backbone.extractor.network.state_dict())
    theirs.eval()
    image = picture()
    pixels = torch.tensor(spec.preprocessing.resize_and_crop(image))[None]
    with torch.inference_mode():
        expected = theirs(weights.transforms()(Image.fromarray(image))[None])
        assert cosine(backbone.extractor(pixels), expected) >= 0.9995


@pytest.mark.parametrize("name", ["dpn107", "timm:resnet18.a1_in1k"])
def test_features_are_timms(name: str) -> None:
    spec = parse_backbone(name)
    backbone = load_backbone(spec, "random")
    theirs = timm.create_model("dpn107.mx_in1k" if name == "dpn107" else name[5:]).eval()
    config = resolve_data_config({}, model=theirs)
    theirs.load_state_dict(backbone.extractor.network.state_dict(), strict=False)
    image = picture()
    pixels = torch.tensor(spec.preprocessing.resize_and_crop(image))[None]
    with torch.inference_mode():
        theirs_pixels = create_transform(**config)(Image.fromarray(image))[None]
        expected = theirs.forward_head(theirs.forward_features(theirs_pixels), pre_logits=True)
        assert cosine(backbone.extractor(pixels), expected) >= 0.9995


def norms(network: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())


@pytest.mark.parametrize(
    ("name", "before", "after"), [("mobilenet_v2@64", 52, 0), ("timm:resnet18.a1_in1k@64", 20, 0)]
)
def test_folded_normalisation_changes_no_row(name: str, before: int, after: int) -> None:
    spec = parse_backbone(name)
    backbone = load_backbone(spec, "random")
    folded = fold_normalisation(backbone)
    assert (norms(backbone.extractor.network), norms(folded.network)) == (before, after)
    pixels = torch.from_numpy(
        np.stack([spec.preprocessing.resize_and_crop(p) for p in pictures(3)])
    )
    with torch.inference_mode():
        expected, found = backbone.extractor(pixels), folded(pixels)
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-4


class LooksAtItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = self.norm(pixels)
        return (pixels if pixels.mean() > 0 else -pixels).mean((2, 3))


class FoldedWrong(nn.Module):
    """Its convolution runs a second time without normalisation, which folding overlooks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        nn.init.constant_(self.norm.running_var, 100.0)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (self.norm(self.conv(pixels)) + self.conv(pixels)).mean((2, 3))


@pytest.mark.parametrize("network", [LooksAtItsInput(), FoldedWrong(), nn.Sequential(nn.Flatten())])
def test_what_cannot_be_folded_is_left_as_it_is(network: nn.Module) -> None:
    backbone = load_backbone(parse_backbone("mobilenet_v2@32"), "random")
    backbone.extractor.network = network.eval()
    assert fold_normalisation(backbone) is backbone.extractor


def pictures(count: int) -> list[np.ndarray]:
    """Seeded pictures of many sizes and coarsenesses."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(200, 500, (count, 2))
    coarse = [rng.integers(0, 256, (*rng.integers(2, 30, 2), 3), dtype=np.uint8) for _ in sizes]
    resize = Image.Resampling.BICUBIC
    return [
        np.asarray(Image.fromarray(small).resize(tuple(size.tolist()), resize))
        for small, size in zip(coarse, sizes, strict=True)
    ]


@pytest.mark.parametrize("name", ["mobilenet_v2@224", "timm:resnet18.a1_in1k"])
def test_top1_of_seeded_weights_is_that_of_the_librarys_pipeline(name: str) -> None:
    spec = parse_backbone(name)
    theirs = load_network(spec, "random").network.eval()
    ours = load_backbone(spec, "random").extractor
    if name.startswith("timm:"):
        transform = create_transform(**resolve_data_config({}, model=theirs))
        classifier = theirs.fc
    else:
        transform = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
        classifier = theirs.classifier
    images = pictures(20)
    pixels = np.stack([spec.preprocessing.resize_and_crop(image) for image in images])
    inputs = torch.stack([transform(Image.fromarray(image)) for image in images])
    with torch.inference_mode():
        found = classifier(ours(torch.from_numpy(pixels))).argmax(dim=1)
        expected = theirs(inputs).argmax(dim=1)
    assert len(set(expected.tolist())) >= 4
    assert found.tolist() == expected.tolist()


def test_features_are_pytorchvideos_head_without_projection() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorchvideo.models.slowfast import create_slowfast
    spec = parse_backbone("slowfast_r50")
    backbone = load_backbone(spec, "random")
    theirs = create_slowfast(slowfast_fusion_conv_kernel_size=(7, 1, 1)).eval()
    theirs.blocks[6].proj = nn.Identity()
    theirs.load_state_dict(backbone.extractor.network.state_dict())
    clip = np.stack([np.roll(picture(224, 224), 3 * i, axis=1) for i in range(32)])
    fast = (torch.from_numpy(clip).permute(3, 0, 1, 2).float() / 255 - 0.45) / 0.225
    slow = fast[:, [0, 4, 8, 13, 17, 22, 26, 31]]
    with torch.inference_mode():
        expected = theirs([slow[None], fast[None]])
        ours = backbone.extractor(torch.from_numpy(clip)[None])
    assert ours.shape == (1, 2304)
    assert cosine(ours, expected) >= 0.9995


def save_state(path: Path, **changes: torch.Tensor) -> Path:
    state = {**torchvision.models.mobilenet_v2().state_dict(), **changes}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_state_dict_loads_and_names_itself(tmp_path: Path, suffix: str) -> None:
    path = save_state(tmp_path / f"mine{suffix}")
    backbone = load_backbone(parse_backbone("mobilenet_v2"), str(path))
    assert backbone.weights == path.name
    assert len(backbone.weights_sha256) == 64


def test_a_checkpoint_with_another_number_of_classes_loads(tmp_path: Path) -> None:
    path = save_state(
        tmp_path / "w.pth",
        **{"classifier.1.weight": torch.zeros(11, 1280), "classifier.1.bias": torch.zeros(11)},
    )
    load_backbone(parse_backbone("mobilenet_v2"), str(path))


def test_nested_and_prefixed_state_dicts_load(tmp_path: Path) -> None:
    state = torchvision.models.mobilenet_v2().state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pth")
    load_backbone(parse_backbone("mobilenet_v2"), str(tmp_path / "w.pth"))


def test_weights_of_another_network_name_what_does_not_fit(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    with pytest.raises(BackboneError, match="not weights of this backbone"):
        load_backbone(parse_backbone("mobilenet_v2"), str(tmp_path / "w.pth"))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch /tmp/liteeval-evil",)


@pytest.mark.filterwarnings("ignore")
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = Path("/tmp/liteeval-evil")
    marker.unlink(missing_ok=True)
    for protocol in (2, 5):
        code = pickle.dumps({"features": Evil()}, protocol=protocol)
        (tmp_path / f"pickle{protocol}.pth").write_bytes(code)
        (tmp_path / f"pickle{protocol}.safetensors").write_bytes(code)
    torch.save({"x": Evil()}, tmp_path / "zip.pth")
    torch.save({"x": Evil()}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    for path in tmp_path.iterdir():
        message = "cannot be read" if path.suffix == ".safetensors" else "run code.*are refused"
        with pytest.raises(BackboneError, match=rf"{path.name}: .*{message}"):
            load_backbone(parse_backbone("mobilenet_v2"), str(path))
    assert not marker.exists()


def test_a_checkpoint_without_counts_of_batches_loads(tmp_path: Path) -> None:
    """As torchvision published them before 2018; torch's own strict loading takes them."""
    state = torchvision.models.mobilenet_v2().state_dict()
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert len(state) - len(old) == 52
    torchvision.models.mobilenet_v2().load_state_dict(old, strict=True)
    torch.save(old, tmp_path / "old.pth")
    backbone = load_backbone(parse_backbone("mobilenet_v2"), str(tmp_path / "old.pth"))
    found = backbone.extractor.network.state_dict()
    assert all(torch.equal(v, found[k]) for k, v in old.items() if not k.startswith("classifier"))


FIRST = "features.0.0.weight"  # (32, 3, 3, 3)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.full((32, 3, 3, 3), float("nan")), f"NaN or infinity.*{FIRST}"),
        (torch.full((32, 3, 3, 3), 1e300, dtype=torch.float64), f"NaN or infinity.*{FIRST}"),
        (torch.zeros(32, 3, 3, 3, dtype=torch.complex64), f"1 do not fit.*{FIRST}.*complex64"),
        (torch.zeros(32, 3, 3, 3, dtype=torch.int8), f"1 do not fit.*{FIRST}.*int8"),
        (torch.zeros(32, 3, 3, 3).to_sparse(), f"1 do not fit.*{FIRST}"),
        (torch.zeros(32, 3, 3, 3, device="meta"), f"1 do not fit.*{FIRST}"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_not_plain_finite_numbers_are_refused(
    tmp_path: Path, weight: torch.Tensor, message: str
) -> None:
    path = save_state(tmp_path / "w.pth", **{FIRST: weight})
    with pytest.raises(BackboneError, match=rf"w\.pth: .*{message}"):
        load_backbone(parse_backbone("mobilenet_v2"), str(path))


@pytest.mark.filterwarnings("ignore")
def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    weight = torch.quantize_per_tensor(torch.zeros(32, 3, 3, 3), 0.1, 0, torch.qint8)
    path = save_state(tmp_path / "w.pth", **{FIRST: weight})
    with pytest.raises(BackboneError, match=rf"1 do not fit.*{FIRST}.*qint8"):
        load_backbone(parse_backbone("mobilenet_v2"), str(path))


@pytest.mark.parametrize(("content", "kind"), [([1, 2], "list"), (torch.zeros(3), "Tensor")])
def test_what_is_no_state_dict_names_the_file(tmp_path: Path, content: object, kind: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=rf"w\.pth: expected a state dict, found a {kind}"):
        load_backbone(parse_backbone("mobilenet_v2"), str(tmp_path / "w.pth"))


def test_a_web_page_is_not_said_to_run_code(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_text("<!DOCTYPE html><html>404 not found</html>")
    with pytest.raises(BackboneError, match="begins with b'<!DOCTYPE html><'"):
        load_backbone(parse_backbone("mobilenet_v2"), str(tmp_path / "w.pth"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_weights_are_refused_however_torch_fails(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "w.pth"
    state = {"features.0.0.weight": torch.zeros(2, 2), "x": torch.ones(3)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.integers(1, 6)):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(damaged)
        with suppress(BackboneError):  # never another kind of error; or nothing was hit
            _read_state(path)


def test_a_legacy_file_whose_storages_have_other_names_is_refused(tmp_path: Path) -> None:
    """torch's reader fails with an AssertionError."""
    path = tmp_path / "w.pth"
    torch.save({"x": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    (name, again) = re.findall(rb"\d{9,}", data)
    assert name == again
    path.write_bytes(data.replace(name, b"1" * len(name), 1))
    with pytest.raises(BackboneError, match=r"w\.pth: cannot be read as weights"):
        load_backbone(parse_backbone("mobilenet_v2"), str(path))


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04broken"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_no_weights_is_a_clear_error(
    tmp_path: Path, content: bytes, suffix: str
) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(BackboneError, match=str(path)):
        load_backbone(parse_backbone("mobilenet_v2"), str(path))


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"gone\.pth: cannot be read"):
        load_backbone(parse_backbone("mobilenet_v2"), str(tmp_path / "gone.pth"))


@pytest.mark.parametrize("name", ["mobilenet_v2", "slowfast_r50"])
def test_without_network_the_error_says_how_to_pass_a_file(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(BackboneError, match=rf"--weights {name}=FILE"):
        load_backbone(parse_backbone(name))


@pytest.mark.skipif(not SHARED_WEIGHTS.exists(), reason="the ImageNet weights are not here")
def test_imagenet_weights_give_torchvisions_classes() -> None:
    """Features through the published classifier: the same top-1 as the library's pipeline."""
    from extract.decode import sample_frames

    network = torchvision.models.mobilenet_v2()
    network.load_state_dict(torch.load(SHARED_WEIGHTS, weights_only=True))
    network.eval()
    transform = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    spec = parse_backbone("mobilenet_v2@224")
    backbone = load_backbone(spec, str(SHARED_WEIGHTS))
    videos = sorted(SHARED_VIDEOS.rglob("*.mp4"))[::55]
    agree, total = 0, 0
    for path in videos:
        for frame in sample_frames(path).frames[::5]:
            with torch.inference_mode():
                pixels = torch.tensor(spec.preprocessing.resize_and_crop(frame))[None]
                ours = backbone.extractor(pixels)
                theirs = network.features(transform(Image.fromarray(frame))[None]).mean((2, 3))
                assert cosine(ours, theirs) >= 0.9995
                top1 = network.classifier(torch.cat([ours, theirs])).argmax(dim=1)
                agree += int(top1[0] == top1[1])
            total += 1
    assert total >= 20
    assert agree / total >= 0.97
