"""Loading the model to quantize: folders, live models, GGUF."""

import json

import pytest
import torch

from anyprec.source import (
    SourceError,
    describe_source,
    load_source,
    parse_dtype,
    source_of,
    tensor_bytes,
)
from checkpoints import byte_tokenizer, tiny_model


def test_a_folder_is_loaded_in_its_own_dtype(tiny_source):
    source = load_source(tiny_source)
    wanted = tiny_model("llama-tied", torch.bfloat16).state_dict()
    assert source.dtype == torch.bfloat16
    assert source.name == "tiny-llama"
    assert not source.model.training
    assert source.tokenizer("a").input_ids == byte_tokenizer()("a").input_ids
    state = source.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())


def test_a_description_has_the_names_and_shapes_without_weights(tiny_source):
    loaded, described = load_source(tiny_source), describe_source(tiny_source)
    assert {n: t.shape for n, t in loaded.tensors().items()} == {
        n: t.shape for n, t in described.tensors().items()
    }
    assert all(t.is_meta for t in described.tensors().values())
    assert described.dtype == loaded.dtype
    assert described.name == loaded.name


def test_tied_tensors_are_kept_once_under_the_embeddings_name():
    assert "lm_head.weight" not in source_of(tiny_model("llama-tied")).tensors()
    assert "lm_head.weight" in source_of(tiny_model("llama")).tensors()


def test_dtype_says_how_unquantized_tensors_are_stored(tiny_source):
    source = load_source(tiny_source, dtype="float32")
    weight = source.tensors()["model.norm.weight"]
    assert weight.dtype == torch.bfloat16
    assert source.stored(weight).dtype == torch.float32
    assert source.config_dict()["dtype"] == "float32"
    counts = torch.tensor([3])
    assert source.stored(counts) is counts


def test_the_config_tells_nothing_of_where_the_model_was(tiny_source):
    config = load_source(tiny_source).config_dict()
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert config["dtype"] == "bfloat16"
    assert str(tiny_source) not in json.dumps(config)


def test_the_hash_changes_with_any_bit_of_any_tensor():
    model = tiny_model("llama")
    before = source_of(model).sha256()
    assert source_of(tiny_model("llama")).sha256() == before
    with torch.no_grad():
        model.model.norm.weight[5] = torch.nextafter(
            model.model.norm.weight[5], torch.tensor(torch.inf)
        )
    assert source_of(model).sha256() != before


def test_bytes_of_a_tensor_are_row_major_and_little_endian():
    tensor = torch.tensor([[1, 2], [3, 4]], dtype=torch.int16)
    assert bytes(tensor_bytes(tensor.T)) == bytes([1, 0, 3, 0, 2, 0, 4, 0])
    assert bytes(tensor_bytes(torch.tensor(1.0, dtype=torch.bfloat16))) == b"\x80\x3f"
    assert bytes(tensor_bytes(torch.empty(0))) == b""


@pytest.mark.parametrize("name", ["nowhere.gguf", "no/such/folder"])
def test_a_model_that_is_not_there_is_an_error_that_names_it(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / name
    with pytest.raises(SourceError, match=str(path)):
        load_source(path)


def test_a_file_that_is_no_gguf_is_an_error(tmp_path):
    path = tmp_path / "text.gguf"
    path.write_text("this is no model")
    with pytest.raises(SourceError, match=r"text\.gguf: transformers cannot read it"):
        load_source(path)


def test_a_quantized_model_is_refused(tiny_source, tmp_path):
    config = json.loads((tiny_source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=r"already quantized \(gptq\)"):
        load_source(tmp_path)


def test_a_live_model_must_be_on_the_cpu():
    with pytest.raises(SourceError, match="is on meta, wanted it on the CPU"):
        source_of(tiny_model("llama").to("meta"))


def test_an_unknown_dtype_lists_the_known_ones():
    assert parse_dtype("auto") is None
    with pytest.raises(SourceError, match="'int4': wanted auto, float32, float16, bfloat16"):
        parse_dtype("int4")


@pytest.mark.slow
def test_a_gguf_file_becomes_a_plain_model(smollm2_gguf, tmp_path, monkeypatch):
    import gguf

    parsed = []

    class Counted(gguf.GGUFReader):
        def __init__(self, *arguments):
            parsed.append(arguments)
            super().__init__(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", Counted)
        source = load_source(smollm2_gguf)
        assert gguf.GGUFReader is Counted
    assert len(parsed) == 1
    assert source.dtype == torch.float16
    assert source.name == smollm2_gguf.name
    assert "quantization_config" not in source.config_dict()
    state = source.model.state_dict()
    assert {t.dtype for t in state.values()} == {torch.float32}
    # The embedding is in the file as it is in the model; other matrices are rearranged.
    reader = gguf.GGUFReader(smollm2_gguf)
    tensor = next(t for t in reader.tensors if t.name == "token_embd.weight")
    wanted = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
    assert torch.equal(state["model.embed_tokens.weight"], wanted)
    assert source.model.lm_head.weight is source.model.model.embed_tokens.weight
    # It knows language: a random model is at log(49152) = 10.8 nats.
    ids = source.tokenizer("The capital of France is Paris.", return_tensors="pt").input_ids
    with torch.no_grad():
        assert source.model(ids, labels=ids).loss < 4
    # What transformers refuses for its own model from GGUF works.
    source.model.half().save_pretrained(tmp_path / "saved")
    assert describe_source(smollm2_gguf).tensors().keys() == source.tensors().keys()
