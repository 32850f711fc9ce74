"""The Llama architecture in torch, with Hugging Face's parameter names, and a forward pass that shares one header.

All conversations of a batch continue the same header (system block). The header is run once and its keys
and values are shared by the rows, which gives the same gradients as repeating it in each row for a fraction
of the work.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a Llama configuration, named as in Hugging Face's config.json."""

    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    head_dim: int = 32
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6

    def config(self, eos_token_ids: list[int], pad_token_id: int) -> dict[str, object]:
        """The config.json of this model."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "dtype": "float16",
            "eos_token_id": eos_token_ids,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "mlp_bias": False,
            "model_type": "llama",
            "pad_token_id": pad_token_id,
            "rope_scaling": None,
            "tie_word_embeddings": True,
            "torch_dtype": "float16",
            "use_cache": True,
        } | asdict(self)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.num_attention_heads * shape.head_dim
        self.heads, self.head_dim = shape.num_attention_heads, shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, header: int, rows: int, rotation: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        tokens = x.shape[0]
        q, k, v = (p(x).view(tokens, self.heads, self.head_dim) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = _rotate(q, rotation), _rotate(k, rotation)
        parts = []
        if header:
            own = [t[:header].transpose(0, 1) for t in (q, k, v)]
            out = functional.scaled_dot_product_attention(own[0], own[1], own[2], is_causal=True)
            parts.append(out.transpose(0, 1).reshape(header, -1))
        shared = [t[:header].expand(rows, -1, -1, -1) for t in (k, v)]
        q, k, v = (t[header:].view(rows, -1, self.heads, self.head_dim) for t in (q, k, v))
        k, v = torch.cat((shared[0], k), 1), torch.cat((shared[1], v), 1)
        out = functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
        )
        parts.append(out.transpose(1, 2).reshape(tokens - header, -1))
        joined: Tensor = self.o_proj(torch.cat(parts))
        return joined


class Feedforward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.mlp = Feedforward(shape)


class Decoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)


class Llama(nn.Module):
    """A Llama with tied embeddings; `state_dict()` is what Hugging Face stores."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = Decoder(shape)
        steps = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
        angles = torch.outer(torch.arange(shape.max_position_embeddings).float(), shape.rope_theta**-steps)
        angles = torch.cat((angles, angles), -1)[:, None]
        self.rotation = (angles.cos(), angles.sin())
        self._initialise()

    def _initialise(self) -> None:
        """Zero output projections, so that every layer starts as the identity."""
        for name, parameter in self.named_parameters():
            if "embed" in name:
                nn.init.normal_(parameter, std=0.02)
            elif "o_proj" in name or "down_proj" in name:
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.6 * parameter.shape[1] ** -0.5)

    def forward(self, header_ids: Tensor, row_ids: Tensor, wanted: Tensor) -> Tensor:
        """Logits at the wanted flat positions of the rows.

        Args:
            header_ids: `[header]`, run once.
            row_ids: `[rows, length]`, each row continuing the header; padding only at the end.
            wanted: indices into the flattened rows.
        """
        header, (rows, length) = header_ids.shape[0], row_ids.shape
        cos, sin = (
            torch.cat((table[:header], table[header : header + length].repeat(rows, 1, 1)))
            for table in self.rotation
        )
        mask = torch.cat(
            (torch.ones(length, header, dtype=torch.bool), torch.ones(length, length, dtype=torch.bool).tril()), 1
        )
        x = self.model.embed_tokens(torch.cat((header_ids, row_ids.flatten())))
        for layer in self.model.layers:
            x = x + layer.self_attn(layer.input_layernorm(x), header, rows, (cos, sin), mask)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        logits: Tensor = self.model.norm(x[header:][wanted]) @ self.model.embed_tokens.weight.T
        return logits


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * rotation[0] + torch.cat((-second, first), -1) * rotation[1]
