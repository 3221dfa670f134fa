# SPDX-License-Identifier: Apache-2.0
"""Training loops as public code of the field writes them: what Semlink's own are timed against.

They hold what the code of VL-VFE, DT-JSCC, UIS-ToSC and of the common DeepJSCC repositories has in common: float32 in
the layout of torch's defaults, a DataLoader that augments image by image, Adam as it comes, one symbol at a time mapped
and decided by a loop in Python, one module a user. The networks are Semlink's own, with torch's convolutions, so that
only the loops differ. Nothing here is a copy of that code.
"""

import copy
import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from semlink.attacks.inversion import Inversion
from semlink.nn.blocks import Conv3x3
from semlink.schemes.deepjscc import DeepJSCC
from semlink.schemes.deepjscc_lbvq import DeepJSCCLBVQ

Step = Callable[[Tensor, Tensor], Tensor]


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images that are cropped and mirrored one by one: (C, H, W) float32 in [0, 1], and the target."""

    def __init__(self, images: Tensor, targets: Tensor, padding: int = 4, flip: bool = True) -> None:
        self.images, self.targets, self.padding, self.flip = images, targets, padding, flip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index].float() / 255
        if self.padding:
            height, width = image.shape[1:]
            image = F.pad(image, [self.padding] * 4)
            top, left = torch.randint(0, 2 * self.padding + 1, (2,)).tolist()
            image = image[:, top : top + height, left : left + width]
        if self.flip and torch.rand(()) < 0.5:
            image = image.flip(2)
        return image, self.targets[index]


def network(module: nn.Module) -> nn.Module:
    """Return a copy with torch's own convolutions, in torch's default layout."""
    plain = copy.deepcopy(module).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    for part in plain.modules():
        if isinstance(part, Conv3x3):
            part.__class__ = nn.Conv2d  # pyright: ignore[reportAttributeAccessIssue]
    return plain


def epoch(step: Step, loader: Iterable[list[Tensor]], optimiser: torch.optim.Optimizer) -> float:
    """Train one epoch; return the last loss."""
    last = 0.0
    for images, targets in loader:
        loss = step(images, targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        last = loss.item()
    return last


def loader(images: Dataset[tuple[Tensor, Tensor]], batch_size: int) -> "DataLoader[tuple[Tensor, Tensor]]":
    """Return shuffled batches."""
    return DataLoader(images, batch_size=batch_size, shuffle=True, drop_last=True)


def deepjscc(scheme: DeepJSCC, snr_db: float) -> Step:
    """Return the loss of DeepJSCC over AWGN."""
    deviation = math.sqrt(0.5 * 10 ** (-snr_db / 10))

    def step(images: Tensor, targets: Tensor) -> Tensor:
        sent = _normalised(scheme.encoder(images).flatten(1))
        heard = sent + deviation * torch.randn_like(sent)
        return F.cross_entropy(scheme.decoder(heard.unflatten(1, scheme.latent_shape)), targets)

    return step


def lbvq(scheme: DeepJSCCLBVQ, snr_db: float) -> Step:
    """Return the loss of LBVQ over AWGN by 16-QAM, whose indices are mapped and decided one by one."""
    deviation = math.sqrt(0.5 * 10 / 4 * 10 ** (-snr_db / 10))  # of a grid of integers, whose mean energy is 10 / 4
    draw = torch.Generator().manual_seed(0)

    def step(images: Tensor, targets: Tensor) -> Tensor:
        _, scores, choice = scheme.choose(images, draw)
        sent = modulate(choice.argmax(-1).flatten())
        decided = demodulate(sent + deviation * torch.randn_like(sent)).view(choice.shape[:2])
        received = choice + (F.one_hot(decided, 16).float() - choice).detach()
        output = scheme.answer(received @ scheme.codebook.vectors)
        chances = torch.softmax(scores, -1)
        entropy = -(chances * torch.log(chances + 1e-10)).sum(-1).mean()
        return F.cross_entropy(output, targets) - scheme.entropy_weight * entropy

    return step


def modulate(indices: Tensor) -> Tensor:
    """Map indices of 16-QAM to points of a grid, (n, 2), one after the other."""
    sent = torch.zeros(len(indices), 2)
    for i in range(len(indices)):
        row, column = divmod(int(indices[i]), 4)
        sent[i, 0] = row
        sent[i, 1] = column
    return sent


def demodulate(heard: Tensor) -> Tensor:
    """Decide on the nearest point for each of (n, 2), one after the other."""
    decided = torch.zeros(len(heard), dtype=torch.int64)
    for i in range(len(heard)):
        row = min(max(int(torch.round(heard[i, 0])), 0), 3)
        column = min(max(int(torch.round(heard[i, 1])), 0), 3)
        decided[i] = 4 * row + column
    return decided


def inversion(victim: DeepJSCC, eve: Inversion, snr_db: float) -> Step:
    """Return the attacker's loss: mean square error and perceptual distance of what she draws from DeepJSCC."""
    deviation = math.sqrt(0.5 * 10 ** (-snr_db / 10))
    perceptual = eve.perceptual
    assert perceptual is not None

    def step(images: Tensor, targets: Tensor) -> Tensor:
        del targets
        with torch.no_grad():
            sent = _normalised(victim.encoder(images).flatten(1))
        drawn = eve.decoder(sent + deviation * torch.randn_like(sent))
        with torch.no_grad():
            wanted = perceptual.features(images)
        distance = torch.zeros(())
        for i, (a, b) in enumerate(zip(perceptual.features(drawn), wanted, strict=True)):
            a, b = (each / (each.norm(dim=1, keepdim=True) + 1e-10) for each in (a, b))
            distance = distance + ((a - b) ** 2 * perceptual.get_buffer(f"heads_{i}")[:, None, None]).sum(1).mean()
        return F.mse_loss(drawn, images) + distance

    return step


