//! The words of the host as plain types: ids, sizes, states. No IO, no async, nothing of HTTP or plugins.

use std::borrow::{Borrow, Cow};
use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of a models.yaml entry, which is never empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ModelId(String);

impl ModelId {
    /// A model of this name; `None` if there is none.
    pub fn new(name: impl Into<String>) -> Option<Self> {
        let name = name.into();
        (!name.is_empty()).then_some(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// So that a model is found by its name.
impl Borrow<str> for ModelId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
impl From<&str> for ModelId {
    fn from(name: &str) -> Self {
        Self::new(name).expect("models of tests have names")
    }
}

/// One accepted request. Unique for the host's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// One loaded (or loading) copy of a model. Unique for the host's life, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct InstanceId(pub u64);

/// A device: the host's own memory and processors, or a graphics card by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub enum Device {
    /// `cpu`.
    Cpu,
    /// `cuda:N`.
    Cuda(u16),
    /// `remote`: wherever it is that others run a model. Nothing of this host is there.
    Remote,
}

/// Before the number of a graphics card.
const CUDA: &str = "cuda:";
/// Digits that the number of a graphics card may have.
const CUDA_DIGITS_MAX: usize = 3;

impl Device {
    /// `cpu` or `cuda`, as manifests name what a plugin runs on.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda(_) => "cuda",
            Self::Remote => "remote",
        }
    }

    /// Whether its memory is the host's own.
    pub fn is_host_memory(self) -> bool {
        self == Self::Cpu
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "{CUDA}{number}"),
            Self::Remote => f.write_str("remote"),
        }
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

/// A text that names no device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("devices are called `cpu` and `cuda:0`, `cuda:1`, ...")]
pub struct NoDevice;

impl FromStr for Device {
    type Err = NoDevice;

    fn from_str(name: &str) -> Result<Self, NoDevice> {
        if name == "cpu" {
            return Ok(Self::Cpu);
        }
        let digits = name.strip_prefix(CUDA).filter(|digits| (1..=CUDA_DIGITS_MAX).contains(&digits.len()));
        let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        digits.and_then(|digits| digits.parse().ok()).map(Self::Cuda).ok_or(NoDevice)
    }
}

/// A number of bytes. Displays in binary units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match UNITS.iter().find(|(_, size)| self.0 >= *size) {
            Some((unit, size)) => {
                write!(f, "{}.{} {unit}", self.0 / size, (self.0 % size).saturating_mul(10) / size)
            }
            None => write!(f, "{} B", self.0),
        }
    }
}

