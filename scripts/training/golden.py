"""Log-probabilities of the saved checkpoint as torch computes them, for the tests of the numpy engine."""

import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional

from training.conversations import Encoder, encode_conversation, play, tool_schemas
from training.torch_llama import Llama, Shape

CONVERSATIONS = 6


@torch.no_grad()
def write_golden(folder: Path, path: Path) -> None:
    """Play a few held-out tasks with the oracle and write, per conversation, ids and float32 log-probabilities.

    `logprobs[i]` belongs to `ids[sampled[i]]`, given all ids before it; `sampled` are the positions that the
    assistant wrote. Elsewhere the model was never trained, and its tiny probabilities magnify rounding.
    """
    config = json.loads((folder / "config.json").read_text())
    model = Llama(Shape(**{name: config[name] for name in Shape.__dataclass_fields__}))
    model.load_state_dict(
        {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    )
    encoder = Encoder(folder)
    golden = []
    for number in range(CONVERSATIONS):
        environment = ("arithmetic", "shop")[number % 2]
        rng = random.Random(number)
        turns = play(environment, number, "heldout", rng)
        header = encoder.header(tool_schemas(environment), None)
        rest = encode_conversation(encoder, turns, rng, has_header=True)
        ids = header + rest.ids
        sampled = [len(header) + place for place, is_sampled in enumerate(rest.mask) if is_sampled]
        none = torch.zeros(0, dtype=torch.long)
        logits = model(none, torch.tensor([ids]), torch.tensor(sampled) - 1)
        targets = torch.tensor([ids[place] for place in sampled])
        logprobs = functional.log_softmax(logits, -1)[torch.arange(len(sampled)), targets]
        golden.append({"ids": ids, "sampled": sampled, "logprobs": [round(x, 6) for x in logprobs.tolist()]})
    path.write_text(json.dumps({"torch": torch.__version__.split("+")[0], "conversations": golden}) + "\n")
