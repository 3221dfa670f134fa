# SPDX-License-Identifier: Apache-2.0
"""K transmitters and K receivers on one interference channel, trained jointly.

    image_k ─> transmitter k ─> X_k (Nt, N) ─> Y_k = sum_j H_kj X_j + N_k ─> receiver k ─> image_k
                    ▲                                                           ▲
                    └────────────── what is known of H, where it is ────────────┘

A batch holds groups of K images that are sent at once, (B, K, C, H, W); every group meets channels of its own, constant
over its N channel uses. The loss is paper B's equation 6, ``sum_k w_k L_k``, with the weights of its equation 7: each
user's share of the sum of losses before, so that the worst served weighs most. The paper speaks of the previous
iteration and writes an epoch; both are there.

Source: Y. Wang, S. Guo, A. Dong, H. Zhao, "Benchmarking semantic communications for image transmission over MIMO
interference channels", arXiv:2406.16878.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semlink import phy
from semlink._errors import SemlinkError, check_name, check_positive, check_whole
from semlink.nn import Phase
from semlink.nn.objective import Optimiser
from semlink.nn.stacked import NETWORKS, StackedLinear
from semlink.phy.interference import check_gains
from semlink.schemes.base import Carry, Design, Scheme, Sent
from semlink.schemes.link import Link
from semlink.schemes.task import Task

FAIRNESS = ("epoch", "step", "off")
FADING = ("image", "batch", "never")


@dataclass(frozen=True)
class State:
    """The channels of B groups, and what is known of them.

    Attributes:
        gains: H, (B, K, K, Nr, Nt) complex64; only the channel may look at it.
        known: what receivers believe H to be, and transmitters that are told; of the same shape.
        snr_db: per transmit antenna, (B,) float32; the noise is known to whoever knows H.
        precoders: V, (B, K, Nt, d) complex64, designed for ``known``; None unless the scheme precodes.
        filters: U, (B, K, Nr, d) complex64, designed with them.
        mse: mean square error that they leave of a stream if ``known`` is right, (B, K, d) float32, or (B, K, 1) where
            it is a mean over streams.
    """

    gains: Tensor
    known: Tensor
    snr_db: Tensor
    precoders: Tensor | None = None
    filters: Tensor | None = None
    mse: Tensor | None = None

    def of(self, indices: Tensor) -> "State":
        """Return the channels ``indices: (M,) int64``."""
        return self._each(lambda held: held[indices])

    def on(self, device: torch.device) -> "State":
        """Return the channels on ``device``."""
        return self._each(lambda held: held.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "State":
        found = {name: None if held is None else change(held) for name, held in vars(self).items()}
        return State(**found)  # pyright: ignore[reportArgumentType]

    @property
    def noise_variance(self) -> Tensor:
        """Complex noise variance at each receive antenna, (B, 1) float32."""
        return phy.noise_variance(self.snr_db, len(self.snr_db), self.snr_db.device)


class NetworkScheme(Scheme):
    """The transmitters and receivers of all users; ``design.channel_uses`` is N_B, the columns of each X_k.

    Args:
        users: K pairs of a transmitter and a receiver.
        transmit_antennas: Nt of each transmitter.
        receive_antennas: Nr of each receiver.
        cross_gain_db: power of the channels between pairs over that of those within.
        csi_error: mean square error of what receivers know of a gain of unit power, from 0 to 1.
        snr_low_db: of the range that training draws from, uniformly in dB, for every group.
        snr_high_db: its other end.
        fairness: how often the users' weights in the loss follow their losses: epoch, step, or off.
        networks: kind of the semantic encoders and decoders: fully-connected or convolutional.
        fading: how often H is drawn anew: for each image, each batch, or never; paper B does not say. Networks that
            meet one H in training and test learn it by heart.
        learning_rate: of Adam, in training; default that of paper B, section IV.

    Raises:
        SemlinkError: a number makes no sense; the message says which.
    """

    #: Whether receivers are told the channels.
    told_receiver: ClassVar[bool] = True
    #: Whether transmitters are told the channels.
    feedback: ClassVar[bool] = False
    user_weights: Tensor
    user_losses: Tensor

    def __init__(
        self,
        design: Design,
        users: int = 2,
        transmit_antennas: int = 2,
        receive_antennas: int = 2,
        cross_gain_db: float = 0.0,
        csi_error: float = 0.0,
        snr_low_db: float = -5.0,
        snr_high_db: float = 20.0,
        fairness: str = "epoch",
        networks: str = "fully-connected",
        fading: str = "image",
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__(design)
        check_whole("channel_uses", design.channel_uses)
        self.medium = phy.Interference(users, transmit_antennas, receive_antennas, cross_gain_db, csi_error)
        if not -phy.MAX_DB <= snr_low_db <= snr_high_db <= phy.MAX_DB:
            raise SemlinkError(
                f"snr_low_db is {snr_low_db} and snr_high_db {snr_high_db}: the first must not be above the second"
            )
        self.snr_range_db = (snr_low_db, snr_high_db)
        self.fairness = check_name("fairness", fairness, FAIRNESS)
        self.fading = check_name("fading", fading, FADING)
        check_positive("learning_rate", learning_rate)  # the trainer's
        self.networks = NETWORKS[check_name("networks", networks, NETWORKS)]
        self.register_buffer("user_weights", torch.full((users,), 1 / users))
        self.register_buffer("user_losses", torch.zeros(users), persistent=False)

    @property
    def users(self) -> int:
        """K."""
        return self.medium.users

    def make_encoder(self, width: int) -> nn.Module:
        """Return semantic encoders from images (B, K, C, H, W) to (B, K, width)."""
        return self.networks[0](self.users, self.design.task.image_shape, width)

    def make_decoder(self, width: int) -> nn.Module:
        """Return semantic decoders from (B, K, width) to images, or to the logits of another task."""
        if self.design.task.kind == "reconstruct":
            return self.networks[1](self.users, width, self.design.task.image_shape)
        return StackedLinear(self.users, width, self.design.task.outputs)

    @property
    def group_shape(self) -> tuple[int, ...]:
        """(K, C, H, W)."""
        return (self.users, *self.design.task.image_shape)

    @property
    def heard_antennas(self) -> int:
        """Antennas whose symbols a receiver is given."""
        return self.medium.receive_antennas

    @property
    def csi_features(self) -> int:
        """Real numbers that hold all of H: 2 K^2 Nt Nr, which paper B feeds to its networks."""
        return 2 * self.users**2 * self.medium.transmit_antennas * self.medium.receive_antennas

    @abstractmethod
    def transmit(self, images: Tensor, generator: torch.Generator, state: State | None = None) -> Sent:
        """Encode ``images: (B, K, C, H, W) in [0, 1]`` into symbols ``(B, K, Nt, N)``."""

    @abstractmethod
    def receive(self, received: phy.Received, header: Tensor | None = None, state: State | None = None) -> Tensor:
        """Return images (B, K, C, H, W), which may leave [0, 1] while training, or logits (B, K, outputs)."""

    def draw(self, batch: int, snr_db: float | Tensor, generator: torch.Generator, device: torch.device) -> State:
        """Draw the channels of ``batch`` groups, and what the receivers know of them.

        Args:
            batch: B.
            snr_db: per transmit antenna, one number or one per group (B,).
            generator: the source of randomness.
            device: where the channels are needed.

        Raises:
            SemlinkError: ``batch`` is not a number of groups, or an SNR is not finite or there are neither one nor B.
        """
        check_whole("batch", batch, 0)
        phy.noise_variance(snr_db, batch, device)  # says what is wrong with an SNR
        level = torch.as_tensor(snr_db, dtype=torch.float32).to(device).expand(batch)
        if self.fading == "image":
            gains = self.medium.draw(batch, generator, device)
        else:
            source = generator if self.fading == "batch" else torch.Generator().manual_seed(0)
            gains = self.medium.draw(1, source, device).expand(batch, -1, -1, -1, -1)
        known = self.medium.estimate(gains, generator) if self.medium.csi_error else gains
        return State(gains, known, level)

    def check_state(self, state: State, batch: int) -> None:
        """Pass channels of ``batch`` groups of this network, and what is known of them.

        Raises:
            SemlinkError: they are of another number of groups, users or antennas, or something is not finite.
        """
        medium = self.medium
        for held in (state.gains,) if state.known is state.gains else (state.gains, state.known):
            check_gains(held, medium.users, medium.receive_antennas, medium.transmit_antennas)
            if len(held) != batch:
                raise SemlinkError(
                    f"the state holds channels for {len(held)} groups, and there are {batch}: "
                    f"give the one that 'draw({batch})' returned"
                )
        if state.snr_db.shape != (batch,):
            raise SemlinkError(f"snr_db of the state has shape {tuple(state.snr_db.shape)}: ({batch},) is expected")
        phy.noise_variance(state.snr_db, batch, state.snr_db.device)  # says what is wrong with an SNR

    def training_state(self, batch: int, generator: torch.Generator, device: torch.device) -> State:
        """Draw channels as :meth:`draw` does, at SNRs that are uniform over the training range."""
        low, high = self.snr_range_db
        share = torch.rand(batch, generator=generator, device=generator.device)
        return self.draw(batch, low + (high - low) * share, generator, device)

    def carry(self, symbols: Tensor, state: State, generator: torch.Generator) -> phy.Received:
        """Send ``symbols: (B, K, Nt, N)`` over the channels; what arrives is (B, K, Nr, N)."""
        heard = self.medium(symbols, state.gains, state.snr_db, generator)
        return phy.Received(heard, state.known, state.noise_variance)

    def deliver(self, images: Tensor, state: State, generator: torch.Generator) -> Tensor:
        """Return what the receivers make of ``images``: encode, send, receive."""
        state = self.prepared(state)
        sent = self.transmit(images, generator, state)
        return self.receive(self.carry(sent.symbols, state, generator), sent.header, state)

    def prepared(self, state: State) -> State:
        """Return ``state`` with all that both ends compute from what they know of it."""
        return state

    def overhear(self, received: phy.Received, generator: torch.Generator, state: State) -> Tensor:
        """Return what the receiver before each user can compute of that user's signal, (B, K, features) float32.

        Receiver k - 1 of user k: the last one of the first. Its own signal is decoded, encoded again and, where it
        knows its channel, taken out; both what it heard and what is left then are looked at by :meth:`listen`.
        """
        images = self.receive(received, None, state).float()
        own = self.transmit(images.clamp(0, 1), generator, state).symbols
        if received.csi is None or not self.told_receiver:
            return torch.cat([self.listen(received, state), reals_of(own).roll(1, 1)], 2)
        gains = received.csi.diagonal(dim1=1, dim2=2).movedim(-1, 1)
        left = phy.Received(received.symbols - gains @ own, received.csi, received.noise_variance)
        return torch.cat([self.listen(received, state), self.listen(left, state, without_own=True)], 2)

    def listen(self, received: phy.Received, state: State, without_own: bool = False) -> Tensor:
        """Return what the receiver before each user makes of its signal; ``without_own``: what hides it was taken out.

        Here it is what was heard, and all of H where receivers are told it: (B, K, features) float32.
        """
        heard = reals_of(received.symbols).roll(1, 1)
        if not self.told_receiver or without_own:
            return heard
        return torch.cat([heard, self.csi_of(state).roll(1, 1)], 2)

    def csi_of(self, state: State) -> Tensor:
        """Return what each receiver is told of the channels, as reals: all of H, (B, K, 2 K^2 Nt Nr) float32."""
        return torch.view_as_real(state.known).flatten(1)[:, None].expand(-1, self.users, -1)

    def user_losses_of(self, output: Tensor, images: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """Return the loss of each user, (K,)."""
        return user_losses(self.design.task, output.float(), images, targets, label_smoothing)

    def weigh(self, losses: Tensor) -> Tensor:
        """Return the weighted sum of the users' losses, and take note of them for the weights to come."""
        weighted = (self.user_weights.clone() * losses).sum()  # of before, for the gradient too
        if self.training and self.fairness == "step":
            self.user_weights.copy_(losses.detach() / losses.detach().sum())
        elif self.training and self.fairness == "epoch":
            self.user_losses.add_(losses.detach())
        return weighted

    def train(self, mode: bool = True) -> "NetworkScheme":
        """Switch between training and evaluation; the end of an epoch, a switch to the latter, sets the weights."""
        if self.training and not mode and self.user_losses.sum() > 0:
            self.user_weights.copy_(self.user_losses / self.user_losses.sum())
            self.user_losses.zero_()
        return super().train(mode)

    def phases(self, optimiser: Optimiser, carry: Carry, label_smoothing: float) -> list[Phase]:
        """Return what to train: all users at once, on channels of their own medium."""
        del carry
        return [Phase("network", NetworkObjective(self, label_smoothing), optimiser)]

    def describe(self) -> dict[str, Any]:
        """Return the channel, what it takes to know it, and the users' last weights in the loss."""
        told = self.told_receiver or self.feedback
        return {
            "users": self.users,
            "antennas": [self.medium.transmit_antennas, self.medium.receive_antennas],
            "pilot_uses": self.users * self.medium.transmit_antennas if told else 0,
            "feedback_reals": self.csi_features if self.feedback else 0,
            "user_weights": [round(float(weight), 6) for weight in self.user_weights],
        }


