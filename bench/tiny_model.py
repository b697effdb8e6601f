"""Writes a tiny Qwen3 that any machine can serve: does a seeded checkpoint behave like a model?

    python -m bench.tiny_model --out DIR

The weights are random, yet made so that greedy answers vary, stay printable and do not end by
themselves, but do end after a tool call. Two dimensions of the embedding are written to by no
layer: one is a constant, from which the output head reads a bias per token; the other marks `>`,
the last byte of a tool call, after which the answer ends. Printable ASCII is likely; the rest, a
space and `>` among it, is ruled out unless a grammar asks for it.

One token is one byte, so that text, tokens and text again is lossless and a rendered conversation
is a prefix of its continuation.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

HIDDEN = 128
LAYERS = 2
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 32
INTERMEDIATE = 256
VOCAB = 512
CONTEXT = 32768
SEED = 20260606

END_OF_TEXT, TURN_START, TURN_END = 256, 257, 258
SPECIAL = {END_OF_TEXT: "<|endoftext|>", TURN_START: "<|im_start|>", TURN_END: "<|im_end|>"}

Array = NDArray[np.float32]

CONSTANT, CLOSING = 0, 1
"""The dimensions that no layer writes to."""

# A conversation only grows: nothing in a rendered turn depends on the turns after it. The calls
# of an answer are rendered as SGLang's grammar (tool-call-parser qwen25) makes a model write them.
CHAT_TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>tools\\n' }}
{%- for tool in tools %}{{- tool | tojson + '\\n' }}{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{- message.content }}
{%- elif message.content %}
{%- for part in message.content %}{{- part.text }}{%- endfor %}
{%- endif %}
{%- for call in message.tool_calls or [] %}
{%- if not loop.first %}{{- '\\n' }}{%- endif %}
{{- '<tool_call>\\n{"name":"' + call.function.name + '", "arguments":' }}
{%- if call.function.arguments is string %}{{- call.function.arguments }}
{%- else %}{{- call.function.arguments | tojson(separators=(',', ':')) }}
{%- endif %}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def write_model(out: Path, seed: int = SEED) -> None:
    """Write weights, configuration and tokenizer into `out`; the same seed gives the same bytes."""
    out.mkdir(parents=True, exist_ok=True)
    save_file(_weights(np.random.default_rng(seed)), out / "model.safetensors", {"format": "pt"})
    _write_json(out / "config.json", _config())
    _write_json(out / "generation_config.json", {"eos_token_id": TURN_END, "do_sample": False})
    _write_json(out / "tokenizer.json", _tokenizer())
    _write_json(out / "tokenizer_config.json", _tokenizer_config())
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _weights(rng: np.random.Generator) -> dict[str, Array]:
    def normal(rows: int, columns: int, scale: float) -> Array:
        return (rng.standard_normal((rows, columns)) * scale).astype(np.float32)

    def ones(size: int, value: float = 1.0) -> Array:
        return np.full(size, value, dtype=np.float32)

    embedding = normal(VOCAB, HIDDEN, 0.5)
    embedding[:, CONSTANT] = 4.0
    embedding[:, CLOSING] = 0.0
    embedding[ord(">"), CLOSING] = 12.0
    head = normal(VOCAB, HIDDEN, 0.7)
    head[:, CONSTANT] = _token_bias()
    head[:, CLOSING] = 0.0
    head[TURN_END, CLOSING] = 100.0
    tensors = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": ones(HIDDEN),
        "lm_head.weight": head,
    }
    for index in range(LAYERS):
        layer = f"model.layers.{index}."
        into_residual = {
            "self_attn.o_proj.weight": normal(HIDDEN, HEADS * HEAD_DIM, 0.25),
            "mlp.down_proj.weight": normal(HIDDEN, INTERMEDIATE, 0.25),
        }
        for matrix in into_residual.values():
            matrix[[CONSTANT, CLOSING], :] = 0.0
        tensors |= {layer + name: matrix for name, matrix in into_residual.items()}
        tensors |= {
            layer + "input_layernorm.weight": ones(HIDDEN),
            layer + "post_attention_layernorm.weight": ones(HIDDEN),
            layer + "self_attn.q_proj.weight": normal(HEADS * HEAD_DIM, HIDDEN, 0.15),
            layer + "self_attn.k_proj.weight": normal(KV_HEADS * HEAD_DIM, HIDDEN, 0.15),
            layer + "self_attn.v_proj.weight": normal(KV_HEADS * HEAD_DIM, HIDDEN, 0.15),
            layer + "self_attn.q_norm.weight": ones(HEAD_DIM, 3.0),
            layer + "self_attn.k_norm.weight": ones(HEAD_DIM, 3.0),
            layer + "mlp.gate_proj.weight": normal(INTERMEDIATE, HIDDEN, 0.15),
            layer + "mlp.up_proj.weight": normal(INTERMEDIATE, HIDDEN, 0.15),
        }
    return tensors


def _token_bias() -> Array:
    """What the output head adds per token, in units of the constant dimension."""
    bias = np.full(VOCAB, -150.0, dtype=np.float32)
    bias[ord("!") : ord("~") + 1] = 0.0
    bias[[ord(mark) for mark in " >\\"]] = -75.0
    bias[[ord(mark) for mark in ',"]}']] = (2.0, 9.0, 8.0, 8.0)  # JSON comes to its end sooner
    return bias


def _config() -> dict[str, object]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": TURN_END,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": CONTEXT,
        "max_window_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCAB,
    }


def _tokenizer() -> dict[str, object]:
    tokens = SPECIAL | {i: f"<|reserved_{i}|>" for i in range(256 + len(SPECIAL), VOCAB)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, **flags, "special": True} for i, text in tokens.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": False},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {char: byte for byte, char in enumerate(_byte_alphabet())},
            "merges": [],
        },
    }


def _byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte, which the ByteLevel steps translate."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)]


def _tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL[TURN_END],
        "pad_token": SPECIAL[END_OF_TEXT],
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    write_model(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
