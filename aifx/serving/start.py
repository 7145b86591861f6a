"""Start the engine or the predictor of a run, with its LoRA adapters, by the settings of `[serve]`."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from aifx.checkpoint.manifest import Manifest, read_manifest
from aifx.config.project_errors import project_errors
from aifx.config.serve_section import ServeSection
from aifx.core.digests import sha256_of, sha256_of_json
from aifx.core.errors import CheckpointError, UsageError
from aifx.core.json_files import readable_bytes
from aifx.core.json_values import plain
from aifx.core.parsing import parse_size
from aifx.core.project import Project, RunDirectory
from aifx.data.base import DataFormat, undefined
from aifx.data.text import TokenFormat
from aifx.data.tokenizer import Tokenizer
from aifx.kinds import read_config
from aifx.loading.base_weights import BaseWeights
from aifx.loading.restore import RestoredRun
from aifx.loading.steps import choose_step
from aifx.machine.energy import PowerMeter
from aifx.models.adapted import AdaptedModel
from aifx.nn.adapters import A, B
from aifx.nn.lora import LoraBank
from aifx.nn.quantized import Int8Table, QuantizedMatrix
from aifx.parallel.layout import Layout
from aifx.programs.decoding import DecodingPrograms
from aifx.programs.serving import ServingPrograms, page_bytes
from aifx.runs.binding import read_digests, weights_digest
from aifx.serving.device import Device
from aifx.serving.engine import Engine
from aifx.serving.generate import unable_to_write
from aifx.serving.predictor import Predictor, PredictorWeights, fields_of_spec, lower_prediction
from aifx.serving.record import Recorder
from aifx.serving.requests import Delta, GenerationRequest, SamplingSettings, complete_answer
from aifx.serving.rows import Row, Weights
from aifx.serving.worker import Shares, WorkClock, Worker
from aifx.specs import ArraySpec, Params, Specs, array_names
from aifx.tasks.registry import load_task

logger = logging.getLogger(__name__)

CHUNK_ON_CPU, CHUNK = 64, 256

STEPS = 3
"""Tokens that `find_difference` writes each time: what a step leaves in the cache decides the next."""

LEAST_LEN = STEPS + 2
"""Tokens of the shortest request that shows whether bits depend on other requests."""

PREFILLED = 4
"""Rows whose prompts it prefills."""


@dataclass(frozen=True)
class ServedModel:
    """A model as the engine takes it."""

    decoding: DecodingPrograms
    params: Params
    digest: str  # of the weights as they were stored, and how they are used
    tokenizer: Tokenizer
    layout: Layout
    adapters: Mapping[str, str]  # the digest of each, by name
    model: str  # digest of the model version, or of the checkpoint's arrays

    def weights(self, device: Device) -> Weights:
        """The arrays as the engine takes them, with the fingerprint of these weights and the device's programs."""
        fingerprint = sha256_of(f"{self.digest} {self.adapters} {device.digest}")[:32]
        return Weights(self.params, f"fp_{fingerprint}", fingerprint.encode(), tuple(self.adapters), self.model)


def start_engine(trained: RestoredRun, serve: ServeSection, clock: WorkClock | None = None) -> Engine:
    """An engine whose programs are compiled, whose weights are loaded, and which has written once.

    Args:
        clock: of an engine that works beside it; both share its time.

    Raises UsageError for a model that does not write, or settings that do not fit.
    """
    started = time.monotonic()
    served = open_model(trained, serve)
    model = served.decoding.model
    max_len = min(serve.max_model_len or model.max_seq_len, model.max_seq_len)
    if serve.max_model_len and serve.max_model_len > model.max_seq_len:
        why = f"the model's context has {model.max_seq_len} tokens"
        what = f"serve.max_model_len = {serve.max_model_len} is too long"
        raise UsageError(what, why, f"aifx serve --max-model-len {model.max_seq_len}")
    if max_len < LEAST_LEN:
        why = f"a request has at least {LEAST_LEN} tokens, with its answer"
        raise UsageError(
            f"serve.max_model_len = {max_len} is too short", why, f"aifx serve --max-model-len {model.max_seq_len}"
        )
    slots = sorted(set(serve.slots))
    is_cpu = served.decoding.layout.platform == "cpu"
    chunk = serve.prefill_chunk or (CHUNK_ON_CPU if is_cpu else CHUNK)
    if chunk % model.page_size:
        why = f"a page has {model.page_size} tokens, and a part of a prompt fills pages"
        raise UsageError(
            f"serve.prefill_chunk = {chunk}", why, f"aifx serve --set serve.prefill_chunk={model.page_size}"
        )
    check_layout(served, slots, chunk)
    num_pages = pool_pages(served.decoding, serve, max(slots), max_len)
    programs = ServingPrograms(served.decoding, served.params, num_pages, max_len, served.layout)
    device = Device(programs, slots, chunk)
    device.compile()
    weights = served.weights(device)
    engine = Engine(
        device,
        weights,
        served.tokenizer,
        queue=serve.queue,
        prefix_cache=serve.prefix_cache,
        pooling=serve.pooling,
        shares=_shares(served.decoding.layout, serve, clock),
        recorder=_recorder(trained, serve),
    )
    _report_bits(engine, "an answer", "requests", find_difference(device, weights, served.tokenizer))
    pool = readable_bytes(num_pages * page_bytes(model, served.decoding.dtype))
    logger.info(
        f"{num_pages * model.page_size} tokens fit into the pool of {pool}; requests: at most {max(slots)} at once, "
        f"of at most {max_len} tokens; ready in {time.monotonic() - started:.1f} s"
    )
    engine.start()
    _write_once(engine)
    return engine


