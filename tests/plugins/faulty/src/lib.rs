//! Fixture plugin `aihost/faulty`: every way a plugin can misbehave, chosen by its `fault:` option. Apart from the fault it
//! answers like a model that says `word ` until it is told to stop.

mod card;
mod describing;
mod memory;
mod noise;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use aihost_plugin_api::{
    Context, Engine, Error, ErrorKind, FinishReason, Job, LoadContext, LoadRequest, MemoryPlan, Plugin, Result, Text,
    TextOutput, TextRequest,
};

/// Tokens of an answer that nobody limits.
const DEFAULT_TOKENS: u32 = 8;
/// Between two steps of an answer that is all progress.
const PROGRESS_STEP: Duration = Duration::from_millis(20);
/// What gives the token before a fault some time to reach the host, where no gate does.
const HEAD_START: Duration = Duration::from_millis(20);
/// How often a gate is looked at.
const GATE_POLL: Duration = Duration::from_millis(5);
/// Bytes that it plans where nothing is said.
const DEFAULT_PLAN: u64 = 1 << 20;
/// Bytes no machine has.
const TOO_MUCH_MEMORY: usize = 1 << 46;

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Nothing goes wrong.
    #[default]
    None,
    /// `load` fails with a proper error.
    LoadError,
    /// `load` fails for memory, as a plugin should say it.
    LoadOutOfMemory,
    /// `new` panics.
    PanicInNew,
    /// `new` says that it was stopped, which nobody asked for.
    StopInNew,
    /// `load` says the same.
    StopInLoad,
    /// `load` blames a request, and there is none.
    BlameInLoad,
    /// `submit` panics after it has ended its request well.
    PanicAfterEnd,
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
    /// Dropping the loaded model never ends.
    HangDrop,
    /// Dropping the loaded model aborts the process.
    AbortInDrop,
    /// `generate` aborts the process.
    Abort,
    /// `generate` touches memory that is not there.
    Segfault,
    /// `generate` spoils its process's context of a graphics card; without a driver it says that it did.
    Poison,
    /// `load` never returns and reports no progress.
    HangLoad,
    /// `generate` never returns and looks at nothing.
    HangGenerate,
    /// `generate` ends the process as if all were well.
    Exit0,
    /// `generate` allocates until the allocator gives up.
    Oom,
    /// `plan` takes `bytes` of memory before there is a grant.
    HoardInPlan,
    /// `load` takes `bytes` of memory at once.
    HoardInLoad,
    /// `generate` takes `bytes` of memory at once, and keeps them.
    HoardAtOnce,
    /// `generate` takes `bytes` of memory bit by bit, a token with each, and keeps them.
    HoardSlowly,
    /// `load` takes `bytes` of memory, and forks a process that has the same pages and lives on.
    ForkWithMemory,
    /// A thread that `load` starts takes `bytes` of memory while nobody asks for anything.
    HoardWhenIdle,
    /// Threads that `load` starts, as many as `bytes` says, compute without end.
    Spin,
    /// `plan` says that `bytes` of what it requires are mapped, though it requires a mebibyte.
    LieOfMapped,
    /// Prints to standard output and standard error, where a careless protocol would be.
    StdoutNoise,
    /// `generate` prints `bytes` of lines.
    Shout,
    /// `generate` logs one record of `bytes`, eight times.
    HugeRecord,
    /// `generate` logs until `bytes` are logged, a short record at a time.
    ManyRecords,
    /// `generate` panics with a message of `bytes`.
    HugePanic,
    /// `generate` fails with a message of `bytes`.
    HugeError,
    /// `generate` fails without a word.
    EmptyError,
    /// `generate` logs, prints and fails with what steers a terminal and looks like other lines.
    Forge,
    /// `generate` ends itself as stopped though nobody asked for that.
    StopUnasked,
    /// `generate` closes every descriptor of the process.
    CloseAll,
    /// Pushes on through Pause.
    IgnorePause,
    /// Stops the whole process, its heartbeat included.
    Freeze,
    /// `generate` says only how far it is, until the file `gate` exists.
    ProgressOnly,
    /// `park` fails with a proper error.
    ParkError,
    /// `park` panics.
    PanicInPark,
    /// `park` never returns.
    HangPark,
    /// `park` aborts the process.
    AbortInPark,
    /// `unpark` fails with a proper error.
    UnparkError,
    /// `unpark` panics.
    PanicInUnpark,
    /// `unpark` never returns.
    HangUnpark,
    /// `unpark` aborts the process.
    AbortInUnpark,
    /// `health` fails with a proper error.
    HealthError,
    /// `health` panics.
    PanicInHealth,
    /// `health` never returns.
    HangHealth,
    /// `health` aborts the process.
    AbortInHealth,
    /// `cost` fails with a proper error.
    CostError,
    /// `cost` panics.
    PanicInCost,
    /// `cost` never returns.
    HangCost,
    /// `cost` aborts the process.
    AbortInCost,
}

