//! Engines that are known by name: how each is started on a device, how it shows that it computes, and what its last words mean.

use std::ffi::OsString;
use std::path::Path;

use aihost_plugin_api::ErrorKind;

use super::template::{Template, Values};

/// What is known of an engine.
#[derive(Debug)]
pub(crate) struct Known {
    /// Its name in `engine`, and its program where none is named.
    pub(crate) name: &'static str,
    /// Said where there is no such program.
    pub(crate) install: &'static str,
    /// Its arguments: on every device, on the cores, on a card.
    arguments: &'static [&'static str],
    on_cpu: &'static [&'static str],
    on_gpu: &'static [&'static str],
    /// By which it is told where to keep what it has read, if it can.
    slots: Option<&'static str>,
    /// A request for one token.
    pub(crate) canary: Canary,
    /// What the last words of one that did not start mean, the most telling first.
    failures: &'static [Failure],
}

/// A request whose answer takes what an engine loaded to compute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Canary {
    pub(crate) path: &'static str,
    pub(crate) body: &'static str,
}

/// A way not to start.
#[derive(Debug)]
struct Failure {
    /// Words of one of its last lines, in small letters.
    sign: &'static str,
    kind: ErrorKind,
    /// What it is and what to do.
    advice: &'static str,
}

/// llama.cpp's server. Its router mode is never used: a host has one model for each.
pub(crate) static LLAMA_SERVER: Known = Known {
    name: "llama-server",
    install: "install llama.cpp, or say by `binary` where its server is",
    arguments: &["--model", "{model_path}", "--host", "127.0.0.1", "--port", "{port}"],
    on_cpu: &["--device", "none"],
    on_gpu: &["--gpu-layers", "999"],
    slots: Some("--slot-save-path"),
    canary: Canary { path: "/completion", body: r#"{"prompt":"a","n_predict":1,"cache_prompt":false}"# },
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

impl Known {
    /// What it is started with: its own arguments, then the entry's.
    pub(crate) fn arguments(
        &self,
        values: &Values,
        args: &[Template],
        slots: Option<&Path>,
    ) -> Result<Vec<OsString>, String> {
        let on_device = if values.device == "cpu" { self.on_cpu } else { self.on_gpu };
        let own = self.arguments.iter().chain(on_device).map(|word| Template::parse(word)?.fill(values));
        let mut words: Vec<OsString> = own.map(|word| word.map(OsString::from)).collect::<Result<_, _>>()?;
        if let (Some(flag), Some(folder)) = (self.slots, slots) {
            words.extend([OsString::from(flag), folder.into()]);
        }
        for word in args {
            words.push(word.fill(values)?.into());
        }
        Ok(words)
    }

    /// Whether it keeps what it has read in files, if it is told where.
    pub(crate) fn keeps_slots(&self) -> bool {
        self.slots.is_some()
    }

    /// What it means that it ended with these last lines: of what kind that is, and what to do.
    pub(crate) fn explain(&self, lines: &[String]) -> Option<(ErrorKind, &'static str)> {
        let lines: Vec<String> = lines.iter().map(|line| line.to_lowercase()).collect();
        let met = self.failures.iter().find(|failure| lines.iter().any(|line| line.contains(failure.sign)));
        met.map(|failure| (failure.kind, failure.advice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_follow_the_device_and_the_entry_has_the_last_word() {
        let arguments = |device: &str| {
            let values =
                Values { port: 81, device: device.to_owned(), memory: 7, model_path: Ok("/m/x.gguf".to_owned()) };
            let args = [Template::parse("--ctx-size").unwrap(), Template::parse("{memory}").unwrap()];
            let words = LLAMA_SERVER.arguments(&values, &args, Some(Path::new("/slots"))).unwrap();
            words.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            arguments("cpu"),
            "--model /m/x.gguf --host 127.0.0.1 --port 81 --device none --slot-save-path /slots --ctx-size 7"
        );
        assert!(arguments("cuda:0").contains("--gpu-layers 999 --slot-save-path"));
    }

    #[test]
    fn last_words_are_understood() {
        let explain = |line: &str| LLAMA_SERVER.explain(&["x".to_owned(), line.to_owned()]);
        for (line, kind) in [
            ("llama_model_load: error loading model: unknown model architecture: 'x'", ErrorKind::Unsupported),
            ("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory", ErrorKind::OutOfMemory),
            ("error while handling argument \"--ctx-size\": invalid stoll", ErrorKind::InvalidOptions),
            ("E srv    load_model: failed to load model, '/m/x.gguf'", ErrorKind::CorruptFile),
        ] {
            assert_eq!(explain(line).map(|(kind, _)| kind), Some(kind), "{line}");
        }
        assert!(explain("Segmentation fault").is_none());
    }
}
