"""First values of the maps: rotations by Procrustes from activations or weights, scales and signs in closed form."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmccheck.alignment.beyond.freedoms import OF_HEADS, Freedom
from lmccheck.alignment.beyond.maps import Maps
from lmccheck.alignment.beyond.rotary import Planes
from lmccheck.alignment.beyond.stream import Stream
from lmccheck.alignment.matching.activations import ActivationSimilarity, Moments
from lmccheck.symmetry.sites import Site
from lmccheck.symmetry.slots import Slot, UnitGroup
from lmccheck.symmetry.spec import PermutationSpec

Weights = Mapping[str, Tensor]
_STEPS = 8  # rounds in which the grid of scales shrinks
MOST_ROUNDS = 200  # over all rescalable groups, whose scales depend on their neighbours'
SETTLED = 1e-8  # of the logarithm of a scale
BY_WEIGHTS = 0.5  # the share of weights, beside that of activations, once the other maps make weights comparable


def polar(cross: Tensor) -> Tensor:
    """Return the orthogonal R that maximises tr(Rᵀ·cross), per matrix (Procrustes)."""
    u, _, vh = torch.linalg.svd(cross)
    rotation: Tensor = u @ vh
    return rotation


@torch.no_grad()
def fit(
    maps: Maps,
    a: Weights,
    b: Weights,
    moments: Mapping[Site, Moments] | None,
    alike: ActivationSimilarity | None,
    by_weights: float = 0.0,
) -> None:
    """Set every map to its best value for θ_B ``b`` (float64), given joint moments of activations where known.

    ``by_weights``: the share of weights, under the other maps as they are, in what rotations and head maps are fitted
    to; without moments it is all of them.
    """
    identity = maps.spec.identity()
    headed = maps.alone(streams=False).apply(b, a) if by_weights else b
    for k, stream in enumerate(maps.streams):
        cross = _stream_weights(stream, a, headed)
        if moments is not None:
            cross = _shared(_stream_activations(stream, a, b, moments), cross, by_weights)
        basis = stream.free_basis()
        maps.rotations[k] = polar(basis.T @ cross @ basis)
    maps.reset()
    turned = maps.alone(heads=False).apply(b, a)
    for k, freedom in enumerate(maps.freedoms):
        group = freedom.units
        if freedom.planes is not None:
            maps.mixes[k] = plane_factors(freedom, freedom.planes, a, turned, moments, by_weights)
        elif freedom.kind == "head-maps":
            cross = _products(group, (*freedom.forward, *freedom.backward), a, turned)
            if alike is not None:
                cross = _shared(alike.units(group, identity), cross, by_weights)
            maps.mixes[k] = polar(cross)
        else:
            maps.mixes[k] = torch.ones_like(maps.mixes[k])
    maps.reset()
    now = maps.apply(b, a)
    for round_number in range(MOST_ROUNDS):
        furthest = 0.0
        for k, freedom in enumerate(maps.freedoms):
            if freedom.kind in OF_HEADS or (freedom.kind == "sign-flips" and round_number):
                continue
            change = _diagonal_change(freedom, freedom.units, a, now)
            furthest = max(furthest, float(change.abs().log().abs().max()))
            maps.mixes[k] = maps.mixes[k] * change
            now = freedom.mix(maps.spec, now, change)
        if furthest <= SETTLED:
            break
    maps.reset()


def _shared(by_activations: Tensor, by_weights: Tensor, share: float) -> Tensor:
    """Return both cross-moments, each at length 1 per matrix, in the given shares."""
    if not share:
        return by_activations
    first, second = (
        x / x.flatten(-2).norm(dim=-1).clamp(min=1e-30)[..., None, None] for x in (by_activations, by_weights)
    )
    mixed: Tensor = (1 - share) * first + share * second
    return mixed


def _diagonal_change(freedom: Freedom, group: UnitGroup, a: Weights, now: Weights) -> Tensor:
    """Return the signs or scales that bring a group of θ_B as it ``now`` is nearest to A's: (copies, size)."""
    inner_in, inner_out = (_diagonal(group, slots, a, now) for slots in (freedom.forward, freedom.backward))
    if freedom.kind == "sign-flips":
        return torch.where(inner_in + inner_out < 0, -1.0, 1.0).double()
    square_in, square_out = (_diagonal(group, slots, now, now) for slots in (freedom.forward, freedom.backward))
    return best_scale(inner_in, square_in, inner_out, square_out)