class User(nn.Module):
    """Transmitter and receiver of one user of IRSC with CSI at the receiver (paper B, Table I)."""

    def __init__(self, users: int, width: int = 256, antennas: int = 2, uses: int = 16) -> None:
        super().__init__()
        self.shape = (antennas, uses)
        self.encode = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 2 * antennas * uses))
        told = 2 * (users * antennas) ** 2
        self.decode = nn.Sequential(
            nn.Linear(2 * antennas * uses + told, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.draw = nn.Sequential(nn.Linear(width, 784), nn.Tanh())

    def transmit(self, images: Tensor) -> Tensor:
        """Return X_k: (B, Nt, N) complex64."""
        antennas, uses = self.shape
        reals = self.encode(images.flatten(1))
        reals = reals / reals.norm(dim=1, keepdim=True) * math.sqrt(antennas * uses)
        return torch.complex(*reals.view(len(images), 2, antennas, uses).unbind(1))

    def receive(self, heard: Tensor, channels: Tensor) -> Tensor:
        """Return images (B, 784) from Y_k: (B, Nr, N) and all of H."""
        told = [torch.view_as_real(heard).flatten(1), torch.view_as_real(channels).flatten(1)]
        return self.draw(self.decode(torch.cat(told, 1))) / 2 + 0.5


def irsc(users: list[User], sets: list[Images], batch_size: int, optimiser: torch.optim.Optimizer) -> None:
    """Train all users for an epoch: one DataLoader and one module each, user after user."""
    count, weights = len(users), [1 / len(users)] * len(users)
    for batches in zip(*[loader(each, batch_size) for each in sets], strict=True):
        images = [batch[0] for batch in batches]
        size = len(images[0])
        H = torch.randn(size, count, count, 2, 2, dtype=torch.complex64)
        deviation = (10 ** (-(-5 + 25 * torch.rand(size, 1, 1)) / 20)) / math.sqrt(2)
        sent = [user.transmit(image) for user, image in zip(users, images, strict=True)]
        losses = []
        for k, user in enumerate(users):
            heard = sum((H[:, k, j] @ sent[j] for j in range(count)), torch.zeros(()))
            noise = torch.complex(torch.randn(heard.shape), torch.randn(heard.shape))
            drawn = user.receive(heard + deviation * noise, H)
            losses.append(F.mse_loss(drawn, images[k].flatten(1)))
        loss = torch.stack([weight * each for weight, each in zip(weights, losses, strict=True)]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _normalised(code: Tensor) -> Tensor:
    """Return ``code: (B, 2 n)`` with unit energy a symbol on average over an image."""
    return code / code.norm(dim=1, keepdim=True) * math.sqrt(code.shape[1] / 2)
