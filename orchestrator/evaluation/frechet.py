"""The Frechet distance between two sets of features, each taken as a Gaussian."""

import torch
from torch import Tensor


def frechet_distance(x_ND: Tensor, y_MD: Tensor) -> float:
    """Return the squared Frechet (2-Wasserstein) distance of two Gaussians fitted to features.

        |mean_x - mean_y|^2 + tr(C_x) + tr(C_y) - 2 tr((C_x C_y)^(1/2))

    with covariances C divided by N - 1: Dowson and Landau 1982; Heusel et al. 2017,
    https://arxiv.org/abs/1706.08500, equation 6. Only with features of Inception is it the FID.

    With the centred features X / sqrt(N - 1) and Y / sqrt(M - 1), the last trace is the sum of the
    singular values of X Y^T, since (C_x C_y) and (X Y^T)(X Y^T)^T have the same eigenvalues. So no
    square root of a D x D matrix is taken, which is inexact for fewer images than features. A set
    with more images than features is first replaced by the R of its QR decomposition, which has
    the same singular values with anything on its right.

    It is biased: two sets of one distribution have a distance above 0, which grows as N or M fall.
    Compare only equal N and M. Symmetric in x and y; float64. N and M must be at least 2.
    """
    x_ND, y_MD = x_ND.double(), y_MD.double()
    distance = (x_ND.mean(0) - y_MD.mean(0)).square().sum()
    x_root, y_root = _root(x_ND), _root(y_MD)
    overlap = torch.linalg.svdvals(x_root @ y_root.T).sum()
    distance += x_root.square().sum() + y_root.square().sum() - 2 * overlap
    return max(0.0, float(distance))


def _root(x_ND: Tensor) -> Tensor:
    """Return a matrix A of min(N, D) rows with A^T A = the covariance of x."""
    count, size = x_ND.shape
    centred: Tensor = (x_ND - x_ND.mean(0)) / (count - 1) ** 0.5
    if count <= size:
        return centred
    upper: Tensor = torch.linalg.qr(centred, mode="r").R
    return upper
