"""Relations: learn how the teacher sees the samples of a batch relative to each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trimtab.core.errors import InputError

TRIPLETS = 128
"""Samples of a batch whose angles are compared: their number grows with the cube."""
WIDTH = 128
"""Of the space in which contrastive distillation compares, as in the paper."""


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """How far the distances between samples are from the teacher's, mean over the pairs of a batch.

    l(d_s, d_t),  d(i, j) = ||x_i - x_j|| / mean over pairs of ||x - x'||,  l: Huber's loss with delta 1

    Args:
        student: x [N, width].
        teacher: the same samples; the widths may differ.

    Raises:
        InputError: there is one sample.

    Source: Park et al. 2019 (relational knowledge distillation), section 3.2, the distance-wise loss.
    """
    found = []
    for values in (student, teacher):
        distances = functional.pdist(_several(values.float()))
        found.append(distances / distances.mean().clamp(min=1e-12))
    return functional.smooth_l1_loss(found[0], found[1])


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """How far the angles between samples are from the teacher's, mean over the triplets of a batch.

    l(c_s, c_t),  c(i, j, k) = <e_ij, e_kj>,  e_ij = (x_i - x_j) / ||x_i - x_j||,  l: Huber's loss with delta 1

    Args:
        student: x [N, width]; of a large batch the first 128 samples count.
        teacher: the same samples; the widths may differ.

    Raises:
        InputError: there is one sample.

    Source: Park et al. 2019 (relational knowledge distillation), section 3.2, the angle-wise loss.
    """
    cosines = []
    for values in (student, teacher):
        x = _several(values.float())[:TRIPLETS]
        e = functional.normalize(x.unsqueeze(0) - x.unsqueeze(1), dim=2)  # [j, i, width]
        cosines.append(e @ e.transpose(1, 2))  # [j, i, k]
    n = cosines[0].shape[0]
    # where two of the three are one sample, both cosines are 0 or both 1
    total = functional.smooth_l1_loss(cosines[0], cosines[1], reduction="sum")
    return total / max(n * (n - 1) * (n - 2), 1)


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """How far the similarities of samples are from the teacher's.

    ||G_t - G_s||^2 / N^2,  G = the rows of A A^T, each divided by its norm

    Args:
        student: A [N, ...], flattened to [N, values].
        teacher: the same samples; the shapes may differ.

    Source: Tung & Mori 2019 (similarity-preserving distillation), equations 1 to 4; EQUATIONS 18-19 divide A's rows
    by their norms in place of G's.
    """
    found = []
    for values in (student, teacher):
        rows = values.float().flatten(1)
        found.append(functional.normalize(rows @ rows.T, dim=1))
    return (found[1] - found[0]).square().mean()


def contrastive_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Each sample's own answer of the teacher told apart from those of the others in the batch.

    -mean over i of log(exp(s_i . t_i / tau) / sum over j of exp(s_i . t_j / tau)),  s and t of norm 1

    Args:
        student: s [N, width], through a learned map.
        teacher: t [N, width], through another one.
        temperature: tau.

    Source: Tian, Krishnan & Isola 2020 (contrastive representation distillation), section 3.1, with InfoNCE (van
    den Oord et al. 2018, equation 4) over the batch in place of noise-contrastive estimation with a memory bank.
    """
    s, t = functional.normalize(student.float(), dim=1), functional.normalize(teacher.float(), dim=1)
    return functional.cross_entropy(s @ t.T / temperature, torch.arange(len(s), device=s.device))


def _several(values: Tensor) -> Tensor:
    if len(values) < 2:
        raise InputError("distil: relations", got="a batch of one sample", expected="batches of two at least")
    return values
