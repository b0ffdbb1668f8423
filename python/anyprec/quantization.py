"""Quantizing a model: calibrate, fit every linear, write one checkpoint; resumable step by step."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from anyprec import _core
from anyprec.assemble import PRODUCER, Request, base_tensors, write_checkpoint
from anyprec.calibrate import LOSS_SCALE, placed, sensitivities
from anyprec.datasets import BUILTIN, calibration_tokens
from anyprec.files import MANIFEST
from anyprec.modules import Linear, Selection, select_linears
from anyprec.options import Options, QuantizeError, calibration_dtype, resolve_device
from anyprec.progress import Reporter, Silent
from anyprec.sizes import precision_sizes
from anyprec.source import Source, describe_source, dtype_name, load_source, source_of, tensor_bytes
from anyprec.summary import LinearResult, Summary
from anyprec.work import Piece, WorkDirectory, key_of


def quantize(
    model: nn.Module | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    modules: Sequence[str] = (),
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
    threads: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Reporter | bool = False,
) -> Summary:
    """Quantizes a causal LM once, into a checkpoint that serves every precision asked for.

    Computes each weight's sensitivity on calibration text (`anyprec.calibrate`), fits an optimal
    sensitivity-weighted k-means per output channel at the seed precision, splits its clusters
    optimally up to the widest precision and merges them down to the narrowest (Any-Precision LLM,
    arXiv 2402.10517, with exact clustering), and writes bit planes and fp16 tables.

    Args:
        model: a live Hugging Face causal LM on the CPU (not changed), a folder or hub name, or a
            .gguf file.
        out: the checkpoint's folder; it appears, whole, at the end. Until then finished steps are
            kept in `<out>.work` (up to 6 bytes a weight): an interrupted run goes on from there,
            after checking every piece by its hash, and ends with the same bytes.
        tokenizer: for a live model; others bring their own.
        modules: globs over module names that choose the linears; none: configs/<family>.json, or
            every linear in the decoder's blocks.
        dataset: "builtin" (a C4 sample that ships with the package), "c4", "wikitext2", "ptb",
            "pileval" (from the hub), a text or .jsonl file, or a folder of them.
        num_examples, seq_len, random_state: that many windows of seq_len tokens: the first ones,
            or those that random_state picks.
        device: where calibration runs: "auto" (a GPU when there is one), "cpu", "cuda", "cuda:1".
        dtype: what the unquantized tensors are stored in; "auto": the model's own, float16 for a
            GGUF file.
        calibration_dtype: what calibration computes in; "auto": bfloat16 on a GPU for a bfloat16
            model, otherwise float32.
        precisions: rising, without gaps, within 2..8.
        seed_precision: the one that clustering fits directly.
        group_size: columns that share a table, a multiple of 32; 0: the whole row.
        codebook: "lut".
        threads: for the quantizer and for torch; 0: all cores. The quantizer's result does not
            depend on it.
        overwrite: replace a checkpoint that was made by another request.
        dry_run: load no weights and write nothing; return what would be made.
        progress: True for bars and lines on standard error, or a `progress.Reporter`.

    Returns:
        A Summary: sizes and weighted errors per precision and linear. When `out` was made by
        exactly this request already, nothing is done and its status is "already made".

    Raises:
        QuantizeError, SourceError, DatasetError, ModuleSelectionError, CalibrationError (all
        ValueError): the message names what was found and what was wanted.
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
    )
    if progress is True:
        from anyprec.progress import Terminal

        report: Reporter = Terminal()
    else:
        report = progress or Silent()
    out = Path(os.path.abspath(out))
    if not dry_run:
        _refuse_foreign(out, overwrite)
    source = _open(model, tokenizer, options, dry_run)
    selection = select_linears(source.model, options.modules)
    report.line(f"{source.name}: {selection}")
    summary = _plan(source, selection, options, out)
    if dry_run:
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
        self.linear_keys: dict[str, str] = {}

    def already_made(self) -> bool:
        try:
            manifest = json.loads((self.out / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        made = isinstance(manifest, dict) and manifest.get("options") == self.request.record()
        if made and _work_path(self.out).exists():
            # A run that was cut off between its last two steps.
            with WorkDirectory(_work_path(self.out)) as work:
                work.remove()
        return made

    def make(self, overwrite: bool) -> list[LinearResult]:
        with WorkDirectory(_work_path(self.out)) as work:
            _sweep_partial(self.out)
            self._calibrate(work)
            results = self._quantize(work)
            self.report.line(f"writing {self.out}")
            pieces = ((linear, self._stored(work, linear)) for linear in self.linears)
            write_checkpoint(self.request, self.out, pieces, overwrite)
            work.remove()
        return results

    # Step 1: sensitivities.

    def _sensitivity_key(self) -> str:
        return key_of(
            step="sensitivities",
            source=self.request.source_sha256,
            linears=[linear.name for linear in self.linears],
            calibration=self.request.calibration_record(),
            loss_scale=LOSS_SCALE,
            torch=torch.__version__,
            producer=PRODUCER,
        )

    def _calibrate(self, work: WorkDirectory) -> None:
        """Leaves every linear's sensitivities in the work directory.

        They come out of one pass together, so that one that is missing or damaged means the whole
        pass; afterwards every linear goes its own way.
        """
        key = self._sensitivity_key()
        names = [linear.name for linear in self.linears]
        if all(work.load("sensitivities", name, key) for name in names):
            self.report.line("calibration: done already, taken from the work directory")
            return
        tokens = self.request.tokens
        device, dtype = self.request.device, self.request.calibration_dtype
        self.report.line(
            f"calibration: {tokens.ids.shape[0]} x {tokens.ids.shape[1]} tokens of "
            f"{tokens.dataset}, {dtype_name(dtype)} on {device}"
        )
        losses: list[float] = []
        with (
            self.report.stage("calibrate", len(tokens.ids)) as step,
            placed(self.source.model, device, dtype) as model,
        ):

            def on_sequence(index: int, loss: float) -> None:
                losses.append(loss)
                step()

            sums = sensitivities(model, names, tokens.ids, on_sequence=on_sequence)
        self.report.line(f"calibration: mean loss {np.mean(losses):.4f}")
        for name in names:
            tensors = {"sensitivities": sums[name].cpu()}
            work.store("sensitivities", name, key, tensors, {})

    # Step 2: codes and tables, one linear at a time.

    def _quantize(self, work: WorkDirectory) -> list[LinearResult]:
        results = []
        with self.report.stage("quantize", len(self.linears)) as step:
            for linear in self.linears:
                info = self._quantized(work, linear).info
                errors = {int(b): error for b, error in info["errors"].items()}
                results.append(LinearResult(linear, errors, info["energy"]))
                self.report.line(_error_line(results[-1]))
                step()
        return results

    def _quantized(self, work: WorkDirectory, linear: Linear) -> Piece:
        """The linear's planes and tables, out of the work directory or made now."""
        weight = self.source.model.get_submodule(linear.name).weight.detach()
        sensitivity = work.load("sensitivities", linear.name, self._sensitivity_key())
        if sensitivity is None:
            raise QuantizeError(
                f"{linear.name}: its sensitivities in {work.path} were changed during the run"
            )
        key = self._linear_key(linear, weight, sensitivity.sha256)
        self.linear_keys[linear.name] = key
        piece = work.load("linears", linear.name, key)
        if piece is not None:
            return piece
        s = sensitivity.tensors["sensitivities"].numpy()
        w = weight.float().contiguous().numpy()
        tensors, errors = _fit(linear.name, w, s, self.options, self.pool)
        energy = float(np.einsum("nk,nk,nk->", s, w, w, dtype=np.float64))
        return work.store(
            "linears", linear.name, key, tensors, {"errors": errors, "energy": energy}
        )

    def _linear_key(self, linear: Linear, weight: torch.Tensor, sensitivity_sha256: str) -> str:
        return key_of(
            step="linear",
            name=linear.name,
            shape=list(weight.shape),
            weight=hashlib.sha256(tensor_bytes(weight)).hexdigest(),
            weight_dtype=str(weight.dtype),
            sensitivities=sensitivity_sha256,
            precisions=list(self.options.precisions),
            seed_precision=self.options.seed_precision,
            group_size=self.options.group_size,
            codebook=self.options.codebook,
            producer=PRODUCER,
        )

    def _stored(self, work: WorkDirectory, linear: Linear) -> Piece:
        piece = work.load("linears", linear.name, self.linear_keys[linear.name])
        if piece is None:
            raise QuantizeError(
                f"{linear.name}: its result in {work.path} was changed during the run"
            )
        return piece


def _fit(
    name: str, weights: np.ndarray, s: np.ndarray, options: Options, pool: Any
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Planes uint8 [parent, N, ceil(K/8)], tables fp16 [N, G, 2^b], and the weighted errors."""
    parent = options.precisions[-1]
    matrix = _core.quantize_matrix(
        name,
        weights,
        s,
        lowest_precision=options.precisions[0],
        seed_precision=options.seed_precision,
        parent_precision=parent,
        group_size=options.group_size,
        pool=pool,
    )
    tensors = {"planes": torch.from_numpy(_core.codes_to_planes(matrix.codes, parent))}
    for precision in options.precisions:
        table = f"{name}.lut.{precision}"
        tensors[f"lut.{precision}"] = torch.from_numpy(_as_fp16(table, matrix.luts[precision]))
    return tensors, {str(b): matrix.errors[b] for b in options.precisions}


def _as_fp16(name: str, lut: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = lut.astype(np.float16)
    overflow = np.argwhere(np.isinf(half))
    if len(overflow):
        index = tuple(int(i) for i in overflow[0])
        raise QuantizeError(
            f"{name}: entry {list(index)} is {lut[index]:g}, more than the 65504 of float16"
        )
    return half


def _request(source: Source, selection: Selection, options: Options) -> Request:
    device = torch.device(options.device)
    return Request(
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


def _plan(source: Source, selection: Selection, options: Options, out: Path) -> Summary:
    sizes = precision_sizes(selection.linears, options.precisions, options.group_size)
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