/// How one step of an instance's life goes wrong.
struct StepFaults {
    error: Fault,
    panic: Fault,
    hang: Fault,
    abort: Fault,
}

const PARK: StepFaults =
    StepFaults { error: Fault::ParkError, panic: Fault::PanicInPark, hang: Fault::HangPark, abort: Fault::AbortInPark };
const UNPARK: StepFaults = StepFaults {
    error: Fault::UnparkError,
    panic: Fault::PanicInUnpark,
    hang: Fault::HangUnpark,
    abort: Fault::AbortInUnpark,
};
const HEALTH: StepFaults = StepFaults {
    error: Fault::HealthError,
    panic: Fault::PanicInHealth,
    hang: Fault::HangHealth,
    abort: Fault::AbortInHealth,
};
const COST: StepFaults =
    StepFaults { error: Fault::CostError, panic: Fault::PanicInCost, hang: Fault::HangCost, abort: Fault::AbortInCost };

/// The entry's `options:`.
#[derive(Clone, Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(transform = describing::misbehave)]
pub struct Options {
    /// What goes wrong.
    fault: Fault,
    /// Tokens that are said before `generate` goes wrong.
    after_tokens: u32,
    /// A shell command that `load` starts and leaves to itself, as an engine process would be.
    child: Option<String>,
    /// How much of it, where a fault is a matter of size.
    bytes: u64,
    /// Bytes that `plan` requires; a mebibyte if nothing is said.
    plan: Option<u64>,
    /// Bytes that it requires on other devices.
    others: BTreeMap<String, u64>,
    /// The fault happens only while this file does not exist, and creates it.
    once_file: Option<PathBuf>,
    /// A file that a test creates when it has seen enough: it ends an answer that is all progress, and a fault in mid-answer
    /// waits for it.
    gate: Option<PathBuf>,
}

impl Options {
    /// Whether there is a gate, and it is closed.
    fn is_held(&self) -> bool {
        self.gate.as_ref().is_some_and(|file| !file.exists())
    }

    /// Whether this fault is due now.
    fn due(&self, fault: Fault) -> bool {
        self.fault == fault
            && match &self.once_file {
                None => true,
                Some(file) => !file.exists() && std::fs::write(file, b"").is_ok(),
            }
    }
}

/// The plugin, with the entry's options.
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
        if options.due(Fault::StopInNew) {
            return Err(Error::new(ErrorKind::Stopped, "stopped, as asked"));
        }
        if options.fault == Fault::StdoutNoise {
            noise::both();
        }
        Ok(Self(options))
    }

    fn plan(&self, _load: &LoadRequest) -> Result<MemoryPlan> {
        assert!(!self.0.due(Fault::PanicInPlan), "a panic in plan, as asked");
        if self.0.due(Fault::HangPlan) {
            hang();
        }
        if self.0.due(Fault::HoardInPlan) {
            memory::at_once(self.0.bytes);
        }
        let required = self.0.plan.unwrap_or(DEFAULT_PLAN);
        let mapped = if self.0.due(Fault::LieOfMapped) { self.0.bytes } else { 0 };
        Ok(MemoryPlan::new(required).mapped(mapped).others(self.0.others.clone()))
    }

    fn load(&self, _load: &LoadRequest, _ctx: &LoadContext) -> Result<Loaded> {
        assert!(!self.0.due(Fault::PanicInLoad), "a panic in load, as asked");
        if self.0.due(Fault::LoadError) {
            return Err(Error::new(ErrorKind::CorruptFile, "the weights are damaged, as asked; pull them again"));
        }
        if self.0.due(Fault::StopInLoad) {
            return Err(Error::new(ErrorKind::Stopped, "stopped, as asked"));
        }
        if self.0.due(Fault::BlameInLoad) {
            return Err(Error::invalid_request("n is blamed, as asked"));
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
        if self.0.due(Fault::HoardInLoad) {
            memory::at_once(self.0.bytes);
        }
        if self.0.due(Fault::ForkWithMemory) {
            memory::at_once(self.0.bytes);
            fork();
        }
        if self.0.due(Fault::HoardWhenIdle) {
            memory::when_idle(self.0.bytes);
        }
        if self.0.due(Fault::Spin) {
            for _ in 0..self.0.bytes {
                let thread = std::thread::Builder::new().name("spin".to_owned());
                thread.spawn(spin).map_err(|e| Error::internal(format!("cannot start a thread: {e}")))?;
            }
        }
        Ok(Loaded(self.0.clone()))
    }
}

impl Engine for Loaded {
    type Task = Text;

    fn submit(&self, job: Job<Text>) {
        job.run(|request, output, ctx| self.generate(request, output, ctx));
        assert!(!self.0.due(Fault::PanicAfterEnd), "a panic after the end, as asked");
    }

