"""Values that lie on several processes."""

import torch


def cases(world: int) -> list[tuple[list[torch.Tensor], int]]:
    """Values of each process and n: odd lengths, ties, none on some process, zeros of both signs, infinities."""
    generator = torch.Generator().manual_seed(world)
    found = []
    for length in (1, 2, 7, 63, 1001):
        for n in {1, 2, length // 2, length}:
            values = torch.randn(length, generator=generator)
            if length > 7:
                values[::3] = values[0]
                values[1] = float("inf")
                values[4] = float("-inf")
                values[5:7] = torch.tensor([0.0, -0.0])
            cuts = sorted(torch.randint(0, length + 1, (world - 1,), generator=generator).tolist())
            parts = [values[a:b] for a, b in zip([0, *cuts], [*cuts, length], strict=True)]
            found.append((parts, min(max(1, n), length)))
    return found
