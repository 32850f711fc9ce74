"""The configuration that fits an endpoint, as TOML that `ClientConfig` loads."""

from __future__ import annotations

import json

from tokentrue.engines.checkup.examination import TOKENIZER, Examination
from tokentrue.engines.checkup.finding import DYNAMO, SGLANG, Level
from tokentrue.rendering.named_folder import EMBEDDED, folder_of


def config_toml(examination: Examination, tokenizer: str | None, api_key_var: str) -> str:
    """What to paste into a file and load with `ClientConfig.from_file`.

    With the right tokenizer folder it is the renderer client, which every engine takes. Without one it is the
    token client where the server tokenizes and parses, else the messages client; a comment says what is missing.
    """
    if any(finding.name == TOKENIZER and finding.level is Level.FAIL for finding in examination.findings):
        tokenizer = None
    lines = [] if examination.can_train else ["# for when what failed above is mended"]
    lines += ["# ClientConfig.from_file(...); the model is " + json.dumps(examination.model)]
    values = {"client_type": "renderer", "api_base_url": examination.url}
    if examination.transport != "vllm":
        values["renderer_transport"] = examination.transport
    if tokenizer is not None:
        values["renderer"] = tokenizer if tokenizer == EMBEDDED else str(folder_of(tokenizer).absolute())
    elif examination.transport in (DYNAMO, SGLANG):
        lines.append('# for exact ids set client_type = "renderer" and renderer to the model\'s tokenizer folder')
        values["client_type"] = "openai_chat_completions"
    else:
        lines.append("# for tool calls vLLM needs --enable-auto-tool-choice and --tool-call-parser;")
        lines.append('# to render and parse here set client_type = "renderer", renderer to the tokenizer folder')
        values["client_type"] = "openai_chat_completions_token"
    if api_key_var:
        values["api_key_var"] = api_key_var
    # A JSON string of ASCII is a TOML basic string.
    return "\n".join([*lines, *(f"{name} = {json.dumps(value)}" for name, value in values.items())]) + "\n"
