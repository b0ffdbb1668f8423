"""torch.ops.anyprec.kl_gradient_: values, checks, other vocabularies and alignments."""

import pytest
import torch

import anyprec  # noqa: F401  registers the operators

ops = torch.ops.anyprec
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Of a gradient that is rounded to the dtype.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def reference(wanted, found):
    """KL of each row and its gradient, in double precision."""
    vocabulary = min(wanted.shape[1], found.shape[1])
    p = wanted.double()[:, :vocabulary].log_softmax(1)
    q = found.double()[:, :vocabulary].log_softmax(1)
    gradient = torch.zeros(found.shape, dtype=torch.float64, device=found.device)
    gradient[:, :vocabulary] = q.exp() - p.exp()
    return (p.exp() * (p - q)).sum(1), gradient


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("sizes", [(1, 1), (64, 64), (4100, 4096), (333, 1001), (9000, 8192)])
def test_divergence_and_gradient(device, dtype, sizes):
    generator = torch.Generator().manual_seed(sum(sizes))
    wanted, found = (
        (4 * torch.randn(5, size, generator=generator)).to(device, dtype) for size in sizes
    )
    divergence, gradient = reference(wanted, found)
    given = wanted.clone()
    made = ops.kl_gradient_(wanted, found, 3.0)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.double(), divergence, rtol=1e-4, atol=1e-5)
    largest = TOLERANCE[dtype] * (gradient.abs() * 3 + 1e-3)
    assert ((found.double() - 3 * gradient).abs() <= largest).all()
    assert torch.equal(wanted, given)


@pytest.mark.parametrize("device", DEVICES)
def test_large_logits_do_not_overflow(device):
    wanted = torch.tensor([[1e4, 0.0, -1e4, 0.0], [float("-inf"), 0.0, 1.0, 2.0]], device=device)
    found = torch.tensor([[1e4, 1e4, 0.0, 0.0], [0.5, 0.0, 1.0, 2.0]], device=device)
    made = ops.kl_gradient_(wanted, found, 1.0)
    assert made[0].item() == pytest.approx(0.693147, rel=1e-5)
    torch.testing.assert_close(found[0].cpu(), torch.tensor([-0.5, 0.5, 0.0, 0.0]))
    assert torch.isfinite(made).all() and torch.isfinite(found).all()


@pytest.mark.parametrize("device", DEVICES)
def test_rows_at_any_address(device):
    memory = torch.randn(3 * 40 + 1, device=device)
    found = memory[1:].view(3, 40)
    wanted = torch.randn(3, 40, device=device)
    divergence, gradient = reference(wanted, found)
    made = ops.kl_gradient_(wanted, found, 1.0)
    torch.testing.assert_close(made.double(), divergence, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.double(), gradient, rtol=1e-4, atol=1e-6)


def test_wrong_arguments_are_named():
    logits = torch.zeros(3, 8)
    for wanted, found, message in [
        (logits.half(), logits, "wanted: found dtype Half"),
        (logits.double(), logits.double(), "dtype: found Double"),
        (logits[:2], logits, "wanted: found 2 rows beside 3"),
        (logits.T, logits, r"wanted a contiguous matrix \[R, V\]"),
        (logits[0], logits[0], r"wanted a contiguous matrix \[R, V\]"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            ops.kl_gradient_(wanted, found, 1.0)
