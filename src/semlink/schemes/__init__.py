# SPDX-License-Identifier: Apache-2.0
"""Semantic transceivers, one file each, found by key."""

from semlink.schemes.adaptive_precoding import AdaptivePrecoding
from semlink.schemes.base import Design, Scheme, Sent, schemes
from semlink.schemes.deepjscc import DeepJSCC
from semlink.schemes.deepjscc_aes import DeepJSCCAES
from semlink.schemes.deepjscc_dp import DeepJSCCDP
from semlink.schemes.deepjscc_encryption import DeepJSCCEncryption
from semlink.schemes.deepjscc_lbvq import DeepJSCCLBVQ
from semlink.schemes.dispersion import Dispersion
from semlink.schemes.escs import ESCS
from semlink.schemes.ibal import IBAL
from semlink.schemes.interference_free import InterferenceFree
from semlink.schemes.irsc import IRSCCSIR, IRSCCSITR, CSIFree
from semlink.schemes.key import Key
from semlink.schemes.layered import Layered
from semlink.schemes.link import Link
from semlink.schemes.network import Network, NetworkScheme, State
from semlink.schemes.semi_conventional import SemiConventional
from semlink.schemes.task import Task
from semlink.schemes.uis_tosc import UISToSC
from semlink.schemes.vfe import VFE
from semlink.schemes.vl_vfe import VLVFE

keys = schemes.keys

__all__ = [
    "ESCS",
    "IBAL",
    "IRSCCSIR",
    "IRSCCSITR",
    "VFE",
    "VLVFE",
    "AdaptivePrecoding",
    "CSIFree",
    "DeepJSCC",
    "DeepJSCCAES",
    "DeepJSCCDP",
    "DeepJSCCEncryption",
    "DeepJSCCLBVQ",
    "Design",
    "Dispersion",
    "InterferenceFree",
    "Key",
    "Layered",
    "Link",
    "Network",
    "NetworkScheme",
    "Scheme",
    "SemiConventional",
    "Sent",
    "State",
    "Task",
    "UISToSC",
    "keys",
    "schemes",
]
