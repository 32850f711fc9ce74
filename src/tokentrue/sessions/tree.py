"""The conversation as a tree: which messages are known, and which ids stand for them (pure).

A path from the root is a chain of hashes: `h[0]` is the root's identity (tools, template and its
kwargs), `h[k+1] = hash(h[k] + digest(message k))`. Looking up a history of 300 messages costs 300
small hashes and as many dictionary look-ups at most; no message is compared with another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokentrue.messages import Message, tools_digest
from tokentrue.turns import Turn


def root_identity(renderer_identity: str, tools: Sequence[dict[str, Any]]) -> bytes:
    """The hash that a path starts from: the same messages under other tools are another path.

    So they are under another template, tokenizer or clock, and under the same tools in another order.
    """
    return hashlib.blake2b(renderer_identity.encode() + tools_digest(tools), digest_size=16).digest()


def chain(root: bytes, messages: Sequence[Message]) -> list[bytes]:
    """The hashes of all prefixes of `messages`: entry k stands for the first k messages."""
    hashes = [root]
    for message in messages:
        hashes.append(hashlib.blake2b(hashes[-1] + message.digest, digest_size=16).digest())
    return hashes


@dataclass(slots=True)
class Node:
    """One message on a path.

    Args:
        depth: Number of messages up to and including this one.
        sampled_by: Index of the turn that sampled this message; None when a caller wrote it.
        asked_by: Index of the first turn whose prompt ended here; None when there is none.
    """

    depth: int
    sampled_by: int | None = None
    asked_by: int | None = None


@dataclass(slots=True)
class ConversationTree:
    """All paths of one session and the turns on them. Mutated only by its two `commit` methods.

    `without_ids` holds the messages that an engine sampled and gave no ids for, `roots` the identities that paths
    start from, `asked` how many messages the prompt of each turn had, and `judged` the turns whose prompt was
    compared with the template's text and was no rewrite.
    """

    nodes: dict[bytes, Node] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    without_ids: set[bytes] = field(default_factory=set)
    roots: set[bytes] = field(default_factory=set)
    asked: list[int] = field(default_factory=list)
    judged: set[int] = field(default_factory=set)

    def known_depth(self, hashes: Sequence[bytes]) -> int:
        """How many leading messages of a path are known."""
        for depth in range(len(hashes) - 1, 0, -1):
            if hashes[depth] in self.nodes:
                return depth
        return 0

    def anchor(self, hashes: Sequence[bytes], depth: int) -> tuple[int, int] | None:
        """The deepest sampled message within the first `depth` messages: (its depth, its turn)."""
        for at in range(depth, 0, -1):
            node = self.nodes.get(hashes[at])
            if node is not None and node.sampled_by is not None:
                return at, node.sampled_by
        return None

    def asked_before(self, hashes: Sequence[bytes]) -> int | None:
        """The first turn whose prompt was exactly this path; None when it is new."""
        node = self.nodes.get(hashes[-1])
        return node.asked_by if node is not None else None

    def commit(self, hashes: Sequence[bytes], turn: Turn, sampled: Message) -> None:
        """Enter one whole turn: its prompt's messages, and the message that it sampled.

        Args:
            hashes: `chain` of the prompt.
            turn: Its index must be `len(turns)`.
            sampled: The assistant message as the caller gets it, and will send it back.
        """
        self.asked.append(len(hashes) - 1)
        # The turn first: a thread that stitches meanwhile may follow an index as soon as a node names it.
        self.turns.append(turn)
        self.roots.add(hashes[0])
        for depth in range(1, len(hashes)):
            self.nodes.setdefault(hashes[depth], Node(depth))
        if len(hashes) > 1 and self.nodes[hashes[-1]].asked_by is None:
            self.nodes[hashes[-1]].asked_by = turn.index
        key = chain(hashes[-1], [sampled])[-1]
        # Two turns may sample the same message by different ids: the later one is what goes on.
        self.nodes.setdefault(key, Node(len(hashes))).sampled_by = turn.index

    def commit_without_ids(self, hashes: Sequence[bytes], sampled: Message) -> None:
        """Remember a message that was sampled and whose ids nobody told: it can never be extended."""
        self.without_ids.add(chain(hashes[-1], [sampled])[-1])
