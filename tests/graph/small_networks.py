"""Small networks for the tests of coupling, surgery and blocks: one for each way that channels go together."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from trimtab.graph.capture import capture
from trimtab.graph.model import Graph


def net(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


class Call(nn.Module):
    """Named layers and a function of them: a network in two lines."""

    def __init__(self, function: Callable[..., torch.Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def chain() -> nn.Module:
    return net(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(128, 5))


def option_a() -> nn.Module:
    """A CIFAR ResNet's stage change: stride 2, zeros for the new channels (He et al. 2015, section 4.2)."""

    def forward(m, x):
        x = F.relu(m.bn1(m.conv1(x)))
        x = F.relu(x + m.conv2(x))
        x = F.relu(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + m.conv3(x))
        return m.linear(x.mean((2, 3)))

    return Call(
        forward,
        conv1=nn.Conv2d(3, 4, 3, 1, 1),
        bn1=nn.BatchNorm2d(4),
        conv2=nn.Conv2d(4, 4, 3, 1, 1),
        conv3=nn.Conv2d(4, 8, 3, 2, 1),
        linear=nn.Linear(8, 5),
    )


def dense() -> nn.Module:
    def forward(m, x):
        a = m.a(x)
        b = m.b(F.relu(m.norm_a(a)))
        return m.head(torch.cat([F.relu(m.norm(torch.cat([b, a], 1))), x], 1).mean((2, 3)))

    return Call(
        forward,
        a=nn.Conv2d(3, 6, 1),
        norm_a=nn.BatchNorm2d(6),
        b=nn.Conv2d(6, 4, 3, padding=1),
        norm=nn.BatchNorm2d(10),
        head=nn.Linear(13, 5),
    )


def mobile() -> nn.Module:
    return net(
        nn.Conv2d(3, 8, 1), nn.Hardswish(), nn.Conv2d(8, 16, 3, groups=8), nn.PReLU(16), nn.Conv2d(16, 6, 1),
        nn.GroupNorm(3, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def grouped() -> nn.Module:
    return net(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 3, groups=4), nn.GroupNorm(1, 8), nn.Conv2d(8, 4, 1))


def shuffle() -> nn.Module:
    def forward(m, x):
        x = m.stem(x)
        kept, x = x.chunk(2, dim=1)
        x = torch.cat([kept, m.branch(x)], 1)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return m.head(x)

    return Call(forward, stem=nn.Conv2d(3, 12, 1), branch=nn.Conv2d(6, 6, 3, padding=1), head=nn.Conv2d(12, 4, 1))


def squeeze_excite() -> nn.Module:
    def forward(m, x):
        x = m.stem(x)
        gate = torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1)))))
        return m.head(x * gate)

    return Call(
        forward,
        stem=nn.Conv2d(3, 8, 3),
        down=nn.Conv2d(8, 4, 1),
        up=nn.Conv2d(4, 8, 1),
        head=nn.Conv2d(8, 4, 1),
    )


def super_resolver() -> nn.Module:
    return net(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 24, 3), nn.PixelShuffle(2), nn.Tanh(), nn.Conv2d(6, 12, 1),
               nn.PixelShuffle(2))  # fmt: skip


def u_net() -> nn.Module:
    def forward(m, x):
        a = F.relu(m.down1(x))
        b = F.relu(m.down2(F.max_pool2d(a, 2)))
        return m.head(torch.cat([a, F.interpolate(b, scale_factor=2.0), m.up(b)], 1))

    return Call(
        forward,
        down1=nn.Conv2d(3, 6, 3, padding=1),
        down2=nn.Conv2d(6, 10, 3, padding=1),
        up=nn.ConvTranspose2d(10, 8, 2, 2),
        head=nn.Conv2d(24, 4, 1),
    )


def transposed() -> nn.Module:
    up = nn.ConvTranspose1d(3, 12, 4, 2)
    return net(
        up, nn.InstanceNorm1d(12, affine=True), nn.ConvTranspose1d(12, 8, 3, groups=4), nn.GLU(1), nn.Conv1d(4, 5, 1)
    )


