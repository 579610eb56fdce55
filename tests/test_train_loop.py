"""The loop padded to shapes that can be captured gives what the packed one gives."""

import functools
import os

import numpy as np
import pytest
import torch
from test_train_model import CLASSES, COARSE, FINE, SETTINGS, make_batch, make_samples

from liteeval_train import cells
from liteeval_train.config import resolve_config
from liteeval_train.data import Batch, Packing, collate
from liteeval_train.loop import CapturedLoops, capture_on_gpu
from liteeval_train.method import Method
from liteeval_train.methods import METHODS, build_method

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() and not os.environ.get("FAIL_WITHOUT_CUDA"), reason="needs a GPU"
)


def make_method(*settings: str) -> Method:
    torch.manual_seed(1)
    config = resolve_config(settings=[*SETTINGS, "frame_loss_weight=1", *settings])
    return build_method(config, coarse_dim=COARSE, fine_dim=FINE, classes=CLASSES)


def loss_and_gradients(method: Method, batch: Batch) -> dict[str, torch.Tensor]:
    method.zero_grad()
    step = method(batch, progress=0.4)
    step.loss.backward()
    gradients = {name: p.grad.clone() for name, p in method.named_parameters()}
    return {"loss": step.loss.detach(), **step.parts, **gradients}


def test_rows_before_and_last_rows_are_those_of_the_packing():
    packing = Packing([3, 2])  # rows: v0 v1 | v0 v1 | v0
    assert packing.step_of_row.tolist() == [0, 0, 1, 1, 2]
    assert packing.row_before.tolist() == [0, 1, 2]  # of rows 2, 3 and 4
    assert packing.last_row.tolist() == [4, 3]
    assert Packing([1, 1]).row_before.tolist() == []


@pytest.mark.parametrize("method", ["liteeval", "liteeval-rl"])
@pytest.mark.parametrize("setting", ["cell=lstm", "cell=gru", "cell=sru", "synchronise=false"])
def test_padded_loop_gives_the_losses_and_gradients_of_the_packed_one(method, setting):
    network = make_method(f"method={method}", setting).double()
    batch = make_batch(make_samples([7, 3, 17, 1]))
    expected = loss_and_gradients(network, batch)
    assert 0 < expected["fine_share"] < 1
    network.captured = CapturedLoops(lambda loop, _: loop)
    found = loss_and_gradients(network, batch)
    assert list(network.captured.loops) == [(32, 8)]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda m, n=name: f"{n}: {m}")


def test_batches_of_nearly_one_shape_share_a_captured_loop():
    network, captures = make_method().double(), []

    def capture(loop, arguments):
        captures.append([tuple(argument.shape) for argument in arguments])
        return loop

    network.captured = CapturedLoops(capture)
    for lengths in ([7, 3, 16, 1], [9, 2, 2], [16] * 8, [17]):
        network(make_batch(make_samples(lengths)), progress=0.0)
    # τ, then rows = steps × videos: 16 × 8 and 32 × 8; LSTMs of 8 and 4 units have 32 and 16 gates
    assert captures == [
        [(), (rows, 32), (rows, 2), (rows, 2), (rows, 16)] for rows in (16 * 8, 32 * 8)
    ]


@pytest.mark.parametrize("method", list(METHODS))
def test_a_training_step_never_waits_for_its_device(method, monkeypatch):
    """Meta tensors have no values: whoever asks for one, as `.item()` does, gets an error."""
    monkeypatch.setattr(cells, "_autocast", lambda weight: weight)  # knows no meta device
    network = make_method(f"method={method}").to("meta")
    batch = collate(make_samples([7, 3, 5, 1]), classes=CLASSES).to(torch.device("meta"))
    network(batch, progress=0.4).loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@needs_cuda
@pytest.mark.parametrize("method", ["liteeval", "liteeval-rl"])
@pytest.mark.parametrize("setting", ["cell=lstm", "cell=gru", "cell=sru", "synchronise=false"])
def test_captured_loop_gives_the_losses_and_gradients_of_the_packed_one(method, setting):
    """In turn over two shapes, so that one graph's memory is used by the other between."""
    device = torch.device("cuda")
    network = make_method(f"method={method}", setting).to(device)
    batches = [
        collate(make_samples(lengths, seed), classes=CLASSES).to(device)
        for seed, lengths in enumerate(([7, 3, 17, 1], [5, 9], [20] * 3, [16, 2, 2]))
    ]
    expected = [loss_and_gradients(network, batch) for batch in batches]
    pool = torch.cuda.graph_pool_handle()
    network.captured = CapturedLoops(functools.partial(capture_on_gpu, pool=pool))
    for _ in range(2):
        for batch, wanted in zip(batches, expected, strict=True):
            found = loss_and_gradients(network, batch)
            for name, value in wanted.items():
                torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


@needs_cuda
def test_captured_loop_trains_in_bfloat16():
    device = torch.device("cuda")
    network = make_method().to(device)
    batch = collate(make_samples([7, 3, 17, 1]), classes=CLASSES).to(device)
    pool = torch.cuda.graph_pool_handle()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        expected = loss_and_gradients(network, batch)
        network.captured = CapturedLoops(functools.partial(capture_on_gpu, pool=pool))
        found = loss_and_gradients(network, batch)
    assert np.isclose(float(found["loss"]), float(expected["loss"]), rtol=0.02)
