"""The loop on a GPU: two buffers in turn give the rows of the CPU, each to its own video."""

from pathlib import Path

import numpy as np
import pytest
import torch

from extract.backbones import Backbone, load_backbone, parse_backbone
from extract.run import ExtractOptions, _Assembly, _Batcher
from extract.supervise import DecodeTask

LENGTHS = (3, 17, 1, 40, 9)  # rows of the videos: batches of 8 begin and end inside of them


def backbone() -> Backbone:
    return load_backbone(parse_backbone("mobilenet_v2@64"), "random")


def features_of_all(device: str, precision: str = "fp32") -> list[np.ndarray]:
    """The features of videos whose rows come in blocks of 5, as from decode processes."""
    loaded = backbone()
    options = ExtractOptions(device=device, batch_size=8, precision=precision)
    batcher = _Batcher(loaded, torch.device(device), options)
    name, generator = loaded.spec.store_name, np.random.default_rng(0)
    assemblies = []
    for number, rows in enumerate(LENGTHS):
        task = DecodeTask(str(number), Path("none"), (name,))
        assembly = _Assembly(task, rows, {name: loaded.feature_dim})
        shape = (rows, *loaded.spec.preprocessing.row_shape)
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        for start in range(0, rows, 5):
            block = pixels[start : start + 5].copy()
            batcher.add(assembly, assembly.expect(np.zeros(len(block), bool)), block)
            block[:] = 0  # a slot is handed back: whoever still reads it reads another video's
        assemblies.append(assembly)
    batcher.flush()
    assert [assembly.waiting for assembly in assemblies] == [0] * len(LENGTHS)
    return [assembly.features[name].astype(np.float32) for assembly in assemblies]


def largest_gap(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Between two rows, as a share of the row's length."""
    shares = [
        np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return float(np.concatenate(shares).max())


def test_blocks_of_many_videos_come_back_as_one_batch_would_give_them() -> None:
    loaded = backbone()
    generator = np.random.default_rng(0)
    shape = loaded.spec.preprocessing.row_shape
    expected = []
    for rows in LENGTHS:
        pixels = generator.integers(0, 256, (rows, *shape), dtype=np.uint8)
        with torch.inference_mode():
            expected.append(loaded.extractor(torch.from_numpy(pixels)).numpy())
    assert largest_gap(features_of_all("cpu"), expected) < 2e-3  # float16 keeps 11 bits


@pytest.mark.needs_cuda
def test_two_buffers_in_turn_give_the_cpus_rows_in_their_order() -> None:
    assert largest_gap(features_of_all("cuda"), features_of_all("cpu")) < 2e-3


def test_rows_in_another_order_would_be_noticed() -> None:
    rows = features_of_all("cpu")[3]
    gaps = np.linalg.norm(rows - np.roll(rows, 1, axis=0), axis=1)
    assert (gaps / np.linalg.norm(rows, axis=1)).min() > 1e-2
