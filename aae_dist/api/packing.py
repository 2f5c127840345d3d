"""`aae_dist.pack`: samples in memory to shards."""

import os
from typing import Any

from aae_dist.api.anndata import from_anndata, is_anndata
from aae_dist.api.data import as_arrays
from aae_dist.config.load import absolute_storage
from aae_dist.config.sections.run import Layout


def pack(data: Any, out: str | os.PathLike[str], *, layout: Layout | None = None) -> str:
    """Write samples as WebDataset shards; return the folder, for `data.train` or `data.validation`.

    They keep their order, and their manifest has the id of the samples in memory: a run that
    `aae_dist.train` started on these samples continues on the shards, on a cluster too, with the
    same numbers. uint8 images of 1 or 3 channels become PNG; all else becomes .npy arrays, for
    which `data.image_keys` is [npy]. Arrays have their channels first: `data.layout` is NCL for
    signals and NCDHW for volumes. A folder that holds these samples stays as it is.

    Args:
        data: what `aae_dist.train` takes.
        out: an empty or absent folder: a local path, s3://, gs:// or az://.
        layout: what each dimension of x is, such as NHWC or NCL (docs/data.md);
            signals and volumes need it, images are NCHW without it.

    Raises:
        DataError: the data are wrong, or the folder holds something else or cannot be written.
    """
    from aae_dist.data.pack.memory import pack_arrays

    samples = from_anndata(data) if is_anndata(data) else as_arrays(data, layout)
    return pack_arrays(samples, absolute_storage(os.fspath(out)))
