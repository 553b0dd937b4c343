"""Which tower runs ahead of the other one, and how much to slow it down.

After OGM-GE (Peng et al., 2022, https://arxiv.org/abs/2203.15332): per batch, the modality whose
discrepancy ratio rho is above 1 has its gradient multiplied by 1 - tanh(a rho), the other keeps
it. There rho compares how sure each modality's own classifier is; a dual encoder has none, so
here it compares the norms of the two towers' gradients. Adam makes steps of one size of gradients
of any size, so what is multiplied is the tower's step, which is its learning rate. The paper's
generalisation enhancement, noise of the gradient's covariance, is left out.

A site with one tower has nothing to balance: its ratio is 1 and its steps stay as they are.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from shared.adapter import TOWERS, Tower


def ratios(norms: Mapping[Tower, Tensor]) -> dict[Tower, Tensor]:
    """Return rho of every tower: its norm over the other one's, at least 0.

    Args:
        norms: Of the gradient by tower, each of one shape, such as (rows,) or (steps,).

    Returns:
        Of that shape; 1 where a norm is 0 or not finite, or where there is one tower only.
    """
    found: dict[Tower, Tensor] = {}
    for tower, norm in norms.items():
        other = next((norms[t] for t in TOWERS if t != tower and t in norms), None)
        if other is None:
            found[tower] = torch.ones_like(norm)
            continue
        known = (norm > 0) & (other > 0) & norm.isfinite() & other.isfinite()
        found[tower] = torch.where(known, norm / other, 1.0)
    return found


def coefficients(norms: Mapping[Tower, Tensor], strength: float) -> dict[Tower, Tensor]:
    """Return what to multiply every tower's step with: 1 - tanh(a rho) where rho > 1, else 1.

    Args:
        norms: As for ``ratios``.
        strength: a; the paper uses 0.1 to 0.8, and 0 changes nothing.
    """
    return {
        tower: torch.where(rho > 1, 1 - torch.tanh(strength * rho), 1.0)
        for tower, rho in ratios(norms).items()
    }


def discrepancy(norms: Mapping[Tower, Tensor]) -> dict[Tower, float]:
    """Return every tower's rho over many steps: the geometric mean of its ratios.

    Ratios are averaged as logarithms, so that the towers' are each other's inverse, whichever
    is called first: 2 and 1/2, not 2 and something else.

    Args:
        norms: By tower, (steps,).

    Returns:
        Empty unless both towers were trained.
    """
    trained = {tower: norm for tower, norm in norms.items() if bool((norm > 0).any())}
    if len(trained) < len(TOWERS):
        return {}
    return {tower: math.exp(float(rho.log().mean())) for tower, rho in ratios(trained).items()}
