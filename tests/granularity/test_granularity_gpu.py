"""The same numbers on CUDA."""

import pytest
import torch

from arrcoc_sam.granularity import metrics as M
from arrcoc_sam.granularity.claims import make_claims

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ranks = torch.rand(5, 40, 56, generator=generator).flatten(1).argsort(1).argsort(1).view(5, 40, 56) / 2240
    return torch.rand(7, 10, 14, generator=generator), torch.stack([ranks < 0.6, ranks < 0.3, ranks < 0.1], dim=1)


@pytest.mark.parametrize("resolution", ["grid", "image"])
@pytest.mark.parametrize("name", M.METRICS)
def test_metrics(name, resolution, data):
    attention, masks = data
    found = getattr(M, name)(attention.cuda(), masks.cuda(), resolution=resolution)
    assert found.device.type == "cuda"
    expected = getattr(M, name)(attention, masks, resolution=resolution)
    # Ties that rounding makes or breaks in an upsampled map move ranks a little.
    torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=1e-5)


def test_shuffled_auc(data):
    attention, masks = data
    found = M.shuffled_auc(attention.cuda(), masks.cuda(), negatives=masks.flip(0).cuda())
    torch.testing.assert_close(found.cpu(), M.shuffled_auc(attention, masks, negatives=masks.flip(0)))


def test_claims():
    values = torch.randn(40, 40, 6, 3, generator=torch.Generator().manual_seed(1))
    values[torch.arange(40), torch.arange(40), :2, 1] += 2
    found, expected = make_claims(values.cuda(), num_draws=999), make_claims(values, num_draws=999)
    assert found.level.tolist() == expected.level.tolist()
    torch.testing.assert_close(found.z, expected.z, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.gap_interval, expected.gap_interval, atol=1e-4, rtol=1e-4)