def best_scale(inner_in: Tensor, square_in: Tensor, inner_out: Tensor, square_out: Tensor) -> Tensor:
    """Return s > 0 that minimises ‖a_in − s·b_in‖² + ‖a_out − b_out/s‖², by a grid on log s that shrinks.

    Of complex inner products: with b_in and b_out turned by the best angle, one for both.
    """
    low, high = torch.full_like(square_in, -2.5), torch.full_like(square_in, 2.5)
    for _ in range(_STEPS):
        logs = low + (high - low) * torch.linspace(0, 1, 41, dtype=low.dtype).reshape(-1, *[1] * low.ndim)
        s = logs.exp()
        alike = s * inner_in + inner_out / s
        cost = s**2 * square_in + square_out / s**2 - 2 * (alike.abs() if alike.is_complex() else alike)
        best = logs.gather(0, cost.argmin(0, keepdim=True))[0]
        width = (high - low) / 20
        low, high = best - width, best + width
    return best.exp()


def plane_factors(
    freedom: Freedom,
    planes: Planes,
    a: Weights,
    b: Weights,
    moments: Mapping[Site, Moments] | None,
    by_weights: float = 0.0,
) -> Tensor:
    """Return the best factor c of every plane, (copies, planes) complex.

    It minimises ‖k_A − c·k_B‖²/‖k_A‖² + ‖q_A − q_B/c̄‖²/‖q_A‖²: an error of a key counts times the queries it meets, as
    it does in their product. Keys and queries are activations where moments show them, in part weights as ``fit`` says.
    """
    group, sides = freedom.units, (freedom.forward, freedom.backward)
    inner, square = _plane_terms(planes, [_side_weights(group, slots, a, b) for slots in sides])
    if moments is not None and freedom.sites:
        seen = _plane_terms(planes, [_side_activations(group, site, moments[site]) for site in freedom.sites])
        inner, square = torch.lerp(seen[0], inner, by_weights), torch.lerp(seen[1], square, by_weights)
    (inner_in, inner_out), (square_in, square_out) = inner, square
    scale = torch.ones_like(square_in)
    if planes.scaled:
        scale = best_scale(inner_in, square_in, inner_out, square_out)
    return planes.nearest(scale, scale * inner_in + inner_out / scale)


