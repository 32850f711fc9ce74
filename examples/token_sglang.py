"""Tokens in, tokens out, on SGLang: the second prompt begins with the exact ids of the first turn.

python examples/token_sglang.py http://127.0.0.1:30000/v1 MODEL
"""

import asyncio
import sys

from tokentrue import ClientConfig, Message, Session, make_client, session_samples

QUESTIONS = ("What is 12 plus 30?", "And what is 5 times 5?")


async def main(url: str, model: str) -> None:
    """Two questions in one conversation, and what there is to train on afterwards."""
    config = ClientConfig(
        client_type="openai_chat_completions_token",
        renderer_transport="sglang",
        renderer="embedded",  # a tokenizer folder; "embedded" is that of the shipped model
        api_base_url=url,
    )
    session = Session()
    messages: list[Message] = []
    async with await make_client(config) as client:
        for question in QUESTIONS:
            messages.append(Message("user", question))
            response = await client.get_response(messages, model, {"max_tokens": 64}, session=session)
            messages.append(response.message)
            print(response.finish_reason.value, repr(response.message.content))
    for turn in session.turns:
        print(f"turn {turn.index}: {turn.stitch.how.value} because of {turn.stitch.why.value}")
    found = session_samples(session.turns)
    print(f"{len(found.samples)} samples, {found.counts.trained} of {found.counts.sampled} sampled ids trained")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
