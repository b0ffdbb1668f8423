"""The native engine on a GPU: against its CPU path, and graphs against launches one by one."""

import pytest
import torch

from anyprec.model import AnyPrecisionForCausalLM
from anyprec.native import NativeEngine
from checkpoints import HYBRID, NATIVE_FAMILIES, tiny_model, write_checkpoint
from test_engine import PROMPT, largest_difference

pytestmark = pytest.mark.gpu

PRECISIONS = range(2, 9)
# Heads of 64, which the kernels have.
_SIZES = {"hidden_size": 256, "intermediate_size": 384}
_HEAD = {"mistral", "qwen3", "gemma", "gemma2", "gemma3_text"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Makes each family's checkpoint once."""
    made = {}

    def make(family, codebook=None):
        key = (family, codebook is None)
        if key not in made:
            sizes = {**_SIZES, "head_dim": 64} if family in _HEAD else _SIZES
            path = tmp_path_factory.mktemp("engine") / family
            options = {} if codebook is None else {"codebook": codebook}
            made[key] = write_checkpoint(
                path, tiny_model(family, **sizes), PRECISIONS, **options
            ).path
        return made[key]

    return make


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 5e-3), ("float16", 3e-2)])
@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_logits_are_those_of_the_cpu(checkpoint, family, dtype, bound):
    path = checkpoint(family)
    on_cpu = NativeEngine.from_directory(path, dtype="float32")
    on_gpu = NativeEngine.from_directory(path, device="cuda", dtype=dtype, prefill_chunk=8)
    for precision in (3, 8):
        found = on_gpu.logits(PROMPT, precision).cpu()
        assert largest_difference(found, on_cpu.logits(PROMPT, precision)) < bound


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_decoding_follows_the_logits(checkpoint, family):
    """Every token that a graph decodes is the best of the logits of a pass over all before it."""
    path = checkpoint(family)
    engine = NativeEngine.from_directory(path, device="cuda", dtype="float32")
    text = list(PROMPT)
    new = engine.generate(PROMPT, max_new_tokens=12, precision=4)
    for token in new:
        logits = engine.logits(text, 4)[-1]
        assert logits.max() - logits[token] < 1e-2 * logits.abs().max()
        text.append(token)


@pytest.mark.parametrize("codebook", [None, HYBRID], ids=["full", "hybrid"])
def test_graphs_say_what_launches_say(checkpoint, codebook):
    path = checkpoint("llama", codebook)
    texts = []
    for graphs in (True, False):
        engine = NativeEngine.from_directory(
            path, device="cuda", dtype="float16", cuda_graphs=graphs
        )
        texts.append(
            [
                engine.generate(PROMPT, max_new_tokens=16, precision=precision)
                for precision in (2, 4, 2, 8, 4)
            ]
        )
    assert texts[0] == texts[1]
    assert texts[0][0] == texts[0][2]
    assert texts[0][1] == texts[0][4]


@pytest.mark.parametrize("together", [2, 3, 5, 9])
def test_batches_replay_graphs(checkpoint, together):
    """The same batch gives the same text with graphs, whose rows are filled up, and without."""
    texts = []
    for graphs in (True, False):
        engine = NativeEngine.from_directory(
            checkpoint("llama"), device="cuda", dtype="float32", cuda_graphs=graphs
        )
        found = {
            engine.submit(PROMPT[i : i + 6], max_new_tokens=4 + i, precision=3): []
            for i in range(together)
        }
        while not engine.idle:
            for event in engine.step():
                found[event.sequence].append(event.token)
        texts.append(list(found.values()))
    # Other kernels serve other numbers of rows, so that near ties may fall otherwise.
    pairs = [(a, b) for x, y in zip(*texts, strict=True) for a, b in zip(x, y, strict=True)]
    assert sum(a == b for a, b in pairs) >= 0.9 * len(pairs)


def test_a_captured_batch_is_deterministic(checkpoint):
    engine = NativeEngine.from_directory(checkpoint("llama"), device="cuda", dtype="float16")
    options = {"max_new_tokens": 24, "temperature": 1.2, "seed": 5, "precision": 4}
    assert engine.generate(PROMPT, **options) == engine.generate(PROMPT, **options)


def test_a_precision_for_each_linear(checkpoint):
    request = {"*.q_proj": 2, "*.1.mlp.*": 8, "*": 4}
    path = checkpoint("llama")
    wanted = NativeEngine.from_directory(path).logits(PROMPT, request)
    engine = NativeEngine.from_directory(path, device="cuda", dtype="float32")
    assert largest_difference(engine.logits(PROMPT, request).cpu(), wanted) < 5e-3
    assert len(engine.generate(PROMPT, max_new_tokens=5, precision=request)) == 5


def test_generate_on_a_gpu_is_that_of_hugging_face(checkpoint):
    model = AnyPrecisionForCausalLM.from_quantized(
        checkpoint("llama"), device="cuda", dtype=torch.float32
    )
    ids = torch.tensor([PROMPT], device="cuda")
    options = {"max_new_tokens": 12, "do_sample": False, "precision": 4, "eos_token_id": None}
    native = model.generate(ids, engine="native", **options)
    assert native.device == ids.device
    assert native.tolist() == model.generate(ids, engine="huggingface", **options).tolist()
