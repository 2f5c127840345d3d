"""Samples in memory to shards, in the order given: the manifest's id stays that of the arrays."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from webdataset import ShardWriter

from aae_dist.config.sections.run import Cache
from aae_dist.data.arrays import Arrays, shard_name
from aae_dist.data.format.manifest import FILE_NAME
from aae_dist.data.index.build import index_folder, open_manifest
from aae_dist.data.pack import empty_target, upload
from aae_dist.data.pack.sources import Fields
from aae_dist.errors import DataError, LaunchError
from aae_dist.storage import is_remote, open_storage
from aae_dist.utils.arrays import npy_bytes, png_bytes
from aae_dist.utils.text import to_stderr


def pack_arrays(arrays: Arrays, out: str) -> str:
    """Write the samples as shards into a folder; return its address, for `data.train`.

    uint8 images of 1 or 3 channels become PNG, all else .npy arrays (`data.image_keys: [npy]`). A
    folder that holds these samples already stays as it is; any other must be empty.

    Args:
        arrays: the samples.
        out: the folder: a local path, s3://, gs:// or az://.

    Raises:
        DataError: the folder holds something else, or cannot be written.
    """
    storage = open_storage(out)
    if storage.size(FILE_NAME) is not None and _is_packed(arrays, out):
        return out
    target = empty_target(out)
    parent = None if is_remote(target.uri) else Path(target.uri).parent
    try:
        if parent:
            parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".packing-", dir=parent) as work:
            folder = Path(work, "out")
            _write(arrays, folder)
            if parent:
                folder.rename(target.uri)
            else:
                upload(folder, target, to_stderr)
    except (OSError, LaunchError) as error:
        raise DataError(f"{out}: cannot write the shards ({error}).") from error
    return out


def _is_packed(arrays: Arrays, out: str) -> bool:
    return open_manifest(out, Cache()).id == arrays.manifest.id


def _write(arrays: Arrays, folder: Path) -> None:
    folder.mkdir(parents=True)
    pattern = str(folder).replace("%", "%%") + "/" + shard_name(arrays.id, "%06d")
    count = arrays.shard_samples
    with ShardWriter(pattern, maxcount=count, verbose=0, mtime=0) as writer:
        for sample in _samples(arrays):
            writer.write(sample)
    index_folder(folder, arrays.classes)


def _samples(arrays: Arrays) -> Iterator[Fields]:
    for number, (image, label) in enumerate(zip(arrays.images, arrays.labels, strict=True)):
        fields: Fields = {"__key__": f"{number:08d}"}
        if arrays.is_png:
            pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            fields["png"] = png_bytes(np.ascontiguousarray(pixels))
        else:
            fields["npy"] = npy_bytes(image, image.dtype.str)
        if label >= 0:
            fields["cls"] = str(int(label)).encode()
        yield fields
