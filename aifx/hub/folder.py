"""The folder of a model, as Hugging Face's libraries write it. Nothing in it is run, and no pickle is opened."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aifx.core.errors import DataError, UsageError
from aifx.core.files import read_input
from aifx.core.parsing import parse_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
PREPROCESSOR = "preprocessor_config.json"
CHAT_TEMPLATE = "chat_template.jinja"

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a `config.json`. Its files may be links, as they are in the Hub's cache."""

    path: Path
    source: str  # what the user called it

    @property
    def command(self) -> str:
        """The one that imports it."""
        return f"aifx import {self.source}"

    @property
    def sealed(self) -> Path:
        """The folder that has a manifest if `aifx export` made it."""
        return self.path

    def place(self, name: str) -> Path:
        """Where its file of this name is."""
        return self.path / name

    def has(self, name: str) -> bool:
        return self.place(name).exists()

    def read(self, name: str) -> bytes:
        """The content of a file of 64 MiB at most. Raises DataError, UnsafeFile."""
        path = self.place(name)
        try:
            return read_input(path)
        except FileNotFoundError:
            raise DataError(f"{path} is missing", "a model's folder has it", f"ls {path.parent}") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read", error.strerror or str(error), f"ls -l {path}") from None

    def document(self, name: str) -> dict[str, Any]:
        """The object in a JSON file. Raises DataError, UnsafeFile."""
        path = self.place(name)
        try:
            value = parse_json(self.read(name))
        except (ValueError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not JSON", str(error), f"python -m json.tool {path}") from None
        if not isinstance(value, dict):
            why = f"it holds {type(value).__name__}, not an object"
            raise DataError(f"{path} cannot be used", why, f"python -m json.tool {path}")
        return value

    def optional(self, name: str) -> dict[str, Any]:
        """The object in a JSON file; empty if there is no such file."""
        return self.document(name) if self.has(name) else {}

    def refuse_pickles(self) -> None:
        """Raise DataError if the weights are pickles alone."""
        found = sorted(entry.name for entry in self.path.iterdir() if entry.suffix in _PICKLES)
        if found:
            why = f"{found[0]} is a pickle, which runs code when it is opened"
            hint = (
                'python -c "from transformers import AutoModelForCausalLM as M; '
                f"M.from_pretrained('{self.source}').save_pretrained('converted')\""
            )
            raise DataError(f"{self.path} has no {WEIGHTS}", why, hint)
        if (gguf := next(self.path.glob("*.gguf"), None)) is not None:
            raise _gguf(gguf)
        why = f"neither {WEIGHTS} nor {INDEX} is there"
        raise DataError(f"{self.path} has no weights", why, f"ls {self.path}")


def open_folder(source: str) -> ModelFolder:
    """The folder that `source` names: a path, or `org/model` in the local cache of the Hub. Raises UsageError."""
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / CONFIG).exists():
            if (gguf := next(path.glob("*.gguf"), None)) is not None:
                raise _gguf(gguf)
            raise UsageError(f"{source} is no model's folder", f"it has no {CONFIG}", f"ls {source}")
        return ModelFolder(path.resolve(), source)
    if path.suffix.lower() == ".gguf":
        raise _gguf(path)
    if path.exists():
        why = "it is a file; a model is a folder with config.json and model.safetensors"
        raise UsageError(f"{source} is no model's folder", why, f"aifx import {path.parent}")
    if not _REPOSITORY.fullmatch(source):
        why = "a model is a folder, or org/model in the Hub's cache"
        raise UsageError(f"no folder {source}", why, "aifx import ./model")
    cached = _cached(source)
    if cached is None:
        why = f"there is no such folder, and it is not in the Hub's cache, {cache_folder()}"
        raise UsageError(f"no model {source}", why, f"hf download {source}")
    return ModelFolder(cached, source)


def _gguf(path: Path) -> UsageError:
    why = "GGUF holds weights for llama.cpp, mostly quantized; aifx reads safetensors"
    hint = (
        "import the model that it was made of, or: "
        'python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{path.parent}', gguf_file='{path.name}').save_pretrained('converted')\""
    )
    return UsageError(f"{path} cannot be imported", why, hint)


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it has downloaded, by this process's environment."""
    if own := os.environ.get("HF_HUB_CACHE"):
        return Path(own).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def _cached(repository: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, CONFIG, cache_dir=cache_folder())
    return Path(found).parent if isinstance(found, str) else None
