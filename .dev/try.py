"""Scratch: dispersion with shared weights for any K, and with soft interference cancellation."""
import sys, time, torch, torch.nn as nn, torch.nn.functional as F
torch.set_num_threads(1); torch.set_flush_denormal(True)
from semlink import phy, data
from semlink.bench import links
from semlink.schemes.base import Design, Sent
from semlink.schemes.dispersion import Dispersion, _real_rows
from semlink.nn.stacked import stacked_mlp
from semlink.metrics import psnr_db, ssim

class Sic(Dispersion):
    def __init__(self, design, hidden=256, **o):
        super().__init__(design, **o)
        self.denoise = stacked_mlp(self.users, [2*self.features+1, hidden, 2*self.features])
        self.noise_floor = 1e-3
    def mixing(self, received):
        gains = torch.cat([_real_rows(received.csi, 3), _real_rows(1j * received.csi, 3)], 4)
        codes = _real_rows(self.carriers().movedim(2, 1), 1)
        mixed = gains.permute(2, 0, 1, 3, 4).flatten(1, 3) @ codes.flatten(2)
        mixed = mixed.unflatten(2, codes.shape[2:]).unflatten(1, gains.shape[:2] + gains.shape[3:4])
        return mixed.permute(1, 2, 4, 3, 5, 0, 6).flatten(3, 4)  # B,Krx,blocks,D,Ktx,I
    def receive(self, received, header=None, state=None):
        with torch.autocast("cpu", enabled=False):
            K = self.users
            heard = _real_rows(received.symbols.unflatten(3, (self.blocks, self.span)).transpose(2, 3), 3).flatten(3)
            mixed = self.mixing(received)
            every = mixed.flatten(4)
            D = every.shape[3]
            eye = torch.eye(D)
            noise = received.noise_variance[:, :, None, None, None] / 2 * eye
            filt = torch.linalg.solve(every @ every.mT + noise, every)
            est = (filt.mT @ heard[..., None])[..., 0].unflatten(3, (K, -1))  # B,Krx,b,Ktx,I
            err = (1 - (every * filt).sum(3)).unflatten(3, (K, -1))
            e = est.permute(0, 1, 3, 2, 4).flatten(3); v = err.permute(0, 1, 3, 2, 4).flatten(3)  # B,Krx,Ktx,F
        level = received.noise_variance.log10()[:, None].expand(-1, K, 1)
        B = len(e)
        inp = torch.cat([e, v, level[:, :, None].expand(-1, K, K, 1)], 3).flatten(0, 1)  # (B Krx), Ktx, 2F+1
        out = self.denoise(inp).float().unflatten(0, (B, K))
        mean, var = out.chunk(2, 3)
        mean = e + mean * v  # residual
        var = v * 2 * torch.sigmoid(var)
        with torch.autocast("cpu", enabled=False):
            m = mean.unflatten(3, (self.blocks, -1)).permute(0, 1, 3, 2, 4)  # B,Krx,b,Ktx,I
            s = var.unflatten(3, (self.blocks, -1)).permute(0, 1, 3, 2, 4)
            own = torch.eye(K, dtype=torch.bool)[None, :, None, :, None]
            others = (mixed.flatten(4) @ m.masked_fill(own, 0).flatten(3)[..., None])[..., 0]
            left = heard - others
            weight = torch.where(own, torch.ones_like(s), s).flatten(3)
            cov = (every * weight[:, :, :, None]) @ every.mT + noise
            wanted = torch.diagonal(mixed, dim1=1, dim2=4).movedim(-1, 1)
            f2 = torch.linalg.solve(cov, wanted)
            est2 = (f2.mT @ left[..., None])[..., 0].flatten(2)
            err2 = (1 - (wanted * f2).sum(3)).flatten(2)
        return self.semantic_decoder(self.jsc_decoder(torch.cat([est2, err2, level], 2)).relu())

