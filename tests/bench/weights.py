#!/usr/bin/env python3
"""Writes models to measure: the weights of a GGUF file in another type, or a decoder of a wider Llama's shape whose weights in
K-quants are random (it says nothing sensible, as fast as one that does). Needs the packages gguf and numpy:

weights.py FILE.gguf Q4_0|Q8_0|F16|... OUT.gguf
weights.py FILE.gguf Q4_K_M OUT.gguf      the tokenizer of FILE, 16 layers of width 1024, types as llama.cpp mixes them
"""
import sys

import gguf
import numpy as np

WIDTH, FEED_FORWARD, LAYERS, HEADS, GROUPS = 1024, 4096, 16, 16, 4
TYPES = gguf.GGMLQuantizationType


def main():
    source, kind, out = sys.argv[1:]
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, "llama")
    is_random = kind == "Q4_K_M"
    for name, field in reader.fields.items():
        is_structural = name.startswith("GGUF.") or name in ("general.architecture", "general.file_type")
        if not is_structural and not (is_random and name.startswith("llama.")):
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    if is_random:
        shapes(writer, len(reader.fields["tokenizer.ggml.tokens"].data))
    else:
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            of = TYPES.F32 if values.ndim == 1 else TYPES[kind]
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def shapes(writer, vocabulary):
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(vocabulary)
    random = np.random.default_rng(1)
    keys = WIDTH // HEADS * GROUPS

    def weights(name, rows, columns, of):
        block, size = gguf.GGML_QUANT_SIZES[of]
        data = random.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
        # The scales of a block, as f16: small ones.
        scales = {TYPES.Q4_K: (0, 2), TYPES.Q6_K: (208,)}[of]
        for at in scales:
            data[:, :, at : at + 2] = np.frombuffer(np.float16(1e-4).tobytes(), np.uint8)
        writer.add_tensor(name, data.reshape(rows, -1), raw_dtype=of)

    ones = np.ones(WIDTH, np.float32)
    weights("token_embd.weight", vocabulary, WIDTH, TYPES.Q6_K)
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(LAYERS):
        head = f"blk.{layer}."
        more = TYPES.Q6_K if layer < LAYERS // 8 or layer >= 7 * LAYERS // 8 or layer % 3 == 2 else TYPES.Q4_K
        writer.add_tensor(head + "attn_norm.weight", ones)
        writer.add_tensor(head + "ffn_norm.weight", ones)
        weights(head + "attn_q.weight", WIDTH, WIDTH, TYPES.Q4_K)
        weights(head + "attn_k.weight", keys, WIDTH, TYPES.Q4_K)
        weights(head + "attn_v.weight", keys, WIDTH, more)
        weights(head + "attn_output.weight", WIDTH, WIDTH, TYPES.Q4_K)
        weights(head + "ffn_gate.weight", FEED_FORWARD, WIDTH, TYPES.Q4_K)
        weights(head + "ffn_up.weight", FEED_FORWARD, WIDTH, TYPES.Q4_K)
        weights(head + "ffn_down.weight", WIDTH, FEED_FORWARD, more)


main()