class NetworkObjective(nn.Module):
    """All links of a network on their task: images, symbols, channel, outputs, weighted losses."""

    def __init__(self, scheme: NetworkScheme, label_smoothing: float) -> None:
        super().__init__()
        self.scheme = scheme
        self.label_smoothing = label_smoothing

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the loss of one batch of groups, and the losses of the best and the worst served user."""
        state = self.scheme.training_state(len(images), generator, images.device)
        output = self.scheme.deliver(images, state, generator)
        losses = self.scheme.user_losses_of(output, images, targets, self.label_smoothing)
        return {"loss": self.scheme.weigh(losses), "best_user": losses.min(), "worst_user": losses.max()}


def reals_of(symbols: Tensor) -> Tensor:
    """Return ``symbols: (B, K, antennas, N) complex64`` as (B, K, 2 antennas N) float32."""
    return torch.view_as_real(symbols).flatten(2)


def user_losses(task: Task, output: Tensor, images: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Return the mean loss of each user of a task, (K,); arguments are a batch of groups, users second."""
    if task.kind == "reconstruct":
        return F.mse_loss(output, images, reduction="none").flatten(2).mean((0, 2))
    losses = [task.loss(output[:, k], images[:, k], targets[:, k], label_smoothing) for k in range(output.shape[1])]
    return torch.stack(losses)


