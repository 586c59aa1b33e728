"""Writes the seeds of corpus/: well-formed inputs of every shape that a reader knows, as small as they can be.

Needs gcc (for a shared library of three sections) and nothing else:

    python3 tests/fuzz/seeds.py

Files whose names do not begin with `seed-` are not its own: what fuzzers found, by the digest that libFuzzer gave it, and
what was a fault once, by a name that says which.
"""

import io
import json
import math
import pathlib
import struct
import subprocess
import tempfile
import zipfile

CORPUS = pathlib.Path(__file__).parent / "corpus"
DICTIONARIES = pathlib.Path(__file__).parent / "dictionaries"

# Words that a mutator would not hit upon, by target.
WORDS = {
    "requests": r"""model messages role content type text refusal user assistant system tool name tool_calls tool_call_id function
        function_call functions arguments parameters tools tool_choice required auto none n stop seed stream stream_options include_usage
        logit_bias logprobs top_logprobs max_tokens max_completion_tokens response_format json_object temperature top_p top_k min_p
        frequency_penalty presence_penalty repetition_penalty prompt suffix best_of echo service_tier flex keep_alive size steps guidance
        partial_images output_format output_compression duration format input voice quality background force_after modalities audio
        image_url b64_json url webp png jpeg wav flac null true false 1e308 -1 9007199254740993 1024x1024 \ud800 \u0000 gpt-4o-mini org/b
        flux music json_schema schema regex pattern grammar strict structured_outputs guided_json guided_regex guided_choice choice json
        allowed_tools mode parallel_tool_calls reasoning reasoning_effort effort thinking enabled chat_template_kwargs output_config object
        high vectors encoding_format float base64 dimensions query documents top_n return_documents""",
    "frames": r"""version required preferred mapped workspace_max done total kind message level target fields request plugin options load
        files device granted threads max_concurrency confinement permissions readable own network subprocess""",
    "manifest": r"""id version authors license description kinds formats devices max_concurrency parks memory_static permissions network
        subprocess files text image audio custom cpu cuda""",
    "config": r"""version: listen: api_keys: env: allow_unauthenticated: devices: plugins_dir: models_dir: state_dir: limits: defaults:
        models: queue: hold: request_timeout: body_limit: bodies: connections: sse_ping: max_wait: quantum: keep_alive: startup_time:
        type: plugin: endpoint: default: source: hf: pip: url: file: path: revision: sha256: aliases: options: pin: preload: park:
        priority: replicas: memory: max_loaded: files: parts: include: name: key: class: batch interactive service_script: port: engine:
        forever 20GiB 5m 1.5MiB 0.5 .inf .nan ~ <<: !!str !!map !!binary &a *a --- ... |- >+ 0x10 1e9 cuda:0 127.0.0.1:9000""",
    "gguf": r"""GGUF general.architecture general.alignment llama llama.block_count llama.context_length llama.embedding_length
        llama.feed_forward_length llama.attention.head_count llama.attention.head_count_kv llama.attention.key_length
        llama.attention.value_length llama.attention.layer_norm_rms_epsilon llama.rope.freq_base llama.rope.dimension_count
        llama.rope.scaling.type llama.rope.scaling.factor linear llama.expert_count gpt-oss gemma3 phi3 qwen3moe mistral3 yarn longrope
        gpt-oss.expert_count gpt-oss.expert_used_count gpt-oss.attention.sliding_window gpt-oss.rope.scaling.original_context_length
        gpt-oss.attention.sliding_window_pattern tokenizer.ggml.scores llama tokenizer.ggml.model gpt2 tokenizer.ggml.pre smollm
        gpt-2 default llama-bpe qwen2 tokenizer.ggml.tokens tokenizer.ggml.token_type tokenizer.ggml.merges tokenizer.ggml.bos_token_id
        tokenizer.ggml.eos_token_id tokenizer.ggml.eot_token_id tokenizer.ggml.add_bos_token tokenizer.chat_template rope_freqs.weight
        token_embd.weight output.weight output_norm.weight blk.0.attn_q.weight""",
    "safetensors": r"""__metadata__ dtype shape data_offsets F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL F8_E4M3 F8_E5M2 weight_map metadata
        total_size model-00001-of-00002.safetensors 18446744073709551615 9223372036854775808 4294967296""",
    "pickle": r"""PK archive/data.pkl archive/data/0 torch._utils _rebuild_tensor_v2 _rebuild_parameter torch FloatStorage HalfStorage
        BFloat16Storage LongStorage DoubleStorage ByteStorage UntypedStorage collections OrderedDict storage cpu""",
    "tokenizer": r"""version truncation padding added_tokens id content single_word lstrip rstrip normalized special normalizer pre_tokenizer
        post_processor decoder model type vocab merges unk_token unk_id byte_fallback fuse_unk dropout ignore_merges
        continuing_subword_prefix end_of_word_suffix max_input_chars_per_word BPE WordPiece WordLevel Unigram Sequence NFC NFD NFKC NFKD
        Lowercase Strip StripAccents Nmt Replace Prepend Precompiled precompiled_charsmap BertNormalizer ByteLevel Whitespace WhitespaceSplit
        Metaspace Digits Punctuation Split CharDelimiterSplit delimiter UnicodeScripts FixedLength BertPreTokenizer TemplateProcessing
        BertProcessing RobertaProcessing single pair special_tokens ids tokens Fuse ByteFallback CTC BPEDecoder pattern String Regex
        behavior Removed Isolated MergedWithPrevious MergedWithNext Contiguous invert replacement prepend_scheme always never first split
        strip_left strip_right normalizers pretokenizers processors decoders prefix cleanup start stop (?=a) (?<!b) \p{L}+ (a+)+$ {2,}""",
    "template": r"""{{ }} {% %} {%- -%} {# #} for in if elif else endif endfor set endset macro endmacro call endcall filter endfilter raw
        endraw break continue namespace loop.index loop.index0 loop.last loop.previtem is defined not and or none true false messages tools
        bos_token eos_token add_generation_prompt raise_exception strftime_now tojson trim upper lower title capitalize replace join split
        strip startswith endswith find rfind rjust ljust format items keys values get length first last list sort unique reverse batch
        slice map select reject selectattr rejectattr groupby dictsort default indent round abs int float string sum min max range dict
        cycler joiner include import extends block autoescape with do urlencode tojson(indent=2) [::-1] ** // ~ % | %d %s""",
}


