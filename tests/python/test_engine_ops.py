"""The engine's fused operators against plain torch in float64, on the CPU and (marked) on a GPU."""

import math

import pytest
import torch

import anyprec  # noqa: F401  registers the operators

ops = torch.ops.anyprec
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def random(*shape, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(device)


def assert_close(found, wanted):
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.double().cpu(), wanted.cpu(), rtol=tolerance, atol=tolerance)


def plain_norm(x, weight, eps, offset):
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * (weight.double() + offset)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 576), (3, 100), (2, 4096), (17, 5120), (1, 16384)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm_is_that_of_the_sum_which_becomes_the_residual(device, dtype, shape, offset):
    x, residual = (random(*shape, dtype=dtype, device=device, seed=i) for i in range(2))
    weight = random(shape[1], dtype=dtype, device=device, seed=2)
    assert_close(ops.engine_rms_norm(x, weight, 1e-6, offset), plain_norm(x, weight, 1e-6, offset))
    wanted = (x.float() + residual.float()).to(dtype)
    y = ops.engine_add_rms_norm(x, residual, weight, 1e-6, offset)
    assert torch.equal(residual, wanted)
    assert_close(y, plain_norm(wanted, weight, 1e-6, offset))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("shape", [(1, 1536), (5, 37), (2, 14336)])
def test_gate_is_activated_and_multiplied(device, dtype, activation, shape):
    m, f = shape
    x = 4 * random(m, 2 * f, dtype=dtype, device=device)
    gate, up = x.double().chunk(2, dim=1)
    if activation == "silu":
        wanted = torch.nn.functional.silu(gate) * up
    else:
        wanted = torch.nn.functional.gelu(gate, approximate="tanh") * up
    assert_close(ops.engine_gated(x, activation), wanted)


@pytest.mark.parametrize("device", DEVICES)
def test_activations_of_large_magnitude_do_not_overflow(device):
    x = torch.tensor([[-1e4, -100.0, 100.0, 1e4, 1.0, 2.0, 3.0, 4.0]], device=device)
    assert_close(ops.engine_gated(x, "silu"), torch.tensor([[0, 0, 300.0, 4e4]]).double())
    assert_close(ops.engine_gated(x, "gelu_tanh"), torch.tensor([[0, 0, 300.0, 4e4]]).double())


# ---- rotary embedding ----


def angles(positions, rotary, device):
    inverse = 1e4 ** (-torch.arange(0, rotary, 2, dtype=torch.float64) / rotary)
    table = torch.outer(torch.arange(positions, dtype=torch.float64), inverse)
    return table.cos().float().to(device), table.sin().float().to(device)


