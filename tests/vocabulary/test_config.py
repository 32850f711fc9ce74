"""A configuration is right or is refused by name; endpoints win where they speak; keys are never shown."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from tokentrue.config import ClientConfig, EndpointConfig
from tokentrue.errors import ConfigError

SECRET = "sk-very-secret"


def test_what_is_written_in_toml_and_in_json_is_what_is_built_in_python(tmp_path) -> None:
    (tmp_path / "c.toml").write_text(
        'client_type = "renderer"\nrenderer_transport = "dynamo"\ntimeout = 20\n'
        '[extra_headers]\nx-a = "1"\n[[endpoint_configs]]\napi_base_url = "http://h:1/v1"\n'
    )
    built = ClientConfig(
        client_type="renderer",
        renderer_transport="dynamo",
        timeout=20,
        extra_headers={"x-a": "1"},
        endpoint_configs=(EndpointConfig(api_base_url="http://h:1/v1"),),
    )
    assert ClientConfig.from_file(tmp_path / "c.toml") == built
    plain = {"client_type": "renderer", "renderer_transport": "dynamo", "timeout": 20}
    plain |= {"extra_headers": {"x-a": "1"}, "endpoint_configs": [{"api_base_url": "http://h:1/v1"}]}
    (tmp_path / "c.json").write_text(json.dumps(plain))
    assert ClientConfig.from_file(tmp_path / "c.json") == built


WRONG = [
    ("client_type", "nemorl", "'renderer'"),
    ("client_idx", -1, ">= 0"),
    ("client_idx", True, ">= 0"),
    ("api_base_url", "localhost:8000", "http://host"),
    ("api_base_url", "http://h:0", "http://host"),
    ("api_base_url", "http://[", "http://host"),
    ("renderer", "", "non-empty"),
    ("renderer_model_name", 3, "non-empty"),
    ("renderer_transport", "prime_vllm_generate", "'vllm', 'dynamo', 'sglang', or None for 'vllm'"),
    ("renderer_transport", 3, "'vllm', 'dynamo', 'sglang', or None for 'vllm'"),
    ("template_kwargs", [1], "mapping"),
    ("spelled_markers", "strip", "'as_template', 'escape'"),
    ("dynamo_route", "chat", "'auto', 'generate', 'token_data'"),
    ("fast_tokenizer", "quick", "'off', 'auto', 'gigatoken'"),
    ("bridge_tokenizer", "remote", "'engine'"),
    ("on_rewrite", "cut", "'extend', 'splice', 'rerender', 'refuse'"),
    ("on_unsupported", "ignore", "'warn'"),
    ("clip_max_tokens", 1, "true or false"),
    ("data_parallel_rank", -1, ">= 0"),
    ("timeout", 0, "above 0"),
    ("timeout", float("inf"), "finite"),
    ("connect_timeout", "5", "above 0"),
    ("max_connections", 0, ">= 1"),
    ("max_retries", -1, ">= 0"),
    ("endpoint_configs", {"api_base_url": "http://h"}, "list"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), WRONG, ids=[f"{n}={v!r}" for n, v, _ in WRONG])
def test_a_wrong_value_is_refused_with_its_field_itself_and_what_is_allowed(name, value, allowed) -> None:
    with pytest.raises(ConfigError) as raised:
        ClientConfig(**{name: value})
    assert isinstance(raised.value, ValueError)
    assert f"{name}={value!r}" in str(raised.value)
    assert allowed in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("api_key_var", SECRET),
        ("api_base_url", f"http://user:{SECRET}@h"),
        ("api_base_url", f"http://h/?key={SECRET}"),
        ("extra_headers", {"x": f"{SECRET}\n"}),
        ("extra_headers", {"": SECRET}),
        ("extra_headers", SECRET),
        ("extra_headers_from_state", {"x": 1}),
        ("endpoint_configs", [SECRET]),
    ],
)
def test_a_wrong_value_that_may_hold_a_key_is_refused_and_not_shown(name, value) -> None:
    with pytest.raises(ConfigError, match=name) as raised:
        ClientConfig(**{name: value})
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None


def test_every_field_has_a_rule_and_none_means_the_first_transport() -> None:
    assert ClientConfig(**{each.name: getattr(ClientConfig(), each.name) for each in fields(ClientConfig)})
    assert ClientConfig(renderer_transport=None).renderer_transport == "vllm"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"api_base_ur": "http://h"}, "did you mean 'api_base_url'"),
        ({"renderer_pool_size": 2}, "no pool"),
        ({"preserve_all_thinking": True}, "always kept"),
        ({"max_keepalive_connections": 1}, "max_connections"),
        ({"endpoint_configs": [{"renderer": "x"}]}, "endpoint_configs[0]: 'renderer' is no field"),
        (
            {"endpoint_configs": [{"endpoint_configs": [{}]}]},
            "cannot have endpoint_configs",
        ),
        ({"endpoint_configs": [{"timeout": -1}]}, "EndpointConfig.timeout=-1"),
    ],
)
def test_an_unknown_key_is_refused_by_name(values, words) -> None:
    with pytest.raises(ConfigError) as raised:
        ClientConfig.from_mapping(values)
    assert words in str(raised.value)


def test_an_empty_nested_list_of_endpoints_is_let_pass() -> None:
    config = ClientConfig.from_mapping({"endpoint_configs": [{"endpoint_configs": []}]})
    assert config.endpoint_configs == (EndpointConfig(),)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.yaml", "", ".toml or .json"),
        ("c.json", "[1]", "object"),
        ("c.json", "{", "JSON"),
        ("c.toml", "=", "TOML"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, name, text, words) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words):
        ClientConfig.from_file(tmp_path / name)
    with pytest.raises(ConfigError):
        ClientConfig.from_file(tmp_path / "absent.toml")


def test_an_endpoint_is_picked_modulo_and_wins_only_where_it_speaks() -> None:
    config = ClientConfig(
        timeout=7.0,
        api_key_var="A_KEY",
        extra_headers={"x": "parent"},
        endpoint_configs=(
            EndpointConfig(api_base_url="http://a"),
            EndpointConfig(api_base_url="http://b", timeout=1.0, api_key_var=None, extra_headers={}),
        ),
    )
    first, second = config.resolve_all()
    assert (first.api_base_url, first.timeout, first.api_key_var) == ("http://a", 7.0, "A_KEY")
    assert dict(first.extra_headers) == {"x": "parent"}
    assert (second.api_base_url, second.timeout, second.api_key_var) == ("http://b", 1.0, None)
    assert dict(second.extra_headers) == {}, "given and empty is given"
    assert config.resolve(5).api_base_url == "http://b"
    assert config.resolve(2).client_idx == 2
    assert first.endpoint_configs == ()
    assert ClientConfig(client_idx=3).resolve().client_idx == 3


def test_the_key_comes_from_the_environment_and_is_in_no_repr(monkeypatch) -> None:
    monkeypatch.setenv("TOKENTRUE_TEST_KEY", SECRET)
    config = ClientConfig(api_key_var="TOKENTRUE_TEST_KEY", extra_headers={"x-team": SECRET})
    assert config.api_key() == SECRET
    assert SECRET not in repr(config)
    assert SECRET not in repr(EndpointConfig(extra_headers={"x": SECRET}))
    monkeypatch.delenv("TOKENTRUE_TEST_KEY")
    with pytest.raises(ConfigError, match="TOKENTRUE_TEST_KEY"):
        config.api_key()
    assert ClientConfig().api_key() is None


@pytest.mark.parametrize("name", ["Authorization", "X-API-Key"])
def test_a_header_that_would_replace_the_key_is_refused_unless_asked_for(name) -> None:
    with pytest.raises(ConfigError, match=name) as raised:
        ClientConfig(api_key_var="K", extra_headers={name: SECRET})
    assert SECRET not in str(raised.value)
    assert ClientConfig(api_key_var="K", extra_headers={name: SECRET}, allow_auth_headers=True)
    assert ClientConfig(extra_headers={name: SECRET})


def test_state_gives_headers_where_it_has_a_value() -> None:
    config = ClientConfig(extra_headers_from_state={"X-Session-ID": "trajectory_id", "X-B": "b", "X-C": "c"})
    assert config.headers_from_state({"trajectory_id": 7, "b": None}) == {"X-Session-ID": "7"}


@pytest.mark.parametrize("client_type", ["openai_chat_completions", "openai_chat_completions_token"])
def test_what_an_engine_renders_cannot_be_kept_plain(client_type) -> None:
    with pytest.raises(ConfigError, match="spelled_markers='escape' needs client_type='renderer'"):
        ClientConfig(client_type=client_type, spelled_markers="escape")
    assert ClientConfig(client_type="renderer", spelled_markers="escape").spelled_markers == "escape"


@pytest.mark.parametrize("transport", ["vllm", "sglang"])
def test_a_route_of_dynamo_is_for_dynamo(transport) -> None:
    with pytest.raises(ConfigError, match="renderer_transport='dynamo'"):
        ClientConfig(renderer_transport=transport, dynamo_route="generate")
    assert ClientConfig(renderer_transport="dynamo", dynamo_route="generate").dynamo_route == "generate"
