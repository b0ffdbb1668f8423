"""Amounts of memory, and how calibration fits into them."""

import re

import pytest
import torch

from anyprec.calibration_plan import make_plan
from anyprec.memory import MemoryLimitError, format_memory, free_memory, parse_memory
from checkpoints import linears_of, tiny_model

CPU = torch.device("cpu")
WIDE = {"num_hidden_layers": 6, "hidden_size": 96, "intermediate_size": 256}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("20GiB", 20 << 30),
        ("1.5 gib", 3 << 29),
        ("800MB", 800_000_000),
        ("64M", 64_000_000),
        ("2Ki", 2048),
        ("4096", 4096),
        ("10B", 10),
        (123, 123),
    ],
)
def test_amounts_are_read_as_people_write_them(text, wanted):
    assert parse_memory(text) == wanted


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "1.5.2GB", "5 apples", "3i", "GiB"])
def test_what_is_no_amount_is_an_error(text):
    with pytest.raises(MemoryLimitError, match="wanted an amount like 20GiB"):
        parse_memory(text)


@pytest.mark.parametrize("amount", [1, 1 << 20, 12345678, 5 << 30, (5 << 30) + 1])
def test_a_formatted_amount_is_enough_and_not_much_more(amount):
    again = parse_memory(format_memory(amount))
    assert amount <= again <= amount * 1.01 + 12_000


def test_some_memory_is_free():
    assert free_memory(CPU) > 1 << 20


def plan_of(model, **changes):
    settings = {"device": CPU, "dtype": torch.float32, "hessians": True, **changes}
    return make_plan(model, list(linears_of(model)), (64, 32), **settings)


def test_what_fits_is_calibrated_in_one_pass():
    plan = plan_of(tiny_model("llama"))
    assert plan.segments == ((0, 2),)
    assert plan.resident
    assert plan.disk_bytes == 0


def test_less_memory_means_more_segments_then_files_then_a_refusal():
    model = tiny_model("llama", **WIDE)
    seen = []
    limit = plan_of(model).device_bytes
    while True:
        try:
            plan = plan_of(model, max_memory=limit)
        except MemoryLimitError as error:
            refusal = str(error)
            break
        assert plan.device_bytes == plan.memory_bytes <= limit
        assert [first for first, _ in plan.segments] == [0, *(e for _, e in plan.segments[:-1])]
        assert plan.segments[-1][1] == 6
        seen.append(plan)
        limit = plan.device_bytes - 1
    assert seen[0].segments == ((0, 6),)
    assert any(len(plan.segments) > 1 for plan in seen)
    assert seen[-1].states == "disk"
    assert seen[-1].disk_bytes > 0
    # The refusal names what would do, and that does.
    least = re.search(r"64 x 32 tokens needs at least (\S+) on cpu", refusal)[1]
    assert f"max memory {format_memory(limit)}: " in refusal
    assert plan_of(model, max_memory=parse_memory(least)).device_bytes <= parse_memory(least)


def test_hessians_and_another_dtype_take_more():
    model = tiny_model("llama")
    plain = plan_of(model, hessians=False).device_bytes
    hessians = plan_of(model).device_bytes
    largest = sum(4 * linear.in_features**2 for linear in linears_of(model).values())
    assert hessians - plain >= largest
    half = tiny_model("llama", torch.bfloat16)
    weights = sum(p.numel() for p in half.parameters())
    copied = plan_of(half, dtype=torch.float32)
    assert copied.device_bytes == plan_of(model).device_bytes + 2 * weights


def test_a_model_whose_blocks_share_weights_is_calibrated_in_one_pass_or_not_at_all():
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    need = plan_of(model).device_bytes
    with pytest.raises(MemoryLimitError, match="cannot be calibrated in segments"):
        plan_of(model, max_memory=need - 1)
