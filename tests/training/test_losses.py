"""The circle loss against a double loop that shares no code with it."""

import math

import pytest
import torch

from ntkprobe.errors import UserError
from ntkprobe.training.losses import circle_loss, circle_loss_floor, cosine_similarities


def loop(features, labels, margin=0.25, scale=16.0, weights="paper"):
    """Eq. 5 read aloud: no tensors, no stable logarithms."""
    rows = [[float(x) for x in row] for row in features]
    unit = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]
    total = 0.0
    for i, label in enumerate(labels):
        pulls = pushes = 0.0
        for j, other in enumerate(labels):
            s = sum(a * b for a, b in zip(unit[i], unit[j], strict=True))
            if other == label and i != j:
                alpha = max(0.0, (1 - margin if weights == "paper" else 1 + margin) - s)
                pulls += math.exp(-scale * alpha * (s - (1 - margin)))
            if other != label:
                alpha = max(0.0, s - (margin if weights == "paper" else -margin))
                pushes += math.exp(scale * alpha * (s - margin))
        total += math.log(1 + pulls * pushes)
    return total / len(labels)


@pytest.fixture
def batch():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(9, 4, generator=draw, dtype=torch.float64) + 1
    return features, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("weights", ["paper", "sun2020"])
@pytest.mark.parametrize(("margin", "scale"), [(0.25, 16.0), (0.4, 3.0)])
@pytest.mark.parametrize("detach", [False, True])
def test_the_loss_equals_a_double_loop(batch, weights, margin, scale, detach):
    features, labels = batch
    settings = dict(margin=margin, scale=scale, weights=weights)
    loss = circle_loss(features, labels, detach=detach, **settings)
    assert loss.item() == pytest.approx(loop(features, labels.tolist(), **settings), rel=1e-12)


@pytest.mark.parametrize("weights", ["paper", "sun2020"])
def test_the_gradient_agrees_with_finite_differences(batch, weights):
    features, labels = batch
    assert torch.autograd.gradcheck(
        lambda f: circle_loss(f, labels, weights=weights), features.requires_grad_()
    )


def gradient(features, labels, **settings):
    leaf = features.clone().requires_grad_()
    circle_loss(leaf, labels, **settings).backward()
    return leaf.grad


def test_weights_that_carry_gradient_double_it(batch):
    through, constant = gradient(*batch), gradient(*batch, detach=True)
    assert constant.abs().max() > 1e-3
    torch.testing.assert_close(through, 2 * constant)


def test_detaching_does_not_merely_halve_suns_gradient(batch):
    through = gradient(*batch, weights="sun2020")
    constant = gradient(*batch, weights="sun2020", detach=True)
    cosine = torch.cosine_similarity(through.flatten(), constant.flatten(), dim=0)
    assert cosine < 0.9999


def test_length_of_features_does_not_count(batch):
    features, labels = batch
    lengths = torch.linspace(0.1, 9, 9, dtype=torch.float64)[:, None]
    torch.testing.assert_close(circle_loss(features * lengths, labels), circle_loss(*batch))


def test_order_of_the_batch_does_not_count(batch):
    features, labels = batch
    order = torch.tensor([8, 3, 5, 0, 2, 7, 1, 6, 4])
    torch.testing.assert_close(circle_loss(features[order], labels[order]), circle_loss(*batch))


@pytest.mark.parametrize("labels", [[0, 1, 1, 1], [0, 0, 0, 0], [0, 1, 2, 3]])
def test_anchors_without_a_positive_or_negative_add_nothing(labels):
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    complete = sum(labels.count(x) > 1 and len(set(labels)) > 1 for x in labels)
    loss = circle_loss(features, torch.tensor(labels))
    slope = gradient(features, torch.tensor(labels))
    assert slope.isfinite().all()
    assert (slope.abs().max() > 0) == (loss > 0) == (complete > 0)