def _shares(layout: Layout, serve: ServeSection, clock: WorkClock | None) -> Shares:
    """The shares of an engine on these devices, by a new clock, or by one that then meters them, too."""
    devices = dict.fromkeys([*(clock.meter.devices if clock and clock.meter else ()), *layout.devices])
    if clock is None:
        return Shares(WorkClock(PowerMeter(list(devices), serve.power_w), serve.price_per_hour))
    if clock.meter is not None and len(devices) > len(clock.meter.devices):
        clock.meter = PowerMeter(list(devices), serve.power_w)
    return Shares(clock)


def _recorder(trained: RestoredRun, serve: ServeSection) -> Recorder | None:
    """The recorder of a server. Raises UsageError if its folder cannot be written."""
    if not serve.log_requests:
        return None
    folder = trained.run.records
    try:
        recorder = Recorder(folder, serve.record_flush, is_open=serve.record_failure == "open")
    except OSError as error:
        hint = "aifx serve --set serve.log_requests=false"
        raise UsageError(f"{folder} cannot be written", error.strerror or str(error), hint) from None
    logger.info(f"answers are recorded in {recorder.folder}")
    return recorder


def _report_bits(worker: Worker[Any, Any], answer: str, others: str, difference: str | None) -> None:
    """Keep whether the bits of an answer were shown not to depend on others."""
    worker.is_reproducible = difference is None
    if difference is None:
        logger.info(f"the bits of {answer} do not depend on other {others}: checked on this device")
    else:
        logger.warning(f"the bits of {answer} depend on other {others} on this device: {difference}")


def _write_once(engine: Engine) -> None:
    """Have the engine write two tokens. Raises CheckpointError if it cannot."""
    deltas: queue.Queue[Delta] = queue.Queue()
    request = GenerationRequest([0], 2, SamplingSettings(temperature=0), ignore_end=True)
    engine.submit_own(request, deltas.put, engine.weights)
    last = complete_answer(deltas)[-1]
    if last.finish_reason == "error":
        engine.stop()
        raise CheckpointError("the model cannot write", last.error or "", "aifx generate, for a first look")


def check_layout(served: ServedModel, slots: Sequence[int], chunk: int) -> None:
    """Check that devices along `tensor` divide rows, chunks and heads. Raises UsageError if they do not."""
    count = served.layout.degrees.tensor
    for name, sizes in (("serve.slots", slots), ("serve.prefill_chunk", [chunk])):
        if odd := [size for size in sizes if size % count]:
            why = f"mesh.tensor = {count} devices divide the rows of a program"
            raise UsageError(f"{name} = {odd[0]}", why, f"aifx serve --set {name}={count * -(-odd[0] // count)}")
    kv_heads = served.decoding.model.num_kv_heads
    if kv_heads is not None and kv_heads % count:
        why = f"{kv_heads} heads of keys and values, and {count} devices divide them"
        raise UsageError(f"mesh.tensor = {count} cannot serve this model", why, "aifx serve --set mesh.tensor=1")