class AnyK(Dispersion):
    """One set of weights; users = of the batch."""
    def __init__(self, design, width=256, **o):
        super().__init__(design, width=width, **o)  # for K=2: 8 features a block
        one = 1
        shape = design.task.image_shape
        self.width = width
        self.jsc_encoder = stacked_mlp(1, [width, self.features])
        self.jsc_decoder = stacked_mlp(1, [2*self.features+1, width, width])
        from semlink.nn.stacked import NETWORKS
        net = NETWORKS["fully-connected"]
        self.semantic_encoder = net[0](1, shape, width); self.semantic_decoder = net[1](1, width, shape)
        self.codes = nn.Parameter(self.codes.data[:1].clone())
    def run(self, images, snr, g):
        B, K = images.shape[:2]
        medium = phy.Interference(K, 2, 2)
        H = medium.draw(B, g)
        per = 16 // K
        f = self.jsc_encoder(self.semantic_encoder(images.flatten(0, 1)[:, None])).float()[:, 0]
        f = f.unflatten(0, (B, K)).unflatten(2, (self.blocks, -1))[..., :per]
        codes = torch.view_as_complex(self.codes.float())[..., :per]
        codes = codes * (32 / codes.abs().square().sum((1, 2, 3, 4), keepdim=True)).sqrt()
        X = phy.normalise_block(torch.einsum("kbtsi,nkbi->nktbs", codes.expand(K, -1, -1, -1, -1), f.to(torch.complex64)).flatten(3))
        Y = medium(X, H, snr, g)
        n0 = phy.noise_variance(snr, B, Y.device)
        self._c = codes.expand(K, -1, -1, -1, -1)
        with torch.autocast("cpu", enabled=False):
            heard = _real_rows(Y.unflatten(3, (self.blocks, self.span)).transpose(2, 3), 3).flatten(3)
            gains = torch.cat([_real_rows(H, 3), _real_rows(1j * H, 3)], 4)
            cr = _real_rows(self._c.movedim(2, 1), 1)
            mixed = gains.permute(2, 0, 1, 3, 4).flatten(1, 3) @ cr.flatten(2)
            mixed = mixed.unflatten(2, cr.shape[2:]).unflatten(1, gains.shape[:2] + gains.shape[3:4])
            mixed = mixed.permute(1, 2, 4, 3, 5, 0, 6).flatten(3, 4)
            every = mixed.flatten(4)
            wanted = torch.diagonal(mixed, dim1=1, dim2=4).movedim(-1, 1)
            filt = torch.linalg.solve(every @ every.mT + n0[:, :, None, None, None] / 2 * torch.eye(every.shape[3]), wanted)
            est = (filt.mT @ heard[..., None])[..., 0]; err = 1 - (wanted * filt).sum(3)
            est = F.pad(est, (0, 8 - per)).flatten(2); err = F.pad(err, (0, 8 - per), value=1.).flatten(2)
        level = n0.log10()[:, None].expand(-1, K, 1)
        h = torch.cat([est, err, level], 2).flatten(0, 1)[:, None]
        return self.semantic_decoder(self.jsc_decoder(h).relu()).unflatten(0, (B, K))[:, :, 0]

def main(kind, epochs=15, **o):
    users = o.pop("users", 2); dname = o.pop("data", "mnist")
    sets = data.load(dname, "default", 5 if kind == "anyk" else users)
    r = links.make_recipe("dispersion", data=dname, channel_uses=16, preset="short", users=2 if kind == "anyk" else users)
    design = links.build(r).scheme.design
    torch.manual_seed(0)
    cls = {"sic": Sic, "base": Dispersion, "anyk": AnyK}[kind]
    s = cls(design, users=2 if kind == "anyk" else users, **o)
    print(kind, o, "parameters", sum(p.numel() for p in s.parameters()), flush=True)
    opt = torch.optim.AdamW(s.parameters(), 1e-3, betas=(0.9, 0.98), weight_decay=0, fused=True)
    tr = sets.transceiver; n = len(tr); va = sets.validation
    best = None
    for epoch in range(epochs):
        g = torch.Generator().manual_seed(epoch); t = time.time(); s.train()
        for idx in torch.randperm(n, generator=g).split(128):
            im = tr.batch(idx)[0]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                if kind == "anyk":
                    K = int(torch.randint(2, 6, (1,), generator=g)); im = im[:, :K]
                    snr = -5 + 25 * torch.rand(len(im), generator=g)
                    out = s.run(im, snr, g)
                else:
                    st = s.training_state(len(im), g, torch.device("cpu"))
                    out = s.deliver(im, st, g)
                loss = (out.float() - im).square().mean()
            opt.zero_grad(); loss.backward(); opt.step()
        s.eval(); res = {}
        with torch.no_grad():
            for K in ((2, 3, 4, 5) if kind == "anyk" else (users,)):
                for snr in (0., 10., 20.):
                    g = torch.Generator().manual_seed(99); sc = []
                    for idx in torch.arange(2000).split(500):
                        im = va.batch(idx)[0][:, :K]
                        out = s.run(im, torch.full((len(im),), snr), g) if kind == "anyk" else s.deliver(im, s.draw(len(im), snr, g, torch.device("cpu")), g)
                        sc.append(ssim(out.float().clamp(0, 1).flatten(0, 1), im.flatten(0, 1)).mean())
                    res[K, snr] = round(float(torch.stack(sc).mean()), 4)
        print(epoch + 1, round(time.time() - t, 1), res, flush=True)
main(sys.argv[1], **eval(sys.argv[2] if len(sys.argv) > 2 else "{}"))
