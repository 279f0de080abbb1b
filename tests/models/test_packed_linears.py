"""Layers of other code on packed weights: the same numbers, and never those of an older version."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sftrl_fast.core import UserError
from sftrl_fast.models.packed_linears import PackedLinears


def layers(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 100), nn.GELU(), nn.Linear(100, 50, bias=False)).to(dtype)


@pytest.mark.parametrize("impl", ["cpp", "torch"])
@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@torch.no_grad()
def test_the_results_are_those_of_the_layers(
    impl: str, dtype: torch.dtype, far: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFTRL_IMPL", impl)
    model, linears = layers(dtype), PackedLinears()
    exact = layers(torch.float32).double()
    for parameter, own in zip(exact.parameters(), model.parameters(), strict=True):
        parameter.copy_(own)
    for shape in ((3, 40), (2, 5, 40), (40,), (0, 40)):
        x = torch.randn(shape).to(dtype)
        with linears:
            out = model(x)
        assert (out.shape, out.dtype) == ((*shape[:-1], 50), dtype)
        torch.testing.assert_close(out.double(), exact(x.double()), rtol=far, atol=far)


@torch.no_grad()
def test_weights_are_packed_once_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTRL_IMPL", "cpp")
    model, linears, x = layers(torch.float32), PackedLinears(), torch.randn(3, 40)
    with linears:
        first = model(x)
    for parameter in model.parameters():
        parameter.data.mul_(2)
    with linears:
        assert torch.equal(model(x), first)  # whoever owns the weights says when they changed
    linears.version = 7
    with linears:
        second = model(x)
    torch.testing.assert_close(second, model(x))
    assert not torch.allclose(second, first)


@torch.no_grad()
def test_other_weights_and_other_functions_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTRL_IMPL", "cpp")
    weight, x, linears = torch.randn(5, 8), torch.randn(3, 8), PackedLinears()
    expected = F.linear(x, weight), F.gelu(x), x @ weight.T
    with linears:
        found = F.linear(x, weight), F.gelu(x), x @ weight.T
        weight.mul_(2)
        doubled = F.linear(x, weight)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(doubled, 2 * expected[0])


@torch.no_grad()
def test_copies_go_with_their_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTRL_IMPL", "cpp")
    linears = PackedLinears()
    for _ in range(3):
        model = layers(torch.float32)
        with linears:
            model(torch.randn(3, 40))
        assert len(linears) == 2
        del model
        gc.collect()
        assert len(linears) == 0


@torch.no_grad()
def test_a_weight_has_the_bias_that_it_comes_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTRL_IMPL", "cpp")
    weight, x, linears = nn.Parameter(torch.randn(5, 8)), torch.randn(3, 8), PackedLinears()
    first, second = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5))
    for bias in (first, None, second, first.detach(), first * 2, None, first):
        with linears:
            found = F.linear(x, weight, bias)
        torch.testing.assert_close(found, F.linear(x, weight, bias))


@torch.no_grad()
def test_parameters_that_are_no_matrix_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTRL_IMPL", "cpp")
    linears, x = PackedLinears(), torch.randn(3, 8)
    with linears:
        for shape in ((8,), (0, 8)):
            assert F.linear(x, nn.Parameter(torch.ones(shape))).shape == (3, *shape[:-1])
    assert len(linears) == 0


@torch.no_grad()
def test_a_parameter_of_another_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTRL_IMPL", "cpp")
    layer, linears = nn.Linear(8, 5, bias=False), PackedLinears()
    with linears:
        layer(torch.randn(3, 8))
        layer.weight.data = torch.randn(6, 8)
        linears.version += 1
        with pytest.raises(UserError, match=r"weight is torch.float32 \[6, 8\]"):
            layer(torch.randn(3, 8))