/// An enum whose variants have names that are told outside: in logs, metrics and answers. Each is written once.
macro_rules! named {
    ($(#[$about:meta])* pub enum $enum:ident { $($(#[$doc:meta])* $variant:ident = $name:literal,)+ }) => {
        $(#[$about])*
        pub enum $enum {
            $($(#[$doc])* $variant,)+
        }

        impl $enum {
            /// The names of all, in their order.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// All of them, in their order.
            pub const ALL: [Self; Self::NAMES.len()] = [$(Self::$variant),+];

            /// Its name in logs, metrics and answers.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}
pub(crate) use named;

named! {
    /// What kind of task a model serves.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
    #[serde(rename_all = "lowercase")]
    pub enum Kind {
        /// Chat and completions.
        Text = "text",
        /// Images from text.
        Image = "image",
        /// Music and sound.
        Audio = "audio",
        /// Vectors from text.
        Embedding = "embedding",
        /// Text to speech.
        Speech = "speech",
        /// Speech to text.
        Transcription = "transcription",
        /// Raw JSON in, any body out.
        Custom = "custom",
    }
}

named! {
    /// How urgent a request is.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Class {
        /// Someone waits for the answer.
        #[default]
        Interactive = "interactive",
        /// Nobody waits for the answer.
        Batch = "batch",
    }
}

named! {
    /// Where a model or instance stands.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
    #[serde(rename_all = "lowercase")]
    pub enum ModelState {
        /// There is no worker.
        Cold = "cold",
        /// The worker comes up and plans.
        Starting = "starting",
        /// Waiting for memory on the device.
        Waiting = "waiting",
        /// Weights are being read.
        Loading = "loading",
        /// It serves requests.
        Hot = "hot",
        /// Serving what holds a lease, granting no new one.
        Draining = "draining",
        /// Giving its device memory back.
        Parking = "parking",
        /// The worker lives, its device memory is given back.
        Parked = "parked",
        /// Taking its device memory again.
        Unparking = "unparking",
        /// The worker is going.
        Stopping = "stopping",
        /// The last load failed; it is tried again after a cooldown.
        Failed = "failed",
    }
}

impl ModelState {
    /// Steps from serving: 0 is hot. Of several instances the least says where their model stands.
    pub fn distance(self) -> u8 {
        match self {
            Self::Hot => 0,
            Self::Draining => 1,
            Self::Unparking => 2,
            Self::Loading => 3,
            Self::Waiting => 4,
            Self::Starting => 5,
            Self::Parked => 6,
            Self::Parking => 7,
            Self::Stopping => 8,
            Self::Cold | Self::Failed => 9,
        }
    }
}

named! {
    /// Why a request, load or call failed, in terms every room shares; `http` alone turns it into a status code.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub enum FailureKind {
        /// The client must change the request.
        InvalidRequest = "invalid_request",
        /// The prompt does not fit.
        ContextLength = "context_length",
        /// No such model.
        UnknownModel = "unknown_model",
        /// The model serves other endpoints.
        WrongKind = "wrong_kind",
        /// The queue is full.
        QueueFull = "queue_full",
        /// Loaded, but no slot came free in time.
        Busy = "busy",
        /// Still loading when the client's patience ended.
        StillLoading = "still_loading",
        /// It can never fit, or the device is out of memory.
        OutOfMemory = "out_of_memory",
        /// The plugin, its files or its options are not usable: the operator must act.
        NotUsable = "not_usable",
        /// Its plugin is not there, or not usable.
        NoPlugin = "no_plugin",
        /// Weights are not there yet.
        NotPulled = "not_pulled",
        /// The worker died.
        WorkerDied = "worker_died",
        /// This very request made workers die; it is not tried again for a while.
        Suspected = "suspected",
        /// The server that answers for the model does not, or breaks off.
        Unreachable = "unreachable",
        /// Took too long.
        TimedOut = "timed_out",
        /// The host is shutting down, or the model was unloaded by force.
        ShuttingDown = "shutting_down",
        /// The client left.
        Cancelled = "cancelled",
        /// A defect.
        Internal = "internal",
    }
}

named! {
    /// Why an instance leaves its device.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub enum EvictionCause {
        /// Another model needs its memory.
        Memory = "memory",
        /// Nobody asked for it for `keep_alive`.
        Idle = "idle",
        /// The operator or a shutdown wants it so.
        Asked = "asked",
        /// Its entry changed or is gone.
        Reload = "reload",
        /// Whoever waited for it left while it came up.
        Unwanted = "unwanted",
        /// It failed, and cannot be used any more.
        Failed = "failed",
    }
}

/// A failure: its kind, and one sentence that says what to do next where there is something to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What it is, for programs to decide by.
    pub kind: FailureKind,
    /// What it is, for people to read: all of it, with what whoever runs the host can do.
    pub message: String,
    /// What clients read instead, if that is another text.
    pub for_clients: Option<Box<str>>,
    /// What a client's program can act on, if a plugin said any of it.
    pub details: Option<Box<FailureDetails>>,
}

/// What a plugin said of a failure beside its sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FailureDetails {
    /// The field of the request that is to blame, by its path.
    pub field: Option<String>,
    /// A name for programs.
    pub code: Option<String>,
    /// After how many milliseconds the same request may succeed.
    pub retry_after_ms: Option<u64>,
    /// Tokens of a prompt that does not fit, where they were counted.
    pub prompt_tokens: Option<u32>,
    /// Tokens that prompt and answer may have together.
    pub context_tokens: Option<u32>,
}

/// What clients read of a model that its operator must mend.
const CANNOT_BE_LOADED: &str =
    "the model cannot be loaded as it is set up; ask whoever runs this host, whose log says why";
/// What clients read of a model whose files are not there.
const NOT_HERE_YET: &str =
    "the model's files are not on this host as they should be; ask whoever runs it to fetch them";

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), for_clients: None, details: None }
    }

    /// The same, of which clients read this.
    #[must_use]
    pub fn for_clients(self, text: impl Into<Box<str>>) -> Self {
        Self { for_clients: Some(text.into()), ..self }
    }

    /// What a client reads of it: nothing that only whoever runs the host could do.
    pub fn client_message(&self) -> &str {
        match (&self.for_clients, self.kind) {
            (Some(text), _) => text,
            (None, FailureKind::NotUsable | FailureKind::NoPlugin) => CANNOT_BE_LOADED,
            (None, FailureKind::NotPulled) => NOT_HERE_YET,
            (None, _) => &self.message,
        }
    }

    /// The field that is to blame, if a plugin named one.
    pub fn field(&self) -> Option<&str> {
        self.details.as_ref()?.field.as_deref()
    }
}

