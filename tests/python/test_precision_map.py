"""Precision maps: the file, what is wrong with it, and models that run at one."""

import json

import pytest
import torch

from anyprec import AnyPrecisionForCausalLM, Checkpoint, FormatError, PrecisionError
from anyprec.precision_map import PrecisionMap, checkpoint_identity, read_precision_map
from checkpoints import VOCABULARY, tiny_model, write_checkpoint

IDS = torch.arange(1, 41).view(2, 20) * 7 % VOCABULARY
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("map") / "out", tiny_model("llama"))


@pytest.fixture(scope="module")
def checkpoint(written):
    return Checkpoint(written.path)


@pytest.fixture(scope="module")
def precisions(written):
    """3, 4 and 6 bits in turn."""
    return {name: (3, 4, 6)[i % 3] for i, name in enumerate(written.matrices)}


@pytest.fixture
def content(precisions, checkpoint):
    return {
        "format": "anyprec precision map",
        "format_version": 1,
        "checkpoint": {"codes_sha256": checkpoint_identity(checkpoint)},
        "made": {"target_bits": 4.5},
        "precisions": dict(precisions),
    }


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


# --- the file


def test_map_survives_the_file(tmp_path, checkpoint, precisions):
    wanted = PrecisionMap(precisions, checkpoint_identity(checkpoint), {"target_bits": 4.5})
    wanted.write(tmp_path / "new" / "map.json")
    assert read_precision_map(tmp_path / "new" / "map.json", checkpoint) == wanted


def test_map_written_by_hand_needs_no_record_and_no_identity(
    tmp_path, checkpoint, content, precisions
):
    del content["checkpoint"], content["made"]
    found = read_precision_map(write(tmp_path / "map.json", content), checkpoint)
    assert found == PrecisionMap(precisions)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: "{", FormatError, "not JSON"),
        (lambda c: [1], FormatError, r"found \[1\], wanted an object"),
        (
            lambda c: c | {"format": "gguf"},
            FormatError,
            'format: found "gguf", wanted "anyprec pre',
        ),
        (lambda c: c | {"format_version": 2}, FormatError, "format_version: found 2, wanted 1"),
        (lambda c: c | {"format_version": True}, FormatError, "found true, wanted 1"),
        (lambda c: {}, FormatError, "format: found nothing, wanted"),
        (lambda c: c | {"made": 3}, FormatError, "made: found 3, wanted an object"),
        (lambda c: c | {"precisions": None}, FormatError, "precisions: found nothing, wanted an"),
        (lambda c: c | {"precisions": [4]}, FormatError, r"precisions: found \[4\], wanted an obj"),
        (lambda c: c | {"checkpoint": "x"}, FormatError, 'checkpoint: found "x", wanted an object'),
        (
            lambda c: c | {"checkpoint": {"codes_sha256": "ab"}},
            FormatError,
            r'checkpoint\.codes_sha256: found "ab", wanted "[0-9a-f]{64}"',
        ),
        (
            lambda c: c | {"precisions": c["precisions"] | {"lm_head": 4}},
            FormatError,
            "precisions: found 'lm_head', wanted only the checkpoint's 14 quantized linears",
        ),
        (
            lambda c: c | {"precisions": {n: b for n, b in c["precisions"].items() if n != UP}},
            FormatError,
            f"precisions: '{UP}' is missing, wanted every linear",
        ),
        (
            lambda c: c | {"precisions": c["precisions"] | {UP: "4"}},
            FormatError,
            f'precisions.{UP}: found "4", wanted an int',
        ),
        (
            lambda c: c | {"precisions": c["precisions"] | {UP: True}},
            FormatError,
            f"precisions.{UP}: found true, wanted an int",
        ),
        (
            lambda c: c | {"precisions": c["precisions"] | {UP: 9}},
            PrecisionError,
            f"precisions.{UP}: found 9, wanted one of the checkpoint's precisions 2, 3, 4",
        ),
    ],
)
def test_errors_name_file_entry_found_and_wanted(
    tmp_path, checkpoint, content, change, error, message
):
    path = write(tmp_path / "wrong.json", change(content))
    with pytest.raises(error, match=message) as raised:
        read_precision_map(path, checkpoint)
    assert str(path) in str(raised.value)


def test_file_that_is_not_text_is_a_format_error(tmp_path, checkpoint):
    path = tmp_path / "wrong.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="not JSON"):
        read_precision_map(path, checkpoint)


def test_absent_file_is_an_os_error(tmp_path, written):
    with pytest.raises(FileNotFoundError, match="absent"):
        AnyPrecisionForCausalLM.from_quantized(written.path, precision_map=tmp_path / "absent")


def test_identity_is_that_of_the_codes(tmp_path, written, checkpoint):
    AnyPrecisionForCausalLM.from_quantized(written.path, precisions=[3, 4]).save_pretrained(
        tmp_path / "fewer"
    )
    changed = tiny_model("llama")
    with torch.no_grad():
        changed.model.layers[0].mlp.up_proj.weight.neg_()
    negated = write_checkpoint(tmp_path / "negated", changed)
    identity = checkpoint_identity(checkpoint)
    assert checkpoint_identity(Checkpoint(tmp_path / "fewer")) == identity
    assert checkpoint_identity(Checkpoint(negated.path)) != identity


# --- models


@pytest.mark.parametrize("given_as", ["file", "dict"])
def test_model_loads_what_the_map_needs_and_runs_each_linear_at_its_precision(
    tmp_path, written, content, precisions, given_as
):
    given = precisions if given_as == "dict" else write(tmp_path / "map.json", content)
    model = AnyPrecisionForCausalLM.from_quantized(written.path, precision_map=given)
    assert model.precisions == [3, 4, 6]
    assert model.precision == precisions
    everything = AnyPrecisionForCausalLM.from_quantized(written.path)
    everything.set_precision(precisions)
    assert torch.equal(logits(model), logits(everything))
    with torch.no_grad():
        wanted = written.dense_model(precisions)(IDS).logits
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=2e-3 * wanted.abs().max().item())


def test_patterns_and_further_precisions(written):
    request = {"model.layers.0.*": 4, "*": 3}
    model = AnyPrecisionForCausalLM.from_quantized(
        written.path, precisions=[3, 4, 8], precision_map=request
    )
    assert model.precisions == [3, 4, 8]
    assert model.precision == request


def test_map_that_needs_what_is_not_loaded_is_an_error(written, precisions):
    with pytest.raises(PrecisionError, match="is not loaded; loaded: 3, 4"):
        AnyPrecisionForCausalLM.from_quantized(
            written.path, precisions=[3, 4], precision_map=precisions
        )


@pytest.mark.parametrize("precision", ["4", True, 4.0, None])
def test_mapping_to_what_is_no_precision_is_a_type_error(written, precision):
    with pytest.raises(TypeError, match=r"precision for pattern '\*' is .* is wanted"):
        AnyPrecisionForCausalLM.from_quantized(written.path, precision_map={"*": precision})