def dictionaries() -> None:
    """In libFuzzer's form."""
    DICTIONARIES.mkdir(exist_ok=True)
    for target, words in WORDS.items():
        quoted = (word.replace("\\", "\\\\") for word in words.split())
        (DICTIONARIES / target).write_text("".join(f'"{word}"\n' for word in quoted))


def write(target: str, seeds: dict[str, bytes | str]) -> None:
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("seed-*"):
        old.unlink()
    for name, content in seeds.items():
        (folder / f"seed-{name}").write_bytes(content.encode() if isinstance(content, str) else content)


def requests() -> dict[str, bytes | str]:
    """The first letter is the endpoint's place in the list of targets/requests.rs."""
    user = {"role": "user", "content": "hi"}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "seed": 7, "stop": ["x", "é\n"], "max_tokens": 5,
                "frequency_penalty": 1, "presence_penalty": -1, "logit_bias": {"5": -100}, "n": 2, "user": "u"}
    return {
        "chat": "a" + json.dumps({"model": "a", "messages": [user]}),
        "chat-full": "a" + json.dumps({
            "model": "gpt-4o-mini", **sampling, "stream": True, "stream_options": {"include_usage": True}, "logprobs": True,
            "top_logprobs": 2, "max_completion_tokens": 9, "response_format": {"type": "text"}, "service_tier": "flex",
            "keep_alive": "5m", "modalities": ["text"], "reasoning_effort": "low", "metadata": {"a": "b"}, "messages": [
                {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]},
                user | {"name": "n"},
                {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
                {"role": "tool", "tool_call_id": "1", "content": "1"},
                {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}],
            "tools": [tool], "tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": False,
            "functions": [tool["function"]], "function_call": "auto"}),
        "completion": "c" + json.dumps({"model": "org/b", "prompt": ["a", "b"], **sampling, "logprobs": 1, "echo": True, "best_of": 2, "suffix": None}),
        "completion-ids": "d" + json.dumps({"prompt": [[1, 2], [3]], "stream": True}),
        "audio": "e" + json.dumps({"model": "music", "prompt": "rain", "duration": 1.5, "n": 1, "seed": 1, "guidance": 3,
                                   "response_format": "flac", "stream": True, "temperature": 1, "top_k": 250, "format": "wav"}),
        "speech": "f" + json.dumps({"model": "a", "input": "hello", "voice": "alloy"}),
        "image": "g" + json.dumps({"model": "flux", "prompt": "a cat", "size": "64x48", "n": 1, "seed": 3, "steps": 4, "guidance": 3.5,
                                   "response_format": "b64_json", "output_format": "webp", "output_compression": 80, "quality": "low",
                                   "background": "opaque", "stream": True, "partial_images": 2, "user": "u", "style": "vivid"}),
        "edit": "h" + json.dumps({"model": "flux"}),
        "load": "j" + json.dumps({"model": "a"}),
        "unload": "k" + json.dumps({"model": "a", "force_after": 3}),
        "park": "l" + json.dumps({"model": "org/b"}),
        "embeddings": "o" + json.dumps({"model": "vectors", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 3, "user": "u"}),
        "embeddings-ids": "r" + json.dumps({"input": [[1, 2], [3]]}),
        "rerank": "p" + json.dumps({"model": "vectors", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": True}),
        "escapes": 'a{"mod\\u0065l":"\\u0061","messages":[{"role":"user","content":"\\ud83d\\ude00\\u0000\\"\\\\"}],"seed":1e3}',
    }


def frame(kind: int, request: int, payload: bytes, more: bool = False) -> bytes:
    return struct.pack("<IBQ", 9 + len(payload), kind | (0x80 if more else 0), request) + payload


def frames() -> dict[str, bytes | str]:
    def data(value) -> bytes:
        return json.dumps(value).encode()

    def event(kind: int, payload: bytes) -> bytes:
        return struct.pack("<IQ", kind, len(payload)) + payload

    load = {"device": "cpu", "files": {"model": "/m/a.gguf"}, "granted": 5, "threads": 2, "model": "a"}
    start = {"plugin": "/p.so", "options": {"a": 1.5}, "load": load, "max_concurrency": 1,
             "confinement": {"permissions": ["network"], "readable": ["/m"], "own": "/s"}}
    events = event(1, b'{"type":"text","text":"a"}') + event(2, b"\x02\0\0\0{}\1\2")
    return {
        "up": frame(0, 0, data({"version": 1})) + frame(1, 0, data({"required": 5, "preferred": 6, "mapped": 1, "workspace_max": 0}))
        + frame(2, 0, data({"done": 1, "total": 2})) + frame(3, 0, struct.pack("<Q", 9)) + frame(8, 0, b""),
        "events": frame(4, 7, events) + frame(5, 7, data({"reason": "stop"})),
        "failed": frame(6, 7, data({"kind": 3, "message": "no\nroom"})),
        "log": frame(7, 7, data({"level": 2, "target": "a::b", "message": "x", "fields": "{\"n\":1}", "request": 7})),
        "down": frame(0, 0, data({"version": 1})) + frame(1, 0, data(start)) + frame(2, 0, struct.pack("<Q", 1 << 40))
        + frame(3, 1, b"{}") + frame(4, 1, b"") + frame(5, 1, struct.pack("<Q", 70)) + frame(10, 0, b"{}") + frame(7, 0, b""),
        "pieces": frame(4, 1, b"ab", True) + frame(4, 2, event(1, b"x"), True) + frame(4, 1, b"c") + frame(4, 2, b""),
    }


def manifest() -> dict[str, bytes | str]:
    full = {"id": "vendor/name", "version": "1.2.3-a.1+b", "authors": "A:B", "license": "MIT", "description": "What it serves.",
            "kinds": ["text", "image"], "formats": ["gguf"], "devices": ["cpu", "cuda"], "max_concurrency": 4, "parks": True,
            "memory_static": True, "permissions": ["network", "subprocess", "files"]}
    small = {"id": "a", "version": "0.1.0", "kinds": ["custom"], "devices": ["cpu"]}
    text = json.dumps(small)
    header = b"AIHOSTP\x01" + struct.pack("<IIII", 200, len(text), 0, 1)
    with tempfile.TemporaryDirectory() as folder:
        source, library = pathlib.Path(folder) / "a.c", pathlib.Path(folder) / "a.so"
        source.write_text('__attribute__((section(".aihost.plugin"))) const char a[] = "x"; int puts(const char *); int f(void) { return puts(a); }')
        subprocess.run(["gcc", "-shared", "-fPIC", "-nostdlib", "-s", "-Wl,--build-id=none,-z,noseparate-code,-rpath,/a:/b", "-o",
                        str(library), str(source), "-lc"], check=True)
        elf = library.read_bytes()
    return {"full": json.dumps(full), "small": text, "section": header + bytes(200 - len(header)) + text.encode(), "library": elf}


def config() -> dict[str, bytes | str]:
    return {
        "full": """version: 1
listen: 127.0.0.1:9000
api_keys: [env:AIHOST_TEST_KEY, {key: abcdef0123456789, class: batch}]
devices: [{id: "cuda:0", memory: 24GiB, max_loaded: 2}, {id: cpu, memory: 8GiB}]
plugins_dir: p
state_dir: /s
limits: {queue: 8, hold: 90s, request_timeout: 10m, body_limit: 4MiB, bodies: 1GiB, connections: 100, sse_ping: forever}
defaults: {max_wait: 60s, quantum: 5s, keep_alive: forever, startup_time: 120}
models:
  a: &a
    type: text
    plugin: candle-llm@^1.2
    endpoint: /v1/chat/completions
    default: true
    source: [{hf: o/r, file: x.gguf, revision: main}, {pip: n==1.0, file: p/x.gguf}, {url: "https://h/x.gguf"}]
    sha256: b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    aliases: [gpt]
    options: {context: 2048, nested: [1, {a: null}]}
    keep_alive: 5m
    priority: -3
    replicas: 2
    devices: [cpu]
    memory: 1.5GiB
  b: {type: image, plugin: v/n, files: {t: {hf: o/r, file: a.safetensors}, u: {path: w/x.bin}}, pin: true, preload: true, park: false}
""",
        "list": "models:\n- {name: a, type: audio, plugin: musicgen, path: m/a}\n- name: b\n  type: text\n  plugin: x/y\n  url: 'http://h/m'\n",
        "parts": "models:\n  a:\n    type: image\n    plugin: flux\n    files:\n      t:\n        parts: [{pip: n==1, file: 'a.zip!/b'}, {pip: o==2, file: c}]\n        name: w.safetensors\n",
        "legacy": "models:\n  m: {type: custom, service_script: models/m/server.py, port: 8004, startup_time: 60, endpoint: /v1/m/generate}\n",
        "aliases": "defaults: &d {keep_alive: 1h30m}\nmodels: {a: {type: text, plugin: p, options: [*d, *d]}}\n",
        "wrong": "listen: 0.0.0.0:1\nmodles: {}\nmodels:\n\ta: [1, 2\n",
        "scalars": "version: !!str 1\nmodels: {? a : {type: \"te\\x78t\", plugin: |\n    p\n  , memory: 0x10, port: 1_0}}\n--- \n...\n",
    }


def gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf() -> dict[str, bytes | str]:
    def file(metadata, tensors, version=3) -> bytes:
        out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
        for key, kind, value in metadata:
            out += gguf_text(key) + struct.pack("<I", kind)
            if kind == 8:
                out += gguf_text(value)
            elif kind == 9:
                inner, items = value
                out += struct.pack("<IQ", inner, len(items))
                out += b"".join(gguf_text(item) if inner == 8 else struct.pack({5: "<i", 6: "<f", 7: "<?"}[inner], item) for item in items)
            else:
                out += struct.pack({0: "<B", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 12: "<d"}[kind], value)
        data = b""
        for name, shape, dtype, size in tensors:
            out += gguf_text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape)
            out += struct.pack("<IQ", dtype, len(data))
            data += bytes(n % 61 for n in range(size))
            data += bytes(-len(data) % 32)
        return out + bytes(-len(out) % 32) + data

    tokens = [chr(c) for c in range(33, 60)] + ["a", "b", "Ġ", "ab", "<|im_end|>"]
    hidden, width, count = 4, 8, len(tokens)
    shapes = {"attn_q": [hidden, hidden], "attn_k": [hidden, 2], "attn_v": [hidden, 2], "attn_output": [hidden, hidden], "ffn_gate": [hidden, width],
              "ffn_up": [hidden, width], "ffn_down": [width, hidden], "attn_norm": [hidden], "ffn_norm": [hidden]}
    tensors = [("token_embd.weight", [hidden, count], 0, 4 * hidden * count), ("output_norm.weight", [hidden], 0, 4 * hidden)]
    for name, shape in shapes.items():
        size = 4
        for n in shape:
            size *= n
        tensors.append((f"blk.0.{name}.weight", shape, 0, size))
    model = [
        ("general.architecture", 8, "llama"), ("general.alignment", 4, 32), ("llama.block_count", 4, 1), ("llama.context_length", 4, 64),
        ("llama.embedding_length", 4, hidden), ("llama.feed_forward_length", 4, width), ("llama.attention.head_count", 4, 2),
        ("llama.attention.head_count_kv", 4, 1), ("llama.attention.layer_norm_rms_epsilon", 6, 1e-5), ("llama.rope.freq_base", 6, 10000.0),
        ("tokenizer.ggml.model", 8, "gpt2"), ("tokenizer.ggml.pre", 8, "smollm"), ("tokenizer.ggml.tokens", 9, (8, tokens)),
        ("tokenizer.ggml.merges", 9, (8, ["a b"])), ("tokenizer.ggml.token_type", 9, (5, [1] * (count - 1) + [3])),
        ("tokenizer.ggml.eos_token_id", 4, count - 1), ("tokenizer.ggml.bos_token_id", 5, 0), ("tokenizer.ggml.add_bos_token", 7, True),
        ("tokenizer.chat_template", 8, "{{ messages[0].content }}"),
    ]
    # A mixture of experts with sinks, windows and scaled positions, and a vocabulary with scores.
    experts, inner = 2, 4
    mixed = [(key.replace("llama.", "gpt-oss."), kind, "gpt-oss" if value == "llama" else value) for key, kind, value in model] + [
        ("gpt-oss.expert_count", 4, experts), ("gpt-oss.expert_used_count", 4, 1), ("gpt-oss.expert_feed_forward_length", 4, inner),
        ("gpt-oss.attention.sliding_window", 4, 16), ("gpt-oss.attention.sliding_window_pattern", 9, (7, [True])),
        ("gpt-oss.rope.scaling.type", 8, "yarn"), ("gpt-oss.rope.scaling.factor", 6, 4.0), ("gpt-oss.rope.scaling.original_context_length", 4, 16),
    ]
    parts = {"attn_norm.weight": [hidden], "post_attention_norm.weight": [hidden], "attn_sinks.weight": [2], "attn_q.weight": [hidden, hidden],
             "attn_k.weight": [hidden, 2], "attn_v.weight": [hidden, 2], "attn_output.weight": [hidden, hidden], "attn_output.bias": [hidden],
             "ffn_gate_inp.weight": [hidden, experts], "ffn_gate_inp.bias": [experts], "ffn_gate_exps.weight": [hidden, inner, experts],
             "ffn_up_exps.weight": [hidden, inner, experts], "ffn_down_exps.weight": [inner, hidden, experts], "ffn_down_exps.bias": [hidden, experts]}
    mixture = tensors[:2] + [(f"blk.0.{name}", shape, 0, 4 * math.prod(shape)) for name, shape in parts.items()]
    pieces = ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "\u2581a", "<0x0A>"]
    scored = [
        ("general.architecture", 8, "llama"), ("tokenizer.ggml.model", 8, "llama"), ("tokenizer.ggml.tokens", 9, (8, pieces)),
        ("tokenizer.ggml.scores", 9, (6, [-float(i) for i in range(len(pieces))])), ("tokenizer.ggml.token_type", 9, (5, [2, 3, 3, 1, 1, 1, 1, 6])),
        ("tokenizer.ggml.bos_token_id", 4, 1), ("tokenizer.ggml.eos_token_id", 4, 2),
    ]
    kinds = [("a", 0, 1), ("b", 10, 1), ("c", 12, 1.0), ("d", 9, (6, [1.0])), ("e", 9, (8, []))]
    words = [entry for entry in model if entry[0].startswith("tokenizer")]
    blocks = [("q4", [32, 2], 2, 36), ("q8", [32], 8, 34), ("q6", [256], 14, 210), ("half", [4], 1, 8), ("brain", [2, 2, 1, 2], 30, 16)]
    return {"model": file(model, tensors), "experts": file(mixed, mixture), "scores": file(scored, []), "kinds": file(kinds, [], 2), "words": file(words, []), "blocks": file([], blocks)}