def test_an_incomplete_anchor_still_counts_in_the_mean(batch):
    features, labels = batch
    lone = circle_loss(torch.cat([features, -features[:1]]), torch.cat([labels, torch.tensor([7])]))
    assert lone.item() != pytest.approx(circle_loss(*batch).item())
    assert circle_loss(features[:4], labels[:4]) == 0


@pytest.mark.parametrize("weights", ["paper", "sun2020"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opposite_features_and_a_huge_scale_do_not_overflow(weights, dtype):
    features = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]], dtype=dtype).requires_grad_()
    loss = circle_loss(features, torch.tensor([0, 0, 1, 1]), scale=1e4, weights=weights)
    loss.backward()
    assert loss.isfinite() and features.grad.isfinite().all() and loss > 1e4


@pytest.mark.parametrize("weights", ["paper", "sun2020"])
def test_two_orthogonal_groups_reach_the_floor(weights):
    features = torch.eye(2, dtype=torch.float64).repeat_interleave(3, 0)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    floor = circle_loss_floor(labels, weights=weights)
    torch.testing.assert_close(circle_loss(features, labels, weights=weights), floor)


def test_floor_of_a_balanced_batch_of_32_is_the_logarithm_of_241():
    labels = torch.arange(32) % 2
    assert circle_loss_floor(labels).item() == pytest.approx(math.log(1 + 15 * 16))
    sun = math.log(1 + 15 * 16 * math.exp(-2 * 16 * 0.25**2))
    assert circle_loss_floor(labels, weights="sun2020").item() == pytest.approx(sun)


@pytest.mark.parametrize("weights", ["paper", "sun2020"])
def test_no_batch_is_below_the_floor(weights):
    draw = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 2, (12,), generator=draw)
    floor = circle_loss_floor(labels, weights=weights)
    for _ in range(50):
        features = torch.randn(12, 2, generator=draw, dtype=torch.float64)
        assert circle_loss(features, labels, weights=weights) >= floor - 1e-12


def test_a_satisfied_batch_has_no_gradient_with_the_papers_weights():
    features = torch.eye(2, dtype=torch.float64).repeat_interleave(3, 0)
    features = features + 0.05 * torch.randn(6, 2, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert gradient(features, labels).abs().max() == 0
    assert gradient(features, labels, weights="sun2020").abs().max() > 0


def test_one_step_on_three_free_vectors_raises_positive_and_lowers_negative_similarities():
    features = torch.tensor(
        [[1.0, 0.2, 0.0], [0.3, 1.0, 0.4], [0.8, 0.5, 0.6]], dtype=torch.float64
    )
    labels = torch.tensor([0, 0, 1])
    before = cosine_similarities(features)
    assert before[0, 1] < 0.75 and before[0, 2] > 0.25 and before[1, 2] > 0.25  # all violate
    after = cosine_similarities(features - 1e-3 * gradient(features, labels))
    assert after[0, 1] > before[0, 1]
    assert after[0, 2] < before[0, 2] and after[1, 2] < before[1, 2]


def test_a_step_up_the_gradient_does_the_opposite():
    features = torch.tensor(
        [[1.0, 0.2, 0.0], [0.3, 1.0, 0.4], [0.8, 0.5, 0.6]], dtype=torch.float64
    )
    labels = torch.tensor([0, 0, 1])
    before = cosine_similarities(features)
    after = cosine_similarities(features + 1e-3 * gradient(features, labels))
    assert after[0, 1] < before[0, 1] and after[0, 2] > before[0, 2]


def test_an_unknown_weighting_is_refused_by_name(batch):
    with pytest.raises(UserError, match="'paper' or 'sun2020'"):
        circle_loss(*batch, weights="sun")


def test_autocast_takes_no_digits_from_the_loss(batch):
    features, labels = batch[0].float(), batch[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, similarities = circle_loss(features, labels), cosine_similarities(features)
    assert loss.dtype == similarities.dtype == torch.float32
    assert float(loss) == pytest.approx(float(circle_loss(features, labels)), rel=1e-6)
