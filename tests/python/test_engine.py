"""The native engine against Hugging Face's models, on tiny random checkpoints."""

import json

import pytest
import torch

from anyprec.model import AnyPrecisionForCausalLM
from anyprec.native import NativeEngine, refusal
from checkpoints import (
    BINARY,
    EOS,
    HYBRID,
    NATIVE_FAMILIES,
    VOCABULARY,
    tiny_model,
    write_checkpoint,
)

PRECISIONS = (2, 3, 4)
PROMPT = [3, 141, 59, 26, 5, 35, 89, 79, 32, 38, 46, 264, 33, 83, 279, 50, 288, 41, 97, 16, 9]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Makes each family's checkpoint once."""
    made = {}

    def make(family):
        if family not in made:
            path = tmp_path_factory.mktemp("engine") / family
            made[family] = write_checkpoint(path, tiny_model(family), PRECISIONS).path
        return made[family]

    return make


def largest_difference(found, wanted):
    return (found.float() - wanted.float()).abs().max().item() / wanted.abs().max().item()


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_logits_are_those_of_hugging_face(checkpoint, family):
    path = checkpoint(family)
    model = AnyPrecisionForCausalLM.from_quantized(path)
    engine = NativeEngine.from_directory(path, prefill_chunk=8, block_size=4)
    for precision in (2, 4):
        wanted = model(torch.tensor([PROMPT]), precision=precision).logits[0]
        assert largest_difference(engine.logits(PROMPT, precision), wanted) < 2e-3


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_greedy_text_is_that_of_hugging_face(checkpoint, family):
    model = AnyPrecisionForCausalLM.from_quantized(checkpoint(family))
    ids = torch.tensor([PROMPT])
    options = {"max_new_tokens": 24, "do_sample": False, "precision": 4, "eos_token_id": None}
    native = model.generate(ids, engine="native", **options)
    assert native.tolist() == model.generate(ids, engine="huggingface", **options).tolist()


@pytest.mark.parametrize("codebook", [HYBRID, BINARY], ids=["hybrid", "binary"])
def test_other_codebooks(tmp_path, codebook):
    path = write_checkpoint(tmp_path / "out", tiny_model("llama"), PRECISIONS, codebook).path
    model = AnyPrecisionForCausalLM.from_quantized(path)
    for precision in PRECISIONS:
        wanted = model(torch.tensor([PROMPT]), precision=precision).logits[0]
        found = NativeEngine.from_directory(path).logits(PROMPT, precision)
        assert largest_difference(found, wanted) < 2e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(checkpoint, dtype):
    path = checkpoint("llama-tied")
    name = str(dtype).removeprefix("torch.")
    model = AnyPrecisionForCausalLM.from_quantized(path, dtype=dtype)
    engine = NativeEngine.from_directory(path, dtype=name)
    wanted = model(torch.tensor([PROMPT]), precision=4).logits[0]
    assert largest_difference(engine.logits(PROMPT, 4), wanted) < 6e-2


def test_a_precision_for_each_linear(checkpoint):
    path = checkpoint("llama")
    request = {"*.q_proj": 2, "*.1.mlp.*": 3, "*": 4}
    model = AnyPrecisionForCausalLM.from_quantized(path)
    wanted = model(torch.tensor([PROMPT]), precision=request).logits[0]
    engine = NativeEngine.from_directory(path)
    assert largest_difference(engine.logits(PROMPT, request), wanted) < 2e-3
    with pytest.raises(ValueError, match="matches none"):
        engine.logits(PROMPT, {"nothing": 3, "*": 4})
    with pytest.raises(ValueError, match="is not loaded; loaded: 2, 3, 4"):
        engine.logits(PROMPT, 7)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("precisions", [(2, 3, 4), (3,)])
def test_sequences_that_run_together_say_what_each_says_alone(checkpoint, precisions, ahead):
    path = checkpoint("llama")
    engine = NativeEngine.from_directory(
        path, block_size=4, cache_tokens=96, max_batch=3, prefill_chunk=7, run_ahead=ahead
    )
    requests = [
        (
            {
                "precision": precisions[i % len(precisions)],
                "max_new_tokens": 5 + 3 * i,
                "temperature": 0.5 * (i % 2),
                "seed": i,
                "repetition_penalty": 1.2 if i == 3 else 1.0,
            },
            PROMPT[i : 3 + 4 * i],
        )
        for i in range(5)
    ]
    by_itself = NativeEngine.from_directory(path, run_ahead=False)
    alone = [by_itself.generate(prompt, **request) for request, prompt in requests]
    numbers = [engine.submit(prompt, **request) for request, prompt in requests]
    texts = {number: [] for number in numbers}
    while not engine.idle:
        for event in engine.step():
            texts[event.sequence].append(event.token)
    assert list(texts.values()) == alone