def safetensors() -> dict[str, bytes | str]:
    header = {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
              "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}, "c": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]},
              "d": {"dtype": "F16", "shape": [0, 7], "data_offsets": [40, 40]}, "e": {"dtype": "U8", "shape": [216], "data_offsets": [40, 256]}}
    text = json.dumps(header).encode()
    return {
        "file": struct.pack("<Q", len(text)) + text + bytes(256),
        "header": b"h" + text,
        "index": "i" + json.dumps({"metadata": {"total_size": 16}, "weight_map": {"w": "model-00001-of-00002.safetensors"}}),
        "index-missing": "i" + json.dumps({"weight_map": {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}}),
        "index-elsewhere": "i" + json.dumps({"weight_map": {"w": "../x"}}),
    }


def pickle() -> dict[str, bytes | str]:
    storage = b"(X\x07\x00\x00\x00storageq\x03ctorch\nFloatStorage\nq\x04X\x01\x00\x00\x000q\x05X\x03\x00\x00\x00cpuq\x06K\x06tq\x07Q"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\nq\x02(" + storage + b"K\x00K\x02K\x03\x86q\x08K\x03K\x01\x86q\x09\x89ccollections\nOrderedDict\nq\x0a)Rq\x0btq\x0cRq\x0d"
    whole = b"\x80\x02}q\x00(X\x01\x00\x00\x00wq\x01" + tensor + b"u."
    ordered = b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01(X\x01\x00\x00\x00wq\x0e" + tensor + b"u}X\x09\x00\x00\x00_metadatah\x01sb."
    doubling = b"\x80\x02K\x01q\x00" + b"".join(bytes([0x28, 0x68, n, 0x68, n, 0x74, 0x71, n + 1]) for n in range(30)) + b"."
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for name, content in {"a/data.pkl": whole, "a/data/0": bytes(24), "a/version": b"3\n", "a/byteorder": b"little"}.items():
            file.writestr(zipfile.ZipInfo(name), content)
    return {"file": archive.getvalue(), "pickle": b"p" + whole, "ordered": b"p" + ordered, "compressed": b"z" + whole, "doubling": b"p" + doubling}


