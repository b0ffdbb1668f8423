"""The quantize pipeline: what it writes, and that nothing interrupts or fools it."""

import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import anyprec
from anyprec import _core
from anyprec.calibrate import sensitivities
from anyprec.datasets import DatasetError, calibration_tokens
from anyprec.modules import ModuleSelectionError
from anyprec.quantization import QuantizeError, quantize
from anyprec.source import load_source
from anyprec.work import WorkDirectory, WorkError
from checkpoints import linears_of, tiny_model
from interrupted import POINTS, run_and_die

ALL = tuple(range(2, 9))


@pytest.fixture(scope="module")
def options(calibration):
    return calibration


@pytest.fixture(scope="module")
def made(tiny_source, options, tmp_path_factory):
    """An uninterrupted run: its folder and summary."""
    out = tmp_path_factory.mktemp("made") / "out"
    return out, quantize(tiny_source, out, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fp16(array):
    return np.asarray(array, dtype=np.float16)


def tensor(checkpoint, name, dtype):
    return checkpoint.data(name).view(dtype).reshape(checkpoint.shape(name))


class TestWhatIsWritten:
    def test_the_checkpoint_is_whole_and_nothing_else_is_left(self, made):
        out, summary = made
        assert summary.status == "made"
        assert _core.verify_checkpoint(out)["problems"] == []
        assert [path.name for path in out.parent.iterdir()] == [out.name]

    def test_codes_and_tables_are_the_quantizers_for_the_sensitivities(
        self, made, tiny_source, options
    ):
        source = load_source(tiny_source)
        tokens = calibration_tokens(
            source.tokenizer, options["dataset"], num_examples=3, seq_len=32
        )
        names = list(linears_of(source.model))
        weights = {name: source.model.get_submodule(name).weight.detach() for name in names}
        s = sensitivities(source.model.float(), names, tokens.ids)
        checkpoint = anyprec.Checkpoint(made[0])
        assert [name for name, _, _ in checkpoint.modules] == names
        for name in names:
            matrix = _core.quantize_matrix(name, weights[name].float().numpy(), s[name].numpy())
            planes = np.stack([tensor(checkpoint, f"{name}.plane.{i}", "u1") for i in range(8)])
            codes = _core.planes_to_codes(planes, weights[name].shape[1], 8)
            assert np.array_equal(codes, matrix.codes)
            for b in ALL:
                lut = tensor(checkpoint, f"{name}.lut.{b}", "f2")
                assert np.array_equal(lut, fp16(matrix.luts[b]))

    def test_everything_else_is_stored_bit_for_bit_and_tied_tensors_once(self, made, tiny_source):
        source = load_source(tiny_source)
        checkpoint = anyprec.Checkpoint(made[0])
        quantized = {f"{name}.weight" for name in linears_of(source.model)}
        wanted = {n: t for n, t in source.model.state_dict().items() if n not in quantized}
        del wanted["lm_head.weight"]
        stored = {n for n in checkpoint.tensor_names() if ".plane." not in n and ".lut." not in n}
        assert stored == set(wanted)
        for name, t in wanted.items():
            assert checkpoint.dtype(name) == "BF16"
            assert (
                bytes(checkpoint.data(name)) == t.contiguous().view(torch.uint8).numpy().tobytes()
            )

    def test_the_config_is_the_models_with_all_that_a_reader_needs(self, made):
        config = json.loads((made[0] / "config.json").read_text())
        quantization = config.pop("quantization_config")
        assert config["model_type"] == "llama"
        assert config["hidden_size"] == 48
        assert quantization["quant_method"] == "anyprec"
        assert quantization["format_version"] == 1
        assert quantization["codebook"] == {"lut_bits": 8, "cell_groups": "one", "group_size": 0}
        assert quantization["precisions"] == list(ALL)
        assert quantization["modules"][0] == {
            "name": "model.layers.0.self_attn.q_proj",
            "out_features": 48,
            "in_features": 48,
        }
        assert quantization["calibration"]["dataset"] == "numbers.txt"
        assert len(quantization["calibration"]["tokens_sha256"]) == 64

    def test_no_path_or_time_is_in_any_file(self, made, tiny_source):
        for name, data in files_of(made[0]).items():
            assert str(tiny_source.parent).encode() not in data, name
            assert str(made[0].parent).encode() not in data, name

    def test_sizes_are_those_of_the_files(self, made):
        out, summary = made
        checkpoint = anyprec.Checkpoint(out)
        for size in summary.sizes:
            b = size.precision
            held = [n for n, _, _ in checkpoint.modules]
            planes = sum(checkpoint.data(f"{n}.plane.{i}").nbytes for n in held for i in range(b))
            luts = sum(checkpoint.data(f"{n}.lut.{b}").nbytes for n in held)
            assert (size.plane_bytes, size.lut_bytes) == (planes, luts)
            on_disk = (out / f"model-{b}bit.safetensors").stat().st_size
            assert 0 < on_disk - size.file_bytes < 20_000  # the header
        base = (out / "model-base.safetensors").stat().st_size
        assert 0 < base - summary.base_bytes < 20_000

    def test_errors_fall_with_every_bit_and_are_those_of_the_tables(self, made, tiny_source):
        _, summary = made
        for result in summary.results:
            errors = [result.relative_error(b) for b in ALL]
            assert all(a > b for a, b in itertools.pairwise(errors))
            assert 0 < errors[0] < 0.3
        report = summary.to_dict()
        assert report["precisions"][0]["relative_error"] == summary.relative_error(2)
        assert report["linears"][0]["relative_errors"]["8"] < 1e-3

    def test_it_speaks_like_the_original_at_8_bits(self, made, tiny_source):
        original = load_source(tiny_source).model.float()
        model = anyprec.AnyPrecisionForCausalLM.from_quantized(made[0], dtype="float32")
        ids = torch.arange(60, 100)[None]
        with torch.no_grad():
            wanted = original(ids).logits
            off = [
                ((model(ids, precision=b).logits - wanted).norm() / wanted.norm()).item()
                for b in (2, 4, 8)
            ]
        assert off[0] > off[1] > off[2]
        assert off[2] < 0.02


class TestOptions:
    def test_fewer_precisions_and_groups_along_k(self, tiny_source, options, tmp_path):
        out = tmp_path / "out"
        options = {**options, "precisions": (3, 4, 5), "seed_precision": 4, "group_size": 32}
        summary = quantize(tiny_source, out, **options)
        assert _core.verify_checkpoint(out)["problems"] == []
        checkpoint = anyprec.Checkpoint(out)
        assert checkpoint.available_precisions == [3, 4, 5]
        name = "model.layers.0.mlp.down_proj"  # K = 72: groups of 32, 32 and 8 columns
        assert checkpoint.shape(f"{name}.lut.5") == [48, 3, 32]
        assert f"{name}.plane.5" not in checkpoint
        assert [size.precision for size in summary.sizes] == [3, 4, 5]

    def test_a_live_model_is_quantized_and_left_as_it_was(
        self, tiny_source, options, made, tmp_path
    ):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(tiny_source, dtype="auto")
        before = {name: t.clone() for name, t in model.state_dict().items()}
        tokenizer = AutoTokenizer.from_pretrained(tiny_source)
        quantize(model, tmp_path / "out", tokenizer=tokenizer, **options)
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        wanted = files_of(made[0])
        found = files_of(tmp_path / "out")
        assert {n for n in wanted if n.endswith(".safetensors") and wanted[n] != found[n]} == set()

    def test_a_live_model_needs_a_tokenizer(self, options, tmp_path):
        with pytest.raises(QuantizeError, match="needs a tokenizer"):
            quantize(tiny_model("llama"), tmp_path / "out", **options)

    def test_patterns_choose_the_layers(self, tiny_source, options, tmp_path):
        out = tmp_path / "out"
        quantize(tiny_source, out, modules=["*.0.mlp.*"], **options)
        checkpoint = anyprec.Checkpoint(out)
        assert [name.rsplit(".", 1)[1] for name, _, _ in checkpoint.modules] == [
            "gate_proj",
            "up_proj",
            "down_proj",
        ]
        assert "model.layers.1.mlp.up_proj.weight" in checkpoint

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"precisions": (3, 5)}, QuantizeError, "3, 5: wanted a rising range without gaps"),
            ({"precisions": (1, 2, 3)}, QuantizeError, "within 2..8"),
            ({"precisions": ()}, QuantizeError, r"\(none\): wanted"),
            ({"seed_precision": 9}, QuantizeError, "seed precision 9: wanted one of"),
            ({"group_size": 48}, QuantizeError, "group size 48: wanted 0 or a multiple of 32"),
            ({"codebook": "vq"}, QuantizeError, "codebook 'vq': wanted one of lut, hybrid, bcq"),
            ({"device": "abacus"}, QuantizeError, "device 'abacus'"),
            ({"dtype": "int3"}, ValueError, "dtype 'int3'"),
            ({"num_examples": 10_000}, DatasetError, "wanted 10000"),
            ({"modules": "*.nothing"}, ModuleSelectionError, "matches no linear layer"),
        ],
    )
    def test_a_wrong_option_is_an_error_and_leaves_nothing(
        self, tiny_source, options, tmp_path, change, error, message
    ):
        with pytest.raises(error, match=message):
            quantize(tiny_source, tmp_path / "out", **{**options, **change})
        assert list(tmp_path.iterdir()) == []

    def test_a_dry_run_says_what_would_be_made_and_writes_nothing(
        self, tiny_source, made, tmp_path
    ):
        summary = quantize(tiny_source, tmp_path / "out", dry_run=True)
        assert summary.status == "dry run"
        assert summary.sizes == made[1].sizes
        assert summary.base_bytes == made[1].base_bytes
        assert summary.original_bytes == made[1].original_bytes
        assert list(tmp_path.iterdir()) == []


