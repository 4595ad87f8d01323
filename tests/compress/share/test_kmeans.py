"""K-means against what can be worked out by hand or tried out whole."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from trimtab.compress.share.kmeans import STARTS, Start, centres_of, nearest, rows_near


def centres(values: torch.Tensor, count: int, start: Start = "linear", weights: torch.Tensor | None = None):
    h = torch.ones_like(values) if weights is None else weights
    return centres_of(values, count, start, h, torch.Generator().manual_seed(0))


def error(values: torch.Tensor, found: torch.Tensor) -> float:
    return float((values - found[nearest(values, found)]).square().sum())


@pytest.mark.parametrize("start", STARTS)
def test_clear_clusters_are_found_wherever_it_starts(start: Start) -> None:
    values = torch.tensor([-1.1, -0.9, 0.0, 0.1, -0.1, 2.0, 2.2])
    torch.testing.assert_close(centres(values, 3, start), torch.tensor([-1.0, 0.0, 2.1]))


def test_a_centre_is_the_mean_of_its_values_weighted() -> None:
    values = torch.tensor([0.0, 1.0, 10.0, 12.0])
    weights = torch.tensor([3.0, 1.0, 1.0, 3.0])
    torch.testing.assert_close(centres(values, 2, weights=weights), torch.tensor([0.25, 11.5]))


def test_linear_start_is_near_the_best_of_all_partitions() -> None:
    values = torch.randn(14, generator=torch.Generator().manual_seed(1)).sort().values
    best = min(
        sum(float((part - part.mean()).square().sum()) for part in torch.tensor_split(values, list(cuts)))
        for cuts in combinations(range(1, 14), 3)
    )
    assert best - 1e-6 <= error(values, centres(values, 4)) <= 1.5 * best


def test_more_clusters_than_values_give_the_values() -> None:
    values = torch.tensor([3.0, 1.0, 1.0])
    assert centres(values, 8, "kmeans++").tolist() == [1.0, 3.0]
    assert centres(values, 8).tolist() == [1.0, 3.0]
    assert error(values, centres(values, 8)) == 0


def test_the_error_of_uniform_values_is_that_of_even_steps() -> None:
    values = torch.linspace(0, 1, 10_001)
    mean = error(values, centres(values, 16)) / len(values)
    assert mean == pytest.approx(1 / 12 / 16**2, rel=0.02)  # a step's variance


def test_a_centre_in_an_empty_gap_starts_again() -> None:
    values = torch.cat([torch.linspace(-2, -1, 50), torch.linspace(1, 2, 50)])  # nothing near 0, where a fifth starts
    assert len(centres(values, 5)) == 5


def test_rows_are_put_to_the_centre_that_is_nearest_of_all() -> None:
    seeded = torch.Generator().manual_seed(0)
    planted = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    which = torch.randint(3, (300,), generator=seeded)
    rows = planted[which] + 0.1 * torch.randn(300, 2, generator=seeded)
    found, places = rows_near(rows, 3, seeded)
    torch.testing.assert_close(found.sort(0).values.float(), planted.sort(0).values, atol=0.05, rtol=0)
    distance = ((rows[:, None].double() - found) ** 2).sum(2)
    assert torch.equal(places, distance.argmin(1))
    for i in range(3):
        torch.testing.assert_close(found[i], rows[places == i].double().mean(0))
