"""Quantizing a model: calibrate, fit every linear, write one checkpoint; resumable step by step."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from anyprec import _core
from anyprec.assemble import PRODUCER, Request, base_tensors, write_checkpoint
from anyprec.background import Background, ahead
from anyprec.calibrate import LOSS_SCALE, Sums, calibrate, steps
from anyprec.calibration_plan import Plan, make_plan
from anyprec.datasets import BUILTIN, Tokens, calibration_tokens
from anyprec.files import MANIFEST
from anyprec.hessian_fit import check_operator, fit_to_hessian, hessian_for, needs_fit
from anyprec.memory import parse_memory
from anyprec.modules import Linear, Selection, select_linears
from anyprec.options import Options, QuantizeError, calibration_dtype, resolve_device
from anyprec.progress import Reporter, Silent
from anyprec.recipes import DEFAULT_RECIPE, Recipe, load_recipe
from anyprec.refinement import refine
from anyprec.rewrite import rewrite_checkpoint
from anyprec.sizes import precision_sizes
from anyprec.source import Source, describe_source, dtype_name, load_source, source_of
from anyprec.summary import LinearResult, Summary
from anyprec.tree import Tree, build_tree, planes_of, to_host
from anyprec.work import Piece, WorkDirectory, key_of

# Threads that hash pieces and write or read them beside a GPU's work.
_FILE_THREADS = 4


def quantize(
    model: nn.Module | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    modules: Sequence[str] = (),
    quantize_head: bool = False,
    dataset: str = BUILTIN,
    num_examples: int = 100,
    seq_len: int = 512,
    random_state: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    calibration_dtype: str = "auto",
    precisions: Sequence[int] = tuple(range(2, 9)),
    seed_precision: int = 3,
    group_size: int = 0,
    codebook: str = "lut",
    lut_bits: int | None = None,
    cell_groups: str | None = None,
    recipe: str | os.PathLike[str] | Recipe = DEFAULT_RECIPE,
    max_memory: int | str | None = None,
    threads: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Reporter | bool = False,
) -> Summary:
    """Quantizes a causal LM once, into a checkpoint that serves every precision asked for.

    Computes each weight's sensitivity on calibration text (`anyprec.calibrate`), fits an optimal
    sensitivity-weighted k-means per output channel at the seed precision, splits its clusters
    optimally up to the widest precision and merges them down to the narrowest (Any-Precision LLM,
    arXiv 2402.10517, with exact clustering), and writes bit planes and fp16 tables. A recipe may
    add steps: codes and codebooks fitted to guided Hessians, and distillation of codebooks.

    Args:
        model: a live Hugging Face causal LM on the CPU (not changed), a folder or hub name, or a
            .gguf file.
        out: the checkpoint's folder; it appears, whole, at the end. Until then finished steps are
            kept in `<out>.work` (up to 2 bytes a weight, calibrating on a CPU 6, with Hessians
            4 K / N more): an interrupted run goes on from there, after checking every piece by its
            hash, and ends with the same bytes.
        tokenizer: for a live model; others bring their own.
        modules: globs over module names that choose the linears; none: configs/<family>.json, or
            every linear in the decoder's blocks.
        quantize_head: the output head as well. A head that shares its weight with the embedding
            becomes a matrix of its own; the embedding stays as it is (docs/recipes.md).
        dataset: "builtin" (a C4 sample that ships with the package), "c4", "wikitext2", "ptb",
            "pileval" (from the hub), a text or .jsonl file, or a folder of them.
        num_examples, seq_len, random_state: that many windows of seq_len tokens: the first ones,
            or those that random_state picks.
        device: where calibration, clustering, fits to Hessians and distillation run: "auto" (a GPU
            when there is one), "cpu", "cuda", "cuda:1".
        dtype: what the unquantized tensors are stored in; "auto": the model's own, float16 for a
            GGUF file.
        calibration_dtype: what calibration computes in; "auto": bfloat16 on a GPU for a bfloat16
            model, otherwise float32.
        precisions: rising, without gaps, within 2..8.
        seed_precision: the one that clustering fits directly; of no account to "bcq".
        group_size: columns that share a codebook, a multiple of 32; the last group is shorter where
            it does not divide K. 0: the whole row.
        codebook: "lut", a full table per output channel and precision; "hybrid", a table on the top
            lut_bits (4) with signed planes below, whose coefficients cells of one class share
            (cell_groups: "one", "io", "sym", "qu", "cell"; "io"); "bcq", an offset and signed
            planes (docs/format.md). Where a recipe has no Hessian, codes of the latter two are
            fitted to the sensitivities' sum over rows.
        lut_bits, cell_groups: of a hybrid; None: 4 and "io".
        recipe: "fast", "balanced", "best" (configs/recipes), a JSON file, or a `recipes.Recipe`.
        max_memory: the most that calibration takes of the device's memory and of RAM, the model
            included: bytes, or text like "20GiB"; None: nine tenths of what is free. Where the
            model or its sums are larger, blocks go through the device in turn
            (`calibration_plan`). The result does not depend on it.
        threads: for the quantizer and for torch; 0: all cores. The quantizer's result does not
            depend on it.
        overwrite: replace a checkpoint that was made by another request.
        dry_run: load no weights and write nothing; return what would be made.
        progress: True for bars and lines on standard error, or a `progress.Reporter`.

    Returns:
        A Summary: sizes and weighted errors per precision and linear. When `out` was made by
        exactly this request already, nothing is done and its status is "already made".

    Raises:
        QuantizeError, SourceError, DatasetError, ModuleSelectionError, RecipeError,
        MemoryLimitError, CalibrationError, SegmentError, DistillError (all ValueError): the message
        names what was found and what was wanted.
        WorkError: another run works on the same `out`.
    """
    started = time.monotonic()
    options = Options(
        modules=(modules,) if isinstance(modules, str) else tuple(modules),
        dataset=str(dataset),
        num_examples=num_examples,
        seq_len=seq_len,
        random_state=random_state,
        device=resolve_device(device),
        dtype=dtype,
        calibration_dtype=calibration_dtype,
        precisions=tuple(precisions),
        seed_precision=seed_precision,
        group_size=group_size,
        codebook=codebook,
        lut_bits=lut_bits,
        cell_groups=cell_groups,
        recipe=load_recipe(recipe),
        quantize_head=quantize_head,
        max_memory=None if max_memory is None else parse_memory(max_memory),
    )
    check_operator(options)
    if progress is True:
        from anyprec.progress import Terminal

        report: Reporter = Terminal()
    else:
        report = progress or Silent()
    out = Path(os.path.abspath(out))
    if not dry_run:
        _refuse_foreign(out, overwrite)
    source = _open(model, tokenizer, options, dry_run)
    selection = select_linears(source.model, options.modules, options.quantize_head)
    report.line(f"{source.name}: {selection}")
    summary = _plan(source, selection, options, out)
    if dry_run:
        report.line(f"calibration: {_memory_plan(source, selection.linears, options)}")
        summary.seconds = time.monotonic() - started
        return summary
    if source.tokenizer is None:
        raise QuantizeError(f"{source.name}: calibration needs a tokenizer: pass tokenizer=")
    with _torch_threads(threads):
        run = _Run(_request(source, selection, options), out, threads, report)
        if run.already_made():
            report.line(f"{out}: made by exactly this request already, nothing to do")
            summary.status = "already made"
        elif out.exists() and not overwrite:
            raise QuantizeError(
                f"{out}: a checkpoint is there already, made with other options or from another "
                "model: choose another folder, or --overwrite"
            )
        else:
            summary.results = run.make(overwrite)
            summary.status = "made"
    summary.seconds = time.monotonic() - started
    return summary


class _Run:
    """One request on its way to a checkpoint."""

    def __init__(self, request: Request, out: Path, threads: int, report: Reporter) -> None:
        self.request = request
        self.source = request.source
        self.linears = request.selection.linears
        self.options = request.options
        self.out = out
        self.report = report
        self.pool = _core.ThreadPool(threads)
        # A GPU makes sums faster than a disk takes them; on a CPU they take long.
        self.keeps_sums = request.device.type == "cpu"
        self.writes_beside = request.device.type != "cpu"
        # On a CPU fits take all cores and longer than files; one thread keeps those in order.
        self.threads = 1 if self.keeps_sums else _FILE_THREADS
        self.infos: dict[str, dict[str, Any]] = {}  # of the linears that are done
        self.stored = {linear.name: threading.Event() for linear in self.linears}
        self.given_up = False
        self.written: Future[None] | None = None
        # Calibration puts copies on the device in the dtype that it computes in.
        self.weights = {
            linear.name: self.source.model.get_submodule(linear.name).weight.data
            for linear in self.linears
        }
        request.prepare()

    def already_made(self) -> bool:
        try:
            manifest = json.loads((self.out / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        options = manifest.get("options") if isinstance(manifest, dict) else None
        if isinstance(options, dict) and self.options.recipe.distillation is not None:
            options.pop("refined", None)  # what its last step found
        made = options == self.request.record()
        if made and _work_path(self.out).exists():
            # A run that was cut off between its last two steps.
            with WorkDirectory(_work_path(self.out)) as work:
                work.remove()
        return made

    def make(self, overwrite: bool) -> list[LinearResult]:
        if not _work_path(self.out).exists():
            # What cannot fit is refused before anything is left behind.
            _memory_plan(self.source, self.linears, self.options)
        with WorkDirectory(_work_path(self.out)) as work:
            _sweep_partial(self.out)
            for linear in self.linears:
                piece = work.load("linears", linear.name, self._linear_key(linear))
                if piece is not None:
                    self._done(linear, piece.info)
                    self.stored[linear.name].set()
            if self.options.recipe.distillation is None:
                self._fit_and_write(work, self.out, overwrite)
            else:
                staged = work.path / "checkpoint"
                _sweep_partial(staged)
                self._fit_and_write(work, staged, overwrite=True)
                self._distil(staged, overwrite)
            work.remove()
        return [self._result(linear) for linear in self.linears]

    def _fit_and_write(self, work: WorkDirectory, out: Path, overwrite: bool) -> None:
        """Beside a GPU's work the checkpoint is written as linears come; on a CPU afterwards."""
        with ThreadPoolExecutor(1) as pool:
            try:
                if self.writes_beside:
                    self.written = pool.submit(self._write, work, out, overwrite)
                with Background(self.threads) as self.background:
                    self._calibrate(work)
                    self._fit_rest(work)
                self.report.line(f"writing {self.out}")
                self._wait_for(self.written or pool.submit(self._write, work, out, overwrite))
            except BaseException:
                self.given_up = True
                for stored in self.stored.values():
                    stored.set()
                raise

    def _wait_for(self, written: Future[None]) -> None:
        written.result()

    # Step 1: sums over the calibration text.

    def _sums_key(self) -> str:
        return key_of(
            step="sums",
            source=self.request.source_sha256,
            linears=[linear.name for linear in self.linears],
            calibration=self.request.calibration_record(),
            hessians=self.options.recipe.hessians,
            **self.options.recipe.sums_record(),
            loss_scale=LOSS_SCALE,
            torch=torch.__version__,
            producer=PRODUCER,
        )

    def _calibrate(self, work: WorkDirectory) -> None:
        """Sums of the linears that are not done.

        Where they are not kept, each linear is fitted as soon as its sums are whole.
        """
        key = self._sums_key()
        missing = [
            linear
            for linear in self.linears
            if linear.name not in self.infos and work.load("sums", linear.name, key) is None
        ]
        if not missing:
            self.report.line("calibration: done already, taken from the work directory")
            return
        tokens, device = self.request.tokens, self.request.device
        recipe = self.options.recipe
        ids = np.tile(tokens.ids, (recipe.passes, 1))
        plan = _memory_plan(self.source, missing, self.options)
        self.report.line(
            f"calibration: {ids.shape[0]} x {ids.shape[1]} tokens of {tokens.dataset}, "
            f"{dtype_name(self.request.calibration_dtype)} on {device}, {plan}"
        )
        by_name = {linear.name: linear for linear in missing}
        losses: list[float] = []
        title, total = "calibrate", steps(plan, len(ids))
        if not self.keeps_sums:
            title, total = "calibrate and fit", total + len(missing)
        with self.report.stage(title, total) as step:

            def on_sums(name: str, sums: Sums) -> None:
                if self.keeps_sums:
                    work.store("sums", name, key, _tensors_of(sums), {})
                else:
                    self._fit_linear(work, by_name[name], sums)
                    step()

            calibrate(
                self.source.model,
                list(by_name),
                ids,
                on_sums,
                device=device,
                dtype=self.request.calibration_dtype,
                hessians=recipe.hessians,
                labels=recipe.labels,
                plan=plan,
                scratch=work.path / "scratch",
                borders=_Borders(work, key) if self.keeps_sums else None,
                on_sequence=lambda index, loss: losses.append(loss),
                on_step=step,
            )
        if losses:
            self.report.line(f"calibration: mean loss {np.mean(losses):.4f}")

    # Step 2: codes and codebooks, one linear at a time.

    def _fit_rest(self, work: WorkDirectory) -> None:
        rest = [linear for linear in self.linears if linear.name not in self.infos]
        if not rest:
            return
        with self.report.stage("quantize", len(rest)) as step:
            for linear in rest:
                piece = work.load("sums", linear.name, self._sums_key())
                if piece is None:
                    raise QuantizeError(
                        f"{linear.name}: its sums in {work.path} were changed during the run"
                    )
                self._fit_linear(work, linear, Sums(**piece.tensors))
                step()

    def _fit_linear(self, work: WorkDirectory, linear: Linear, sums: Sums) -> None:
        if self.written is not None and self.written.done():
            self.written.result()  # it failed: the last linear was not there
        tensors, errors, energy = _fit(
            linear.name, self._weight(linear), sums, self.options, self.pool, self.request.device
        )
        info = {"errors": {str(b): error for b, error in errors.items()}, "energy": energy}
        self.background.run(self._store, work, linear, tensors, info)
        self._done(linear, info)

    def _store(
        self,
        work: WorkDirectory,
        linear: Linear,
        tensors: dict[str, torch.Tensor],
        info: dict[str, Any],
    ) -> None:
        work.store("linears", linear.name, self._linear_key(linear), tensors, info)
        self.stored[linear.name].set()

    def _weight(self, linear: Linear) -> torch.Tensor:
        """As the source has it: the copy on the device where that is no coarser."""
        placed = self.source.model.get_submodule(linear.name).weight.detach()
        own = self.weights[linear.name]
        return placed if placed.dtype in (own.dtype, torch.float32) else own

    def _done(self, linear: Linear, info: dict[str, Any]) -> None:
        self.infos[linear.name] = info
        self.report.line(_error_line(self._result(linear)))

    def _result(self, linear: Linear) -> LinearResult:
        info = self.infos[linear.name]
        errors = {int(b): error for b, error in info["errors"].items()}
        return LinearResult(linear, errors, info["energy"])

    def _linear_key(self, linear: Linear) -> str:
        return key_of(
            step="linear",
            name=linear.name,
            shape=[linear.out_features, linear.in_features],
            sums=self._sums_key(),
            precisions=list(self.options.precisions),
            seed_precision=self.options.seed_precision,
            group_size=self.options.group_size,
            codebook=self.options.codebook,
            form=list(self.options.form),
            recipe=self.options.recipe.fit_record(),
            producer=PRODUCER,
        )

    # Step 3: the checkpoint, and what is done to it as a whole.

    def _write(self, work: WorkDirectory, out: Path, overwrite: bool) -> None:
        """With each linear as soon as its result is stored."""
        pieces = ahead(
            lambda linear: (linear, self._stored(work, linear)), self.linears, _FILE_THREADS
        )
        write_checkpoint(self.request, out, pieces, overwrite)

    def _distil(self, staged: Path, overwrite: bool) -> None:
        """The checkpoint, which was written aside; under its name only when it is distilled."""
        wanted = self.options.recipe.distillation
        precisions = self.options.recipe.distilled(self.options.precisions)
        done = refine(
            staged,
            self.source,
            precisions=precisions,
            out=self.out,
            dataset=self.request.distillation_tokens,
            held_out=wanted.held_out,
            steps=wanted.steps,
            batch_size=wanted.batch_size,
            learning_rate=wanted.learning_rates,
            device=str(self.request.device),
            overwrite=overwrite,
            progress=self.report,
        )
        if not done.written:  # no precision got better
            rewrite_checkpoint(staged, self.out, {}, {}, overwrite=overwrite)

    def _stored(self, work: WorkDirectory, linear: Linear) -> Piece:
        self.stored[linear.name].wait()
        if self.given_up:
            raise CancelledError
        piece = work.load("linears", linear.name, self._linear_key(linear))
        if piece is None:
            raise QuantizeError(
                f"{linear.name}: its result in {work.path} was changed during the run"
            )
        return piece


