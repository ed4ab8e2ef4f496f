"""Keep the features of reference images, so that a second evaluation extracts none of them.

One file for each set, number of images, extractor and reading of the images, in safetensors. Its
metadata have what the features are of and a sha256 of them. A file that is damaged, or of something
else, is computed anew and replaced. The files may be removed at any time.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from orchestrator.console import log_info
from orchestrator.errors import OrchestratorError
from orchestrator.evaluation.extractors.extractor import Extractor
from orchestrator.evaluation.feature_set import FeatureSet
from orchestrator.model_evaluation.reference_set import ReferenceSet
from orchestrator.storage.base import NotFound, Storage

FORMAT = 1
"""Changes when the same images have other features than before."""


@dataclass(frozen=True)
class FeatureCache:
    """Features of sets in a storage, by what they are of."""

    storage: Storage

    def get(
        self,
        reference: ReferenceSet,
        extractor: Extractor,
        what: str,
        compute: Callable[[], FeatureSet],
    ) -> FeatureSet:
        """Return the features of ``reference``; call ``compute`` if they are not in the cache.

        What cannot be written is computed again the next time.
        """
        about = describe_features(reference, extractor)
        key = f"{hashlib.sha256(about.encode()).hexdigest()}.safetensors"
        if (found := self._read(key, about)) is not None:
            features, labels = found
            size = reference.packed.image_size
            shape = (reference.packed.channels, size, size)
            return FeatureSet(what, features, extractor.name, extractor.frechet_name, labels, shape)
        computed = compute()
        try:
            self.storage.put(key, encode_features(computed, about))
        except OrchestratorError as error:
            log_info(f"could not keep the features of {what}: {error}")
        return computed

    def _read(self, key: str, about: str) -> tuple[Tensor, Tensor | None] | None:
        """Return features and labels; None if they are not there or not what was written."""
        try:
            content = self.storage.get(key)
        except NotFound:
            return None
        except OrchestratorError as error:
            log_info(f"could not read the cache of features: {error}")
            return None
        if (found := decode_features(content, about)) is None:
            log_info(f"{key} in the cache of features is damaged; extracting them again")
        return found


def describe_features(reference: ReferenceSet, extractor: Extractor) -> str:
    """Return all that features depend on, as JSON."""
    about = {
        "format": FORMAT,
        "data": reference.packed.digest,
        "images": reference.count,
        "extractor": extractor.name,
        **asdict(reference.reading),
    }
    return json.dumps(about, sort_keys=True)


def encode_features(features: FeatureSet, about: str) -> bytes:
    """Encode features and labels with what they are of and their sum."""
    tensors = {"features": features.features.float().contiguous()}
    if features.labels is not None:
        tensors["labels"] = features.labels.contiguous()
    return save(tensors, _metadata(about, tensors))


def decode_features(content: bytes, about: str) -> tuple[Tensor, Tensor | None] | None:
    """Decode what ``encode_features`` returned; None if it is damaged or of something else."""
    try:
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        known = json.loads(content[8 : 8 + length])["__metadata__"]
        if known != _metadata(about, tensors):
            return None
        features, labels = tensors["features"], tensors.get("labels")
    except (SafetensorError, ValueError, KeyError):
        return None
    return features, labels


def _metadata(about: str, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Return one entry: several would be written in any order."""
    return {"about": f"{about} sha256 {_sum(tensors)}"}


def _sum(tensors: dict[str, Tensor]) -> str:
    """Return a sha256 of names, kinds, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
