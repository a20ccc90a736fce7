"""The objective of multi-scale VQ-VAEs and the care of their codebook.

Plain auto-encoding first, then k-means over residuals of all scales as the codebook, then the VAR objective
(arXiv 2404.02905, equation 5): reconstruction, codebook and commitment terms averaged over the partial sums.
Codes that nothing chose for a while move to a current residual. Some batches decode a partial sum, so that the
decoder copes when the finest scales are skipped.

Shape suffixes: M residuals, V codebook entries, C latent channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from varsearch.models.quantizer import MultiScaleQuantizer
from varsearch.models.vqvae import VQVAE

WARM_UP, PARTIAL, LAST_REVIVAL = 0.1, 0.2, 0.8
"""Share of the training without codes, of batches that decode a partial sum, and of the training that moves codes."""

IDLE_STEPS, REVIVE_EVERY = 100, 50


def loss_of(model: VQVAE, images: Tensor, quantized: bool) -> tuple[Tensor, list[Tensor], Tensor]:
    """Training loss, tokens (empty while not quantized) and the latent map."""
    f = model.latent(images).float()
    if not quantized:
        return reconstruction(model, f, images), [], f.detach()
    # Nearest codes and residuals would be wrong in the half precision of a surrounding autocast.
    with torch.autocast(f.device.type, enabled=False):
        with torch.no_grad():
            tokens = model.quantize.encode(f)
        sums = model.quantize.partial_sums(tokens)
        vq = torch.stack([F.mse_loss(s, f.detach()) + 0.25 * F.mse_loss(s.detach(), f) for s in sums]).mean()
    if torch.rand(()) < PARTIAL:
        # No straight-through estimate here: the encoder cannot improve a sum that leaves its finest residuals out.
        shown = sums[int(torch.randint(len(sums) // 2, len(sums) - 1, ()))]
    else:
        shown = (sums[-1] - f).detach() + f
    return reconstruction(model, shown, images) + vq, tokens, f.detach()


def reconstruction(model: VQVAE, f: Tensor, images: Tensor) -> Tensor:
    """Mean squared plus a tenth of the mean absolute error of the decoded image."""
    decoded = model.decoder(model.post_quant_conv(f)).float()
    return F.mse_loss(decoded, images) + 0.1 * F.l1_loss(decoded, images)


@torch.no_grad()
def residuals(quantizer: MultiScaleQuantizer, f: Tensor) -> Tensor:
    """What each scale has to code, all scales together, (M, C); coarse scales are repeated to weigh the same."""
    tokens = quantizer.encode(f)
    sums = [torch.zeros_like(f), *quantizer.partial_sums(tokens)[:-1]]
    parts = [quantizer.pool(f - s, k).flatten(2).mT.flatten(0, 1) for k, s in enumerate(sums)]
    return torch.cat([p.repeat(max(len(parts[-1]) // len(p) // 4, 1), 1) for p in parts])


@torch.no_grad()
def initialise_codebook(model: VQVAE, images: Tensor, rounds: int = 2) -> None:
    """K-means of the residuals; repeated, because the residuals depend on the codebook."""
    f, book_VC = model.latent(images), model.quantize.embedding.weight
    for _ in range(rounds):
        points_MC = residuals(model.quantize, f)
        book_VC.copy_(points_MC[torch.randperm(len(points_MC))[: len(book_VC)]])
        for _ in range(15):
            index_M = model.quantize.nearest(points_MC)
            count_V = index_M.bincount(minlength=len(book_VC))
            total_VC = torch.zeros_like(book_VC).index_add_(0, index_M, points_MC)
            used = count_V > 0
            book_VC[used] = total_VC[used] / count_V[used, None]


@torch.no_grad()
def revive(quantizer: MultiScaleQuantizer, idle_V: Tensor, f: Tensor) -> None:
    """Moves codes unused for `IDLE_STEPS` batches to random current residuals."""
    dead = (idle_V > IDLE_STEPS).nonzero()[:, 0]
    if len(dead):
        points_MC = residuals(quantizer, f)
        quantizer.embedding.weight[dead] = points_MC[torch.randperm(len(points_MC))[: len(dead)]]
        idle_V[dead] = 0


@torch.no_grad()
def psnr(model: VQVAE, images: Tensor, n_scales: int) -> float:
    """Mean peak signal-to-noise ratio in dB of reconstructions from the first `n_scales` scales."""
    model.eval()
    found = []
    for x in images.split(250):
        decoded = model.decode(model.quantize.partial_sums(model.encode(x))[n_scales - 1])
        found.append(-10 * ((decoded - x) / 2).square().mean((1, 2, 3)).log10())
    return torch.cat(found).mean().item()


@torch.no_grad()
def code_use(model: VQVAE, images: Tensor) -> dict[str, float]:
    """How many codes these images use, and the perplexity of the codes' frequencies over all scales."""
    tokens = torch.cat([t.flatten() for x in images.split(250) for t in model.encode(x)])
    share_V = tokens.bincount(minlength=model.config.vocab).double() / len(tokens)
    entropy = -torch.special.xlogy(share_V, share_V).sum()
    return {"codes_used": int((share_V > 0).sum()), "code_perplexity": entropy.exp().item()}
