"""Let kept values carry some of what was left out (OrthoBackfill, arXiv 2604.13349, section 3).

What the discarded values have that the kept ones cannot express is summed up by how much it was attended to and added
to every kept value, along its few strongest directions. Keys stay as they are: changing them does harm (same paper).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def backfilled(
    values: Float[Tensor, "kv_heads seq head_dim"],
    kept: Bool[Tensor, " seq"],
    scores: Float[Tensor, " seq"],
    directions: int,
) -> Float[Tensor, "kv_heads kept head_dim"]:
    """Return the kept values of one layer with what was left out added to them.

    With X the kept and Y the discarded values of a head, Q an orthonormal basis of X's rows and R = Y - (Y Q) Q' the
    part of Y outside of them: delta = (r C') C A_discarded / A_kept, where r is the mean of R's rows by attention and
    C its strongest right singular directions. Where X spans the whole head nothing is outside, and nothing is added.

    Args:
        values: All content values of the layer.
        kept: Which columns are kept.
        scores: How much each column was attended to.
        directions: How many singular directions are restored.
    """
    chosen, left = values[:, kept], values[:, ~kept]
    mass_kept, mass_left = scores[kept].sum(), scores[~kept].sum()
    if not left.shape[1] or mass_kept <= 0 or mass_left <= 0:
        return chosen
    wide, outside = chosen.float(), left.float()
    # By SVD, not QR: where kept values are (nearly) dependent, QR makes up directions they do not have.
    _, strengths, rows = torch.linalg.svd(wide, full_matrices=False)
    basis = (rows * (strengths > 1e-5 * strengths[:, :1])[..., None]).transpose(1, 2)
    residual = outside - (outside @ basis) @ basis.transpose(1, 2)
    strongest = torch.linalg.svd(residual, full_matrices=False).Vh[:, :directions]
    mean = (scores[~kept] / mass_left) @ residual
    delta: Tensor = (mean[:, None] @ strongest.transpose(1, 2)) @ strongest * (mass_left / mass_kept)
    filled: Tensor = wide + delta
    return filled.to(values.dtype)
