//! Engines that are known by name: how each is started on a device, how far its start is, how it shows that it computes, how it
//! sleeps, and what its last words mean. Each is one table.

mod llama_server;
mod sglang;
mod vllm;

use std::ffi::OsString;

use aihost_plugin_api::ErrorKind;

use super::template::{Template, Values};

pub(crate) use llama_server::LLAMA_SERVER;
pub(crate) use sglang::SGLANG;
pub(crate) use vllm::VLLM;

/// Thousandths of a start that is done.
pub(crate) const WHOLE: u32 = 1000;

/// What is known of an engine.
#[derive(Debug)]
pub(crate) struct Known {
    /// Its name in `engine`, and its program where none is named.
    pub(crate) name: &'static str,
    /// Said where there is no such program.
    pub(crate) install: &'static str,
    /// Its arguments: on every device, on the cores, on a card. Names in braces stand for what they do in an entry.
    arguments: &'static [&'static str],
    on_cpu: &'static [&'static str],
    on_gpu: &'static [&'static str],
    /// Its variables: on every device, and on the cores.
    variables: &'static [(&'static str, &'static str)],
    variables_on_cpu: &'static [(&'static str, &'static str)],
    /// By which it is told where to keep what its slots have read, if it can.
    slots: Option<&'static str>,
    /// How it gives its memory back and stays, if it can.
    pub(crate) sleep: Option<Sleep>,
    /// Requests for one token, or one vector: the first that it takes.
    pub(crate) canaries: &'static [Canary],
    /// Lines of its log that tell how far its start is, in their order.
    stages: &'static [Stage],
    /// What the last words of one that did not start mean, the most telling first.
    failures: &'static [Failure],
}

/// A request whose answer takes what an engine loaded to compute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Canary {
    pub(crate) path: &'static str,
    /// What is asked, as JSON; `{name}` stands for the model.
    pub(crate) body: &'static str,
    /// Where the answer has what was computed.
    pub(crate) answer: &'static str,
}

/// How an engine sleeps.
#[derive(Debug)]
pub(crate) struct Sleep {
    /// What it is started with if it is to.
    arguments: &'static [&'static str],
    variables: &'static [(&'static str, &'static str)],
    /// The deepest level.
    pub(crate) deepest: u8,
    /// What it is asked for each level from 1 on, and what wakes it.
    pub(crate) down: &'static [Call],
    pub(crate) up: &'static [&'static [Call]],
}

/// A POST to an engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) path: &'static str,
    /// As JSON, or nothing.
    pub(crate) body: &'static str,
}

/// A part of a start: from where to where it is done, in thousandths, while lines with this sign count to 100 %.
#[derive(Debug)]
struct Stage {
    sign: &'static str,
    from: u32,
    to: u32,
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

impl Known {
    /// What it is started with: its own arguments, then the entry's. `sleeps`: it is to give its memory back when it is asked.
    pub(crate) fn arguments(&self, values: &Values, args: &[Template], sleeps: bool) -> Result<Vec<OsString>, String> {
        let on_device = if values.is_on_cpu() { self.on_cpu } else { self.on_gpu };
        let sleep = self.sleep.as_ref().filter(|_| sleeps).map_or(&[][..], |sleep| sleep.arguments);
        let own =
            [self.arguments, on_device, sleep].concat().into_iter().map(|word| Template::parse(word)?.fill(values));
        let mut words: Vec<OsString> = own.map(|word| word.map(OsString::from)).collect::<Result<_, _>>()?;
        if let (Some(flag), Some(folder)) = (self.slots, &values.slots) {
            words.extend([OsString::from(flag), folder.into()]);
        }
        for word in args {
            words.push(word.fill(values)?.into());
        }
        Ok(words)
    }

