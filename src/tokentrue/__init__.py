"""Exact tokens between agents, inference engines and trainers."""

from tokentrue.clients.renderer import RendererClient
from tokentrue.messages import Message, ToolCall
from tokentrue.rendering.renderer import Renderer, load_renderer
from tokentrue.sampling import SamplingParams
from tokentrue.sessions.session import Session
from tokentrue.tokens import Logprobs, TokenIds, TurnTokens
from tokentrue.turns import Response, Turn

__all__ = [
    "Logprobs",
    "Message",
    "Renderer",
    "RendererClient",
    "Response",
    "SamplingParams",
    "Session",
    "TokenIds",
    "ToolCall",
    "Turn",
    "TurnTokens",
    "load_renderer",
]

__version__ = "0.1.0"
