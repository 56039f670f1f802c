"""Gains of any differentiable head by automatic differentiation, to compare the formula with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call


def gain_matrix(gradient: Tensor, prototypes: Tensor, head: nn.Module, mix: float = 0.8) -> Tensor:
    """Gain of every ordered pair for a head that maps N×D to N×K.

    The step moves the parameters that require a gradient by `-∇CE(z_ij, i)`, so
    `G_ij = -<∇CE(z_ij, i), v>` where v is the gradient of `sum_kl D_kl head(z_k)_l`: one backward
    pass for v, then for all pairs the directional derivative of the logits along v, dotted with
    `e_i - p_ij`.

    Shape: gradient K×K, prototypes K×D -> K×K.
    """
    k = len(gradient)
    with torch.inference_mode(False), torch.enable_grad():
        theta = {n: p.detach().clone().requires_grad_() for n, p in _trained(head).items()}

        def logits_of(z: Tensor) -> Tensor:
            logits: Tensor = functional_call(head, theta, (z,))
            return logits

        z, d = prototypes.detach().clone(), gradient.detach().clone()
        found = torch.autograd.grad((d * logits_of(z)).sum(), list(theta.values()))
        pairs = torch.cartesian_prod(torch.arange(k), torch.arange(k))
        logits = logits_of(mix * z[pairs[:, 0]] + (1 - mix) * z[pairs[:, 1]])
        # A backward pass is linear in the cotangent u, so differentiating <J^T u, v> by u is J v.
        cotangent = torch.zeros_like(logits, requires_grad=True)
        pulled = torch.autograd.grad(logits, list(theta.values()), cotangent, create_graph=True)
        along = torch.stack([(g * v).sum() for g, v in zip(pulled, found, strict=True)]).sum()
        (change,) = torch.autograd.grad(along, cotangent)
        labelled = change.gather(1, pairs[:, :1])[:, 0]
        return (labelled - (logits.detach().softmax(1) * change).sum(1)).view(k, k)


def _trained(head: nn.Module) -> Mapping[str, nn.Parameter]:
    return {n: p for n, p in head.named_parameters() if p.requires_grad}
