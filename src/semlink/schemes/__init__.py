# SPDX-License-Identifier: Apache-2.0
"""Semantic transceivers, one file each, found by key."""

from semlink.schemes.base import Design, Scheme, Sent, schemes
from semlink.schemes.deepjscc import DeepJSCC
from semlink.schemes.deepjscc_encryption import DeepJSCCEncryption
from semlink.schemes.key import Key
from semlink.schemes.link import Link
from semlink.schemes.task import Task

keys = schemes.keys

__all__ = ["DeepJSCC", "DeepJSCCEncryption", "Design", "Key", "Link", "Scheme", "Sent", "Task", "keys", "schemes"]
