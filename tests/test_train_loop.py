"""The loop padded to a shape that can be captured gives what the packed one gives."""

import pytest
import torch
from test_train_model import CLASSES, COARSE, FINE, SETTINGS, make_batch, make_samples

from liteeval_train import cells
from liteeval_train.config import resolve_config
from liteeval_train.data import Batch, Packing, collate
from liteeval_train.loop import CapturedLoop, capture_on_gpu
from liteeval_train.method import Method
from liteeval_train.methods import METHODS, build_method


def make_method(*settings: str) -> Method:
    torch.manual_seed(1)
    config = resolve_config(settings=[*SETTINGS, "frame_loss_weight=1", *settings])
    return build_method(config, coarse_dim=COARSE, fine_dim=FINE, classes=CLASSES)


def loss_and_gradients(
    method: Method, batch: Batch, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    method.zero_grad()
    with torch.autocast(batch.coarse_ND.device.type, dtype, enabled=dtype is not None):
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
    network.captured = CapturedLoop(lambda loop, _: loop, steps=20, videos=6)
    found = loss_and_gradients(network, batch)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda m, n=name: f"{n}: {m}")


def test_all_batches_share_one_captured_loop():
    network, captures = make_method().double(), []

    def capture(loop, arguments):
        captures.append([tuple(argument.shape) for argument in arguments])
        return loop

    network.captured = CapturedLoop(capture, steps=17, videos=8)
    for lengths in ([7, 3, 16, 1], [9, 2, 2], [16] * 8, [17]):
        network(make_batch(make_samples(lengths)), progress=0.0)
    # τ, then rows = steps × videos = 136; LSTMs of 8 and 4 units have 32 and 16 gates
    assert captures == [[(), (136, 32), (136, 2), (136, 2), (136, 16)]]


@pytest.mark.parametrize("method", list(METHODS))
def test_a_training_step_reads_nothing_back_from_its_device(method, monkeypatch):
    """Meta tensors have no values: whoever asks for one, as `.item()` does, gets an error."""
    monkeypatch.setattr(cells, "_autocast", lambda weight: weight)  # knows no meta device
    network = make_method(f"method={method}").to("meta")
    batch = collate(make_samples([7, 3, 5, 1]), classes=CLASSES).to(torch.device("meta"))
    network(batch, progress=0.4).loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.needs_cuda
@pytest.mark.parametrize("method", ["liteeval", "liteeval-rl"])
@pytest.mark.parametrize("setting", ["cell=lstm", "cell=gru", "cell=sru", "synchronise=false"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_captured_loop_gives_the_losses_and_gradients_of_the_loop(method, setting, dtype):
    """Of the loop with the same padding, after steps of an optimizer too."""
    device = torch.device("cuda")
    network = make_method(f"method={method}", setting).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, fused=True)
    batches = [
        collate(make_samples(lengths, seed), classes=CLASSES).to(device)
        for seed, lengths in enumerate(([7, 3, 17, 1], [5, 9], [20] * 3, [16, 2, 2]))
    ]
    padded = CapturedLoop(lambda loop, _: loop, steps=20, videos=4)
    captured = CapturedLoop(capture_on_gpu, steps=20, videos=4)
    for batch in [*batches, *batches]:
        network.captured = padded
        expected = loss_and_gradients(network, batch, dtype)
        network.captured = captured
        found = loss_and_gradients(network, batch, dtype)
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
