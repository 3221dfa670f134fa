# SPDX-License-Identifier: Apache-2.0
"""An encoder of somebody else's as a transmitter: any module ``(B, C, H, W) -> (B, d)`` real or ``(B, n)`` complex.

    image ─> encoder ─> (B, d) real, two a symbol (an odd d is padded by a zero) ─┬─> x constant ─> x ─> channel
                        (B, n) complex, a number a symbol ────────────────────────┘

The constant makes the mean energy of a symbol 1 over the images that it is measured on, and is then frozen and public:
SNR is Es/N0, and what the encoder chose between images is left as it is, so a bright image may take more power than a
dark one. The encoder runs in evaluation mode, in the precision that it was written in, on images of contiguous memory.
It may draw noise from torch's generator: that is seeded for each call, so that an audit can be repeated.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from semlink import phy
from semlink._errors import SemlinkError
from semlink.nn import Backbone
from semlink.schemes.base import Design, Scheme, Sent
from semlink.schemes.task import Task

_PROBES = 16  # images by which the encoder is tried before anything is believed of it
_BATCH = 250
_ALIKE = 1e-3  # of the largest value: by so much may rounding move a code when other images are beside it


class Foreign(Scheme):
    """A transmitter without a receiver, around an encoder that Semlink knows nothing of.

    Args:
        encoder: the module; it is not trained, and not changed but for its mode.
        task: what the images show.
        images: (N, C, H, W) float32 in [0, 1], of the transceiver's, by which power is measured.

    Attributes:
        random: the encoder sends the same image in other ways at other times.

    Raises:
        SemlinkError: it fails on such images, returns anything but finite numbers of a shape above, sends nothing,
            changes while it is used, or lets an image's code depend on the images beside it.
    """

    def __init__(self, encoder: nn.Module, task: Task, images: Tensor) -> None:
        code = _tried(encoder.eval(), images[:_PROBES])
        super().__init__(Design(task, -(-code.shape[1] // (1 if code.is_complex() else 2)), Backbone(1, 1)))
        self.encoder = encoder
        self.returns = f"{code.shape[1]} {'complex' if code.is_complex() else 'real'} numbers"
        self.random = not torch.equal(code, _run(encoder, images[:_PROBES], seed=1))
        if not self.random:
            _check_apart(encoder, images[:_PROBES], code)
        with torch.no_grad():
            powers = torch.cat([phy.mean_power(_symbols(_run(encoder, part, seed=0))) for part in images.split(_BATCH)])
        self.power = float(powers.double().mean())
        self.spread = tuple(float(each) / self.power if self.power else 0.0 for each in powers.aminmax())
        if not 1e-30 < self.power < 1e30:
            raise SemlinkError(
                f"the encoder sends symbols of mean energy {self.power:g}, which no constant can bring to 1; "
                "let its output be about 1 in size"
            )

    def transmit(self, images: Tensor, generator: torch.Generator) -> Sent:
        """Encode and scale; ``generator`` seeds the encoder's own randomness, if it has any."""
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device)) if self.random else None
        return Sent(_symbols(_run(self.encoder, images, seed)) / self.power**0.5)

    def receive(self, received: phy.Received, header: Tensor | None = None) -> Tensor:
        """Refuse.

        Raises:
            SemlinkError: always, as an encoder alone delivers nothing.
        """
        del received, header
        raise SemlinkError("an encoder alone delivers nothing: this link has no receiver; it can only be listened to")

    def describe(self) -> dict[str, Any]:
        """Return what was found out about the encoder.

        ``energy`` is that of a symbol as it came, ``scale`` the constant, and ``least`` and ``most`` what single images
        take of the mean energy.
        """
        least, most = self.spread
        return {
            "returns": self.returns,
            "random": self.random,
            "parameters": sum(p.numel() for p in self.encoder.parameters()),
            "energy": self.power,
            "scale": self.power**-0.5,
            "least": least,
            "most": most,
        }


def _run(encoder: nn.Module, images: Tensor, seed: int | None) -> Tensor:
    """Return the code of ``images``, torch's generators being seeded meanwhile unless ``seed`` is None."""
    devices = [images.device] if images.is_cuda else []
    with torch.random.fork_rng(devices, enabled=seed is not None), torch.autocast(images.device.type, enabled=False):
        if seed is not None:
            torch.manual_seed(seed)
        return encoder(images.float().contiguous())


def _symbols(code: Tensor) -> Tensor:
    """(B, d) real or (B, n) complex -> (B, n) complex64, neither scaled but for the pairing of reals."""
    if code.is_complex():
        return code.to(torch.complex64)
    return phy.to_symbols(nn.functional.pad(code.float(), (0, code.shape[1] % 2)))


@torch.no_grad()
def _tried(encoder: nn.Module, images: Tensor) -> Tensor:
    """Return the code of a few images; raise SemlinkError unless it is one."""
    shape = tuple(images.shape)
    try:
        if any(map(is_lazy, encoder.parameters())):
            _run(encoder, images, seed=0)  # makes the weights whose shape was left open
        before = _state(encoder)
        code = _run(encoder, images, seed=0)
    except Exception as error:
        raise SemlinkError(
            f"the encoder fails on images of shape {shape}: {type(error).__name__}: {error}; it is called with "
            "(B, C, H, W) float32 in [0, 1], and --data says of what size"
        ) from None
    if not isinstance(code, Tensor):
        raise SemlinkError(f"the encoder returns {type(code).__name__}: a tensor (B, d) or (B, n) is expected")
    if code.ndim != 2 or not code.shape[1]:
        raise SemlinkError(
            f"the encoder returns shape {tuple(code.shape)} for images {shape}: (B, d) real or (B, n) complex is "
            "expected; end it with nn.Flatten()"
        )
    if len(code) != len(images):
        raise SemlinkError(
            f"the encoder returns {len(code)} rows for {len(images)} images: one row for each image is expected"
        )
    if not (code.is_floating_point() or code.is_complex()):
        raise SemlinkError(f"the encoder returns {code.dtype}: real (floating) or complex numbers are expected")
    if bad := int((~code.isfinite()).sum()):
        raise SemlinkError(f"{bad} of the {code.numel()} numbers that the encoder returns are not finite")
    if changed := [name for name, value in _state(encoder).items() if before.get(name) != value]:
        raise SemlinkError(
            f"the encoder changes '{changed[0]}' while it is used, so there is no one encoder to audit; "
            "let it leave its weights and buffers as they are in evaluation mode"
        )
    return code


@torch.no_grad()
def _check_apart(encoder: nn.Module, images: Tensor, code: Tensor) -> None:
    """Raise SemlinkError if the code of an image depends on the images beside it."""
    alone, among = _tried(encoder, images[:1]), code[:1]
    if alone.shape != among.shape or not float((alone - among).abs().max()) <= _ALIKE * float(code.abs().max()):
        raise SemlinkError(
            "the encoder sends another code of an image when other images are beside it, as if it normalised over the "
            "batch; let it treat each image by itself"
        )


def _state(module: nn.Module) -> dict[str, bytes]:
    """Return the bytes of every parameter and buffer, of those too that are not stored with the weights."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {n: v.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() for n, v in named}
