"""Relations and features against values worked out by hand, and against the papers' formulas written out in loops."""

import math

import pytest
import torch
from torch.nn import functional

from trimtab.core.errors import InputError
from trimtab.train.features import alike, attention_loss, mapped, new_map
from trimtab.train.relations import TRIPLETS, angle_loss, contrastive_loss, distance_loss, similarity_loss


def huber(x):
    return 0.5 * x * x if abs(x) <= 1 else abs(x) - 0.5


def vectors(seed, n=5, width=3):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_distances_by_hand():
    # pairs (0,1), (0,2), (1,2): the student's 1, 3, 2 over their mean 2, the teacher's all alike
    student = torch.tensor([[0.0], [1.0], [3.0]])
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    expected = (huber(0.5 - 1) + huber(1.5 - 1) + huber(1.0 - 1)) / 3
    assert float(distance_loss(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_distances_as_in_the_paper():
    s, t = vectors(0), 3 * vectors(1, width=7)

    def potentials(x):
        d = [[math.dist(a, b) for b in x.tolist()] for a in x.tolist()]
        mu = sum(d[i][j] for i in range(5) for j in range(5) if i != j) / 20
        return [d[i][j] / mu for i in range(5) for j in range(5) if i != j]

    expected = sum(huber(a - b) for a, b in zip(potentials(s), potentials(t), strict=True)) / 20
    assert float(distance_loss(s, t)) == pytest.approx(expected, rel=1e-5)
    assert float(distance_loss(s, 10 * s)) == pytest.approx(0.0, abs=1e-9)  # the scale does not count


def test_angles_by_hand():
    # a right-angled isosceles triangle (cosines 0, and 1 / sqrt 2 twice) against an equilateral one (1/2 three times)
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    expected = (huber(0.5) + 2 * huber(math.sqrt(0.5) - 0.5)) / 3
    assert float(angle_loss(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_angles_as_in_the_paper():
    s, t = vectors(2), vectors(3, width=4)

    def cosine(x, i, j, k):
        a, b = x[i] - x[j], x[k] - x[j]
        return float(a @ b / (a.norm() * b.norm()))

    triplets = [(i, j, k) for i in range(5) for j in range(5) for k in range(5) if len({i, j, k}) == 3]
    expected = sum(huber(cosine(s, *ijk) - cosine(t, *ijk)) for ijk in triplets) / len(triplets)
    assert float(angle_loss(s, t)) == pytest.approx(expected, rel=1e-5)


def test_angles_of_a_large_batch_are_those_of_its_first_samples():
    s, t = vectors(4, TRIPLETS + 9), vectors(5, TRIPLETS + 9)
    assert torch.equal(angle_loss(s, t), angle_loss(s[:TRIPLETS], t[:TRIPLETS]))


def test_similarities_by_hand():
    # the student's samples are orthogonal: G = I; the teacher's alike: every row (1, 1) / sqrt 2
    student, teacher = torch.eye(2), torch.ones(2, 3)
    expected = (2 * (1 - math.sqrt(0.5)) ** 2 + 2 * 0.5) / 4
    assert float(similarity_loss(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_similarities_as_in_the_paper_for_maps_of_any_shape():
    s, t = torch.randn(4, 3, 2, 2), torch.randn(4, 5, 6, 6)

    def gram(x):
        q = x.reshape(4, -1)
        g = q @ q.T
        return torch.stack([row / row.norm() for row in g])

    expected = (gram(t) - gram(s)).norm() ** 2 / 16
    torch.testing.assert_close(similarity_loss(s, t), expected)


def test_contrast_by_hand():
    # each sample is its own answer's: cosines 1 on the diagonal and 0 beside, tau 1/2
    assert float(contrastive_loss(torch.eye(2), 7 * torch.eye(2), 0.5)) == pytest.approx(math.log(1 + math.exp(-2)))
    assert float(contrastive_loss(torch.eye(2), torch.eye(2).flip(0), 0.5)) == pytest.approx(math.log(1 + math.exp(2)))


def test_contrast_as_in_the_paper():
    s, t = vectors(6), vectors(7)
    terms = []
    for i in range(5):
        score = [float(functional.cosine_similarity(s[i], t[j], 0)) / 0.1 for j in range(5)]
        terms.append(-score[i] + math.log(sum(map(math.exp, score))))
    assert float(contrastive_loss(s, t, 0.1)) == pytest.approx(sum(terms) / 5, rel=1e-5)


@pytest.mark.parametrize("loss", [distance_loss, angle_loss, similarity_loss])
def test_no_gradient_is_lost_where_samples_are_equal(loss):
    student = torch.ones(4, 3, requires_grad=True)
    loss(student, vectors(8, 4).float()).backward()
    assert bool(torch.isfinite(student.grad).all())
    student = vectors(9, 4).float().requires_grad_()
    loss(student, vectors(8, 4).float()).backward()
    assert float(student.grad.abs().min()) > 0


@pytest.mark.parametrize("loss", [distance_loss, angle_loss])
def test_one_sample_has_no_relations(loss):
    with pytest.raises(InputError, match="a batch of one sample"):
        loss(torch.ones(1, 3), torch.ones(1, 3))


def test_attention_by_hand():
    # two channels, two pixels: q = (9 + 16, 0) and (0, 4) normalised are at right angles
    student = {"a": torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]])}
    teacher = {"a": torch.tensor([[[[0.0, 2.0]]]])}
    assert float(attention_loss(student, teacher)) == pytest.approx(2.0)
    assert float(attention_loss(student, {"a": 5 * student["a"]})) == pytest.approx(0.0, abs=1e-6)


def test_attention_as_in_the_paper():
    s, t = torch.randn(3, 4, 2, 5), torch.randn(3, 6, 2, 5)

    def q(x):
        return torch.stack([each / each.norm() for each in (x**2).sum(1).reshape(3, -1)])

    expected = (q(s) - q(t)).square().sum(1).mean()
    torch.testing.assert_close(attention_loss({"a": s, "b": t}, {"a": t, "b": t}), expected / 2)


def test_other_sizes_are_averaged_down_to_the_smaller():
    large = torch.arange(16.0).reshape(1, 1, 4, 4)
    a, b = alike(large, torch.zeros(1, 2, 2, 2))
    assert torch.equal(a, torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))
    assert b.shape == (1, 2, 2, 2)
    c, d = alike(torch.zeros(1, 2, 3), torch.ones(1, 2, 6))
    assert c.shape == d.shape == (1, 2, 3)


def test_a_map_is_a_one_by_one_convolution_or_a_linear_layer():
    weight, bias = new_map(5, 3, torch.Generator().manual_seed(0))
    images, rows = torch.randn(2, 3, 4, 4), torch.randn(2, 3)
    torch.testing.assert_close(
        mapped(images, weight, bias + 1), functional.conv2d(images, weight[:, :, None, None]) + 1
    )
    torch.testing.assert_close(mapped(rows, weight, bias), rows @ weight.T)
    assert float(new_map(400, 100, torch.Generator().manual_seed(1))[0].std()) == pytest.approx(0.1, rel=0.02)
