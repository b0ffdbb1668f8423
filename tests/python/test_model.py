"""AnyPrecisionForCausalLM against dense Hugging Face models of the same weights."""

import copy
import json
import pickle
import threading

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedModel,
    TextIteratorStreamer,
    pipeline,
)

from anyprec import (
    AnyPrecisionForCausalLM,
    AnyPrecisionLinear,
    Checkpoint,
    FormatError,
    PrecisionError,
    verify_checkpoint,
)
from checkpoints import (
    ALL,
    CODEBOOKS,
    FAMILIES,
    FULL,
    HYBRID,
    VOCABULARY,
    Written,
    byte_tokenizer,
    linears_of,
    tiny_model,
    write_checkpoint,
)

IDS = torch.arange(1, 41).view(2, 20) * 7 % VOCABULARY


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory):
    """Writes each checkpoint once: checkpoint_of(family, codebook, dtype) -> Written."""
    made: dict[tuple, Written] = {}

    def get(family="llama", codebook=FULL, dtype=torch.float32) -> Written:
        key = (family, json.dumps(codebook), dtype)
        if key not in made:
            path = tmp_path_factory.mktemp("checkpoints") / "out"
            tokenizer = byte_tokenizer() if family == "llama" else None
            made[key] = write_checkpoint(
                path, tiny_model(family, dtype), codebook=codebook, tokenizer=tokenizer
            )
        return made[key]

    return get


@pytest.fixture(scope="session")
def llama(checkpoint_of) -> Written:
    return checkpoint_of("llama")


@pytest.fixture
def model(llama):
    return AnyPrecisionForCausalLM.from_quantized(llama.path)


def logits(model: PreTrainedModel, ids: torch.Tensor = IDS, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **kwargs).logits.float()


def assert_same_logits(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 2e-3) -> None:
    worst = (found - wanted).abs().max() / wanted.abs().max()
    assert worst <= tolerance, f"differ by {worst:.2e} of the largest logit"


# --- What a precision computes


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_at_every_precision_are_the_dense_models(checkpoint_of, family):
    written = checkpoint_of(family)
    model = AnyPrecisionForCausalLM.from_quantized(written.path)
    before = None
    for b in ALL:
        wanted = logits(written.dense_model(b))
        assert_same_logits(logits(model, precision=b), wanted)
        # One token at a time is another kernel path.
        assert_same_logits(logits(model, IDS[:1, :1], precision=b), wanted[:1, :1])
        if before is not None and b <= 6:
            with pytest.raises(AssertionError, match="differ by"):
                assert_same_logits(before, wanted)
        before = wanted


@pytest.mark.parametrize("codebook", CODEBOOKS.values(), ids=CODEBOOKS)
def test_logits_of_other_codebook_forms_are_the_dense_models(checkpoint_of, codebook):
    written = checkpoint_of("llama", codebook)
    model = AnyPrecisionForCausalLM.from_quantized(written.path)
    for b in ALL:
        assert_same_logits(logits(model, precision=b), logits(written.dense_model(b)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "opt", "gemma2"])