/// Milliseconds since the host started. The scheduler's only clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Millis(pub u64);

impl Millis {
    /// This much later.
    pub fn after(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }

    /// Milliseconds since `earlier`; 0 if it is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Names that a sentence lists before it counts the rest.
const NAMES_SHOWN: usize = 10;

/// Names as a sentence lists them: the first ten, and how many more there are.
pub fn some_names<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names = names.into_iter();
    let shown = names.by_ref().take(NAMES_SHOWN).collect::<Vec<_>>().join(", ");
    match names.count() {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Text of others as it may be printed: what would steer a terminal, begin a line of its own or turn the reading direction is
/// escaped. Tabs stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// [`printable`] text of at most so many bytes; that something was cut shows at its end.
pub fn excerpt(text: &str, most_bytes: usize) -> String {
    let head = &text[..text.floor_char_boundary(most_bytes)];
    let mut out = printable(head).into_owned();
    if head.len() < text.len() || out.len() > most_bytes {
        out.truncate(out.floor_char_boundary(most_bytes.saturating_sub(CUT.len())));
        out.push_str(CUT);
    }
    out
}

/// Bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The end of a text that was cut.
const CUT: &str = "…";

/// Controls, separators of lines and paragraphs, and the invisible characters that turn or tag text.
pub fn steers(c: char) -> bool {
    match c {
        '\t' => false,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}' => true,
        c => c.is_control(),
    }
}

/// Longest name that another is sought for, and longest that is found, bytes: what is longer was not mistyped.
const NEAREST_NAME_BYTES: usize = 128;
/// Most pairs of bytes that are compared for one suggestion, some milliseconds of work; names that come later are not found.
const NEAREST_WORK_MAX: usize = 1 << 18;
/// Bytes of somebody's name that a sentence repeats.
const SHOWN_NAME_BYTES: usize = 100;

/// The name in `names` nearest to `wanted`, if near enough to be meant. What it costs is bounded, whatever is asked.
pub fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if wanted.len() > NEAREST_NAME_BYTES {
        return None;
    }
    let mut work_left = NEAREST_WORK_MAX;
    let mut best: Option<(usize, &str)> = None;
    for name in names {
        let near = 1 + wanted.len().max(name.len()) / 3;
        // Names are at least as far apart as their lengths.
        if name.len() > NEAREST_NAME_BYTES || wanted.len().abs_diff(name.len()) > near {
            continue;
        }
        let Some(left) = work_left.checked_sub(wanted.len() * name.len()) else { break };
        work_left = left;
        let distance = strsim::levenshtein(wanted, name);
        if distance <= near && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, name));
        }
    }
    best.map(|(_, name)| name)
}

/// What a sentence repeats of a name: its beginning, if it is long.
pub fn shown(name: &str) -> Cow<'_, str> {
    beginning(name, SHOWN_NAME_BYTES)
}