class _Borders:
    """Gradients between calibration's segments in the work directory: of the latest border."""

    def __init__(self, work: WorkDirectory, key: str) -> None:
        self.work, self.key = work, key

    def load(self, block: int) -> torch.Tensor | None:
        piece = self.work.load("gradients", "border", key_of(sums=self.key, block=block))
        return None if piece is None else piece.tensors["gradients"]

    def save(self, block: int, gradients: torch.Tensor) -> None:
        key = key_of(sums=self.key, block=block)
        self.work.store("gradients", "border", key, {"gradients": gradients}, {})


def _tensors_of(sums: Sums) -> dict[str, torch.Tensor]:
    tensors = {"sensitivities": sums.sensitivities.cpu()}
    if sums.hessian is not None:
        tensors["hessian"] = sums.hessian.cpu()
    return tensors


def _fit(
    name: str,
    weight: torch.Tensor,
    sums: Sums,
    options: Options,
    pool: Any,
    device: torch.device,
) -> tuple[dict[str, torch.Tensor], dict[int, float], float]:
    """One linear's tensors: planes uint8 [parent, N, ceil(K/8)] and codebooks fp16.

    weight: [N, K], anywhere. Returns also the errors by precision, and the energy that they are
    relative to: sum of s (w - value)^2 and of s w^2, or against the Hessian where the recipe fits
    to it. The work is the device's, and the tensors are the CPU's.
    """
    parent = options.precisions[-1]
    weight, s = weight.to(device), sums.sensitivities.to(device)
    tree = None
    if options.codebook != "bcq":  # which begins with other codes
        tree = build_tree(name, weight, s, options, pool)
    if not needs_fit(options):
        codes, luts, alphas = tree.codes, tree.luts, {}
        errors, energy = tree.errors, tree.energy
    else:
        clusters = _clusters(name, weight, s, tree, options, pool)
        hessian = hessian_for(sums, options.recipe)
        fit = fit_to_hessian(weight.float(), clusters, hessian, options, device)
        codes, luts, alphas = fit.codes, fit.luts, fit.alphas
        errors, energy = fit.energies, fit.energy
    tensors = {"planes": to_host(planes_of(codes, parent))}
    for kind, codebooks in (("lut", luts), ("alpha", alphas)):
        for b, values in codebooks.items():
            tensors[f"{kind}.{b}"] = to_host(_as_fp16(f"{name}.{kind}.{b}", values))
    return tensors, errors, energy