class TestWeightsThatCannotBe:
    def quantize_changed(self, change, options, tmp_path, tiny_source):
        source = load_source(tiny_source)
        with torch.no_grad():
            change(source.model)
        quantize(source.model, tmp_path / "out", tokenizer=source.tokenizer, **options)

    def test_a_centroid_beyond_fp16_is_an_error_that_names_it(self, options, tmp_path, tiny_source):
        def change(model):
            # Large enough for fp16's limit; the norm before the head keeps the loss finite.
            model.get_submodule("model.layers.1.mlp.down_proj").weight[3, 5] = 1e6

        with pytest.raises(
            QuantizeError, match=r"model\.layers\.1\.mlp\.down_proj\.lut\.\d: entry \[3, 0, \d+\]"
        ):
            self.quantize_changed(change, options, tmp_path, tiny_source)
        assert not (tmp_path / "out").exists()

    def test_a_weight_that_is_not_finite_is_an_error_that_names_the_layer(
        self, options, tmp_path, tiny_source
    ):
        def change(model):
            model.get_submodule("model.layers.0.mlp.up_proj").weight[1, 2] = float("nan")

        with pytest.raises(ValueError, match=r"model\.layers\.\d\..*not finite"):
            self.quantize_changed(change, options, tmp_path, tiny_source)


