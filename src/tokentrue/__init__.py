"""Exact tokens between agents, inference engines and trainers."""

from tokentrue.clients.chat import OpenAIChatCompletionsClient
from tokentrue.clients.making import make_client
from tokentrue.clients.renderer import RendererClient
from tokentrue.clients.token import OpenAIChatCompletionsTokenClient
from tokentrue.config import ClientConfig, EndpointConfig
from tokentrue.engines.admin import Admin, make_admin
from tokentrue.engines.embedded.engine import EmbeddedEngine
from tokentrue.engines.fleet import Endpoint, Fleet
from tokentrue.engines.fleet_policy import FleetPolicy
from tokentrue.engines.http import HttpEngine
from tokentrue.engines.policy import GivenVersion
from tokentrue.errors import TokentrueError
from tokentrue.messages import Message, ToolCall
from tokentrue.rendering.renderer import Renderer, load_renderer
from tokentrue.rollouts.environment import EpisodeState, MultiTurnEnv, SingleTurnEnv
from tokentrue.rollouts.runner import RolloutPlan, run_rollouts
from tokentrue.rollouts.tool_env import ToolEnv
from tokentrue.rollouts.tools import ToolSet
from tokentrue.sampling import SamplingParams
from tokentrue.sessions.samples import TrainingSample, training_samples
from tokentrue.sessions.session import Session
from tokentrue.sessions.trajectories import SessionSamples, cut_tokens, session_samples
from tokentrue.tokens import Logprobs, TokenIds, TurnTokens
from tokentrue.transports.admin import PauseMode
from tokentrue.transports.dynamo import DynamoTransport
from tokentrue.transports.vllm import VllmTransport
from tokentrue.turns import Response, Turn

__all__ = [
    "Admin",
    "ClientConfig",
    "DynamoTransport",
    "EmbeddedEngine",
    "Endpoint",
    "EndpointConfig",
    "EpisodeState",
    "Fleet",
    "FleetPolicy",
    "GivenVersion",
    "HttpEngine",
    "Logprobs",
    "Message",
    "MultiTurnEnv",
    "OpenAIChatCompletionsClient",
    "OpenAIChatCompletionsTokenClient",
    "PauseMode",
    "Renderer",
    "RendererClient",
    "Response",
    "RolloutPlan",
    "SamplingParams",
    "Session",
    "SessionSamples",
    "SingleTurnEnv",
    "TokenIds",
    "TokentrueError",
    "ToolCall",
    "ToolEnv",
    "ToolSet",
    "TrainingSample",
    "Turn",
    "TurnTokens",
    "VllmTransport",
    "cut_tokens",
    "load_renderer",
    "make_admin",
    "make_client",
    "run_rollouts",
    "session_samples",
    "training_samples",
]

__version__ = "0.1.0"