def plain_rotary(heads, cos, sin):
    half = cos.shape[-1]
    heads = heads.double()
    a, b, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    cos, sin = cos.double()[:, None], sin.double()[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_size,rotary", [(64, 64), (96, 96), (128, 32), (256, 256), (80, 20)])
@pytest.mark.parametrize("norms", [False, True])
def test_queries_and_keys_turn_and_go_to_the_cache(device, dtype, head_size, rotary, norms):
    m, hq, hk, blocks, block_size = 5, 6, 2, 4, 16
    qkv = random(m, (hq + 2 * hk) * head_size, dtype=dtype, device=device)
    cos, sin = angles(200, rotary, device)
    positions = torch.tensor([0, 1, 57, 199, 3], dtype=torch.int32, device=device)
    slots = torch.tensor([63, 0, 17, -1, 40], dtype=torch.int64, device=device)
    caches = [
        random(blocks, block_size, hk, head_size, dtype=dtype, device=device, seed=i)
        for i in (1, 2)
    ]
    before = [cache.clone() for cache in caches]
    weights = [random(head_size, dtype=dtype, device=device, seed=i) for i in (3, 4)]
    q_norm, k_norm = weights if norms else (None, None)
    found = ops.engine_rotary_to_cache(
        qkv, positions, slots, cos, sin, q_norm, k_norm, 1e-6, 1.0, *caches
    )
    q, k, v = qkv.view(m, -1, head_size).split([hq, hk, hk], dim=1)
    q, k = q.double(), k.double()
    if norms:
        q, k = plain_norm(q, q_norm, 1e-6, 1.0), plain_norm(k, k_norm, 1e-6, 1.0)
    turn = cos[positions.long()], sin[positions.long()]
    assert_close(found, plain_rotary(q, *turn))
    written = slots >= 0
    keys, values = (cache.clone() for cache in before)
    wanted_keys = keys.double().flatten(0, 1)
    wanted_keys[slots[written]] = plain_rotary(k, *turn)[written]
    values.flatten(0, 1)[slots[written]] = v[written]
    assert_close(caches[0].flatten(0, 1), wanted_keys)
    assert torch.equal(caches[1], values)
    untouched = torch.ones(blocks * block_size, dtype=torch.bool, device=device)
    untouched[slots[written]] = False
    assert torch.equal(caches[0].flatten(0, 1)[untouched], before[0].flatten(0, 1)[untouched])


# ---- attention ----


class Sequences:
    """Random sequences in a paged cache whose blocks lie in a random order."""

    def __init__(self, rows, lengths, hq, hk, head_size, dtype, device, block_size=16, spare=0):
        generator = torch.Generator().manual_seed(7)
        widest = max(1, -(-max(lengths) // block_size))
        blocks = widest * len(lengths) + 3
        order = torch.randperm(blocks, generator=generator)[: widest * len(lengths)]
        self.block_table = order.view(len(lengths), widest).int().to(device)
        self.rows, self.lengths_list = rows, lengths
        self.sequence_start = torch.tensor([0, *rows], dtype=torch.int32).cumsum(0).int().to(device)
        self.lengths = torch.tensor(lengths, dtype=torch.int32, device=device)
        shape = (blocks, block_size, hk, head_size)
        self.key_cache = random(*shape, dtype=dtype, device=device, seed=1)
        self.value_cache = random(*shape, dtype=dtype, device=device, seed=2)
        self.q = random(sum(rows) + spare, hq, head_size, dtype=dtype, device=device, seed=3)
        self.scale = head_size**-0.5

    def arguments(self, window=0, softcap=0.0):
        return (
            self.q,
            self.key_cache,
            self.value_cache,
            self.block_table,
            self.sequence_start,
            self.lengths,
            self.scale,
            window,
            softcap,
        )

    def wanted(self, window=0, softcap=0.0):
        out = torch.zeros(self.q.shape, dtype=torch.float64)
        group = self.q.shape[1] // self.key_cache.shape[2]
        start = 0
        for b, (rows, length) in enumerate(zip(self.rows, self.lengths_list, strict=True)):
            blocks = self.block_table[b].long()
            keys, values = (
                cache[blocks].flatten(0, 1)[:length].double().cpu()
                for cache in (self.key_cache, self.value_cache)
            )
            keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
            q = self.q[start : start + rows].double().cpu()
            scores = torch.einsum("mhd,nhd->hmn", q, keys) * self.scale
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            position = torch.arange(length - rows, length)[:, None]
            key = torch.arange(length)[None]
            hidden = key > position
            if window:
                hidden |= key <= position - window
            scores = scores.masked_fill(hidden, -math.inf)
            if length:
                out[start : start + rows] = torch.einsum("hmn,nhd->mhd", scores.softmax(-1), values)
            start += rows
        return out.flatten(1)


HEADS = [(9, 3, 64), (4, 4, 96), (8, 2, 128), (2, 1, 256)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hq,hk,head_size", HEADS)
@pytest.mark.parametrize("options", [(0, 0.0), (100, 0.0), (0, 5.0)])
def test_decoding_attends_to_the_filled_part_of_the_cache(
    device, dtype, hq, hk, head_size, options
):
    case = Sequences([1, 1, 1, 1], [1, 17, 700, 64], hq, hk, head_size, dtype, device)
    assert_close(ops.engine_attention(*case.arguments(*options)), case.wanted(*options))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hq,hk,head_size", [*HEADS, (24, 2, 64), (8, 1, 256)])
def test_decoding_with_room_for_many_more_positions(device, dtype, hq, hk, head_size):
    case = Sequences([1, 1, 1], [1500, 3, 64], hq, hk, head_size, dtype, device)
    more = torch.zeros(3, 2000, dtype=torch.int32, device=device)
    case.block_table = torch.cat([case.block_table, more], dim=1)
    assert_close(ops.engine_attention(*case.arguments()), case.wanted())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hq,hk,head_size", HEADS)
@pytest.mark.parametrize("options", [(0, 0.0), (40, 0.0), (30, 5.0)])
def test_chunks_of_prompts_attend_to_what_came_before(device, dtype, hq, hk, head_size, options):
    case = Sequences([70, 1, 33, 0], [70, 90, 300, 5], hq, hk, head_size, dtype, device)
    assert_close(ops.engine_attention(*case.arguments(*options)), case.wanted(*options))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [[1, 0], [40, 30]])
def test_rows_of_no_sequence_give_zeros(device, rows):
    case = Sequences(rows, [r and 50 for r in rows], 4, 2, 64, torch.float32, device, spare=3)
    y = ops.engine_attention(*case.arguments())
    assert_close(y, case.wanted())
    assert not y[sum(rows) :].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("block_size", [1, 12, 32, 256])
@pytest.mark.parametrize("rows", [[1, 1], [50, 3]])
def test_blocks_of_any_size(device, block_size, rows):
    case = Sequences(rows, [61, 130], 4, 2, 64, torch.float16, device, block_size)
    assert_close(ops.engine_attention(*case.arguments()), case.wanted())


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_gives_the_same_bytes_in_every_batch_of_decoding(device):
    case = Sequences([1, 1, 1], [300, 40, 1000], 8, 2, 128, torch.bfloat16, device)
    together = ops.engine_attention(*case.arguments())
    assert torch.equal(together, ops.engine_attention(*case.arguments()))


@pytest.mark.parametrize("rows", [[1, 1], [100, 1]])
def test_any_number_of_threads_gives_the_same_bytes(rows):
    case = Sequences(rows, [900, 1500], 9, 3, 64, torch.float32, "cpu")
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(ops.engine_attention(*case.arguments()))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


# ---- bit planes of activations ----


def values_of_planes(planes, scales, columns):
    """What the layout in kernels/cuda/activation_planes.cuh says: a unit of 256 columns is [3][32
    lanes][2 halves] words; lane 4 g + t of group j has digit 8 j + g of columns 32 t + bit."""
    words = planes.cpu().view(torch.int32).view(planes.shape[0], -1, 3, 8, 4, 2, 1)
    bits = (words >> torch.arange(32, dtype=torch.int32)) & 1  # [M, units, j, g, t, half, bit]
    places = (-2.0) ** torch.arange(24, dtype=torch.float64).view(3, 8, 1, 1, 1)
    integers = (bits.double() * places).sum((2, 3))  # [M, units, t, half, bit]
    integers = integers.transpose(2, 3).flatten(1)
    assert not integers[:, columns:].any()
    return integers[:, :columns] * scales.cpu().double()[:, :1]


def assert_planes_of(y, planes, scales):
    y = y.double().cpu()
    values = values_of_planes(planes, scales, y.shape[1])
    largest = y.abs().amax(1, keepdim=True)
    assert ((values - y).abs() <= largest * 2**-21).all()
    torch.testing.assert_close(scales[:, 1].double().cpu(), values.sum(1), rtol=1e-6, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 576), (2, 4096), (2, 100), (1, 14336)])
def test_norms_and_gates_leave_their_bit_planes(dtype, shape):
    x, residual = (random(*shape, dtype=dtype, device="cuda", seed=i) for i in range(2))
    weight = random(shape[1], dtype=dtype, device="cuda", seed=2)
    again = residual.clone()
    y, *planes = ops.engine_add_rms_norm_planes(x, residual, weight, 1e-6, 0.0)
    assert_planes_of(y, *planes)
    assert_close(y, plain_norm(residual, weight, 1e-6, 0.0))
    assert_close(ops.engine_add_rms_norm(x, again, weight, 1e-6, 0.0), y.double())
    gate_up = torch.cat([x, again], dim=1)
    y, *planes = ops.engine_gated_planes(gate_up, "silu")
    assert_planes_of(y, *planes)
    assert torch.equal(y, ops.engine_gated(gate_up, "silu"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hq,hk,head_size", [*HEADS, (32, 8, 128)])
def test_attention_leaves_its_bit_planes(dtype, hq, hk, head_size):
    case = Sequences([1, 1], [700, 33], hq, hk, head_size, dtype, "cuda")
    y, *planes = ops.engine_attention_planes(*case.arguments())
    assert_planes_of(y, *planes)
    assert_close(y, case.wanted())


@pytest.mark.gpu
def test_operators_in_a_captured_graph_follow_what_is_in_device_memory():
    case = Sequences([1, 1], [5, 9], 8, 2, 128, torch.float16, "cuda")
    table = torch.arange(2 * 40, dtype=torch.int32, device="cuda").view(2, 40)
    shape = (80, 16, 2, 128)
    case.block_table = table
    case.key_cache = random(*shape, dtype=torch.float16, device="cuda", seed=1)
    case.value_cache = random(*shape, dtype=torch.float16, device="cuda", seed=2)
    weight = random(1024, dtype=torch.float16, device="cuda", seed=4)

    def step():
        y = ops.engine_attention(*case.arguments())
        y = ops.engine_rms_norm(y, weight, 1e-6, 0.0)
        return ops.engine_gated(torch.cat([y, y], dim=1), "silu")

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for lengths in ([5, 9], [640, 1], [333, 500]):
        case.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured, step())


# ---- sampling ----


def sampling_rows(b, device, seed=0, step=0, history=None, **values):
    defaults = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    rows = []
    for name, default in defaults.items():
        dtype = torch.int32 if name == "top_k" else torch.float32
        value = torch.as_tensor(values.get(name, default), dtype=dtype, device=device)
        rows.append(value.expand(b).contiguous())
    for value in (seed, step):
        value = torch.as_tensor(value, dtype=torch.int64, device=device)
        rows.append(value.expand(b).contiguous())
    if history is None:
        history = torch.full((b, 0), -1)
    return [*rows, history.to(device)]


def kept_tokens(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Probabilities after the filters, in the order that kernels/decoder.h gives."""
    p = (logits.double() / temperature).softmax(-1)
    if top_k:
        p = torch.where(p >= p.topk(top_k).values[-1], p, 0.0)
    if top_p < 1:
        p = p / p.sum()
        ordered = p.sort(descending=True)
        above = ordered.values.cumsum(0) - ordered.values
        p[ordered.indices[above >= top_p]] = 0
    p = torch.where(p >= min_p * p.max(), p, 0.0)
    return p / p.sum()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [5, 1000, 49152, 128256])
def test_greedy_takes_the_first_of_the_largest(device, dtype, vocabulary):
    logits = random(4, vocabulary, dtype=dtype, device=device)
    logits[0, [2, 4]] = 100
    logits[1] = -math.inf
    logits[2, 1] = math.nan
    tokens = ops.engine_sample(logits, *sampling_rows(4, device, temperature=0.0)).cpu()
    assert tokens[0] == 2
    assert tokens[1] == 0
    wanted = logits.float().nan_to_num(nan=-math.inf, posinf=math.inf).cpu()
    assert wanted[2, tokens[2]] == wanted[2].max()
    assert wanted[3, tokens[3]] == wanted[3].max()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 7},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
    ],
)
def test_tokens_come_as_often_as_their_probabilities_say(device, filters):
    count, vocabulary = 4096, 50
    logits = 2 * random(1, vocabulary, device=device)
    p = kept_tokens(logits[0].cpu(), **filters)
    step = torch.arange(count)
    rows = sampling_rows(count, device, seed=11, step=step, **filters)
    tokens = ops.engine_sample(logits.expand(count, -1).contiguous(), *rows).cpu()
    found = torch.bincount(tokens, minlength=vocabulary).double()
    assert not found[p == 0].any()
    expected = p * count
    deviation = (found - expected).abs()
    assert (deviation <= 5 * (expected * (1 - p)).sqrt() + 1).all()


@pytest.mark.parametrize("device", DEVICES)
def test_seed_and_step_choose_the_token_whatever_the_batch(device):
    logits = random(16, 3000, device=device)
    steps = torch.arange(16)
    options = {"seed": 5, "top_p": 0.9, "top_k": 500, "temperature": 0.8}
    together = ops.engine_sample(logits, *sampling_rows(16, device, step=steps, **options))
    for i in range(16):
        alone = ops.engine_sample(logits[i : i + 1], *sampling_rows(1, device, step=i, **options))
        assert alone.item() == together[i].item()
    other = ops.engine_sample(logits, *sampling_rows(16, device, step=steps + 99, **options))
    assert not torch.equal(other, together)


@pytest.mark.parametrize("device", DEVICES)
def test_penalty_is_applied_once_to_each_token_of_the_history(device):
    logits = torch.tensor([[3.0, 2.0, -1.0, -1.5], [3.0, 2.9, -1.0, -1.5]], device=device)
    history = torch.tensor([[0, 0, 0, -1], [0, 1, -1, 9]])
    rows = sampling_rows(2, device, temperature=0.0, repetition_penalty=1.4, history=history)
    # 3 / 1.4 = 2.14 is still the largest; twice would be 1.53.
    assert ops.engine_sample(logits, *rows).tolist() == [0, 0]
    rows = sampling_rows(2, device, temperature=0.0, repetition_penalty=1.6, history=history)
    assert ops.engine_sample(logits, *rows).tolist() == [1, 0]
    negative = torch.tensor([[-1.0, -1.1, -5.0]], device=device)
    rows = sampling_rows(
        1, device, temperature=0.0, repetition_penalty=1.2, history=torch.tensor([[0]])
    )
    assert ops.engine_sample(negative, *rows).tolist() == [1]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [50, 49152, 151936])
def test_gpu_and_cpu_choose_the_same_tokens(dtype, vocabulary):
    b = 24
    logits = 3 * random(b, vocabulary, dtype=dtype)
    history = torch.randint(-1, vocabulary, (b, 40))
    options = {
        "temperature": torch.tensor([0.0, 0.3, 0.7, 1.0, 1.3, 2.0] * 4),
        "top_k": torch.tensor([0, 50, 1, 40, 0, vocabulary] * 4),
        "top_p": torch.tensor([1.0, 0.9, 0.5, 0.95, 0.1, 0.0, 0.99, 1.0] * 3),
        "min_p": torch.tensor([0.0, 0.0, 0.05, 0.3] * 6),
        "repetition_penalty": torch.tensor([1.0, 1.1, 1.3] * 8),
        "seed": torch.arange(b) * 123456789,
        "step": torch.arange(b),
        "history": history,
    }
    cpu = ops.engine_sample(logits, *sampling_rows(b, "cpu", **options))
    cuda = ops.engine_sample(logits.cuda(), *sampling_rows(b, "cuda", **options))
    assert cpu.tolist() == cuda.tolist()


# ---- errors ----


def test_errors_name_the_argument_what_was_found_and_what_was_wanted():
    x = random(2, 8)
    with pytest.raises(ValueError, match=r"weight: found shape \[4\], wanted \[8\]"):
        ops.engine_rms_norm(x, random(4), 1e-6, 0.0)
    with pytest.raises(TypeError, match="weight: found dtype"):
        ops.engine_rms_norm(x, random(8).half(), 1e-6, 0.0)
    with pytest.raises(ValueError, match="activation: found 'relu', wanted 'silu' or 'gelu_tanh'"):
        ops.engine_gated(x, "relu")
    case = Sequences([1], [20], 2, 2, 64, torch.float32, "cpu")
    case.lengths += 100
    with pytest.raises(ValueError, match=r"lengths\[0\]: found 120, wanted 1 .* to 32"):
        ops.engine_attention(*case.arguments())
    with pytest.raises(ValueError, match="bit planes of activations are for CUDA"):
        ops.engine_gated_planes(x, "silu")