class TestAskingAgain:
    def test_the_same_request_does_nothing(self, made, tiny_source, options):
        before = {path: path.stat().st_mtime_ns for path in made[0].iterdir()}
        summary = quantize(tiny_source, made[0], threads=1, **options)
        assert summary.status == "already made"
        assert {path: path.stat().st_mtime_ns for path in made[0].iterdir()} == before

    def test_another_request_is_refused_unless_it_may_overwrite(
        self, made, tiny_source, options, tmp_path
    ):
        out = tmp_path / "out"
        shutil.copytree(made[0], out)
        other = {**options, "random_state": 1}
        with pytest.raises(QuantizeError, match="made with other options"):
            quantize(tiny_source, out, **other)
        assert files_of(out) == files_of(made[0])
        assert quantize(tiny_source, out, overwrite=True, **other).status == "made"
        assert files_of(out) != files_of(made[0])
        assert _core.verify_checkpoint(out)["problems"] == []

    def test_another_model_of_the_same_name_is_another_request(
        self, made, tiny_source, options, tmp_path
    ):
        source = tmp_path / tiny_source.name
        shutil.copytree(tiny_source, source)
        model = tiny_model("llama-tied", torch.bfloat16)
        with torch.no_grad():
            model.model.norm.weight[0] += 1
        model.save_pretrained(source)
        with pytest.raises(QuantizeError, match="from another model"):
            quantize(source, made[0], **options)

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_folder_that_is_no_checkpoint_is_never_touched(
        self, tiny_source, options, tmp_path, overwrite
    ):
        out = tmp_path / "precious"
        out.mkdir()
        (out / "thesis.txt").write_text("ten years of work")
        with pytest.raises(QuantizeError, match="is no checkpoint of anyprec"):
            quantize(tiny_source, out, overwrite=overwrite, **options)
        assert files_of(out) == {"thesis.txt": b"ten years of work"}

    def test_two_runs_into_one_folder_exclude_each_other(self, tiny_source, options, tmp_path):
        out = tmp_path / "out"
        with (
            WorkDirectory(tmp_path / "out.work"),
            pytest.raises(WorkError, match="another run is working in it"),
        ):
            quantize(tiny_source, out, **options)