def test_dtype_of_the_checkpoint_is_kept(checkpoint_of, family, dtype):
    written = checkpoint_of(family, dtype=dtype)
    model = AnyPrecisionForCausalLM.from_quantized(written.path)
    assert model.dtype == dtype
    with torch.no_grad():
        assert model(IDS).logits.dtype == dtype
    wanted = logits(written.dense_model(8).float())
    assert_same_logits(logits(model), wanted, 0.1 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("dtype", ["float32", torch.bfloat16])
def test_dtype_can_be_chosen_at_load(checkpoint_of, dtype):
    written = checkpoint_of("llama", dtype=torch.float16)
    model = AnyPrecisionForCausalLM.from_quantized(written.path, dtype=dtype)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {p.dtype for p in model.parameters()} == {wanted}
    assert model.config.dtype == wanted
    exact = logits(written.dense_model(8).float())
    assert_same_logits(logits(model), exact, 0.1 if wanted == torch.bfloat16 else 2e-3)
    with pytest.raises(ValueError, match="float32, bfloat16 or float16 is wanted"):
        AnyPrecisionForCausalLM.from_quantized(written.path, dtype="int8")


def test_casting_a_loaded_model_keeps_the_codebooks(model, llama):
    model.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.model.layers[0].mlp.up_proj.lut_4.dtype == torch.float16
    assert_same_logits(logits(model, precision=4), logits(llama.dense_model(4)), 0.1)


def test_per_layer_precisions_are_the_dense_models(model, llama):
    request = {"model.layers.0.*": 8, "*.down_proj": 2, "*": 4}
    mixed = {
        name: 8 if ".layers.0." in name else 2 if "down_proj" in name else 4
        for name in llama.matrices
    }
    wanted = logits(llama.dense_model(mixed))
    assert_same_logits(logits(model, precision=request), wanted)
    model.set_precision(request)
    assert model.precision == request
    assert torch.equal(logits(model), logits(model, precision=request))


# --- It is a Hugging Face model


def test_it_is_an_instance_of_both_classes(model, llama):
    assert isinstance(model, AnyPrecisionForCausalLM)
    assert isinstance(model, LlamaForCausalLM)
    assert isinstance(model, PreTrainedModel)
    assert not model.training
    linears = [n for n, m in model.named_modules() if isinstance(m, AnyPrecisionLinear)]
    assert sorted(linears) == sorted(llama.matrices)
    assert not linears_of(model)
    with pytest.raises(TypeError, match="from_quantized"):
        AnyPrecisionForCausalLM()


def test_generate_takes_a_precision_and_everything_else(model, llama):
    for b in (2, 8):
        options = {"max_new_tokens": 12, "num_beams": 2, "pad_token_id": 0, "eos_token_id": None}
        wanted = llama.dense_model(b).generate(IDS, **options)
        assert torch.equal(model.generate(IDS, precision=b, **options), wanted)
    assert model.precision == 8


def test_generate_runs_at_the_precision_in_force(model):
    options = {"max_new_tokens": 12, "do_sample": False, "output_logits": True}
    options["return_dict_in_generate"] = True
    explicit = model.generate(IDS, precision=2, **options)
    with model.using_precision(2):
        scoped = model.generate(IDS, **options)
    for a, b in zip(explicit.logits, scoped.logits, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(explicit.logits[0], model.generate(IDS, **options).logits[0])


def test_unknown_generate_argument_is_still_refused(model):
    with pytest.raises(ValueError, match="not used by the model"):
        model.generate(IDS, precison=3, max_new_tokens=1)


def test_generation_config_of_the_checkpoint_is_used(tmp_path):
    original = tiny_model("llama")
    original.generation_config.max_new_tokens = 3
    original.generation_config.eos_token_id = None
    path = write_checkpoint(tmp_path / "out", original).path
    model = AnyPrecisionForCausalLM.from_quantized(path)
    assert model.generate(IDS).shape == (2, IDS.shape[1] + 3)


def test_streaming_from_another_thread(model, llama):
    tokenizer = AutoTokenizer.from_pretrained(llama.path)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    inputs = tokenizer("abc", return_tensors="pt")
    options = {"max_new_tokens": 8, "do_sample": False}
    arguments = dict(**inputs, precision=3, streamer=streamer, **options)
    thread = threading.Thread(target=model.generate, kwargs=arguments)
    thread.start()
    text = "".join(streamer)
    thread.join()
    wanted = llama.dense_model(3).generate(**inputs, **options)[0, inputs.input_ids.shape[1] :]
    assert text == tokenizer.decode(wanted)


def test_text_generation_pipeline_takes_a_precision(model, llama):
    tokenizer = AutoTokenizer.from_pretrained(llama.path)
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    options = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    dense = pipeline("text-generation", model=llama.dense_model(2), tokenizer=tokenizer)
    found = pipe("hello", precision=2, **options)[0]["generated_text"]
    assert found == dense("hello", **options)[0]["generated_text"]


def test_attention_implementation_can_be_chosen(llama):
    model = AnyPrecisionForCausalLM.from_quantized(llama.path, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    assert model(IDS, output_attentions=True).attentions[0] is not None


# --- Scopes of the precision


def test_default_set_call_and_block(model):
    at = {b: logits(model, precision=b) for b in (3, 4, 8)}
    assert model.precisions == list(ALL)
    assert model.precision == 8
    assert torch.equal(logits(model), at[8])
    model.set_precision(4)
    assert model.precision == 4
    assert torch.equal(logits(model), at[4])
    with model.using_precision(3):
        assert model.precision == 3
        assert torch.equal(logits(model), at[3])
        assert torch.equal(logits(model, precision=8), at[8])
        with model.using_precision(8):
            assert torch.equal(logits(model), at[8])
        assert torch.equal(logits(model), at[3])
    assert torch.equal(logits(model), at[4])


def test_precision_is_restored_after_exceptions(model):
    with pytest.raises(ZeroDivisionError), model.using_precision(3):
        raise ZeroDivisionError
    with pytest.raises(IndexError):
        model(IDS + 10 * VOCABULARY, precision=3)
    with pytest.raises(ValueError, match="vocabulary"):
        model.generate(IDS + 10 * VOCABULARY, precision=3, max_new_tokens=2)
    assert model.precision == 8
    assert torch.equal(logits(model), logits(model, precision=8))


def test_threads_at_different_precisions_do_not_disturb_each_other(model):
    wanted = {b: logits(model, precision=b) for b in (2, 3, 4, 8)}
    wrong, start = [], threading.Barrier(4)

    def work(b: int, how: str) -> None:
        start.wait()
        for _ in range(10):
            if how == "call":
                found = logits(model, precision=b)
            else:
                with model.using_precision(b):
                    found = logits(model)
            if not torch.equal(found, wanted[b]):
                wrong.append((b, how))

    how = {2: "call", 3: "block", 4: "call", 8: "block"}
    threads = [threading.Thread(target=work, args=item) for item in how.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert model.precision == 8


def test_parts_of_the_model_follow_the_block(model, llama):
    x = torch.randn(1, 3, 48, generator=torch.Generator().manual_seed(1))
    linear = model.model.layers[0].self_attn.q_proj
    weight = llama.matrices["model.layers.0.self_attn.q_proj"].dense(3)
    with model.using_precision(3):
        torch.testing.assert_close(linear(x), x @ torch.tensor(weight).T, rtol=1e-3, atol=1e-3)
        hidden = model.model(IDS).last_hidden_state
    assert torch.equal(model.lm_head(hidden), logits(model, precision=3))


def test_compiled_model_follows_the_precision_in_every_thread(model):
    for how in ("whole", "forward"):
        torch._dynamo.reset()
        twin = copy.deepcopy(model)
        if how == "whole":
            compiled = torch.compile(twin, backend="eager", fullgraph=True)
        else:
            twin.forward = torch.compile(twin.forward, backend="eager", fullgraph=True)
            compiled = twin
        wanted = {b: logits(model, precision=b) for b in (3, 4, 8)}

        def close(a, b):
            assert_same_logits(a, b, 1e-5)

        close(logits(compiled), wanted[8])
        close(logits(compiled, precision=3), wanted[3])
        with twin.using_precision(4):
            close(logits(compiled), wanted[4])
        twin.set_precision(3)
        close(logits(compiled), wanted[3])
        failures = []

        def other_thread(compiled=compiled, wanted=wanted, failures=failures, close=close):
            try:
                close(logits(compiled, precision=8), wanted[8])
                close(logits(compiled), wanted[3])
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
        assert failures == []
        close(logits(compiled), wanted[3])


# --- Loading


def test_subset_loads_only_its_bytes(llama):
    everything, three = Checkpoint(llama.path), Checkpoint(llama.path, [3])
    assert three.bytes_mapped < everything.bytes_mapped
    model = AnyPrecisionForCausalLM.from_quantized(llama.path, precisions=[3])
    assert model.precisions == [3]
    assert model.precision == 3
    linear = model.model.layers[0].mlp.up_proj
    assert linear.planes.shape[0] == 3
    assert [name for name, _ in linear.named_buffers()] == ["planes", "lut_3"]
    assert_same_logits(logits(model), logits(llama.dense_model(3)))


def test_precision_that_was_not_loaded_names_those_that_were(llama):
    model = AnyPrecisionForCausalLM.from_quantized(llama.path, precisions=[8, 3, 4])
    for ask in (
        lambda: model(IDS, precision=5),
        lambda: model.generate(IDS, precision=5, max_new_tokens=1),
        lambda: model.set_precision(5),
        lambda: model.using_precision({"*": 5}).__enter__(),
    ):
        with pytest.raises(PrecisionError, match=r"precision 5.* is not loaded; loaded: 3, 4, 8"):
            ask()
    assert_same_logits(logits(model, precision=4), logits(llama.dense_model(4)))


def test_precision_that_the_checkpoint_lacks_is_an_error(tmp_path):
    path = write_checkpoint(tmp_path / "out", tiny_model("llama"), precisions=(3, 4)).path
    with pytest.raises(PrecisionError, match="5"):
        AnyPrecisionForCausalLM.from_quantized(path, precisions=[3, 5])
    with pytest.raises(PrecisionError, match="empty"):
        AnyPrecisionForCausalLM.from_quantized(path, precisions=[])


def test_no_dense_copy_of_a_quantized_weight_exists(tmp_path):
    # 12M weights in linears of 512 x 1024 and up, and next to nothing else.
    original = tiny_model("llama", hidden_size=512, intermediate_size=3072, num_hidden_layers=2)
    written = write_checkpoint(tmp_path / "out", original, precisions=(2, 3))
    dense_bytes = sum(4 * m.planes.shape[1] * m.in_features for m in written.matrices.values())
    largest = 4 * 512 * 3072
    allocations: list[int] = []
    with _largest_tensor(allocations):
        model = AnyPrecisionForCausalLM.from_quantized(written.path, precisions=[2])
    held = model.get_memory_footprint()
    checkpoint_bytes = Checkpoint(written.path, [2]).bytes_mapped
    assert held < 1.2 * checkpoint_bytes + 1e5 < dense_bytes
    assert max(allocations) < largest / 4
    shapes = {(m.planes.shape[1], m.in_features) for m in written.matrices.values()}
    assert not shapes & {tuple(p.shape) for p in model.parameters()}


class _largest_tensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the bytes of every tensor that an operation on real data makes."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        # Views cost nothing, nor does memory that is asked for and never written, as by the
        # constructors of nn.Linear.
        free = func.is_view or "empty" in str(func)
        if isinstance(result, torch.Tensor) and not result.is_meta and not free:
            self.sizes.append(result.numel() * result.element_size())
        return result


def test_buffers_that_no_checkpoint_holds_are_computed(checkpoint_of):
    for family in FAMILIES:
        written = checkpoint_of(family)
        model = AnyPrecisionForCausalLM.from_quantized(written.path)
        found = dict(model.named_non_persistent_buffers())
        wanted = dict(written.original.named_non_persistent_buffers())
        assert {n: t.tolist() for n, t in found.items()} == {
            n: t.tolist() for n, t in wanted.items()
        }
    assert any("inv_freq" in n for n in wanted) and any("embed_scale" in n for n in wanted)


def test_tied_embeddings_are_one_tensor(checkpoint_of):
    tied = AnyPrecisionForCausalLM.from_quantized(checkpoint_of("llama-tied").path)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    untied = AnyPrecisionForCausalLM.from_quantized(checkpoint_of("llama").path)
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


def test_missing_tensors_are_named(tmp_path):
    left_out = ["model.norm.weight", "model.layers.1.input_layernorm.weight"]
    path = write_checkpoint(tmp_path / "out", tiny_model("llama"), leave_out=left_out).path
    with pytest.raises(FormatError, match=r"lacks .*layers\.1\.input_layernorm.*model\.norm\.w"):
        AnyPrecisionForCausalLM.from_quantized(path)
    bias = ["model.layers.0.self_attn.q_proj.bias"]
    path = write_checkpoint(tmp_path / "bias", tiny_model("qwen2"), leave_out=bias).path
    with pytest.raises(FormatError, match=r"lacks .*layers\.0\.self_attn\.q_proj\.bias"):
        AnyPrecisionForCausalLM.from_quantized(path)
    tied = write_checkpoint(
        tmp_path / "tied", tiny_model("llama-tied"), leave_out=["model.embed_tokens.weight"]
    ).path
    with pytest.raises(FormatError, match=r"lacks .*model\.embed_tokens\.weight"):
        AnyPrecisionForCausalLM.from_quantized(tied)


def test_unexpected_tensors_are_named(tmp_path):
    extra = ["model.layers.0.mlp.up_proj.bias", "model.extra"]
    path = write_checkpoint(tmp_path / "out", tiny_model("llama"), extra=extra).path
    with pytest.raises(FormatError, match=r"no place for: model\.extra, model\.layers\.0\.mlp\.up"):
        AnyPrecisionForCausalLM.from_quantized(path)


def test_config_that_does_not_fit_the_architecture_is_an_error(tmp_path, llama):
    wrong = tiny_model("llama", intermediate_size=80)
    path = write_checkpoint(tmp_path / "out", wrong).path
    config = json.loads((path / "config.json").read_text())
    config["intermediate_size"] = 72
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=r"gate_proj: config.json says .* 80 x 48, .* 72 x 48"):
        AnyPrecisionForCausalLM.from_quantized(path)
    config["num_hidden_layers"] = 1
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=r"no place for|lacks"):
        AnyPrecisionForCausalLM.from_quantized(path)


def test_directory_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such checkpoint directory"):
        AnyPrecisionForCausalLM.from_quantized(tmp_path / "absent")


def test_models_loaded_in_several_threads_are_whole(llama):
    models, wanted = [], logits(llama.dense_model(3))
    loads = [
        threading.Thread(
            target=lambda: models.append(AnyPrecisionForCausalLM.from_quantized(llama.path))
        )
        for _ in range(3)
    ]
    for thread in loads:
        thread.start()
    # A module made meanwhile by a thread that loads nothing is not touched.
    while any(thread.is_alive() for thread in loads):
        assert not torch.nn.Linear(2, 2).weight.is_meta
    for thread in loads:
        thread.join()
    assert len(models) == 3
    for model in models:
        assert_same_logits(logits(model, precision=3), wanted)


def test_tokenizer_loads_from_the_checkpoint(llama):
    assert AutoTokenizer.from_pretrained(llama.path)("ab").input_ids != []


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen2", "gemma2"])
def test_auto_model_gives_an_any_precision_model(checkpoint_of, family, tmp_path, caplog):
    written = checkpoint_of(family)
    model = AutoModelForCausalLM.from_pretrained(written.path)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert isinstance(model, AnyPrecisionForCausalLM)
    assert model.precisions == list(ALL)
    same = AnyPrecisionForCausalLM.from_quantized(written.path)
    for b in (2, 8):
        assert torch.equal(logits(model, precision=b), logits(same, precision=b))
    model.save_pretrained(tmp_path / "saved")
    assert stored_tensors(tmp_path / "saved") == stored_tensors(written.path)


# --- Saving


def stored_tensors(path) -> dict[str, tuple]:
    checkpoint = Checkpoint(path)
    return {
        name: (
            checkpoint.dtype(name),
            tuple(checkpoint.shape(name)),
            checkpoint.data(name).tobytes(),
        )
        for name in checkpoint.tensor_names()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_model_has_the_same_bytes_and_logits(checkpoint_of, family, tmp_path):
    written = checkpoint_of(family)
    model = AnyPrecisionForCausalLM.from_quantized(written.path)
    model.save_pretrained(tmp_path / "saved")
    assert verify_checkpoint(tmp_path / "saved")["problems"] == []
    assert stored_tensors(tmp_path / "saved") == stored_tensors(written.path)
    again = AnyPrecisionForCausalLM.from_quantized(tmp_path / "saved")
    for b in ALL:
        assert torch.equal(logits(model, precision=b), logits(again, precision=b))


def test_saved_half_precision_hybrid_has_the_same_bytes(tmp_path):
    original = tiny_model("qwen2", torch.bfloat16)
    written = write_checkpoint(tmp_path / "out", original, codebook=HYBRID)
    AnyPrecisionForCausalLM.from_quantized(written.path).save_pretrained(tmp_path / "saved")
    assert stored_tensors(tmp_path / "saved") == stored_tensors(written.path)


def test_saved_subset_holds_only_the_loaded_precisions(llama, tmp_path):
    model = AnyPrecisionForCausalLM.from_quantized(llama.path, precisions=[4, 5])
    model.save_pretrained(tmp_path / "saved")
    assert verify_checkpoint(tmp_path / "saved")["problems"] == []
    assert Checkpoint(tmp_path / "saved").available_precisions == [4, 5]
    again = AnyPrecisionForCausalLM.from_quantized(tmp_path / "saved")
    for b in (4, 5):
        assert torch.equal(logits(model, precision=b), logits(again, precision=b))
    # Everything but the weights comes along.
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("ab").input_ids != []
    assert (tmp_path / "saved" / "generation_config.json").is_file()


def test_saving_precisions_with_gaps_is_refused_and_says_what_to_load(llama, tmp_path):
    model = AnyPrecisionForCausalLM.from_quantized(llama.path, precisions=[3, 4, 8])
    with pytest.raises(PrecisionError, match=r"load \[3, 4, 5, 6, 7, 8\] instead"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_saving_over_something_needs_overwrite(model, tmp_path):
    target = tmp_path / "saved"
    target.mkdir()
    model.save_pretrained(target)  # an empty directory is nothing
    before = stored_tensors(target)
    with pytest.raises(ValueError, match="saved"):
        model.save_pretrained(target)
    model.save_pretrained(target, overwrite=True)
    assert stored_tensors(target) == before


def test_saved_cast_model_says_its_dtype(model, tmp_path):
    model.to(torch.bfloat16)
    model.save_pretrained(tmp_path / "saved")
    again = AnyPrecisionForCausalLM.from_quantized(tmp_path / "saved")
    assert again.dtype == torch.bfloat16
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize("load", ["from_quantized", "auto"])
def test_pickled_model_is_the_same_model(llama, load):
    if load == "auto":
        model = AutoModelForCausalLM.from_pretrained(llama.path)
    else:
        model = AnyPrecisionForCausalLM.from_quantized(llama.path)
    model.set_precision({"*.up_proj": 3, "*": 4})
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(twin) is type(model)
        assert twin.precision == {"*.up_proj": 3, "*": 4}
        assert torch.equal(logits(twin), logits(model))


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_model_on_the_gpu_is_the_dense_model(checkpoint_of, family):
    written = checkpoint_of(family)
    loaded = AnyPrecisionForCausalLM.from_quantized(written.path, device="cuda")
    moved = AnyPrecisionForCausalLM.from_quantized(written.path).to("cuda")
    for b in ALL:
        wanted = logits(written.dense_model(b))
        for model in (loaded, moved):
            for rows in (IDS, IDS[:1, :1]):
                found = logits(model, rows.cuda(), precision=b).cpu()
                assert_same_logits(found, wanted[: rows.shape[0], : rows.shape[1]])
    assert torch.equal(logits(moved.cpu(), precision=3), logits(loaded.to("cpu"), precision=3))


def test_deep_copy_has_precisions_of_its_own(model):
    twin = copy.deepcopy(model)
    twin.set_precision(3)
    assert model.precision == 8
    assert torch.equal(logits(twin), logits(model, precision=3))
    with model.using_precision(4):
        assert twin.precision == 3
        assert torch.equal(logits(twin), logits(model, precision=3))
