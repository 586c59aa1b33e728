//! SGLang's server. It gives its memory back as vLLM does, at one level, and keeps its weights in the host's memory then.

use aihost_plugin_api::ErrorKind;

use super::{Call, Canary, Failure, Known, Sleep, Stage};

pub(crate) static SGLANG: Known = Known {
    name: "sglang",
    install: "name its package in `requirements` (`sglang[all]`) and pull the model, or say by `binary` where it is",
    arguments: &[
        "serve",
        "--model-path",
        "{model_path}",
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
        "--served-model-name",
        "{name}",
    ],
    on_cpu: &["--device", "cpu"],
    on_gpu: &["--mem-fraction-static", "{memory_share}"],
    variables: &[("TORCHINDUCTOR_CACHE_DIR", "{cache}/inductor"), ("TRITON_CACHE_DIR", "{cache}/triton")],
    variables_on_cpu: &[],
    slots: None,
    sleep: Some(Sleep {
        arguments: &["--enable-memory-saver", "--enable-weights-cpu-backup"],
        variables: &[],
        deepest: 1,
        down: &[Call { path: "/release_memory_occupation", body: "{}" }],
        up: &[&[Call { path: "/resume_memory_occupation", body: "{}" }]],
    }),
    canaries: &[
        Canary {
            path: "/generate",
            body: r#"{"text":"1 2 3 4 5 6 7","sampling_params":{"max_new_tokens":1,"temperature":0}}"#,
            answer: "/text",
        },
        Canary { path: "/v1/embeddings", body: r#"{"model":{name},"input":"a"}"#, answer: "/data/0/embedding" },
    ],
    stages: &[
        Stage { sign: "Loading safetensors checkpoint shards", from: 100, to: 600 },
        Stage { sign: "Load weight end", from: 600, to: 600 },
        Stage { sign: "Capturing batches", from: 650, to: 950 },
        Stage { sign: "Started server process", from: 970, to: 970 },
    ],
    failures: &[
        Failure {
            sign: "not enough memory",
            kind: ErrorKind::OutOfMemory,
            advice: "its memory does not hold the weights and a cache; give the entry more `memory`",
        },
        Failure {
            sign: "out of memory",
            kind: ErrorKind::OutOfMemory,
            advice: "the device is full; give it a smaller `--context-length` in `args`, or less of the device by `memory`",
        },
        Failure {
            sign: "is not supported",
            kind: ErrorKind::Unsupported,
            advice: "this version does not serve the model; a newer SGLang may",
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
    ],
};
