"""Every error that Tokentrue raises, as one tree.

TokentrueError
├── CallerError                    the call cannot be carried out as it was written
│   ├── InvalidMessageError        a message is not in OpenAI chat shape
│   ├── InvalidSamplingError       a sampling parameter is out of its range
│   ├── InvalidTokenIdError        an id is negative, not an integer, or outside the vocabulary
│   ├── UnsupportedParameterError  this transport has no place for a parameter
│   ├── OverlongPromptError        the prompt leaves no room to generate
│   ├── ConfigError                a setting, flag, path or import specification is wrong
│   ├── LogprobsMeaningError       log-probabilities that mean other things than asked, or two things at once
│   └── SessionBusyError           two turns of one session at once on the same branch
├── TemplateError                  the tokenizer folder or its chat template
│   ├── TokenizerFolderError       a file is missing or unreadable
│   ├── TemplateRenderError        the template raised, or rendered nothing usable
│   ├── SpelledMarkerError         a message spells a special token that cannot be kept plain text
│   ├── BridgeRefusedError         on_rewrite='refuse': the template would now write the history otherwise
│   └── RendererContractError      a plugged-in renderer broke the contract
│       └── UnreadCompletionError  it raised while it read a completion; the turn is kept, and told
├── ModelOutputError               the model's output cannot be used as asked
│   └── EmptyCompletionError       no id was sampled
├── EngineError                    the engine answered, and the answer is not a sample
│   ├── EngineRequestError         4xx: the engine refuses this request
│   │   └── MaxTokensTooLargeError  the prompt fits, prompt and max_tokens together do not
│   ├── UnknownModelError          404 for the model name
│   ├── RouteMissingError          404 / 403 / 501: this server does not serve the token route
│   ├── EngineBusyError            429 / 503: later is fine (retryable)
│   ├── EngineFailureError         5xx, or an error inside a 200
│   ├── AbortedError               the engine gave up a turn half way (abort, cancelled, no finish)
│   ├── WeightUpdateError          an update of an engine's weights stopped half way
│   ├── MalformedReplyError        the reply is not what the wire promises
│   │   └── UnknownFinishError     a finish reason that nobody knows; what was sampled is kept
│   ├── EvidenceError              law 4: the reply contradicts, or cannot show, what was asked
│   └── AlignmentError             law 3: ids and log-probabilities do not belong together
├── TransportError                 no whole answer arrived
│   ├── ConnectionFailedError      refused, unresolvable, TLS
│   ├── ConnectionLostError        reset or closed in the middle
│   └── EngineTimeoutError         connect or read timeout
└── RecordError                    a record cannot be written or read

Warnings, which are no errors: `SpelledMarkerWarning`, a message spells a special token; `FastPathWarning`, a
template depends on the middle of a conversation although probing it found nothing; `FastTokenizerWarning`, a
faster tokenizer library gives other ids and is not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokentrue.generation import PartialGeneration
    from tokentrue.turns import Response


class TokentrueError(Exception):
    """Root of the tree in this module's docstring."""

    retryable: bool = False
    """Whether sending the same request again may succeed and can do no harm."""

    partial: PartialGeneration | None = None
    """What had been sampled when a stream broke off, or a turn was given up: never a sample by itself."""


class CallerError(TokentrueError):
    """The call cannot be carried out as it was written."""


class InvalidMessageError(CallerError, ValueError):
    """A message is not in OpenAI chat shape; says which one and which key."""


class InvalidSamplingError(CallerError, ValueError):
    """A sampling parameter is outside its range; says which, the value and the range."""


class InvalidTokenIdError(CallerError, ValueError):
    """A token id is negative, no integer, or outside the vocabulary."""


class UnsupportedParameterError(CallerError, ValueError):
    """A parameter that this transport or engine cannot take."""

    def __init__(self, parameter: str, where: str, advice: str) -> None:
        super().__init__(f"{where} cannot take the parameter {parameter!r}: {advice}")
        self.parameter = parameter
        self.where = where


class OverlongPromptError(CallerError):
    """The prompt leaves no room for a single generated token.

    Args:
        prompt_len: Tokens in the prompt.
        limit: The context limit in tokens; a prompt must be shorter than this.
    """

    def __init__(self, prompt_len: int, limit: int) -> None:
        super().__init__(
            f"the prompt has {prompt_len} tokens and the context limit is {limit}: at least one "
            f"token of room is needed; shorten the conversation or serve a longer context"
        )
        self.prompt_len = prompt_len
        self.limit = limit


class ConfigError(CallerError, ValueError):
    """A setting, flag, path or import specification is wrong."""


class LogprobsMeaningError(CallerError):
    """Log-probabilities do not mean what is asked of them, or would be mixed with such of another meaning."""


class TemplateError(TokentrueError):
    """The tokenizer folder or its chat template cannot do what was asked."""


class TokenizerFolderError(TemplateError):
    """A tokenizer folder is missing a file, or one of its files is unreadable."""


class TemplateRenderError(TemplateError):
    """The chat template raised, or what it rendered is not usable."""


class SpelledMarkerError(TemplateRenderError):
    """Under `spelled_markers="escape"`: it cannot be told who wrote a special token, or it cannot be kept text."""