def open_model(trained: RestoredRun, serve: ServeSection) -> ServedModel:
    """Open a run's model for the engine. Raises UsageError if it cannot be served."""
    programs, params, frozen = trained.programs(serve.quantize)
    if (why := unable_to_write(programs)) is not None:
        raise UsageError(f"run {trained.run.name} cannot serve text", why, f"aifx eval {trained.run.option}")
    programs, params, frozen = programs.one_copy(params, frozen)
    params = programs.merged(params, frozen) if programs.casts else params
    form = programs.task.format
    assert isinstance(form, TokenFormat)
    digest = f"{weights_digest(trained.manifest)} {programs.dtype_name} {serve.quantize}"
    adapters = read_adapters(trained.project, trained.run, trained.manifest, serve.adapters)
    if adapters and programs.layout.num_devices > 1:
        raise UsageError(
            "--adapter, with a model that devices divide", "adapters are for one device", "aifx export --merge"
        )
    params = with_banks(params, programs.plain.specs, adapters, programs.dtype)
    named = {adapter.name: adapter.digest for adapter in adapters}
    return ServedModel(
        programs.decoding,
        programs.decoding.prepare(params),
        digest,
        form.tokenizer,
        programs.layout,
        named,
        trained.digest,
    )


def pool_pages(decoding: DecodingPrograms, serve: ServeSection, rows: int, max_len: int) -> int:
    """Pages of the pool: as `serve.memory` says, or for `rows` of `max_len` tokens, if half of free memory has them.

    Raises UsageError if not one request of `max_len` tokens fits, or the pool does not fit into memory.
    """
    model = decoding.model
    size = page_bytes(model, decoding.dtype)
    for_one = -(-max_len // model.page_size)
    free = free_memory(decoding.layout.platform)
    if serve.memory is not None:
        try:
            memory = parse_size(serve.memory)
        except ValueError:
            why = "it is a number with MB, GB, MiB or GiB"
            raise UsageError(f"serve.memory = {serve.memory} is not a size", why, "aifx serve --memory 2GiB") from None
        if 0 < free < memory:  # 0: the device does not say
            why = f"{readable_bytes(free)} are free"
            raise UsageError(f"serve.memory = {serve.memory} does not fit", why, "aifx serve, without --memory")
    else:
        memory = min(rows * for_one * size, free // 2)
    if memory // size < for_one:
        what = f"serve.memory = {serve.memory}" if serve.memory else f"half of free memory, {readable_bytes(memory)}"
        why = f"a request of {max_len} tokens needs {readable_bytes(for_one * size)}"
        shorter = memory // size * model.page_size
        option = f"--max-model-len {shorter}" if shorter else f"--memory {-(-for_one * size >> 20)}MiB"
        raise UsageError(f"{what}: too little for one request", why, f"aifx serve {option}")
    return int(memory // size)


def free_memory(platform: str) -> int:
    """Bytes of memory that can still be used, of the CPU or of the first device."""
    if platform == "cpu":
        return int(psutil.virtual_memory().available)
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit", 0)) - int(stats.get("bytes_in_use", 0))


def start_predictor(trained: RestoredRun, serve: ServeSection, clock: WorkClock | None = None) -> Predictor:
    """A predictor whose program is compiled, and which has predicted.

    Args:
        clock: of an engine that works beside it; both share its time.

    Raises UsageError for a task that does not predict, or settings of `[serve]` that are for text.
    """
    started = time.monotonic()
    check_settings(serve)
    form = trained.task.format
    if form is None:
        raise undefined(type(trained.task), "format", "make predictions")
    if type(form).encode is DataFormat.encode:
        raise undefined(type(form), "encode", "make predictions")
    weights = load_weights(trained)
    shares = _shares(weights.programs.layout, serve, clock)
    predictor = Predictor(weights, queue=serve.queue, shares=shares, recorder=_recorder(trained, serve))
    with project_errors(trained.config.parts, trained.project):
        _report_bits(predictor, "a prediction", "rows", predictor.find_difference(weights))
    if (why := predictor.probe(weights)) is not None:
        raise CheckpointError("the model cannot predict", why, "aifx eval, for a first look")
    logger.info(
        f"{predictor.rows_per_batch} rows in one call of the program; ready in {time.monotonic() - started:.1f} s"
    )
    predictor.start()
    return predictor


def load_weights(trained: RestoredRun, serving: PredictorWeights | None = None) -> PredictorWeights:
    """A run's model with its program, which is compiled unless that of the model that serves is the same one."""
    task = trained.task
    with project_errors(trained.config.parts, trained.project):
        programs, params, frozen = trained.programs("none")
        fields = fields_of_spec(task.data)
        lowered = lower_prediction(programs, fields)
        digest = sha256_of(lowered.as_text())
        is_same = serving is not None and serving.program_digest == digest
        compiled = serving.compiled if serving is not None and is_same else {fields: lowered.compile()}
    known = [weights_digest(trained.manifest), digest, task.objective.decides_by(task.data), plain(task.data)]
    return PredictorWeights(
        params, frozen, programs, digest, f"fp_{sha256_of_json(known)[:32]}", compiled, trained.digest
    )


def check_settings(serve: ServeSection) -> None:
    """Check the settings of a predictor. Raises UsageError for those that only a model that writes text has."""
    given = {
        "adapters": serve.adapters,
        "quantize": serve.quantize != "none",
        "memory": serve.memory,
        "max_model_len": serve.max_model_len,
    }
    if wrong := next((key for key, value in given.items() if value), None):
        why = "it is for models that write text, and this run predicts"
        raise UsageError(f"serve.{wrong} cannot be used", why, f"aifx serve, without serve.{wrong}")


def find_difference(device: Device, weights: Weights, tokenizer: Tokenizer) -> str | None:
    """Describe the company in which a row has other bits than alone, or return None.

    Call it before the first request, since it writes into the pool.
    """
    rng = np.random.default_rng(0)
    programs = device.programs
    page = programs.model.page_size
    longest = min(device.chunk + page // 2, programs.max_len - STEPS - 1)
    # In a small pool, short rows: company matters more than length.
    least, enough = (-(-(length + STEPS + 1) // page) for length in (1, longest))
    pages_each = max(least, min(enough, programs.num_pages // max(device.slots)))
    longest = min(longest, pages_each * page - STEPS - 1)
    most = min(max(device.slots), programs.num_pages // pages_each)

    def new_row(number: int, length: int) -> Row:
        prompt = rng.integers(0, programs.vocab_size, length).tolist()
        sampling = SamplingSettings(
            temperature=0.0 if number % 2 else 1.0, top_p=0.9 if number % 3 else 1.0, seed=number
        )
        adapter = (None, *weights.adapters)[number % (1 + len(weights.adapters))]
        request = GenerationRequest(prompt, STEPS, sampling, logprobs=1, adapter=adapter)
        row = Row(request, lambda _: None, tokenizer, weights)
        row.pages = list(range(number * pages_each, (number + 1) * pages_each))
        return row

    rows = [new_row(number, longest if number == 0 else int(rng.integers(1, longest + 1))) for number in range(most)]
    for row in rows:
        # Only a few, to save time: the other rows see pages of zeros.
        while not row.is_prefilled and row in rows[:PREFILLED]:
            last = row.held + device.chunk >= row.prompt_len
            found = device.prefill(weights.params, row, draws=last, scores=False)
            row.held = min(row.held + device.chunk, row.prompt_len)
        row.tokens.append(int(found.drawn.token[0]) if row in rows[:PREFILLED] else 0)

    def bits_of(company: list[Row]) -> dict[int, list[bytes]]:
        """The bits that these rows write together, by the number of the row."""
        for row in company:
            row.held, row.tokens = row.prompt_len, row.tokens[: row.prompt_len + 1]
        bits: dict[int, list[bytes]] = {rows.index(row): [] for row in company}
        for _ in range(STEPS):
            drawn = device.decode(weights.params, company)
            for place, (number, row) in enumerate(zip(bits, company, strict=True)):
                bits[number].append(_bits(drawn, place))
                row.held += 1
                row.tokens.append(int(drawn.token[place]))
        return bits

    smallest = min(device.slots)
    expected: dict[int, list[bytes]] = {}
    for start in range(0, most, smallest):
        expected |= bits_of(rows[start : start + smallest])
    trials = [rows[:1], *(rows[: min(size, most)][::-1] for size in device.slots)]
    for company in trials:
        for number, bits in bits_of(company).items():
            if bits != expected[number]:
                return f"a row of {len(company)} has other bits than among others in {smallest} slots"
    return None


def _bits(drawn: Any, place: int) -> bytes:
    return b"".join(np.asarray(x)[place].tobytes() for x in (drawn.token, drawn.logprob, drawn.top_logprobs))


COLUMNS = 16
"""A bank has a multiple of so many columns, of zeros if need be: XLA's CPU backend adds up a row of a narrower product
in another order when a program has another number of rows."""


@dataclass(frozen=True)
class Adapter:
    """The adapter of a run: its two matrices by the name of the array that they correct, `b` scaled."""

    name: str
    digest: str
    matrices: Mapping[str, tuple[np.ndarray, np.ndarray]]
    rank: int


def read_adapters(project: Project, base: RunDirectory, manifest: Manifest, names: Sequence[str]) -> list[Adapter]:
    """The adapters `NAME=RUN`. Raises UsageError for what is not an adapter of this checkpoint of the base."""
    digest = weights_digest(manifest)
    found: dict[str, Adapter] = {}
    for entry in names:
        name, equals, run_name = entry.partition("=")
        if not (name and equals and run_name):
            raise UsageError(f"--adapter {entry}", "it is NAME=RUN", "aifx serve --adapter french=run-3")
        if name in found:
            raise UsageError(f"--adapter {entry}", f"there is an adapter {name} already", "give it another name")
        found[name] = _read(name, project.existing_run(run_name), project, base, digest)
    return list(found.values())


def _read(name: str, run: RunDirectory, project: Project, base: RunDirectory, digest: str) -> Adapter:
    config = read_config(run.config, project)
    step = choose_step(run, config, None)
    manifest: Manifest = read_manifest(run.checkpoints / str(step))
    own_base = read_digests(run).base
    if config.finetune.adapter != "lora" or own_base is None:
        why = f'its finetune.adapter is "{config.finetune.adapter}": it has weights of its own'
        raise UsageError(f"run {run.name} is not an adapter", why, f"aifx serve --run {run.name}")
    if own_base["digest"] != digest:
        why = f"it was trained for step {own_base['step']} of run {own_base['run']}"
        hint = f"aifx serve --run {own_base['run']} --step {own_base['step']} --adapter {name}={run.name}"
        raise UsageError(f"run {run.name} is not an adapter of the weights of run {base.name}", why, hint)
    model = load_task(config, project, run.assets).model
    assert isinstance(model, AdaptedModel)
    weights = BaseWeights.of_run(run, manifest, model.adapts)
    section, place = weights.adapters[0], jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    names = [key for key in weights.entries if weights.has_adapter(key)]
    matrices = {}
    for key in names:
        pair = weights.read_adapter(key, place)
        a, b = (np.asarray(pair[part], np.float32) for part in (A, B))
        scaled = section.alpha / section.rank * b.reshape(section.rank, -1)
        matrices[key] = a.reshape(-1, section.rank), scaled
    return Adapter(name, weights_digest(manifest), matrices, section.rank)


def with_banks(params: Params, specs: Specs, adapters: Sequence[Adapter], dtype: Any) -> Params:
    """Params of a model, quantized or not, with a LoraBank in place of each matrix that an adapter corrects."""
    if not adapters:
        return params
    rank = max(adapter.rank for adapter in adapters)
    rank += next(more for more in range(COLUMNS) if len(adapters) * (rank + more) % COLUMNS == 0)

    def banked(node: Any, spec: Specs | ArraySpec, path: tuple[str, ...]) -> Any:
        if not isinstance(spec, ArraySpec):
            return {name: banked(node[name], child, (*path, name)) for name, child in spec.items()}
        names = array_names(list(path), spec)[0]
        if not any(name in adapter.matrices for adapter in adapters for name in names):
            return node
        assert spec.matrix is not None
        inputs, outputs = spec.matrix_shape[-2:]
        layers = [_joined(adapters, name, rank, inputs, outputs) for name in names]
        is_stack = len(spec.matrix_shape) == 3
        a, b = (jnp.asarray(np.stack(parts) if is_stack else parts[0], dtype) for parts in zip(*layers, strict=True))
        base = node if isinstance(node, QuantizedMatrix | Int8Table) else node.reshape(spec.matrix_shape)
        return LoraBank(base, a, b, len(adapters), rank)

    found: Params = banked(params, specs, ())
    return found


def _joined(
    adapters: Sequence[Adapter], name: str, rank: int, inputs: int, outputs: int
) -> tuple[np.ndarray, np.ndarray]:
    """The matrices of all adapters side by side, `[inputs, count * rank]` and `[count * rank, outputs]`."""
    a, b = np.zeros((inputs, len(adapters), rank), np.float32), np.zeros((len(adapters), rank, outputs), np.float32)
    for index, adapter in enumerate(adapters):
        if name in adapter.matrices:
            a[:, index, : adapter.rank], b[index, : adapter.rank] = adapter.matrices[name]
    return a.reshape(inputs, -1), b.reshape(-1, outputs)
