"""The quantize pipeline with recipes: what each step is given, what is recorded, and going on."""

import json
import signal
import threading

import numpy as np
import pytest
import torch

import anyprec
from anyprec import _core
from anyprec.calibrate import calibrate
from anyprec.datasets import calibration_tokens
from anyprec.distill import DistillError
from anyprec.memory import MemoryLimitError
from anyprec.options import QuantizeError
from anyprec.quantization import quantize
from anyprec.recipes import Descent, Distillation, Recipe, RecipeError, load_recipe
from anyprec.source import load_source
from checkpoints import linears_of
from interrupted import run_and_die

BITS = (2, 3, 4)
DESCENT = Descent({2: 1.0, 3: 0.5}, rounds=2, child_sweeps=1)
DISTILLATION = Distillation(
    {2: 4, 3: 4}, {2: 0.01, 3: 0.003}, num_examples=6, seq_len=32, held_out=2, batch_size=2
)
REFIT = Recipe("refit", refit=True)
JOINT = Recipe("joint", refit=True, descent=DESCENT)
DISTILLED = Recipe("distilled", refit=False, distillation=DISTILLATION)


@pytest.fixture(scope="module")
def options(calibration):
    return {**calibration, "precisions": BITS}


class FitDouble:
    """Stands for torch.ops.anyprec.fit: codes as they are, tables weighted by the Hessian's
    diagonal."""

    def __init__(self):
        self.calls = []

    def __call__(
        self, weight, codes, hessian, lut_bits, cells, group_size, bits, seed, taus, rounds, sweeps
    ):
        assert (lut_bits, cells, group_size) == (8, "one", 0)
        self.calls.append(
            {"hessian": hessian, "taus": taus, "rounds": rounds, "sweeps": sweeps, "codes": codes}
        )
        codes = codes if codes.dim() == 2 else codes[0]
        h = hessian.clone()
        h.diagonal().add_(0.01 * h.diagonal().mean())
        luts, energies = [], []
        for b in bits:
            top = (codes >> (bits[-1] - b)).long()
            s = h.diagonal().expand_as(weight)
            total = torch.zeros(len(weight), 2**b).scatter_add(1, top, s * weight)
            mass = torch.zeros(len(weight), 2**b).scatter_add(1, top, s)
            lut = (total / mass.clamp_min(1e-30)).half().float()
            rest = weight - lut.gather(1, top)
            luts.append(lut[:, None])
            energies.append((rest @ h * rest).double().sum())
        alphas = [torch.zeros(len(weight), 1, 0, 1) for _ in bits]
        return codes, luts, alphas, torch.stack(energies)


@pytest.fixture
def fit(monkeypatch):
    double = FitDouble()
    monkeypatch.setattr(torch.ops.anyprec, "fit", double, raising=False)
    return double


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def manifest_options(out):
    return json.loads((out / "anyprec_manifest.json").read_text())["options"]