def _clusters(
    name: str,
    weight: torch.Tensor,
    s: torch.Tensor,
    tree: Tree | None,
    options: Options,
    pool: Any,
) -> torch.Tensor | None:
    """Clusters' codes that a fit begins with, uint8 [S, N, K]: of the tree, and of the other seeds
    of the recipe's descent, where there are any.
    """
    descent = options.recipe.descent_of(options.codebook)
    seeds = {seed for seed in options.precisions if descent and seed in descent.seeds}
    trees = []
    if tree is not None:
        trees.append(tree)
        seeds.discard(options.seed_precision)
    for seed in sorted(seeds):
        trees.append(build_tree(name, weight, s, replace(options, seed_precision=seed), pool))
    return torch.stack([each.codes for each in trees]) if trees else None


def _as_fp16(name: str, values: torch.Tensor) -> torch.Tensor:
    half = values.half()
    overflow = half.isinf().nonzero()
    if len(overflow):
        index = overflow[0].tolist()
        raise QuantizeError(
            f"{name}: entry {index} is {values[tuple(index)].item():g}, more than the 65504 of "
            "float16"
        )
    return half


def _request(source: Source, selection: Selection, options: Options) -> Request:
    device = torch.device(options.device)
    return Request(
        distillation_tokens=_distillation_tokens(source, options),
        source=source,
        selection=selection,
        options=options,
        tokens=calibration_tokens(
            source.tokenizer,
            options.dataset,
            num_examples=options.num_examples,
            seq_len=options.seq_len,
            random_state=options.random_state,
        ),
        source_sha256=source.sha256(),
        device=device,
        calibration_dtype=calibration_dtype(source, options, device),
    )