def tokenizer() -> dict[str, bytes | str]:
    def file(**parts) -> str:
        added = [{"id": 0, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": True, "normalized": False, "special": True}]
        whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None, "pre_tokenizer": None,
                 "post_processor": None, "decoder": None} | parts
        return json.dumps(whole, ensure_ascii=False)

    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": single + [{"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}}
    bpe = {"type": "BPE", "dropout": None, "unk_token": "<s>", "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False,
           "byte_fallback": True, "ignore_merges": False, "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "<0x41>": 5}, "merges": [["a", "b"]]}
    unigram = {"type": "Unigram", "unk_id": 0, "byte_fallback": False, "vocab": [["<s>", 0.0], ["▁", -1.0], ["▁a", -2.5], ["b", -3]]}
    piece = {"type": "WordPiece", "unk_token": "<s>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {"<s>": 0, "a": 1, "##b": 2}}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": "\\s+(?!\\S)|\\p{N}{1,3}"}, "behavior": "Isolated", "invert": False}
    return {
        "words": file(model={"type": "WordLevel", "vocab": {"<s>": 0, "a": 1}, "unk_token": "<s>"}, pre_tokenizer={"type": "Whitespace"}),
        "bpe": file(model=bpe, pre_tokenizer={"type": "Sequence", "pretokenizers": [split, bytes_]}, post_processor=bytes_, decoder=bytes_),
        "unigram": file(model=unigram, pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
                        normalizer={"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
                                    {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "Prepend", "prepend": "▁"}]},
                        post_processor=template, decoder={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}),
        "pieces": file(model=piece, normalizer={"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
                       pre_tokenizer={"type": "BertPreTokenizer"}, post_processor={"type": "BertProcessing", "sep": ["<s>", 0], "cls": ["<s>", 0]},
                       decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
                       padding={"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": 8, "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"}),
        "precompiled": file(model=unigram, normalizer={"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAAhAAAA"}, pre_tokenizer={"type": "Digits", "individual_digits": True}),
    }


def template() -> dict[str, bytes | str]:
    return {
        "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
                  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "llama": "{%- set ns = namespace(n=0) %}{{- bos_token }}{%- if not date is defined %}{%- set date = strftime_now('%d %b %Y') %}{%- endif %}"
                 "{%- if messages[0]['role'] == 'system' %}{%- set s = messages[0].content|trim %}{%- set messages = messages[1:] %}{%- else %}{%- set s = '' %}{%- endif %}"
                 "{%- for m in messages %}{%- if 'tool_calls' in m %}{%- set c = m.tool_calls[0].function %}{{- c.name ~ (c.arguments | tojson) }}"
                 "{%- elif m.role in ['tool', 'ipython'] %}{{- m.content if m.content is string else m.content | tojson(indent=4) }}"
                 "{%- else %}{{- loop.index0 % 2 == 0 and m.content.strip().split('<')[-1] or raise_exception('no') }}{%- endif %}{%- set ns.n = ns.n + 1 %}{%- endfor %}{{ eos_token }}",
        "macros": "{% macro f(a, b=2) %}{{ a|upper|replace('A', b) }}{% endmacro %}{{ f(tools|length if tools else 1) }}{% raw %}{{ x }}{% endraw %}{# c #}",
        "filters": "{{ {'b': [1, 2.5, none, true], 'a': 'x'}|items|list|sort|join(', ') }}{{ 'a,b'.split(',')|map('upper')|list|tojson }}{{ [3, 1]|sort|first // 2 ** 3 }}"
                   "{% filter indent(2) %}a\nb{% endfilter %}{% set x %}y{% endset %}{{ x|default('z', true)|title|reverse|batch(2)|list }}",
        "methods": "{{ 'aXb'.lower().find('x') }}{{ 'abc'[::-1] }}{{ 'a'.rjust(5) }}{{ '%s'|format(1) }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}"
                   "{% for k, v in {'a': 1}.items() %}{{ k }}{% break %}{% endfor %}{{ dict(a=1)|dictsort }}{{ 'x'.format(1) }}{{ range(3)|list }}",
    }


for make in (requests, frames, manifest, config, gguf, safetensors, pickle, tokenizer, template):
    write(make.__name__, make())
dictionaries()