@pytest.fixture(scope="module")
def killed(tiny_source, options, tmp_path_factory):
    """The work directory of a run that was killed with all its pieces done."""
    out = tmp_path_factory.mktemp("killed") / "out"
    assert run_and_die("writer:1", tiny_source, out, options) == -signal.SIGKILL
    return out.with_name("out.work")


class TestInterruptedRuns:
    @pytest.mark.parametrize("point", POINTS)
    def test_a_killed_run_goes_on_to_the_same_bytes(
        self, made, tiny_source, options, tmp_path, point
    ):
        out = tmp_path / "out"
        assert run_and_die(point, tiny_source, out, options) == -signal.SIGKILL
        if point == "published:1":
            assert (tmp_path / "out.work").exists()
        else:
            assert not out.exists()
        summary = quantize(tiny_source, out, **options)
        assert summary.status == ("already made" if point == "published:1" else "made")
        assert files_of(out) == files_of(made[0])
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_finished_layers_are_not_fitted_again(
        self, tiny_source, options, tmp_path, monkeypatch
    ):
        out = tmp_path / "out"
        run_and_die("piece done:20", tiny_source, out, options)
        fitted = []
        real = _core.quantize_matrix
        monkeypatch.setattr(
            "anyprec.quantization._core.quantize_matrix",
            lambda name, *args, **kwargs: (fitted.append(name), real(name, *args, **kwargs))[1],
        )
        monkeypatch.setattr(
            "anyprec.quantization.calibrate",
            lambda *args, **kwargs: pytest.fail("calibrated again"),
        )
        quantize(tiny_source, out, **options)
        # 14 linears; their sums and 6 results were there.
        assert len(fitted) == 14 - 6

    @pytest.mark.parametrize("kind", ["sums", "linears"])
    @pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "swap", "text"])
    def test_pieces_are_trusted_by_content_alone(
        self, made, killed, tiny_source, options, tmp_path, kind, damage
    ):
        out = tmp_path / "out"
        shutil.copytree(killed, tmp_path / "out.work")
        folder = tmp_path / "out.work" / kind
        first, second = sorted(folder.iterdir())[:2]
        data = bytearray(first.read_bytes())
        if damage == "flip":
            data[-3] ^= 0x10
            first.write_bytes(data)
        elif damage == "truncate":
            first.write_bytes(data[: len(data) // 2])
        elif damage == "empty":
            first.write_bytes(b"")
        elif damage == "text":
            first.write_text("not a safetensors file")
        else:
            shutil.copy(second, first)
        quantize(tiny_source, out, **options)
        assert files_of(out) == files_of(made[0])

    def test_pieces_of_another_request_are_not_used(self, made, tiny_source, options, tmp_path):
        out = tmp_path / "out"
        run_and_die("writer:1", tiny_source, out, {**options, "seed_precision": 4})
        quantize(tiny_source, out, **options)
        assert files_of(out) == files_of(made[0])

    def test_thread_count_does_not_change_the_quantizers_bytes(
        self, made, tiny_source, options, tmp_path
    ):
        out = tmp_path / "out"
        run_and_die("piece done:14", tiny_source, out, options)
        quantize(tiny_source, out, threads=3, **options)
        assert files_of(out) == files_of(made[0])

    def test_what_a_living_process_writes_beside_is_left_alone(
        self, tiny_source, options, tmp_path
    ):
        alive = tmp_path / f"out.partial-{os.getpid()}-1"
        dead = tmp_path / "out.partial-999999999-1"
        alive.mkdir()
        dead.mkdir()
        quantize(tiny_source, tmp_path / "out", **options)
        assert alive.exists()
        assert not dead.exists()


@pytest.mark.slow
def test_a_real_gguf_model_end_to_end(smollm2_gguf, tmp_path):
    out = tmp_path / "smollm2"
    summary = quantize(
        smollm2_gguf,
        out,
        modules=["model.layers.0.*", "model.layers.29.mlp.down_proj"],
        num_examples=2,
        seq_len=64,
        device="cpu",
    )
    assert len(summary.results) == 8
    assert _core.verify_checkpoint(out)["problems"] == []
    checkpoint = anyprec.Checkpoint(out)
    assert checkpoint.dtype("model.embed_tokens.weight") == "F16"
    assert checkpoint.config["quantization_config"]["calibration"]["dataset"] == "builtin"
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(out)("Hello").input_ids
