"""AdamW, and Muon for matrices."""

import pytest
import torch
from torch import nn

from arrcoc_sam.segmenters.tiny import build_tiny
from arrcoc_sam.training.optimizer import build_optimizer


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = nn.Conv2d(4, 32, 3)
        self.depthwise = nn.Conv2d(32, 32, 3, groups=32)
        self.linear = nn.Linear(32, 24)
        self.head = nn.Linear(24, 3)
        self.tokens = nn.Embedding(40, 32)


def names_of(model: nn.Module, groups: list[dict], *, fallback: bool) -> set[str]:
    of = {parameter: name for name, parameter in model.named_parameters()}
    return {of[parameter] for group in groups if group["use_fallback"] is fallback for parameter in group["params"]}


def test_only_matrices_step_by_muon() -> None:
    model = Small()
    groups = build_optimizer("muon", model, learning_rate=1e-3, weight_decay=0.1).param_groups
    assert names_of(model, groups, fallback=False) == {"image_encoder.weight", "linear.weight"}
    everything = {name for name, _ in model.named_parameters()}
    assert names_of(model, groups, fallback=True) == everything - {"image_encoder.weight", "linear.weight"}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_rates_and_decay(name: str) -> None:
    model = Small()
    optimizer = build_optimizer(name, model, learning_rate=1e-3, weight_decay=0.1, encoder_rate=0.5)
    of = {parameter: title for title, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for title in (of[parameter] for parameter in group["params"]):
            assert group["peak"] == group["lr"] == (5e-4 if title.startswith("image_encoder") else 1e-3)
            assert group["weight_decay"] == (0.1 if title.endswith("weight") else 0.0)


def test_a_step_of_a_matrix_is_orthogonal_and_as_large_as_adam_s() -> None:
    model, rate = Small(), 1e-3
    before = model.linear.weight.detach().clone()
    optimizer = build_optimizer("muon", model, learning_rate=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    step = (before - model.linear.weight.detach()) / rate
    values = torch.linalg.svdvals(step) / (0.2 * 32**0.5)
    assert ((values > 0.6) & (values < 1.3)).all()  # five Newton-Schulz steps bring singular values near 1
    assert 0.1 < float(step.square().mean().sqrt()) < 0.3  # AdamW's are about 0.2 (arXiv 2502.16982)


def test_every_weight_steps_at_the_rate_of_its_group() -> None:
    model = Small()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = build_optimizer("muon", model, learning_rate=1e-2, weight_decay=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for factor, moves in ((0.0, False), (0.1, True)):
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak"]
        optimizer.step()
        largest = [float((a - b.detach()).abs().max()) for a, b in zip(before, model.parameters(), strict=True)]
        assert all(0 < step < 0.02 if moves else step == 0 for step in largest), largest


def test_shared_and_parametrized_weights() -> None:
    """A weight that is an embedding too is no matrix; what a parametrization is made of is not that of a layer."""
    model = nn.ModuleDict({"tokens": nn.Embedding(40, 32), "out": nn.Linear(32, 40), "plain": nn.Linear(32, 32)})
    model["out"].weight = model["tokens"].weight
    model["normed"] = nn.utils.parametrizations.weight_norm(nn.Linear(32, 32))
    groups = build_optimizer("muon", model, learning_rate=1e-3, weight_decay=0.1).param_groups
    assert names_of(model, groups, fallback=False) == {"plain.weight"}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_muon_goes_on_from_its_state() -> None:
    def steps(optimizer: torch.optim.Optimizer, model: nn.Module, seeds: range) -> None:
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    torch.manual_seed(0)
    whole, broken = Small(), Small()
    broken.load_state_dict(whole.state_dict())
    steps(build_optimizer("muon", whole, learning_rate=1e-2, weight_decay=0.1), whole, range(6))
    first = build_optimizer("muon", broken, learning_rate=1e-2, weight_decay=0.1)
    steps(first, broken, range(3))
    second = build_optimizer("muon", broken, learning_rate=1e-2, weight_decay=0.1)
    second.load_state_dict(first.state_dict())
    steps(second, broken, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), broken.parameters(), strict=True))


def test_most_of_the_embedded_model_is_matrices() -> None:
    model = build_tiny()
    groups = build_optimizer("muon", model, learning_rate=1e-3, weight_decay=0.0).param_groups
    by_muon = sum(p.numel() for group in groups if not group["use_fallback"] for p in group["params"])
    assert by_muon > 0.9 * sum(p.numel() for p in model.parameters())