class FastTokenizerWarning(UserWarning):
    """A faster tokenizer library gives other ids than `tokenizers`, and is not used; says for which text."""


class SpelledMarkerWarning(UserWarning):
    """The text of a message spells a special token; says which message and token, and what becomes of it."""


class FastPathWarning(UserWarning):
    """A bridge from a short history was not the one from the whole conversation; tells both texts."""


class BridgeRefusedError(TemplateError):
    """A policy refuses to extend a turn; carries the reason's name, and the message and both texts as `detail`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(
            f"the turn is not extended ({reason}): {detail}; on_rewrite='extend' keeps what was sampled, "
            f"'rerender' opens a new branch"
        )
        self.reason = reason
        self.detail = detail


class RendererContractError(TemplateError):
    """A plugged-in renderer returned, or raised, what the contract of a renderer rules out; says which."""


class UnreadCompletionError(RendererContractError):
    """A renderer raised where it read a completion, and nothing is known of the text; the session has the turn.

    Args:
        response: The turn, with its exact ids and `turn.unread`; its message is empty.
    """

    def __init__(self, message: str, response: Response) -> None:
        super().__init__(message)
        self.response = response


class ModelOutputError(TokentrueError):
    """The model's output cannot be used as asked."""


class EmptyCompletionError(ModelOutputError):
    """The engine finished without sampling a single id.

    Args:
        stop_id: The stop id that ended it, where the engine names one and does not return it.
    """

    def __init__(self, message: str, *, stop_id: int | None = None) -> None:
        super().__init__(message)
        self.stop_id = stop_id


class EngineError(TokentrueError):
    """The engine answered, and the answer is not a sample.

    Args:
        message: What happened, in one line.
        status: The HTTP status, or None for an embedded engine.
        detail: The engine's own words, shortened.
    """

    def __init__(self, message: str, *, status: int | None = None, detail: str = "") -> None:
        super().__init__(f"{message}: {detail}" if detail else message)
        self.status = status
        self.detail = detail


class EngineRequestError(EngineError):
    """The engine refuses this request (4xx); sending it again changes nothing."""


class MaxTokensTooLargeError(EngineRequestError):
    """The prompt alone fits, or may fit; together with `max_tokens` it does not.

    Args:
        limit: The context limit in tokens.
        prompt_len: Tokens in the prompt; None when the engine does not tell and the client did not render it.
    """

    def __init__(
        self, message: str, *, limit: int, prompt_len: int | None, status: int | None = None, detail: str = ""
    ) -> None:
        super().__init__(message, status=status, detail=detail)
        self.limit = limit
        self.prompt_len = prompt_len

    @property
    def room(self) -> int | None:
        """Tokens that are left for the completion; None when the length of the prompt is not known."""
        return None if self.prompt_len is None else self.limit - self.prompt_len


class UnknownModelError(EngineError):
    """The engine does not serve a model of that name."""


class RouteMissingError(EngineError):
    """The server does not serve this token route (404, 403 or 501); says how to switch it on."""


class EngineBusyError(EngineError):
    """The engine cannot take the request now (429, 503).

    Args:
        retry_after_s: Seconds that the engine asked to wait, if it said so.
    """

    retryable = True

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        detail: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, status=status, detail=detail)
        self.retry_after_s = retry_after_s


class EngineFailureError(EngineError):
    """The engine failed while it worked on the request (5xx, or an error inside a 200)."""


class AbortedError(EngineError):
    """The engine gave up the turn half way: never a sample, whatever ids came with it.

    Args:
        partial: What had been sampled, where the engine told it and it stood up to laws 3 and 4; a client that
            resumes aborted turns continues from exactly these ids.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        detail: str = "",
        partial: PartialGeneration | None = None,
    ) -> None:
        super().__init__(message, status=status, detail=detail)
        self.partial = partial


class WeightUpdateError(EngineError):
    """An update of an engine's weights stopped half way; `__cause__` is what stopped it.

    Args:
        step: "pause", "load", "set_version", "reset_prefix_cache" or "resume".
        state: "running", "paused", or "unknown" where the engine did not answer: whether it samples now.
        weights: "old", "new", or "unknown": whose weights it holds.
    """

    def __init__(self, message: str, *, step: str, state: str, weights: str) -> None:
        super().__init__(message)
        self.step = step
        self.state = state
        self.weights = weights


class MalformedReplyError(EngineError):
    """The reply is not what the wire promises; names the place in it."""


class UnknownFinishError(MalformedReplyError):
    """The engine says of a turn's end what nobody knows; `partial` has what was sampled, where that is usable."""


class EvidenceError(EngineError):
    """Law 4: the reply contradicts what was asked, or cannot show that it was done."""


class AlignmentError(EngineError):
    """Law 3: ids and log-probabilities do not belong together."""


class TransportError(TokentrueError):
    """No whole answer arrived."""


class ConnectionFailedError(TransportError):
    """No connection: refused, unresolvable name, TLS. Nothing was sent, so a retry is safe."""

    retryable = True


class ConnectionLostError(TransportError):
    """The connection broke while the request was under way."""


class EngineTimeoutError(TransportError):
    """The engine did not answer within the configured time."""


class RecordError(TokentrueError):
    """A record cannot be written or read: disk full, wrong schema version, broken file."""