class Attention(nn.Module):
    """Multi-head attention with one linear for q, k and v, or three; written by hand or torch's own."""

    def __init__(self, width: int = 16, heads: int = 4, merged: bool = True, by_hand: bool = False) -> None:
        super().__init__()
        self.heads, self.size, self.by_hand = heads, width // heads, by_hand
        if merged:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x):
        b, n, _ = x.shape
        if hasattr(self, "qkv"):
            q, k, v = self.qkv(x).view(b, n, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (f(x).view(b, n, self.heads, self.size).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.by_hand:
            y = torch.softmax(q @ k.transpose(-1, -2) * self.size**-0.5, -1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, n, -1))


class Transformer(nn.Module):
    """Pre-norm blocks with a class token and position embeddings, as in a ViT."""

    def __init__(
        self, merged: bool = True, by_hand: bool = False, norm: Callable[[int], nn.Module] = nn.LayerNorm
    ) -> None:
        super().__init__()
        self.patch, self.token = nn.Linear(6, 16), nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 6, 16))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": norm(16),
                    "attention": Attention(16, 4, merged, by_hand),
                    "norm2": norm(16),
                    "mlp": net(nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 16)),
                }
            )
            for _ in range(2)
        )
        self.norm, self.head = norm(16), nn.Linear(16, 5)

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.patch(x)], 1) + self.position
        for block in self.blocks:
            x = x + block["attention"](block["norm1"](x))
            x = x + block["mlp"](block["norm2"](x))
        return self.head(self.norm(x)[:, 0])


