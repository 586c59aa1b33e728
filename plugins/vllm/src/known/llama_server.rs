//! llama.cpp's server. Its router mode is never used: here each model is an entry of its own.

use aihost_plugin_api::ErrorKind;

use super::{Canary, Failure, Known, Stage};

pub(crate) static LLAMA_SERVER: Known = Known {
    name: "llama-server",
    install: "install llama.cpp, or say by `binary` where its server is",
    arguments: &["--model", "{model_path}", "--alias", "{name}", "--host", "127.0.0.1", "--port", "{port}"],
    on_cpu: &["--device", "none"],
    on_gpu: &["--gpu-layers", "999"],
    variables: &[],
    variables_on_cpu: &[],
    slots: Some("--slot-save-path"),
    sleep: None,
    canaries: &[
        Canary {
            path: "/completion",
            body: r#"{"prompt":"1 2 3 4 5 6 7","n_predict":1,"temperature":0,"cache_prompt":false}"#,
            answer: "/content",
        },
        Canary { path: "/embedding", body: r#"{"content":"a"}"#, answer: "/0/embedding" },
    ],
    stages: &[
        Stage { sign: "loading model", from: 50, to: 50 },
        Stage { sign: "init_from_params", from: 500, to: 500 },
        Stage { sign: "threadpool init", from: 700, to: 700 },
        Stage { sign: "model loaded", from: 950, to: 950 },
    ],
    failures: &[
        Failure {
            sign: "unknown model architecture",
            kind: ErrorKind::Unsupported,
            advice: "it does not know this model's architecture; a newer llama.cpp may",
        },
        Failure {
            sign: "out of memory",
            kind: ErrorKind::OutOfMemory,
            advice: "the device is full; give it a smaller `--ctx-size` in `args`, or a smaller model",
        },
        Failure {
            sign: "failed to allocate",
            kind: ErrorKind::OutOfMemory,
            advice: "there is not enough memory; give it a smaller `--ctx-size` in `args`, or a smaller model",
        },
        Failure {
            sign: "error while handling argument",
            kind: ErrorKind::InvalidOptions,
            advice: "this version does not take one of the entry's `args`; see its `--help`",
        },
        Failure {
            sign: "invalid argument",
            kind: ErrorKind::InvalidOptions,
            advice: "this version does not take one of its arguments; see `args`, or use a newer llama.cpp",
        },
        Failure {
            sign: "couldn't bind",
            kind: ErrorKind::Internal,
            advice: "its port was taken in the moment in which it started; ask again",
        },
        Failure {
            sign: "failed to load model",
            kind: ErrorKind::CorruptFile,
            advice: "it cannot load this file; pull it again, or see what it says",
        },
    ],
};