    /// The variables that it is started with, beside those of every engine.
    pub(crate) fn variables(&self, values: &Values, sleeps: bool) -> Result<Vec<(&'static str, String)>, String> {
        let on_cpu = if values.is_on_cpu() { self.variables_on_cpu } else { &[] };
        let sleep = self.sleep.as_ref().filter(|_| sleeps).map_or(&[][..], |sleep| sleep.variables);
        let all = [self.variables, on_cpu, sleep].concat().into_iter();
        all.map(|(name, value)| Ok((name, Template::parse(value)?.fill(values)?))).collect()
    }

    /// Whether it keeps what it has read in files, if it is told where.
    pub(crate) fn keeps_slots(&self) -> bool {
        self.slots.is_some()
    }

    /// How much of its start is done when it says this, in thousandths.
    pub(crate) fn progress(&self, line: &str) -> Option<u32> {
        let (stage, at) = self.stages.iter().rev().find_map(|stage| Some((stage, line.find(stage.sign)?)))?;
        let share = percent(&line[at..]).unwrap_or(0);
        Some(stage.from + (stage.to - stage.from) * share / 100)
    }

    /// What it means that it ended with these last lines: of what kind that is, and what to do.
    pub(crate) fn explain(&self, lines: &[String]) -> Option<(ErrorKind, &'static str)> {
        let lines: Vec<String> = lines.iter().map(|line| line.to_lowercase()).collect();
        let met = self.failures.iter().find(|failure| lines.iter().any(|line| line.contains(failure.sign)));
        met.map(|failure| (failure.kind, failure.advice))
    }
}

/// The number before the first percent sign.
fn percent(text: &str) -> Option<u32> {
    let before = &text[..text.find('%')?];
    let digits = before.bytes().rev().take_while(u8::is_ascii_digit).count();
    before[before.len() - digits..].parse().ok().filter(|percent| *percent <= 100)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn values(device: &str) -> Values {
        Values {
            port: 81,
            device: device.to_owned(),
            memory: 20 << 30,
            device_memory: 80 << 30,
            weights: 5 << 30,
            name: "org/m".to_owned(),
            model_path: Ok("/m/x".to_owned()),
            cache: Some(PathBuf::from("/cache")),
            slots: None,
        }
    }

    fn arguments(known: &Known, values: &Values, args: &[&str], sleeps: bool) -> String {
        let args: Vec<Template> = args.iter().map(|word| Template::parse(word).unwrap()).collect();
        let words = known.arguments(values, &args, sleeps).unwrap();
        words.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn arguments_follow_the_device_and_the_entry_has_the_last_word() {
        let kept = Values { slots: Some(PathBuf::from("/slots")), ..values("cpu") };
        assert_eq!(
            arguments(&LLAMA_SERVER, &kept, &["--ctx-size", "{memory}"], true),
            format!(
                "--model /m/x --alias org/m --host 127.0.0.1 --port 81 --device none --slot-save-path /slots --ctx-size {}",
                20_u64 << 30
            )
        );
        assert!(arguments(&LLAMA_SERVER, &values("cuda:0"), &[], false).ends_with("--port 81 --gpu-layers 999"));
        assert_eq!(
            arguments(&VLLM, &values("cuda:1"), &["--max-model-len", "8192"], true),
            "serve /m/x --host 127.0.0.1 --port 81 --served-model-name org/m --gpu-memory-utilization 0.250 --enable-sleep-mode --max-model-len 8192"
        );
        assert_eq!(
            arguments(&VLLM, &values("cpu"), &[], false),
            "serve /m/x --host 127.0.0.1 --port 81 --served-model-name org/m"
        );
        assert!(arguments(&SGLANG, &values("cuda:0"), &[], false).contains("--mem-fraction-static 0.250"));
    }

    #[test]
    fn variables_tell_where_to_keep_and_how_much_to_take() {
        let variables = |device: &str, sleeps| VLLM.variables(&values(device), sleeps).unwrap();
        let of = |all: &[(&str, String)], name: &str| {
            all.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
        };
        let on_cpu = variables("cpu", true);
        // 20 GiB granted: 5 for the weights and 2 for the rest of it.
        assert_eq!(of(&on_cpu, "VLLM_CPU_KVCACHE_SPACE").as_deref(), Some("13"));
        assert_eq!(of(&on_cpu, "VLLM_CACHE_ROOT").as_deref(), Some("/cache/vllm"));
        assert_eq!(of(&on_cpu, "VLLM_SERVER_DEV_MODE").as_deref(), Some("1"));
        assert_eq!(of(&variables("cuda:0", false), "VLLM_SERVER_DEV_MODE"), None);
        assert_eq!(of(&variables("cuda:0", false), "VLLM_CPU_KVCACHE_SPACE"), None);
    }

    #[test]
    fn a_log_tells_how_far_a_start_is() {
        for (known, line, wanted) in [
            (&VLLM, "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01]", Some(350)),
            (&VLLM, "Capturing CUDA graphs (decode, FULL): 100%|####| 35/35 [00:02<00:00]", Some(950)),
            (&VLLM, "INFO 11-29 [loader.py] Loading weights took 0.61 seconds", Some(600)),
            (&VLLM, "INFO 11-29 nothing of the kind at 70% of it", None),
            (&LLAMA_SERVER, "0.00.008.037 I srv    load_model: loading model '/m/x.gguf'", Some(50)),
            (&SGLANG, "Loading safetensors checkpoint shards: 100% Completed | 2/2", Some(600)),
        ] {
            assert_eq!(known.progress(line), wanted, "{}: {line}", known.name);
        }
        assert_eq!([percent("7%"), percent("a 1000%"), percent("%"), percent("5")], [Some(7), None, None, None]);
        for known in [&VLLM, &LLAMA_SERVER, &SGLANG] {
            assert!(known.stages.is_sorted_by_key(|stage| stage.from), "{}", known.name);
            assert!(known.stages.iter().all(|stage| stage.from <= stage.to && stage.to <= WHOLE), "{}", known.name);
        }
    }

    #[test]
    fn last_words_are_understood() {
        for (known, line, kind) in [
            (
                &LLAMA_SERVER,
                "llama_model_load: error loading model: unknown model architecture: 'x'",
                ErrorKind::Unsupported,
            ),
            (&LLAMA_SERVER, "alloc_tensor_range: cudaMalloc failed: out of memory", ErrorKind::OutOfMemory),
            (&LLAMA_SERVER, "error while handling argument \"--ctx-size\": invalid stoll", ErrorKind::InvalidOptions),
            (&LLAMA_SERVER, "E srv    load_model: failed to load model, '/m/x.gguf'", ErrorKind::CorruptFile),
            (
                &VLLM,
                "ValueError: Free memory on device (7.1/23.6 GiB) on startup is less than desired GPU memory utilization (0.9, 21.2 GiB).",
                ErrorKind::OutOfMemory,
            ),
            (
                &VLLM,
                "ValueError: To serve at least one request with the models's max seq len (131072), 16.00 GiB KV cache is needed",
                ErrorKind::OutOfMemory,
            ),
            (
                &VLLM,
                "pydantic_core.ValidationError: Model architectures ['Foo'] are not supported for now.",
                ErrorKind::Unsupported,
            ),
            (&VLLM, "vllm: error: unrecognized arguments: --frobnicate", ErrorKind::InvalidOptions),
            (&VLLM, "OSError: [Errno 98] Address already in use", ErrorKind::Internal),
            (&VLLM, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", ErrorKind::OutOfMemory),
            (
                &SGLANG,
                "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.",
                ErrorKind::OutOfMemory,
            ),
        ] {
            let explained = known.explain(&["x".to_owned(), line.to_owned()]);
            assert_eq!(explained.map(|(kind, _)| kind), Some(kind), "{line}");
        }
        assert!(LLAMA_SERVER.explain(&["Segmentation fault".to_owned()]).is_none());
    }
}