class Decoder(nn.Module):
    """Grouped-query attention with rotary positions, a gated MLP, RMS norms and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.norm1, self.norm2 = nn.RMSNorm(16), nn.RMSNorm(16)
        self.q, self.k, self.v = nn.Linear(16, 16, False), nn.Linear(16, 8, False), nn.Linear(16, 8, False)
        self.o = nn.Linear(16, 16, False)
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 11, False)
        self.head.weight = self.embed.weight
        angle = torch.outer(torch.arange(5.0), 1 / 10 ** torch.arange(2.0))
        self.register_buffer("cos", torch.cat([angle, angle], -1).cos())
        self.register_buffer("sin", torch.cat([angle, angle], -1).sin())

    def _turn(self, x):
        return x * self.cos + torch.cat([-x[..., 2:], x[..., :2]], -1) * self.sin

    def forward(self, ids):
        x = self.embed(ids)
        b, n, _ = x.shape
        y = self.norm1(x)
        q = self._turn(self.q(y).view(b, n, 4, 4).transpose(1, 2))
        k = self._turn(self.k(y).view(b, n, 2, 4).transpose(1, 2))
        v = self.v(y).view(b, n, 2, 4).transpose(1, 2)
        k, v = (t[:, :, None].expand(b, 2, 2, n, 4).reshape(b, 4, n, 4) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, n, 16))
        y = self.norm2(x)
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))


def torch_attention() -> nn.Module:
    return Call(
        lambda m, x: m.head(m.attention(m.embed(x), m.embed(x), m.embed(x), need_weights=False)[0]),
        embed=nn.Linear(6, 16),
        attention=nn.MultiheadAttention(16, 4, batch_first=True),
        head=nn.Linear(16, 5),
    )


def recurrent(kind: type[nn.RNNBase], both: bool = False) -> nn.Module:
    return Call(
        lambda m, x: m.head(m.rnn(m.embed(x))[0][:, -1]),
        embed=nn.Linear(6, 10),
        rnn=kind(10, 8, num_layers=2, batch_first=True, bidirectional=both),
        head=nn.Linear(16 if both else 8, 5),
    )


def statistics() -> nn.Module:
    """Means, variances, maxima and softmaxes over channels that are cut."""

    def forward(m, x):
        x = m.a(x)
        y = x.softmax(-1) + x.log_softmax(-1) + (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)
        return m.b(y + x.var(-1, keepdim=True)) + x.amax(-1, keepdim=True) + x.logsumexp(-1, keepdim=True)

    return Call(forward, a=nn.Linear(6, 10), b=nn.Linear(10, 5))


def einsum() -> nn.Module:
    def forward(m, x):
        q, k = m.q(x).unflatten(-1, (4, 3)), m.k(x).unflatten(-1, (4, 3))
        return m.head(torch.einsum("bnhd,bmhd->bhnm", q, k).mean(-1).transpose(1, 2))

    return Call(forward, q=nn.Linear(6, 12), k=nn.Linear(6, 12), head=nn.Linear(4, 5))


def weight_standardised() -> nn.Module:
    """A convolution whose weights are normalised over their inputs (Qiao et al. 2019), then a plain one."""

    def forward(m, x):
        weight = m.b.weight
        rows = weight.reshape(1, weight.shape[0], -1)
        weight = F.batch_norm(rows, None, None, training=True).reshape_as(weight)
        return m.c(F.relu(F.conv2d(m.a(x), weight, m.b.bias)))

    return Call(forward, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 8, 3), c=nn.Conv2d(8, 4, 1))


def written_in_place() -> nn.Module:
    """Parts of a tensor written through views of it."""

    def forward(m, x):
        x = m.a(x)
        y = torch.zeros_like(x)
        y[:, :, :3] = x[:, :, :3]
        y[:, 1:, 3:] = x[:, :-1, 3:] * 2
        return m.b(y)

    return Call(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 5))


def moved() -> nn.Module:
    """Layouts and statistics by their less common names."""

    def forward(m, x):
        x = m.a(x).movedim(2, 1).swapaxes(1, 2).tile(1, 1, 2)
        variance, mean = torch.var_mean(x, -1, keepdim=True)
        x = (x - mean) / variance
        return m.b(torch.einsum("...nd,...md->...nm", x, x) @ torch.concatenate(torch.tensor_split(x, 3, -1), -1))

    return Call(forward, a=nn.Linear(6, 8), b=nn.Linear(16, 5))


def scan() -> nn.Module:
    """One linear for two parts of unequal width, and a rolled sequence (a step of a state-space layer)."""

    def forward(m, x):
        step, state = m.both(F.silu(m.a(x))).split([3, 8], dim=-1)
        state = state.roll(1, 1).cumsum(1) * F.softplus(m.widen(step))
        return m.b(state * torch.exp(m.rate))

    return Call(
        forward,
        a=nn.Linear(6, 10),
        both=nn.Linear(10, 11),
        widen=nn.Linear(3, 8),
        rate=nn.Parameter(torch.randn(8)),
        b=nn.Linear(8, 5),
    )


IMAGE = torch.randn(2, 3, 8, 8)
SERIES = torch.randn(2, 5, 6)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "chain": (chain, IMAGE),
    "option_a": (option_a, IMAGE),
    "dense": (dense, IMAGE),
    "mobile": (mobile, IMAGE),
    "grouped": (grouped, IMAGE),
    "shuffle": (shuffle, IMAGE),
    "squeeze_excite": (squeeze_excite, IMAGE),
    "super_resolver": (super_resolver, IMAGE),
    "u_net": (u_net, IMAGE),
    "transposed": (transposed, torch.randn(2, 3, 9)),
    "merged_attention": (Transformer, SERIES),
    "three_linears": (lambda: Transformer(merged=False), SERIES),
    "hand_written_attention": (lambda: Transformer(by_hand=True), SERIES),
    "rms_norm": (lambda: Transformer(norm=nn.RMSNorm), SERIES),
    "torch_attention": (torch_attention, SERIES),
    "decoder": (Decoder, torch.randint(0, 11, (2, 5))),
    "lstm": (lambda: recurrent(nn.LSTM), SERIES),
    "gru": (lambda: recurrent(nn.GRU, both=True), SERIES),
    "statistics": (statistics, SERIES),
    "einsum": (einsum, SERIES),
    "weight_standardised": (weight_standardised, IMAGE),
    "scan": (scan, SERIES),
    "written_in_place": (written_in_place, SERIES),
    "moved": (moved, SERIES),
}


def built(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The named network in double precision with random norms and biases, and an example input."""
    torch.manual_seed(0)
    make, example = NETWORKS[name]
    model = make().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_()
        for buffer in model.buffers():
            if buffer.is_floating_point() and buffer.ndim == 1:
                buffer.uniform_(0.5, 1.5)
    return model, example.double() if example.is_floating_point() else example


@cache
def captured(name: str) -> tuple[Graph, torch.Tensor]:
    """The named network's graph and its example input; the graph is shared, and nobody may change it."""
    model, example = built(name)
    return capture(model, example), example