/// So many bytes of a text as it is; that something was cut shows behind them.
pub fn beginning(text: &str, most_bytes: usize) -> Cow<'_, str> {
    let head = &text[..text.floor_char_boundary(most_bytes)];
    if head.len() == text.len() { Cow::Borrowed(text) } else { Cow::Owned(format!("{head}{CUT}")) }
}

#[cfg(test)]
mod tests {
    use super::{ByteSize, Device, NEAREST_WORK_MAX, NoDevice, excerpt, nearest, printable, shown, some_names};

    #[test]
    fn devices_are_named_as_they_are_parsed_and_nothing_else_is_one() {
        for (device, name, kind) in
            [(Device::Cpu, "cpu", "cpu"), (Device::Cuda(0), "cuda:0", "cuda"), (Device::Cuda(999), "cuda:999", "cuda")]
        {
            assert_eq!((name.parse(), device.to_string().as_str(), device.kind()), (Ok(device), name, kind));
        }
        for name in ["", "gpu", "CPU", "cpu ", "cpu:0", "cuda", "cuda:", "cuda:+1", "cuda:-1", "cuda:1000", "cuda:٣"] {
            assert_eq!(name.parse::<Device>(), Err(NoDevice), "{name}");
        }
    }

    #[test]
    fn long_lists_are_counted() {
        assert_eq!(some_names(["a", "b"]), "a, b");
        let many: Vec<String> = (0..12).map(|n| n.to_string()).collect();
        assert_eq!(some_names(many.iter().map(String::as_str)), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more");
    }

    #[test]
    fn what_steers_a_terminal_is_escaped_and_other_text_is_not() {
        for (text, wanted) in [
            ("plain, é 漢 🙂\tx", "plain, é 漢 🙂\tx"),
            ("a\n[99] ERROR forged", "a\\n[99] ERROR forged"),
            ("\r\u{1b}]0;title\u{7}\u{9b}31m", "\\r\\u{1b}]0;title\\u{7}\\u{9b}31m"),
            ("\u{202e}txt.exe\u{2066}\u{2028}", "\\u{202e}txt.exe\\u{2066}\\u{2028}"),
            ("\0\u{7f}\u{feff}", "\\u{0}\\u{7f}\\u{feff}"),
        ] {
            assert_eq!(printable(text), wanted);
        }
    }

    #[test]
    fn an_excerpt_keeps_its_size_whatever_it_is_of() {
        assert_eq!(excerpt("short", 5), "short");
        assert_eq!(excerpt("longer", 5), "lo…");
        assert_eq!(excerpt("é漢é漢é漢", 9), "é漢…");
        for text in ["\n".repeat(100), "x".repeat(1 << 20), "漢".repeat(50)] {
            let cut = excerpt(&text, 64);
            assert!(cut.len() <= 64 && cut.ends_with('…'), "{cut}");
            assert_eq!(excerpt(&cut, 64), cut);
        }
    }

    #[test]
    fn sizes_read_well() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (20 << 30, "20.0 GiB"), (u64::MAX, "16777215.9 TiB")]
        {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }

    #[test]
    fn typos_find_their_name() {
        assert_eq!(nearest("smolm2", ["smollm2", "flux"]), Some("smollm2"));
        assert_eq!(nearest("gpt-4o", ["smollm2", "flux"]), None);
    }

    #[test]
    fn what_a_suggestion_costs_is_bounded() {
        let long = "q".repeat(1 << 20);
        assert_eq!(nearest(&long, [long.as_str()]), None);
        assert_eq!(nearest("smolm2", [long.as_str(), "smollm2"]), Some("smollm2"));
        let mut looked_at = 0;
        let names = std::iter::repeat_n("abcdefghij", 1_000_000).inspect(|_| looked_at += 1);
        assert_eq!(nearest("klmnopqrst", names), None);
        assert_eq!(looked_at, NEAREST_WORK_MAX / 100 + 1);
    }

    #[test]
    fn long_names_are_repeated_in_part() {
        assert_eq!(shown("flux"), "flux");
        assert_eq!(shown(&"ä".repeat(51)), format!("{}…", "ä".repeat(50)));
    }
}