def _distillation_tokens(source: Source, options: Options) -> Tokens | None:
    """Read before any work, so that a text that will not do is found out now."""
    wanted = options.recipe.distillation
    if wanted is None:
        return None
    tokens = calibration_tokens(
        source.tokenizer,
        options.dataset if wanted.dataset is None else wanted.dataset,
        num_examples=wanted.num_examples,
        seq_len=wanted.seq_len,
    )
    if len(tokens.ids) <= wanted.held_out:
        raise QuantizeError(
            f"recipe {options.recipe.name}: {tokens.dataset} has {len(tokens.ids)} windows of "
            f"{wanted.seq_len} tokens, wanted more than the {wanted.held_out} that are held out"
        )
    return tokens


def _plan(source: Source, selection: Selection, options: Options, out: Path) -> Summary:
    sizes = precision_sizes(selection.linears, options.precisions, options.group_size, options.form)
    item = source.dtype.itemsize
    main = next(source.model.parameters()).dtype

    def stored_bytes(tensors: dict[str, torch.Tensor]) -> int:
        return sum(
            t.numel() * (item if t.dtype == main else t.element_size()) for t in tensors.values()
        )

    return Summary(
        out=str(out),
        status="dry run",
        source=source.name,
        selection=selection,
        sizes=sizes,
        base_bytes=stored_bytes(base_tensors(source, selection)),
        original_bytes=stored_bytes(source.tensors()),
    )