class TestRefit:
    def test_each_linear_is_fitted_to_its_hessian_as_the_recipe_says(
        self, tiny_source, options, fit, tmp_path
    ):
        out = tmp_path / "out"
        summary = quantize(tiny_source, out, recipe=JOINT, **options)
        assert _core.verify_checkpoint(out)["problems"] == []
        source = load_source(tiny_source)
        names = list(linears_of(source.model))
        tokens = calibration_tokens(
            source.tokenizer, options["dataset"], num_examples=3, seq_len=32
        )
        wanted = {}
        calibrate(
            source.model,
            names,
            tokens.ids,
            lambda name, sums: wanted.update({name: sums}),
            device=torch.device("cpu"),
            dtype=torch.float32,
            hessians=True,
        )
        assert len(fit.calls) == len(names)
        checkpoint = anyprec.Checkpoint(out)
        for name, call, result in zip(names, fit.calls, summary.results, strict=True):
            assert torch.equal(call["hessian"], wanted[name].hessian)
            assert (call["taus"], call["rounds"], call["sweeps"]) == ([1.0, 0.5, 0.0], 2, 1)
            weight = source.model.get_submodule(name).weight.detach().float()
            # The error reported is that of what was stored, against the same Hessian.
            lut = checkpoint.data(f"{name}.lut.3").view("f2").reshape(len(weight), 8)
            planes = np.stack(
                [
                    checkpoint.data(f"{name}.plane.{i}").reshape(
                        checkpoint.shape(f"{name}.plane.0")
                    )
                    for i in range(3)
                ]
            )
            codes = torch.from_numpy(_core.planes_to_codes(planes, weight.shape[1], 3)).long()
            rest = (weight - torch.from_numpy(lut.astype(np.float32)).gather(1, codes)).double()
            h = wanted[name].hessian.double()
            h.diagonal().add_(0.01 * h.diagonal().mean())
            w = weight.double()
            relative = (rest @ h * rest).sum() / (w @ h * w).sum()
            assert result.relative_error(3) == pytest.approx(relative.item(), rel=1e-3)

    def test_labels_of_the_model_and_passes_are_those_of_calibration(
        self, tiny_source, options, fit, tmp_path
    ):
        recipe = Recipe("drawn", refit=True, labels="model", passes=2)
        quantize(tiny_source, tmp_path / "out", recipe=recipe, **options)
        source = load_source(tiny_source)
        names = list(linears_of(source.model))
        tokens = calibration_tokens(
            source.tokenizer, options["dataset"], num_examples=3, seq_len=32
        )
        wanted = []
        calibrate(
            source.model,
            names,
            np.concatenate([tokens.ids, tokens.ids]),
            lambda name, sums: wanted.append(sums.hessian),
            device=torch.device("cpu"),
            dtype=torch.float32,
            hessians=True,
            labels="model",
        )
        for call, hessian in zip(fit.calls, wanted, strict=True):
            assert torch.equal(call["hessian"], hessian)

    def test_descent_begins_with_the_clusters_of_every_seed(
        self, tiny_source, options, fit, tmp_path
    ):
        descent = Descent({2: 1.0, 3: 0.5}, rounds=2, child_sweeps=1, seeds=(2, 4, 7))
        recipe = Recipe("seeds", refit=True, descent=descent)
        quantize(tiny_source, tmp_path / "out", recipe=recipe, seed_precision=3, **options)
        calls = list(fit.calls)
        for at, seed in enumerate((3, 2, 4)):
            fit.calls.clear()
            out = tmp_path / str(seed)
            quantize(tiny_source, out, recipe=JOINT, seed_precision=seed, **options)
            for call, alone in zip(calls, fit.calls, strict=True):
                assert len(call["codes"]) == 3
                assert torch.equal(call["codes"][at], alone["codes"][0])

    def test_without_descent_codebooks_alone_are_fitted(self, tiny_source, options, fit, tmp_path):
        quantize(tiny_source, tmp_path / "out", recipe=REFIT, **options)
        assert {(tuple(c["taus"]), c["rounds"], c["sweeps"]) for c in fit.calls} == {
            ((0.0, 0.0, 0.0), 0, 0)
        }

    def test_the_manifest_tells_the_recipe_and_another_one_is_another_request(
        self, tiny_source, options, fit, tmp_path
    ):
        out = tmp_path / "out"
        quantize(tiny_source, out, recipe=JOINT, **options)
        assert manifest_options(out)["recipe"] == JOINT.record()
        assert quantize(tiny_source, out, recipe=JOINT, **options).status == "already made"
        with pytest.raises(QuantizeError, match="made with other options"):
            quantize(tiny_source, out, recipe=REFIT, **options)

    def test_pieces_of_another_recipe_are_not_used_but_its_sums_are(
        self, tiny_source, options, fit, tmp_path, monkeypatch
    ):
        out, other = tmp_path / "out", tmp_path / "other"
        quantize(tiny_source, other, recipe=REFIT, **options)

        def stop(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr("anyprec.quantization.write_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize(tiny_source, out, recipe=JOINT, **options)
        monkeypatch.undo()
        monkeypatch.setattr(torch.ops.anyprec, "fit", fit, raising=False)
        monkeypatch.setattr(
            "anyprec.quantization.calibrate", lambda *a, **k: pytest.fail("calibrated again")
        )
        fit.calls.clear()
        quantize(tiny_source, out, recipe=REFIT, **options)
        assert len(fit.calls) == 14
        assert files_of(out) == files_of(other)

    def test_a_build_without_the_operator_is_refused_before_any_work(
        self, tiny_source, options, tmp_path, monkeypatch
    ):
        monkeypatch.delattr(torch.ops.anyprec, "fit", raising=False)
        if hasattr(torch.ops.anyprec, "fit"):
            pytest.skip("this build has the operator")
        with pytest.raises(QuantizeError, match="recipe refit: this build of anyprec has no"):
            quantize(tiny_source, tmp_path / "out", recipe=REFIT, **options)
        assert list(tmp_path.iterdir()) == []


class TestMemory:
    def test_little_memory_gives_the_same_bytes(self, tiny_source, options, tmp_path):
        whole, small = tmp_path / "whole", tmp_path / "small"
        quantize(tiny_source, whole, **options)
        lines = Lines()
        with pytest.raises(MemoryLimitError) as refused:
            quantize(tiny_source, small, max_memory="1KiB", **options)
        least = str(refused.value).split("at least ")[1].split(" on ")[0]
        quantize(tiny_source, small, max_memory=least, progress=lines, **options)
        assert any("in 2 segments" in line for line in lines.lines)
        assert files_of(small) == files_of(whole)

    def test_a_run_stopped_between_segments_goes_on_from_there(
        self, tiny_source, options, tmp_path, monkeypatch
    ):
        from anyprec import quantization
        from anyprec.calibration_plan import Plan

        whole, out = tmp_path / "whole", tmp_path / "out"
        quantize(tiny_source, whole, **options)
        two = Plan(((0, 1), (1, 2)), True, "device", 0, 0)
        monkeypatch.setattr(quantization, "make_plan", lambda *args, **kwargs: two)
        real = quantization._Borders.save

        def save_and_stop(self, block, gradients):
            real(self, block, gradients)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(quantization._Borders, "save", save_and_stop)
            quantize(tiny_source, out, **options)
        lines = Lines()
        quantize(tiny_source, out, progress=lines, **options)
        assert not any("mean loss" in line for line in lines.lines)  # no pass through the end
        assert files_of(out) == files_of(whole)

    def test_fitting_each_linear_as_its_sums_come_gives_the_same_bytes(
        self, tiny_source, options, tmp_path, monkeypatch
    ):
        """As on a GPU, where sums are not kept in the work directory."""
        from anyprec import quantization

        kept, passed_on = tmp_path / "kept", tmp_path / "passed on"
        quantize(tiny_source, kept, **options)
        real = quantization._Run.__init__

        def without_keeping(self, *args):
            real(self, *args)
            self.keeps_sums = False

        monkeypatch.setattr(quantization._Run, "__init__", without_keeping)
        seen = []

        def stop(request, *args):
            folder = tmp_path / "passed on.work"
            seen.extend(path.name for path in folder.iterdir())
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(quantization, "write_checkpoint", stop)
            quantize(tiny_source, passed_on, **options)
        assert sorted(seen) == ["linears", "lock"]
        # What is done is not done again; one that is damaged means a pass for it alone.
        damaged = "model.layers.1.mlp.up_proj"
        (tmp_path / "passed on.work" / "linears" / f"{damaged}.safetensors").write_bytes(b"")
        names = []
        calibrated = quantization.calibrate

        def counted(model, wanted, *args, **kwargs):
            names.extend(wanted)
            calibrated(model, wanted, *args, **kwargs)

        monkeypatch.setattr(quantization, "calibrate", counted)
        quantize(tiny_source, passed_on, **options)
        assert names == [damaged]
        assert files_of(passed_on) == files_of(kept)

    @pytest.mark.parametrize("recipe", ["fast", JOINT])
    def test_writing_the_checkpoint_beside_gives_the_same_bytes(
        self, tiny_source, options, tmp_path, monkeypatch, recipe
    ):
        """As on a GPU: each linear as soon as it is fitted."""
        from anyprec import quantization

        after, beside = tmp_path / "after", tmp_path / "beside"
        quantize(tiny_source, after, recipe=recipe, **options)
        self.write_beside(monkeypatch)
        real, begun = quantization.write_checkpoint, threading.Event()

        def write(*args):
            begun.set()
            real(*args)

        def calibrate(*args, **kwargs):
            assert begun.wait(60)
            real_calibrate(*args, **kwargs)

        real_calibrate = quantization.calibrate
        monkeypatch.setattr(quantization, "write_checkpoint", write)
        monkeypatch.setattr(quantization, "calibrate", calibrate)
        quantize(tiny_source, beside, recipe=recipe, **options)
        assert files_of(beside) == files_of(after)

    def test_a_run_stopped_while_the_checkpoint_is_written_leaves_none_and_goes_on(
        self, tiny_source, options, tmp_path, monkeypatch
    ):
        from anyprec import quantization

        whole, out = tmp_path / "whole", tmp_path / "out"
        quantize(tiny_source, whole, **options)
        self.write_beside(monkeypatch)
        real, fitted = quantization._fit, []

        def fit_and_stop(name, *args):
            if len(fitted) == 5:
                raise KeyboardInterrupt
            fitted.append(name)
            return real(name, *args)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(quantization, "_fit", fit_and_stop)
            quantize(tiny_source, out, **options)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out.work", "whole"]

        def fit_another(name, *args):
            assert name not in fitted
            return real(name, *args)

        monkeypatch.setattr(quantization, "_fit", fit_another)
        quantize(tiny_source, out, **options)
        assert files_of(out) == files_of(whole)

    def test_a_checkpoint_that_cannot_be_written_ends_the_run(
        self, tiny_source, options, tmp_path, monkeypatch
    ):
        from anyprec import quantization

        self.write_beside(monkeypatch)
        failed, real, fitted = threading.Event(), quantization._fit, []

        def write(*args):
            failed.set()
            raise OSError("no space left")

        def fit(name, *args):
            assert failed.wait(60)
            fitted.append(name)
            return real(name, *args)

        monkeypatch.setattr(quantization, "write_checkpoint", write)
        monkeypatch.setattr(quantization, "_fit", fit)
        with pytest.raises(OSError, match="no space left"):
            quantize(tiny_source, tmp_path / "out", **options)
        assert len(fitted) < 14

    def write_beside(self, monkeypatch):
        from anyprec import quantization

        real = quantization._Run.__init__

        def beside(self, *args):
            real(self, *args)
            self.writes_beside = True

        monkeypatch.setattr(quantization._Run, "__init__", beside)

    def test_what_cannot_fit_is_refused_and_leaves_nothing(self, tiny_source, options, tmp_path):
        with pytest.raises(MemoryLimitError, match=r"max memory 0\.10MiB: .* at least .* on cpu"):
            quantize(tiny_source, tmp_path / "out", max_memory="100KiB", **options)
        assert list(tmp_path.iterdir()) == []

    def test_an_amount_that_is_none_is_refused(self, tiny_source, options, tmp_path):
        with pytest.raises(MemoryLimitError, match="memory 'lots': wanted an amount"):
            quantize(tiny_source, tmp_path / "out", max_memory="lots", **options)


class Lines:
    """A reporter that remembers."""

    def __init__(self):
        from anyprec.progress import Silent

        self.lines = []
        self.stage = Silent().stage

    def line(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def distilled(tiny_source, options, tmp_path_factory):
    out = tmp_path_factory.mktemp("distilled") / "out"
    quantize(tiny_source, out, recipe=DISTILLED, **options)
    return out


class TestDistillation:
    def test_codebooks_of_the_named_precisions_change_and_nothing_else(
        self, distilled, tiny_source, options, tmp_path
    ):
        quantize(tiny_source, tmp_path / "out", **options)
        plain, made = anyprec.Checkpoint(tmp_path / "out"), anyprec.Checkpoint(distilled)
        assert _core.verify_checkpoint(distilled)["problems"] == []
        assert plain.tensor_names() == made.tensor_names()
        changed = {
            name.rsplit(".", 2)[-2:][0] + "." + name.rsplit(".", 1)[1]
            for name in plain.tensor_names()
            if bytes(plain.data(name)) != bytes(made.data(name))
        }
        kept = {
            r["precision"] for r in manifest_options(distilled)["refined"]["results"] if r["kept"]
        }
        assert kept
        assert changed == {f"lut.{b}" for b in kept}
        assert [path.name for path in distilled.parent.iterdir()] == ["out"]

    def test_the_manifest_tells_what_was_asked_for_and_what_came_of_it(self, distilled):
        found = manifest_options(distilled)
        assert found["recipe"] == DISTILLED.record()
        assert found["distillation_text"]["num_examples"] == 6
        assert found["refined"]["learning_rates"] == {"2": 0.01, "3": 0.003}
        assert found["refined"]["steps"] == {"2": 4, "3": 4}

    def test_the_same_request_does_nothing(self, distilled, tiny_source, options):
        before = files_of(distilled)
        again = quantize(tiny_source, distilled, recipe=DISTILLED, **options)
        assert again.status == "already made"
        assert files_of(distilled) == before

    def test_a_run_killed_before_its_last_step_leaves_nothing_and_goes_on_to_the_same_bytes(
        self, distilled, tiny_source, options, tmp_path
    ):
        out = tmp_path / "out"
        died = run_and_die("published:1", tiny_source, out, {**options, "recipe": DISTILLED})
        assert died == -signal.SIGKILL
        assert not out.exists()
        quantize(tiny_source, out, recipe=DISTILLED, **options)
        assert files_of(out) == files_of(distilled)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_where_no_precision_gets_better_the_checkpoint_is_as_without(
        self, tiny_source, options, tmp_path, monkeypatch
    ):
        from anyprec import refinement

        real = refinement.distill

        def never(student, teacher, precision, *args, **kwargs):
            outcome, _ = real(student, teacher, precision, *args, **kwargs)
            return type(outcome)(precision, outcome.before, outcome.before, False, 0), {}

        monkeypatch.setattr(refinement, "distill", never)
        quantize(tiny_source, tmp_path / "out", recipe=DISTILLED, **options)
        quantize(tiny_source, tmp_path / "plain", **options)
        for b in BITS:
            name = f"model-{b}bit.safetensors"
            assert (tmp_path / "out" / name).read_bytes() == (
                tmp_path / "plain" / name
            ).read_bytes()
        assert [path.name for path in sorted(tmp_path.iterdir())] == ["out", "plain"]

    def test_a_checkpoint_is_replaced_only_when_it_may_be(
        self, distilled, tiny_source, options, tmp_path
    ):
        out = tmp_path / "out"
        quantize(tiny_source, out, **options)
        with pytest.raises(QuantizeError, match="made with other options"):
            quantize(tiny_source, out, recipe=DISTILLED, **options)
        quantize(tiny_source, out, recipe=DISTILLED, overwrite=True, **options)
        assert files_of(out) == files_of(distilled)

    def test_too_little_text_is_found_out_before_any_work(self, tiny_source, options, tmp_path):
        few = Recipe(
            "few",
            refit=False,
            distillation=Distillation({2: 300}, {2: 0.01}, num_examples=3, seq_len=32, held_out=3),
        )
        with pytest.raises(QuantizeError, match=r"recipe few: .* 3 windows .* more than the 3"):
            quantize(tiny_source, tmp_path / "out", recipe=few, **options)
        assert list(tmp_path.iterdir()) == []


def test_an_unknown_recipe_is_refused(tiny_source, options, tmp_path):
    with pytest.raises(RecipeError, match="'superb': neither one of balanced, best, fast"):
        quantize(tiny_source, tmp_path / "out", recipe="superb", **options)
    with pytest.raises(RecipeError, match="its descent is for none of the precisions"):
        quantize(
            tiny_source,
            tmp_path / "out",
            recipe=load_recipe("balanced"),
            **{**options, "precisions": (7, 8), "seed_precision": 7},
        )
    assert list(tmp_path.iterdir()) == []


def test_a_learning_rate_is_wanted_for_each_precision(tiny_source, options, tmp_path):
    from anyprec.refinement import refine

    quantize(tiny_source, tmp_path / "out", **options)
    with pytest.raises(DistillError, match="no learning rate for 3 bits"):
        refine(tmp_path / "out", tiny_source, precisions=[2, 3], learning_rate={2: 0.01})
