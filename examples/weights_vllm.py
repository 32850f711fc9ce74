"""New weights in the middle of a turn, on vLLM: the turn goes on from its exact ids, and says which id is whose.

VLLM_SERVER_DEV_MODE=1 vllm serve ... --enable-scale-out
python examples/weights_vllm.py http://127.0.0.1:8000/v1 MODEL CHECKPOINT_FOLDER
"""

import asyncio
import sys

from tokentrue import ClientConfig, PauseMode, Session, make_admin, make_client, session_samples

QUESTION = "Count from one to a hundred, in words."


async def main(url: str, model: str, folder: str) -> None:
    """One long turn, an update while it is sampled, and what there is to train on afterwards."""
    config = ClientConfig(
        client_type="renderer",
        renderer="embedded",  # a tokenizer folder; "embedded" is that of the shipped model
        api_base_url=url,
        cache_salt_by_version=True,
        resume_aborted=3,
    )
    session = Session()
    async with make_admin("vllm", url) as admin, await make_client(config, clock=admin) as client:
        sampling = {"max_tokens": 600, "min_tokens": 600, "temperature": 1.0}  # long enough to be interrupted
        turn = asyncio.create_task(client.get_response(QUESTION, model, sampling, session=session))
        await asyncio.sleep(0.5)
        await admin.update_weights(folder, version="step-1", mode=PauseMode.ABORT)
        await turn
        print("the engine is at", await admin.version())
    for span in session.turns[0].weight_spans:
        print(f"ids {span.start} to {span.end}: {span.version}, says the {span.source.value}")
    (sample,) = session_samples(session.turns).samples
    known = sum(version is not None for version in sample.policy_versions)
    print(f"resumed at {session.turns[0].resumed_at}; the version of {known} ids is known")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