def test_prompt_and_decoding_at_two_precisions(checkpoint):
    engine = NativeEngine.from_directory(checkpoint("llama"))
    first = engine.generate(PROMPT, max_new_tokens=1, precision=4)
    both = engine.generate(PROMPT, max_new_tokens=6, precision=2, prefill_precision=4)
    assert both[:1] == first
    assert both != engine.generate(PROMPT, max_new_tokens=6, precision=4)
    model = AnyPrecisionForCausalLM.from_quantized(checkpoint("llama"))
    options = {"max_new_tokens": 6, "do_sample": False, "precision": 2, "prefill_precision": 4}
    text = model.generate(torch.tensor([PROMPT]), **options)
    assert text[0, len(PROMPT) :].tolist()[: len(both)] == both[: text.shape[1] - len(PROMPT)]
    with pytest.raises(NotImplementedError, match="one precision"):
        model.generate(torch.tensor([PROMPT]), engine="huggingface", **options)


def test_sampling_follows_its_seed(checkpoint):
    engine = NativeEngine.from_directory(checkpoint("llama"))
    options = {"max_new_tokens": 12, "temperature": 1.5, "top_p": 0.95, "precision": 4}
    texts = [engine.generate(PROMPT, seed=seed, **options) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("ahead", [False, True])
def test_stop_tokens_end_a_sequence(checkpoint, ahead):
    engine = NativeEngine.from_directory(checkpoint("llama"), run_ahead=ahead)
    free = engine.generate(PROMPT, max_new_tokens=8)
    end = free.index(free[3]) + 1
    for _ in range(2):  # the second starts behind a step that nobody wants any more
        stopped = engine.generate(PROMPT, max_new_tokens=8, stop_tokens=[free[3]])
        assert stopped == free[:end]
    # One of two that run together.
    numbers = [
        engine.submit(PROMPT, max_new_tokens=8, stop_tokens=stops) for stops in ([free[3]], [])
    ]
    texts = {number: [] for number in numbers}
    while not engine.idle:
        for event in engine.step():
            texts[event.sequence].append(event.token)
    assert list(texts.values()) == [free[:end], free]


@pytest.mark.parametrize("ahead", [False, True])
def test_stop_makes_room_for_a_waiting_sequence(checkpoint, ahead):
    engine = NativeEngine.from_directory(checkpoint("llama"), max_batch=1, run_ahead=ahead)
    first = engine.submit(PROMPT, max_new_tokens=100)
    second = engine.submit(PROMPT, max_new_tokens=2)
    engine.step()
    engine.stop(first)
    seen = set()
    while not engine.idle:
        seen |= {event.sequence for event in engine.step()}
    assert seen == {second}


def test_padded_batches_through_generate(checkpoint):
    model = AnyPrecisionForCausalLM.from_quantized(checkpoint("qwen2"))
    ids = torch.tensor([PROMPT[:9], [EOS] * 4 + PROMPT[4:9]])
    mask = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])
    options = {"attention_mask": mask, "max_new_tokens": 7, "do_sample": False, "precision": 3}
    native = model.generate(ids, engine="native", **options)
    assert native.tolist() == model.generate(ids, engine="huggingface", **options).tolist()


def test_generate_sees_changed_weights(checkpoint):
    model = AnyPrecisionForCausalLM.from_quantized(checkpoint("llama"))
    ids = torch.tensor([PROMPT])
    options = {"max_new_tokens": 8, "do_sample": False, "precision": 4}
    before = model.generate(ids, engine="native", **options)
    torch.manual_seed(0)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    after = model.generate(ids, engine="native", **options)
    assert after.tolist() == model.generate(ids, engine="huggingface", **options).tolist()
    assert after.tolist() != before.tolist()
    with torch.no_grad():
        model.lm_head.weight.neg_()
    again = model.generate(ids, engine="native", **options)
    assert again.tolist() == model.generate(ids, engine="huggingface", **options).tolist()
    assert again.tolist() != after.tolist()