    fn generate(&self, request: TextRequest, output: &TextOutput, ctx: &Context) -> Result<FinishReason> {
        output.prompt(1, 0);
        let tokens = request.max_tokens.unwrap_or(DEFAULT_TOKENS);
        for token in 0..=tokens {
            if token == self.0.after_tokens.min(tokens) {
                self.misbehave(output, ctx)?;
            }
            if token < tokens {
                let said = output.token(b"word ");
                // What is going to hang does not heed a cancel on the way there.
                if self.0.fault != Fault::HangGenerate {
                    said?;
                }
            }
        }
        Ok(FinishReason::Length)
    }

    fn cost(&self, _request: &TextRequest) -> Result<u64> {
        self.step(&COST)?;
        Ok(0)
    }

    fn park(&self) -> Result<()> {
        self.step(&PARK)
    }

    fn unpark(&self, _ctx: &LoadContext) -> Result<()> {
        self.step(&UNPARK)
    }

    fn health(&self) -> Result<()> {
        self.step(&HEALTH)
    }
}

impl Loaded {
    fn step(&self, faults: &StepFaults) -> Result<()> {
        match self.0.fault {
            fault
                if ![faults.error, faults.panic, faults.hang, faults.abort].contains(&fault) || !self.0.due(fault) => {}
            fault if fault == faults.error => return Err(Error::internal("an error of a step, as asked")),
            fault if fault == faults.panic => panic!("a panic in a step, as asked"),
            fault if fault == faults.hang => hang(),
            _ => std::process::abort(),
        }
        Ok(())
    }

    fn misbehave(&self, output: &TextOutput, ctx: &Context) -> Result<()> {
        if self.0.after_tokens > 0 {
            std::thread::sleep(HEAD_START);
            while self.0.is_held() {
                ctx.check()?;
                std::thread::sleep(GATE_POLL);
            }
        }
        match self.0.fault {
            fault if !self.0.due(fault) => {}
            Fault::PanicInGenerate => panic!("a panic in generate, as asked"),
            Fault::Abort => std::process::abort(),
            Fault::Segfault => signal(libc::SIGSEGV),
            Fault::Poison => return Err(card::poison()),
            Fault::Freeze => signal(libc::SIGSTOP),
            Fault::HangGenerate => hang(),
            Fault::Exit0 => std::process::exit(0),
            Fault::Oom => drop(std::hint::black_box(Vec::<u8>::with_capacity(TOO_MUCH_MEMORY))),
            Fault::StdoutNoise => noise::both(),
            Fault::HoardAtOnce => memory::in_request(self.0.bytes),
            Fault::HoardSlowly => memory::slowly(self.0.bytes, || output.token(b"more "))?,
            Fault::Shout => noise::shout(self.0.bytes),
            Fault::HugeRecord => noise::huge_records(self.0.bytes),
            Fault::ManyRecords => noise::many_records(self.0.bytes),
            Fault::HugePanic => panic!("{}", "p".repeat(self.0.bytes as usize)),
            Fault::HugeError => return Err(Error::internal("e".repeat(self.0.bytes as usize))),
            Fault::EmptyError => return Err(Error::internal("")),
            Fault::Forge => return Err(noise::forge()),
            Fault::StopUnasked => return Err(Error::new(ErrorKind::Stopped, "the engine has had enough")),
            Fault::CloseAll => close_all(),
            Fault::ProgressOnly => {
                for step in (1..).take_while(|_| self.0.is_held()) {
                    ctx.check()?;
                    ctx.progress(step, 0);
                    std::thread::sleep(PROGRESS_STEP);
                }
            }
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
        if self.0.due(Fault::HangDrop) {
            hang();
        }
        if self.0.due(Fault::AbortInDrop) {
            std::process::abort();
        }
    }
}

fn spin() {
    loop {
        std::hint::spin_loop();
    }
}

fn hang() {
    loop {
        std::thread::park();
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

/// Leaves a process that does nothing, with all that this one has.
fn fork() {
    // SAFETY: the child calls nothing but `pause`, which is safe after a fork of a process with threads.
    #[expect(unsafe_code, reason = "a fault that only the operating system can make")]
    unsafe {
        if libc::fork() == 0 {
            loop {
                libc::pause();
            }
        }
    }
}

/// Writes what is no answer wherever the answer may go.
pub(crate) fn garble() {
    for descriptor in 0..64 {
        let noise = b"no answer at all";
        // SAFETY: the bytes are there for as long as the call takes; a descriptor that is not open is an error, no more.
        #[expect(unsafe_code, reason = "a fault that only the operating system can make")]
        unsafe {
            libc::write(descriptor, noise.as_ptr().cast(), noise.len())
        };
    }
}

/// The socket to the host among them.
fn close_all() {
    // SAFETY: what is closed is missed by this process alone, which is the fault.
    #[expect(unsafe_code, reason = "a fault that only the operating system can make")]
    unsafe {
        libc::close_range(0, libc::c_uint::MAX, 0)
    };
}

aihost_plugin_api::export_plugin! {
    plugin: Faulty,
    id: "aihost/faulty",
    devices: ["cpu"],
    formats: ["gguf"],
    max_concurrency: 4,
    parks: true,
    permissions: ["network", "subprocess", "files"],
}
