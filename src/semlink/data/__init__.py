# SPDX-License-Identifier: Apache-2.0
"""Image sets as uint8 tensors in memory: published files, fixed splits, augmentation of whole batches."""

from semlink.data.description import Description, describe, members
from semlink.data.download import fetch
from semlink.data.images import Augmentation, DataSet, ImageSet, augment
from semlink.data.inventory import FileStatus, SetStatus, check, status
from semlink.data.sets import load, names, variants
from semlink.data.sources import data_root, instructions

__all__ = [
    "Augmentation",
    "DataSet",
    "Description",
    "FileStatus",
    "ImageSet",
    "SetStatus",
    "augment",
    "check",
    "data_root",
    "describe",
    "fetch",
    "instructions",
    "load",
    "members",
    "names",
    "status",
    "variants",
]