def test_what_the_engine_lacks_goes_to_hugging_face_and_is_said(checkpoint, caplog):
    model = AnyPrecisionForCausalLM.from_quantized(checkpoint("llama"))
    ids = torch.tensor([PROMPT])
    for _ in range(2):
        model.generate(ids, max_new_tokens=2, num_beams=2)
    assert len([r for r in caplog.records if "num_beams=2" in r.getMessage()]) == 1
    with pytest.raises(NotImplementedError, match="num_beams=2"):
        model.generate(ids, max_new_tokens=2, num_beams=2, engine="native")
    with pytest.raises(ValueError, match="auto, native or huggingface"):
        model.generate(ids, engine="fastest")


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("opt", {}, "model_type"),
        ("llama", {"hidden_act": "relu"}, "hidden_act: found .relu"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type: found .yarn",
        ),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_a_config_beyond_the_engine_is_refused(tmp_path, family, changes, reason):
    path = write_checkpoint(tmp_path / "out", tiny_model(family, **changes), (2, 3)).path
    with pytest.raises(NotImplementedError, match=reason):
        NativeEngine.from_directory(path)


def test_a_part_that_the_engine_does_not_know_is_refused(tmp_path):
    path = write_checkpoint(
        tmp_path / "out", tiny_model("llama"), (2, 3), extra=["model.layers.0.extra.weight"]
    ).path
    with pytest.raises(NotImplementedError, match="knows no such part"):
        NativeEngine.from_directory(path)


def test_refusals_name_the_families():
    assert "gemma2" in refusal(json.dumps({"model_type": "mamba"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": "many"}, "vocab_size: found"),
        ({"hidden_size": 0}, "hidden_size: found"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: found"),
        ({"num_key_value_heads": 3}, "wanted a divisor of num_attention_heads 4"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps: found"),
        ({"layer_types": ["full_attention"]}, "layer_types: found"),
        ({"layer_types": [1, 2]}, "a list of strings"),
        ({"layer_types": ["linear_attention"] * 2}, "linear_attention"),
        ({"rope_parameters": [1]}, "rope_parameters: found"),
    ],
)
def test_a_malformed_config_is_told(changes, message):
    config = json.loads(tiny_model("qwen2").config.to_json_string())
    assert refusal(json.dumps(config)) == ""
    assert message in refusal(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype: found 'int8'"),
        ({"device": "tpu"}, "device: found 'tpu'"),
        ({"max_batch": 0}, "max_batch: found 0"),
        ({"max_sequence_length": 10**6}, "max_sequence_length"),
        ({"speed": 3}, "none of its keys"),
    ],
)
def test_options_are_checked(checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        NativeEngine.from_directory(checkpoint("llama"), **options)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "no tokens"),
        ([VOCABULARY], {}, f"the vocabulary has {VOCABULARY}"),
        ([1] * 200, {}, "longest sequence"),
        ([1], {"temperature": -1.0}, "temperature"),
        ([1], {"top_p": 0.0}, "top_p"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_requests_are_checked(checkpoint, prompt, options, message):
    engine = NativeEngine.from_directory(checkpoint("llama"))
    with pytest.raises(ValueError, match=message):
        engine.submit(prompt, **options)


def test_random_weights_of_a_shape():
    config = json.loads(tiny_model("qwen3").config.to_json_string())
    for precisions in ((2, 4), ()):
        engine = NativeEngine.from_shape(config, precisions, quantize_head=True)
        logits = engine.logits(PROMPT)
        assert logits.shape == (len(PROMPT), VOCABULARY)
        assert logits.isfinite().all()


@pytest.mark.slow
def test_a_real_model_says_what_it_says_with_hugging_face(smollm2_gguf, tmp_path):
    from anyprec.source import load_source

    source = load_source(smollm2_gguf)
    path = write_checkpoint(tmp_path / "out", source.model, (5, 6, 7, 8)).path
    model = AnyPrecisionForCausalLM.from_quantized(path, dtype=torch.float32)
    engine = NativeEngine.from_directory(path)
    ids = source.tokenizer("The capital of France is", return_tensors="pt").input_ids
    for precision in (6, 8):
        wanted = model(ids, precision=precision).logits[0]
        assert largest_difference(engine.logits(ids[0].tolist(), precision), wanted) < 2e-3
        options = {"max_new_tokens": 12, "do_sample": False, "precision": precision}
        text = model.generate(ids, engine="native", **options)
        assert text.tolist() == model.generate(ids, engine="huggingface", **options).tolist()
    assert "Paris" in source.tokenizer.decode(text[0])
