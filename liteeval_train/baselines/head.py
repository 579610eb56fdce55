"""The classifier of a finetuned backbone, for UNIFORM: `--set head=…/finetuned.safetensors`.

`liteeval-extract finetune` writes the network with its classifier. The store of its features bears
the file's SHA-256 as identity, so a classifier can never be set on features of other weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from liteeval_train.run_files import RunError, StoreInfo

METADATA = "liteeval"  # the key of the checkpoint's metadata; see docs/finetune.md


def load_head(
    classifier: nn.Linear, path: Path, *, fine: StoreInfo, classes: Sequence[str]
) -> None:
    """Give a linear layer the weights of a finetuned backbone's classifier.

    Args:
        classifier: features → class scores, in the order of `classes`.
        fine: the store whose features it will classify.

    Raises: RunError if the file is no finetuned backbone, not the one that made the store, or was
        finetuned to other classes.
    """
    weight_KD, bias_K, known = _read(path)
    expected, found = fine.identity.get("weights_sha256"), _sha256(path)
    if expected != found:
        raise RunError(
            f"{path}: the features in {fine.path} were made with other weights (SHA-256 "
            f"{str(expected)[:12]}…, this file has {found[:12]}…); extract them with "
            f"--weights {fine.backbone}={path}, or give the file they were made with"
        )
    if sorted(known) != sorted(classes):
        other = sorted(set(known) ^ set(classes))
        raise RunError(
            f"{path}: finetuned to {len(known)} classes, the labels have {len(classes)}; "
            f"{other[0]!r} is only in one of them. Finetune with the same labels"
        )
    order = [known.index(name) for name in classes]
    with torch.no_grad():
        classifier.weight.copy_(weight_KD.flatten(1)[order])  # a 1 × 1 convolution is (K, D, 1, 1)
        classifier.bias.copy_(bias_K[order])


def _read(path: Path) -> tuple[Tensor, Tensor, list[str]]:
    """(K, D, …) weight, (K,) bias and the names of the classes."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[METADATA])
            layer, classes = about["classifier"], about["classes"]
            weight, bias = (file.get_tensor(f"{layer}.{name}") for name in ("weight", "bias"))
            return weight, bias, list(classes)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: not a backbone with its classifier ({error!r:.100}); expected the "
            "finetuned.safetensors that `liteeval-extract finetune` writes"
        ) from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
