"""Where rays meet convex solids and planes, and the normal there, in closed form.

A solid is a unit one that is scaled, turned and moved. A ray is inside of a convex solid between the last entry into
and the first exit out of the parts whose intersection it is, and the normal is that of the part it enters last.
"""

import torch
from einops import rearrange
from torch import Tensor

ELLIPSOID, BOX, CYLINDER = range(3)
KINDS = 3
FAR = 1e6  # where a ray meets nothing


def turned(angles: Tensor) -> Tensor:
    """Rotations [n, 3, 3] about y, then x, then z, by angles [n, 3] in radians."""
    (ca, cb, cc), (sa, sb, sc) = angles.cos().T, angles.sin().T
    zero, one = torch.zeros_like(ca), torch.ones_like(ca)

    def matrix(*rows: Tensor) -> Tensor:
        return rearrange(torch.stack(rows, -1), "n (i j) -> n i j", i=3)

    y = matrix(ca, zero, sa, zero, one, zero, -sa, zero, ca)
    x = matrix(one, zero, zero, zero, cb, -sb, zero, sb, cb)
    z = matrix(cc, -sc, zero, sc, cc, zero, zero, zero, one)
    return z @ x @ y


def hit(
    kind: Tensor, centre: Tensor, rotation: Tensor, radii: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rays from the origin, directions [p, 3], against one solid of each scene.

    Args:
        kind: [n], of each solid.
        centre, radii: [n, 3].
        rotation: [n, 3, 3], from the solid's axes to the camera's.

    Returns:
        The distance along each ray [n, p], in lengths of its direction, FAR where it misses; the unit normal there
        [n, p, 3], in the camera's axes; and the point in the unit solid's axes [n, p, 3].
    """
    back = rearrange(rotation, "n i j -> n j i") / rearrange(radii, "n j -> n j 1")  # to the unit solid's axes
    origin = rearrange(-(back @ rearrange(centre, "n i -> n i 1")), "n j 1 -> n 1 j")
    along = torch.einsum("nji,pi->npj", back, directions)
    # Entries and exits: of the slabs |x_j| <= 1, of the unit sphere, and of the round side of the unit cylinder.
    slabs = torch.stack([(-1 - origin) / along, (1 - origin) / along])
    first, last = slabs.amin(0), slabs.amax(0)
    sphere_in, sphere_out = _quadric(origin, along)
    side_in, side_out = _quadric(origin[..., [0, 2]], along[..., [0, 2]])
    entries = torch.stack([sphere_in, side_in, *first.unbind(-1)], -1)  # [n, p, 5]
    exits = torch.stack([sphere_out, side_out, *last.unbind(-1)], -1)
    parts = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 0]], dtype=torch.bool)[kind]
    used = rearrange(parts, "n k -> n 1 k")
    enter, part = entries.masked_fill(~used, -FAR).max(-1)
    leave = exits.masked_fill(~used, FAR).amin(-1)
    point = origin + enter.unsqueeze(-1) * along
    # Outward in the unit solid's axes: the point itself for what is round, one axis for a slab.
    axis = torch.nn.functional.one_hot((part - 2).clamp(min=0), 3).to(point) * point.sign()
    round_side = point * torch.tensor([1.0, 0.0, 1.0])
    normal = torch.where((part >= 2).unsqueeze(-1), axis, torch.where((part == 1).unsqueeze(-1), round_side, point))
    # Normals go by the inverse transpose, which is that of `back`.
    normal = torch.nn.functional.normalize(normal @ back, dim=-1)
    seen = (enter > 0) & (enter < leave)
    return torch.where(seen, enter, FAR), normal, point


def plane(normal: Tensor, offset: Tensor, directions: Tensor) -> Tensor:
    """Distance [n, p] along each ray to the points x with ``normal . x = offset``, FAR where there is none."""
    distance = rearrange(offset, "n -> n 1") / torch.einsum("ni,pi->np", normal, directions)
    return torch.where((distance > 0) & distance.isfinite(), distance, FAR)


def _quadric(origin: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """Where ``|origin + t along|^2 = 1``; an empty interval where there is no such t."""
    a, b, c = along.square().sum(-1), (origin * along).sum(-1), origin.square().sum(-1) - 1
    root = b * b - a * c
    reach = root.clamp(min=0).sqrt()
    missed = root < 0
    return torch.where(missed, FAR, (-b - reach) / a), torch.where(missed, -FAR, (-b + reach) / a)
