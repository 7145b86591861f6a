"""The bits of an answer with an adapter do not depend on other requests, however narrow the adapters are."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from answers import Whole, ask, bits, random_request, send

from aifx.data.tokenizer import Tokenizer
from aifx.models.decoder.model import Decoder
from aifx.models.decoder.section import DecoderSection
from aifx.parallel.layout import local_layout
from aifx.programs.decoding import DecodingPrograms
from aifx.programs.serving import ServingPrograms
from aifx.serving.device import Device
from aifx.serving.engine import Engine
from aifx.serving.rows import Weights
from aifx.serving.start import Adapter, with_banks
from aifx.specs import ArraySpec, Specs, array_names, init_params

RANK, LENGTH = 4, 256
NAMES = ("one", "two")


def adapters_of(specs: Specs) -> list[Adapter]:
    """Adapters of the matrices of all layers, with values that change every answer."""
    sizes: dict[str, tuple[int, int]] = {}

    def collect(spec: Specs | ArraySpec, path: tuple[str, ...]) -> None:
        if not isinstance(spec, ArraySpec):
            for name, child in spec.items():
                collect(child, (*path, name))
        elif path[0] == "layers" and spec.matrix is not None:
            inputs, outputs = spec.matrix_shape[-2:]
            sizes.update(dict.fromkeys(array_names(list(path), spec)[0], (inputs, outputs)))

    collect(specs, ())
    rng = np.random.default_rng(0)

    def matrix(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    return [
        Adapter(name, name, {key: (matrix(i, RANK), matrix(RANK, o)) for key, (i, o) in sizes.items()}, RANK)
        for name in NAMES
    ]


@pytest.mark.slow
def test_an_answer_with_an_adapter_is_its_own_in_any_company(tokenizer: Tokenizer) -> None:
    # Heads of 16, since their products are narrow as well.
    values = {"num_layers": 1, "embed_dim": 32, "num_heads": 2, "num_kv_heads": 1, "max_seq_len": LENGTH}
    model = Decoder(DecoderSection.model_validate(values), vocab_size=tokenizer.vocab_size, seq_len=LENGTH)
    specs = model.specs()
    decoding = DecodingPrograms(model, specs, local_layout(1), jnp.float32)
    params = jax.tree.map(lambda x: x * 3 if x.ndim > 1 else x, init_params(specs, jax.random.key(1)))
    banked = decoding.prepare(with_banks(params, specs, adapters_of(specs), jnp.float32))
    rng = np.random.default_rng(5)
    requests = [replace(random_request(rng), adapter=(None, *NAMES)[number % 3], logprobs=3) for number in range(9)]
    answers = []
    for slots in ((2, 4), (4, 8)):
        device = Device(ServingPrograms(decoding, banked, 48, LENGTH), slots, 64)
        device.compile()
        engine = Engine(device, Weights(banked, "weights", b"weights", NAMES), tokenizer, queue=1000)
        engine.start()
        try:
            alone = [bits(ask(engine, request)) for request in requests]
            company = [send(engine, requests[number]) for number in rng.permutation(9)]
            together = [bits(Whole.of(answer.all())) for answer in [send(engine, request) for request in requests]]
            for answer in company:
                answer.all()
        finally:
            engine.stop()
        assert together == alone
        answers.append(alone)
    assert answers[0] == answers[1]
    assert len({tokens for tokens, *_ in answers[0]}) == 9