class Network(Link):
    """What a user holds of K links on one channel: draw, transmit, channel, receive.

    Attributes:
        scheme: all transmitters and receivers (a ``torch.nn.Module``).
        medium: the channel model between them.
        snr_db: per transmit antenna, in dB; what is taken where none is given.
    """

    scheme: NetworkScheme
    medium: phy.Interference  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, scheme: NetworkScheme, snr_db: float) -> None:
        super().__init__(scheme, scheme.medium, snr_db)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def draw(self, batch: int, snr_db: float | Tensor | None = None, generator: torch.Generator | None = None) -> State:
        """Draw the channels of ``batch`` groups, on the device of the scheme's weights.

        Raises:
            SemlinkError: ``batch`` is no number of groups, or an SNR is not finite or there are neither one nor B.
        """
        device = next(self.scheme.parameters()).device
        level = self.snr_db if snr_db is None else snr_db
        return self.scheme.prepared(self.scheme.draw(batch, level, generator or self._generator, device))

    @torch.no_grad()
    def transmit(self, images: Tensor, generator: torch.Generator | None = None, state: State | None = None) -> Sent:
        """Encode ``images: (B, K, C, H, W) float32 in [0, 1]`` into symbols (B, K, Nt, N), for ``state``.

        Raises:
            SemlinkError: the images are of another shape or type, or the state is missing, or not of their channels.
        """
        expected = self.scheme.group_shape
        if images.ndim != 5 or images.shape[1:] != expected or images.dtype != torch.float32:
            raise SemlinkError(
                f"images are {images.dtype} of shape {tuple(images.shape)}: torch.float32 of shape "
                f"(B, {', '.join(map(str, expected))}) is expected, groups by users by the shape of an image"
            )
        self._check(state, len(images))
        return self.scheme.transmit(images, generator or self._generator, state)

    def channel(
        self,
        symbols: Tensor,
        snr_db: float | Tensor | None = None,
        generator: torch.Generator | None = None,
        state: State | None = None,
    ) -> phy.Received:
        """Carry ``symbols: (B, K, Nt, N) complex64`` over the channels of ``state``, at its SNR.

        Raises:
            SemlinkError: there is no state, or an SNR is given beside it; or the symbols are of another shape, or the
                state is not of their channels.
        """
        if state is None or snr_db is not None:
            raise SemlinkError("the channel of a network is drawn beforehand: give the state, and the SNR to 'draw'")
        self._check_symbols(symbols, self.scheme.medium.transmit_antennas)
        self._check(state, len(symbols))
        return self.scheme.carry(symbols, state, generator or self._generator)

    @torch.no_grad()
    def receive(self, received: phy.Received, header: Tensor | None = None, state: State | None = None) -> Tensor:
        """Return images (B, K, C, H, W) in [0, 1], or logits (B, K, outputs).

        Raises:
            SemlinkError: what was received is of another shape, or the state is missing, or not of its channels.
        """
        self._check_symbols(received.symbols, self.scheme.heard_antennas)
        batch, medium = len(received.symbols), self.scheme.medium
        self._check(state, batch)
        if received.csi is not None:
            check_gains(received.csi, medium.users, medium.receive_antennas, medium.transmit_antennas)
        if len(received.noise_variance) != batch or (received.csi is not None and len(received.csi) != batch):
            raise SemlinkError(
                f"csi or noise_variance of what was received is not of its {batch} groups: pass it whole"
            )
        output = self.scheme.receive(received, header, state).float()
        return output.clamp(0, 1) if self.scheme.design.task.kind == "reconstruct" else output

    def deliver(self, images: Tensor, snr_db: float | Tensor, generator: torch.Generator) -> Tensor:
        """Return what the receivers make of ``images`` over channels drawn for them."""
        state = self.draw(len(images), snr_db, generator)
        sent = self.transmit(images, generator, state)
        return self.receive(self.channel(sent.symbols, None, generator, state), sent.header, state)

    def _check(self, state: State | None, batch: int) -> None:
        """Pass a state of ``batch`` groups, and none: who needs it says so."""
        if state is not None:
            self.scheme.check_state(state, batch)

    def _check_symbols(self, symbols: Tensor, antennas: int) -> None:
        """Pass ``symbols: (B, K, antennas, N)`` complex."""
        wanted = (self.scheme.users, antennas, self.scheme.design.channel_uses)
        if symbols.ndim != 4 or symbols.shape[1:] != wanted or not symbols.is_complex():
            raise SemlinkError(
                f"symbols are {symbols.dtype} of shape {tuple(symbols.shape)}: complex (B, {wanted[0]}, {wanted[1]}, "
                f"{wanted[2]}) is expected, groups by users by antennas by channel uses"
            )