def _plane_terms(planes: Planes, sides: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return Σ a·b̄ and Σ|b|² of every plane of both sides, as shares of Σ|a|²: (2, copies, planes)."""
    cross, of_a, of_b = (torch.stack(parts) for parts in zip(*sides, strict=True))
    length = planes.lengths(of_a).clamp(min=1e-30)
    return planes.products(cross) / length, planes.lengths(of_b) / length


def _side_weights(group: UnitGroup, slots: tuple[Slot, ...], a: Weights, b: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ a·bᵀ, (copies, size, size), and Σ a² and Σ b², (copies, size), over what the units of some slots own."""
    return _products(group, slots, a, b), _diagonal(group, slots, a, a), _diagonal(group, slots, b, b)


def _side_activations(group: UnitGroup, site: Site, moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same of activations at a site, over all units that share the coordinates of one copy."""
    sizes = [part.size for part in site.piece.parts if part.group]
    shared = [k for k, part in enumerate(site.piece.parts[:-1]) if part.group not in group.within]
    cross = moments.cross.reshape(-1, group.size, moments.cross.shape[1] // group.size, group.size)
    cross = cross.diagonal(dim1=0, dim2=2).movedim(-1, 0).reshape(*sizes, group.size)
    squares = moments.squares.reshape(2, *sizes)
    for k in reversed(shared):
        cross, squares = cross.sum(k), squares.sum(k + 1)
    return cross.reshape(-1, group.size, group.size), *squares.reshape(2, -1, group.size)


def balance(spec: PermutationSpec, freedoms: list[Freedom], weights: Weights) -> dict[str, Tensor]:
    """Return weights (float64) with rescalable units scaled so that what makes and what reads them is as large."""
    result = dict(weights)
    for _ in range(MOST_ROUNDS):
        furthest = 0.0
        for freedom in freedoms:
            if freedom.kind == "rescaling":
                sides = (freedom.forward, freedom.backward)
                made, read = (_diagonal(freedom.units, slots, result, result) for slots in sides)
                scale = torch.where((made > 0) & (read > 0), (read / made.clamp(min=1e-300)) ** 0.25, 1.0)
                furthest = max(furthest, float(scale.log().abs().max()))
                result = freedom.mix(spec, result, scale)
        if furthest <= SETTLED:
            break
    return result


def _diagonal(group: UnitGroup, slots: tuple[Slot, ...], x: Weights, y: Weights) -> Tensor:
    """Return Σ_slots ⟨unit u of x, unit u of y⟩: (copies, size) float64."""
    total = torch.zeros(group.copies, group.size, dtype=torch.float64)
    for slot in slots:
        total += (slot.units(x[slot.tensor], group.within) * slot.units(y[slot.tensor], group.within)).sum(-1)
    return total


def lengths(group: UnitGroup, slots: tuple[Slot, ...], weights: Weights) -> Tensor:
    """Return the length of what the units own, (copies, size) float64."""
    return _diagonal(group, slots, weights, weights).sqrt()


def _products(group: UnitGroup, slots: tuple[Slot, ...], x: Weights, y: Weights) -> Tensor:
    """Return Σ_slots ⟨unit u of x, unit v of y⟩: (copies, size, size) float64."""
    total = torch.zeros(group.copies, group.size, group.size, dtype=torch.float64)
    for slot in slots:
        total += slot.units(x[slot.tensor], group.within) @ slot.units(y[slot.tensor], group.within).transpose(1, 2)
    return total


def _stream_weights(stream: Stream, a: Weights, b: Weights) -> Tensor:
    """Return Σ ⟨unit u of A, unit v of B⟩ over what makes the stream and, gains taken in, over what reads it."""
    total = _products(stream.group, stream.producers, a, b)[0]
    for reader in stream.readers:
        gains = [w[reader.gain] if reader.gain else torch.ones(stream.width, dtype=torch.float64) for w in (a, b)]
        total += gains[0][:, None] * _products(stream.group, reader.slots, a, b)[0] * gains[1][None, :]
    return total


def _stream_activations(stream: Stream, a: Weights, b: Weights, moments: Mapping[Site, Moments]) -> Tensor:
    """Return E[x_A·x_Bᵀ] of the normalised stream, summed over the norms: gains and shifts are taken out."""
    total = torch.zeros(stream.width, stream.width, dtype=torch.float64)
    for site, found in moments.items():
        reader = next((r for r in stream.readers if r.node == site.node), None)
        if reader is None or site.groups != (stream.group.name,):
            continue
        zeros, ones = torch.zeros(stream.width, dtype=torch.float64), torch.ones(stream.width, dtype=torch.float64)
        gains = [w[reader.gain] if reader.gain else ones for w in (a, b)]
        shifts = [w[reader.shift] if reader.shift else zeros for w in (a, b)]
        means = found.sums / found.count
        cross = found.cross / found.count
        cross = cross - torch.outer(shifts[0], means[1]) - torch.outer(means[0], shifts[1]) + torch.outer(*shifts)
        cross = cross / gains[0][:, None] / gains[1][None, :]
        total += cross / cross.norm().clamp(min=1e-30)
    return total
