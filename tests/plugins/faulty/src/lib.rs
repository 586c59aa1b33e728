//! Fixture plugin `aihost/faulty`: every way a plugin can misbehave, chosen by its `fault:` option. Apart from the fault it
//! answers like a model that says `word ` until it is told to stop.

use std::path::PathBuf;
use std::time::Duration;

use aihost_plugin_api::{
    Context, Engine, Error, ErrorKind, FinishReason, LoadContext, LoadRequest, MemoryPlan, Plugin, Result, Text,
    TextOutput, TextRequest,
};

/// Tokens of an answer that nobody limits.
const DEFAULT_TOKENS: u32 = 8;
/// Bytes no machine has.
const TOO_MUCH_MEMORY: usize = 1 << 46;

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// `load` fails with a proper error.
    LoadError,
    /// `load` fails for memory, as a plugin should say it.
    LoadOutOfMemory,
    /// `new` panics.
    PanicInNew,
    /// `plan` panics.
    PanicInPlan,
    /// `plan` never returns.
    HangPlan,
    /// `load` panics.
    PanicInLoad,
    /// `generate` panics.
    PanicInGenerate,
    /// Dropping the loaded model panics.
    PanicInDrop,
    /// `generate` aborts the process.
    Abort,
    /// `generate` touches memory that is not there.
    Segfault,
    /// `load` never returns and reports no progress.
    HangLoad,
    /// `generate` never returns and looks at nothing.
    HangGenerate,
    /// `generate` ends the process as if all were well.
    Exit0,
    /// `generate` allocates until the allocator gives up.
    Oom,
    /// Prints to standard output and standard error, where a careless protocol would be.
    StdoutNoise,
    /// Pushes on through Pause.
    IgnorePause,
    /// Stops the whole process, its heartbeat included.
    Freeze,
}

/// The entry's `options:`.
#[derive(Clone, Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What goes wrong.
    fault: Fault,
    /// Tokens that are said before `generate` goes wrong.
    after_tokens: u32,
    /// A shell command that `load` starts and leaves to itself, as an engine process would be.
    child: Option<String>,
    /// The fault happens only while this file does not exist, and creates it.
    once_file: Option<PathBuf>,
}

impl Options {
    /// Whether this fault is due now.
    fn due(&self, fault: Fault) -> bool {
        self.fault == fault
            && match &self.once_file {
                None => true,
                Some(file) => !file.exists() && std::fs::write(file, b"").is_ok(),
            }
    }
}

/// The plugin.
#[derive(Debug)]
pub struct Faulty(Options);

/// A loaded instance.
#[derive(Debug)]
pub struct Loaded(Options);

impl Plugin for Faulty {
    type Options = Options;
    type Engine = Loaded;

    fn new(options: Options) -> Result<Self> {
        assert!(!options.due(Fault::PanicInNew), "a panic in new, as asked");
        if options.fault == Fault::StdoutNoise {
            noise();
        }
        Ok(Self(options))
    }

    fn plan(&self, _load: &LoadRequest) -> Result<MemoryPlan> {
        assert!(!self.0.due(Fault::PanicInPlan), "a panic in plan, as asked");
        if self.0.due(Fault::HangPlan) {
            hang();
        }
        Ok(MemoryPlan { required: 1 << 20, preferred: 1 << 20, ..MemoryPlan::default() })
    }

    fn load(&self, _load: &LoadRequest, _ctx: &LoadContext) -> Result<Loaded> {
        assert!(!self.0.due(Fault::PanicInLoad), "a panic in load, as asked");
        if self.0.due(Fault::LoadError) {
            return Err(Error::new(ErrorKind::CorruptFile, "the weights are damaged, as asked; pull them again"));
        }
        if self.0.due(Fault::LoadOutOfMemory) {
            return Err(Error::new(ErrorKind::OutOfMemory, "the device has no room, as asked"));
        }
        if let Some(script) = &self.0.child {
            let child = std::process::Command::new("sh").args(["-c", script]).spawn();
            child.map_err(|e| Error::internal(format!("cannot start a shell: {e}")))?;
        }
        if self.0.due(Fault::HangLoad) {
            hang();
        }
        Ok(Loaded(self.0.clone()))
    }
}

impl Engine for Loaded {
    type Task = Text;

    fn generate(&self, request: TextRequest, output: &TextOutput, _ctx: &Context) -> Result<FinishReason> {
        output.prompt(1, 0);
        let tokens = request.max_tokens.unwrap_or(DEFAULT_TOKENS);
        for token in 0..=tokens {
            if token == self.0.after_tokens.min(tokens) {
                self.misbehave(output)?;
            }
            if token < tokens {
                output.token(b"word ")?;
            }
        }
        Ok(FinishReason::Length)
    }
}

impl Loaded {
    fn misbehave(&self, output: &TextOutput) -> Result<()> {
        // The token before is given time to reach the host, so that a test can tell a fault in mid-answer.
        if self.0.after_tokens > 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        match self.0.fault {
            fault if !self.0.due(fault) => {}
            Fault::PanicInGenerate => panic!("a panic in generate, as asked"),
            Fault::Abort => std::process::abort(),
            Fault::Segfault => signal(libc::SIGSEGV),
            Fault::Freeze => signal(libc::SIGSTOP),
            Fault::HangGenerate => hang(),
            Fault::Exit0 => std::process::exit(0),
            Fault::Oom => drop(std::hint::black_box(Vec::<u8>::with_capacity(TOO_MUCH_MEMORY))),
            Fault::StdoutNoise => noise(),
            Fault::IgnorePause => {
                let chunk = "x".repeat(32 << 10);
                loop {
                    output.try_token(chunk.as_bytes(), None)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        assert!(!self.0.due(Fault::PanicInDrop), "a panic in drop, as asked");
    }
}

fn hang() {
    loop {
        std::thread::park();
    }
}

fn noise() {
    use std::io::Write;
    for line in 0..100 {
        let _ = writeln!(std::io::stdout(), "noise on stdout {line}");
        let _ = writeln!(std::io::stderr(), "noise on stderr {line}");
    }
}

/// Rust's own handler takes the first SIGSEGV for a stack overflow it can report, so it is raised again.
fn signal(signal: i32) {
    for _ in 0..2 {
        // SAFETY: raising a signal touches no memory of ours.
        #[expect(unsafe_code, reason = "a fault that only the operating system can make")]
        unsafe {
            libc::raise(signal)
        };
    }
}

aihost_plugin_api::export_plugin! {
    plugin: Faulty,
    id: "aihost/faulty",
    kinds: ["text"],
    devices: ["cpu"],
    max_concurrency: 4,
}
