"""`[serve]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from aifx.config.sections import (
    RESUME_SAFE,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Quantization,
    Section,
    setting,
)


class ServeSection(Section):
    """Defaults of `aifx serve`. Its key is the environment variable AIFX_SERVE__API_KEY, never a setting."""

    host: Annotated[str, Field(min_length=1)] = setting(  # "" would be all addresses
        "127.0.0.1", "Address to listen on. Off loopback, a key is required.", RESUME_SAFE
    )
    port: Annotated[int, Field(ge=0, le=65535)] = setting(8000, "Port; 0 takes a free one.", RESUME_SAFE)
    slots: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = setting(
        (8, 16), "Requests at once: a program for each number. The smallest that holds all requests runs.", RESUME_SAFE
    )
    memory: str | None = setting(
        None,
        'Size of the page pool ("2GiB"); if not set, what all slots need, in half of free memory at most.',
        RESUME_SAFE,
    )
    max_model_len: PositiveInt | None = setting(
        None, "Most tokens of a prompt with its answer; the model's context if not set.", RESUME_SAFE
    )
    prefill_chunk: PositiveInt | None = setting(
        None,
        "Tokens of a prompt per call of the prefill program; if not set, 64 on a CPU and 256 elsewhere.",
        RESUME_SAFE,
    )
    prefix_cache: bool = setting(True, "Keep the pages of prompts for later prompts with the same prefix.", RESUME_SAFE)
    quantize: Quantization = setting("none", "Serve with the model's matrices quantized to this type.", RESUME_SAFE)
    served_model_name: str | None = setting(None, "Name of the model in the API; the run's if not set.", RESUME_SAFE)
    adapters: tuple[str, ...] = setting(
        (), "Runs with LoRA adapters over the same base, each as NAME=RUN.", RESUME_SAFE
    )
    queue: NonNegativeInt = setting(256, "Requests that may wait; more are answered with 429.", RESUME_SAFE)
    max_body_bytes: PositiveInt = setting(
        4 << 20, "Most bytes of a request; larger ones are answered 413.", RESUME_SAFE
    )
    max_n: PositiveInt = setting(16, "Most answers to one request (n).", RESUME_SAFE)
    max_rows: PositiveInt = setting(1024, "Most rows of one request for predictions.", RESUME_SAFE)
    idle_s: PositiveFloat = setting(30.0, "Seconds after which an idle connection is closed.", RESUME_SAFE)
    request_s: PositiveFloat = setting(600.0, "Seconds that a request may take, waiting included.", RESUME_SAFE)
    template_s: PositiveFloat = setting(
        5.0, "Seconds that the chat template may take for a conversation; then it is refused.", RESUME_SAFE
    )
    max_client_requests: NonNegativeInt = setting(
        64, "Most unfinished requests of one client address; more are answered with 429. 0: no limit.", RESUME_SAFE
    )
    drain_s: NonNegativeFloat = setting(30.0, "Seconds that running requests have after SIGTERM.", RESUME_SAFE)
    lenient: bool = setting(False, "Ignore unknown fields of requests instead of refusing them.", RESUME_SAFE)
    cors_origins: tuple[str, ...] = setting((), "Web origins whose pages may call the server.", RESUME_SAFE)
    pooling: Literal["mean", "last"] = setting("mean", "How /v1/embeddings pools the last hidden state.", RESUME_SAFE)
    watch_every_s: PositiveFloat = setting(5.0, "With --watch: seconds between looks for a checkpoint.", RESUME_SAFE)
    shadow_share: Annotated[float, Field(gt=0, le=1)] = setting(
        0.1, "With --shadow: share of the requests that the second model answers, too.", RESUME_SAFE
    )
    shadow_file: str | None = setting(
        None, "With --shadow: file of the records; shadow.jsonl of the run if not set.", RESUME_SAFE
    )
    power_w: PositiveFloat | None = setting(
        None, "Power of the devices in watts, if it cannot be measured; reported as declared.", RESUME_SAFE
    )
    price_per_hour: NonNegativeFloat | None = setting(
        None, "Price of this machine per hour, in any currency.", RESUME_SAFE
    )
    log_requests: bool = setting(
        False, "Record each request and answer in the run's folder `records`, for replay.", RESUME_SAFE
    )
    record_flush: PositiveFloat | Literal["each"] = setting(
        1.0,
        'Seconds of records that a power cut may take; "each" flushes a record before its answer ends.',
        RESUME_SAFE,
    )
    record_failure: Literal["open", "closed"] = setting(
        "open", "If records cannot be written: open answers without them, closed does not answer.", RESUME_SAFE
    )
    access_log: str | None = setting(None, "File of the access log; stderr if not set.", RESUME_SAFE)
    log_prompts: bool = setting(False, "Write prompts into the access log.", RESUME_SAFE)
