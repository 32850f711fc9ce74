"""From the words of a command line to a client that is ready: engine, tokenizer and model that fit each other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tokentrue.clients.renderer import RendererClient
from tokentrue.engines.dynamo import DynamoEngine
from tokentrue.engines.embedded.engine import MODEL_FOLDER, MODEL_NAME, EmbeddedEngine
from tokentrue.engines.engine import Engine
from tokentrue.engines.http import HttpEngine
from tokentrue.engines.logprobs import MeasuredEngine, MeasuredLogprobs
from tokentrue.errors import ConfigError
from tokentrue.generation import EngineInfo, GenerateRequest, LogprobsMode, reads_alike
from tokentrue.messages import Message
from tokentrue.rendering.named_folder import EMBEDDED, folder_of
from tokentrue.rendering.renderer import Renderer, load_renderer
from tokentrue.rendering.tokenizer import Tokenizer
from tokentrue.sampling import SamplingParams
from tokentrue.transports.dynamo import DynamoTransport
from tokentrue.transports.sglang import SglangTransport
from tokentrue.transports.transport import Transport
from tokentrue.transports.vllm import VllmTransport

TRANSPORTS: dict[str, Transport] = {
    "vllm": VllmTransport(),
    "dynamo": DynamoTransport(),
    "sglang": SglangTransport(),
}


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What a caller asked for.

    Args:
        engine: "embedded", the URL of a server, or a folder with a Llama that the embedded engine computes.
        transport: A member of `TRANSPORTS`; for a server.
        model: The name the engine serves; None means the only one.
        tokenizer: A tokenizer folder, or "embedded"; None means the engine's own; for a server that
            is known only when it serves the embedded model.
        api_key_env: Environment variable that holds the server's key; "" for none.
        spelled_markers: What becomes of message text that spells a special token, as for `load_renderer`.
    """

    engine: str = EMBEDDED
    transport: str = "vllm"
    model: str | None = None
    tokenizer: str | None = None
    api_key_env: str = ""
    spelled_markers: str = "as_template"

    @property
    def is_server(self) -> bool:
        """Whether the engine is reached over HTTP."""
        return self.engine.startswith(("http://", "https://"))

    @property
    def tokenizer_name(self) -> str:
        """What a record keeps, so that a reader finds the same folder again."""
        chosen = self.tokenizer if self.tokenizer is not None else (EMBEDDED if self.is_server else self.engine)
        return chosen if chosen == EMBEDDED else str(folder_of(chosen).absolute())


@dataclass(frozen=True, slots=True)
class Connection:
    """A client with what is known about both of its ends. Close the client."""

    client: RendererClient
    renderer: Renderer
    info: EngineInfo
    model: str
    transport: str

    async def logprobs(self, sampling: SamplingParams) -> MeasuredLogprobs:
        """What the log-probabilities of a run with this sampling mean; a server is measured when that matters.

        Raises:
            EngineError, TransportError: The server could not be asked.
        """
        engine = self.client.engine
        if not isinstance(engine, MeasuredEngine):
            return MeasuredLogprobs(self.info.logprobs_mode, "the engine says so")
        if reads_alike(sampling):
            why = "temperature 1, nothing truncated: every meaning is the same number, and none was measured"
            return MeasuredLogprobs(LogprobsMode.ALIKE, why)
        asking = self.renderer.render_ids([Message(role="user", content="Tell me a story.")])
        return await engine.measured(GenerateRequest(self.model, asking, vocab_size=self.renderer.vocab_size))


async def connect(choice: EngineChoice) -> Connection:
    """Open the engine, ask what it serves, and load the renderer.

    Raises:
        ConfigError: The choice contradicts itself, the environment or what the engine serves.
        UnknownModelError: The engine does not serve the model.
        TokenizerFolderError, TemplateRenderError: The tokenizer folder cannot be used.
        EngineError, TransportError: The engine cannot be asked.
    """
    if not choice.is_server and not _engine_folder(choice).is_dir():
        raise ConfigError(
            f"--engine {choice.engine!r} is neither 'embedded', nor an http(s) URL, nor a folder with a model"
        )
    renderer = load_renderer(choice.tokenizer_name, spelled_markers=choice.spelled_markers)
    if choice.is_server:
        info, engine = await _server(choice)
    else:
        engine = _embedded(choice, renderer)
        info = await engine.describe(choice.model)
    model = choice.model if choice.model is not None else _only_model(info)
    if choice.is_server and choice.tokenizer is None and model != MODEL_NAME:
        raise ConfigError(
            f"--tokenizer is needed: a folder with the tokenizer and chat template of {model!r}; without it only "
            f"a server of {MODEL_NAME!r} can be used"
        )
    transport = choice.transport if choice.is_server else EMBEDDED
    return Connection(RendererClient(engine, renderer), renderer, info, model, transport)


def _engine_folder(choice: EngineChoice) -> Path:
    return MODEL_FOLDER if choice.engine == EMBEDDED else Path(choice.engine)


def _embedded(choice: EngineChoice, renderer: Renderer) -> Engine:
    if choice.api_key_env:
        raise ConfigError("--api-key-env is for a server; the embedded engine needs no key")
    folder = _engine_folder(choice)
    own = Tokenizer.load(folder)
    if own.content_hash != renderer.tokenizer.content_hash:
        raise ConfigError(
            f"the tokenizer in {renderer.folder!r} ({renderer.vocab_size} ids) is not the one of the model in "
            f"{str(folder)!r} ({own.vocab_size} ids): leave --tokenizer out"
        )
    name = MODEL_NAME if choice.engine == EMBEDDED else folder.absolute().name
    return EmbeddedEngine(folder, model_name=name)


async def _server(choice: EngineChoice) -> tuple[EngineInfo, Engine]:
    if choice.transport not in TRANSPORTS:
        raise ConfigError(f"--transport must be one of {', '.join(TRANSPORTS)}, not {choice.transport!r}")
    key = api_key_of(choice.api_key_env, "--api-key-env")
    transport = TRANSPORTS[choice.transport]
    # A person waits for this first question: a server that is not there is told at once, not after retries.
    async with HttpEngine(choice.engine, transport, api_key=key, timeout_s=30.0, max_retries=0) as asked:
        info = await asked.describe(choice.model)
    server = HttpEngine(choice.engine, transport, api_key=key)
    return info, MeasuredEngine(DynamoEngine(server) if choice.transport == "dynamo" else server)


def api_key_of(variable: str, option: str) -> str | None:
    """The key in an environment variable, or None where none is named.

    Raises:
        ConfigError: The variable is not set; names the option that asked for it.
    """
    if not variable:
        return None
    key = os.environ.get(variable, "")
    if not key:
        raise ConfigError(f"{option}: the environment variable {variable!r} is not set or empty")
    return key


def _only_model(info: EngineInfo) -> str:
    if len(info.models) == 1:
        return info.models[0]
    if not info.models:
        raise ConfigError("the engine does not say which models it serves: give --model")
    raise ConfigError(f"the engine serves several models, give --model: {', '.join(sorted(info.models))}")