def _memory_plan(source: Source, linears: Sequence[Linear], options: Options) -> Plan:
    device = torch.device(options.device)
    return make_plan(
        source.model,
        [linear.name for linear in linears],
        (options.recipe.passes * options.num_examples, options.seq_len),
        device=device,
        dtype=calibration_dtype(source, options, device),
        hessians=options.recipe.hessians,
        max_memory=options.max_memory,
    )


def _open(model: Any, tokenizer: Any, options: Options, dry_run: bool) -> Source:
    if isinstance(model, nn.Module):
        return source_of(model, tokenizer, options.dtype)
    return (describe_source if dry_run else load_source)(os.fspath(model), options.dtype)


def _refuse_foreign(out: Path, overwrite: bool) -> None:
    """Never replaces, or later refuses, what is not a checkpoint: says so before any work."""
    if not out.exists() or (out / MANIFEST).is_file():
        return
    if overwrite and out.is_dir() and not any(out.iterdir()):
        return
    raise QuantizeError(f"{out}: exists, and is no checkpoint of anyprec: choose another folder")


def _work_path(out: Path) -> Path:
    return out.with_name(out.name + ".work")


def _sweep_partial(out: Path) -> None:
    """Removes what a killed run's writer left beside `out`; called with the work directory held."""
    for path in out.parent.glob(f"{glob.escape(out.name)}.partial-*"):
        pid = path.name.removeprefix(f"{out.name}.partial-").split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads > 0:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _error_line(result: LinearResult) -> str:
    errors = "  ".join(f"{b}: {result.relative_error(b):.2e}" for b in result.errors)
    linear = result.linear
    return f"{linear.name} [{linear.out_features}, {linear.in_features}]  {errors}"
