//! vLLM's OpenAI server. Its sleep mode frees memory while the process stays: level 1 moves the weights to the host's memory,
//! level 2 drops them. What it says of that is not believed: the host measures, and one that kept its memory is ended.

use aihost_plugin_api::ErrorKind;

use super::{Call, Canary, Failure, Known, Sleep, Stage};

pub(crate) static VLLM: Known = Known {
    name: "vllm",
    install: "name its package in `requirements` (`vllm==0.32.0`) and pull the model, or say by `binary` where it is",
    arguments: &["serve", "{model_path}", "--host", "127.0.0.1", "--port", "{port}", "--served-model-name", "{name}"],
    on_cpu: &[],
    on_gpu: &["--gpu-memory-utilization", "{memory_share}"],
    variables: &[
        // What it compiles for a model is there at the next start.
        ("VLLM_CACHE_ROOT", "{cache}/vllm"),
        ("TORCHINDUCTOR_CACHE_DIR", "{cache}/inductor"),
        ("TRITON_CACHE_DIR", "{cache}/triton"),
        // Where its last words are looked for.
        ("VLLM_LOGGING_STREAM", "ext://sys.stderr"),
        ("VLLM_NO_USAGE_STATS", "1"),
    ],
    variables_on_cpu: &[("VLLM_CPU_KVCACHE_SPACE", "{kv_gib}")],
    slots: None,
    sleep: Some(Sleep {
        arguments: &["--enable-sleep-mode"],
        // Its routes for sleeping are there in this mode alone.
        variables: &[("VLLM_SERVER_DEV_MODE", "1")],
        deepest: 2,
        down: &[Call { path: "/sleep?level=1", body: "" }, Call { path: "/sleep?level=2", body: "" }],
        up: &[
            &[Call { path: "/wake_up", body: "" }],
            &[
                Call { path: "/wake_up?tags=weights", body: "" },
                Call { path: "/collective_rpc", body: r#"{"method":"reload_weights"}"# },
                Call { path: "/wake_up?tags=kv_cache", body: "" },
            ],
        ],
    }),
    canaries: &[
        Canary {
            path: "/v1/completions",
            body: r#"{"model":{name},"prompt":"1 2 3 4 5 6 7","max_tokens":1,"temperature":0}"#,
            answer: "/choices/0/text",
        },
        Canary { path: "/v1/embeddings", body: r#"{"model":{name},"input":"a"}"#, answer: "/data/0/embedding" },
    ],
    stages: &[
        Stage { sign: "Loading safetensors checkpoint shards", from: 100, to: 600 },
        Stage { sign: "Loading pt checkpoint shards", from: 100, to: 600 },
        Stage { sign: "Loading weights took", from: 600, to: 600 },
        Stage { sign: "torch.compile", from: 650, to: 650 },
        Stage { sign: "Capturing CUDA graph", from: 700, to: 950 },
        Stage { sign: "Started server process", from: 970, to: 970 },
    ],
    failures: &[
        Failure {
            sign: "less than desired gpu memory utilization",
            kind: ErrorKind::OutOfMemory,
            advice: "somebody else holds the card's memory, or `memory` of the entry is more than is free",
        },
        Failure {
            sign: "kv cache is needed",
            kind: ErrorKind::OutOfMemory,
            advice: "its memory does not hold one request of the model's whole context; give it a smaller `--max-model-len` in `args`, or more `memory`",
        },
        Failure {
            sign: "no available memory for the cache blocks",
            kind: ErrorKind::OutOfMemory,
            advice: "the weights take all that it was given; give the entry more `memory`",
        },
        Failure {
            sign: "out of memory",
            kind: ErrorKind::OutOfMemory,
            advice: "the device is full; give it a smaller `--max-model-len` or `--max-num-seqs` in `args`, or less of the device by `memory`",
        },
        Failure {
            sign: "are not supported for now",
            kind: ErrorKind::Unsupported,
            advice: "this version does not know the model's architecture; a newer vLLM may",
        },
        Failure {
            sign: "unrecognized arguments",
            kind: ErrorKind::InvalidOptions,
            advice: "this version does not take one of its arguments; see `args`, or name another version in `requirements`",
        },
        Failure {
            sign: "no module named",
            kind: ErrorKind::MissingFile,
            advice: "its environment is not whole; name what is missing in `requirements` and pull the model",
        },
        Failure {
            sign: "address already in use",
            kind: ErrorKind::Internal,
            advice: "its port was taken in the moment in which it started; ask again",
        },
        Failure {
            sign: "does not appear to have a file named config.json",
            kind: ErrorKind::MissingFile,
            advice: "the model's folder has no config.json; name it among the entry's files, or use a folder of Hugging Face's form",
        },
        Failure {
            sign: "safetensorerror",
            kind: ErrorKind::CorruptFile,
            advice: "its weights cannot be read; pull them again",
        },
    ],
};
