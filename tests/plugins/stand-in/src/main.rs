//! Fixture: an engine process. It serves HTTP on the port of `--port N`, with the control routes of servers that make images,
//! and misbehaves as its other arguments say:
//!
//! | argument | what goes wrong |
//! |---|---|
//! | `--exit N` | it says so on stderr and exits at once |
//! | `--die N` | it ends by this signal at once |
//! | `--never-healthy` | its health is 503 for ever |
//! | `--healthy-after S` | its health is 503 for so many seconds |
//! | `--silent` | it accepts connections and answers nothing |
//! | `--deaf` | it never listens |
//! | `--endless-headers` | each answer's head has no end |
//! | `--endless-lines` | its answers begin with a line that has no end |
//! | `--else-500` | its health is good, and all else is answered 500 |
//! | `--else-hang` | its health is good, and all else is answered never |
//! | `--answer-after S` | all but its health is answered so many seconds later |
//! | `--daemonise` | the process that was started exits with 0, and a grandchild serves |
//! | `--bare` | the server has no environment |
//! | `--leak` | it starts a child in a session of its own that ignores SIGTERM |
//! | `--leak-bare` | the same, and that has no environment |
//! | `--ignore-term` | it ignores SIGTERM |
//! | `--chatty N` | it first writes so many lines on stderr |
//! | `--elsewhere` | it listens on another port than it was told |
//! | `--says TEXT` | it first writes this on stderr, with spaces for underscores |
//! | `--keeps-memory` | it says that it sleeps, and keeps its memory |
//! | `--wake-fails` | it does not wake |
//! | `--garbage-after-wake` | it wakes, and says something else than before |
//!
//! `--weights MIB` is memory that it takes.

#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, clippy::exit, reason = "a program that tells and ends in all ways")]

mod answer;
mod http;
mod language;
mod render;
mod websocket;

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process, setsid};

use language::Language;
use render::Renders;

/// What it was asked to do.
#[derive(Debug)]
pub(crate) struct Stand {
    arguments: Vec<String>,
    begun: Instant,
    renders: Arc<Renders>,
    pub(crate) language: Language,
}

impl Stand {
    /// Whether an argument is there.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.arguments.iter().any(|argument| argument == name)
    }

    /// The number after an argument.
    pub(crate) fn number(&self, name: &str) -> Option<f64> {
        self.text(name)?.parse().ok()
    }

    /// The word after an argument.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        let at = self.arguments.iter().position(|argument| argument == name)?;
        self.arguments.get(at + 1).map(String::as_str)
    }

    fn is_healthy(&self) -> bool {
        let after = Duration::from_secs_f64(self.number("--healthy-after").unwrap_or(0.0));
        !self.is("--never-healthy") && self.begun.elapsed() >= after
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let language = Language::default();
    let stand = Arc::new(Stand { arguments, begun: Instant::now(), renders: Arc::default(), language });
    if stand.is("--sleep") {
        // What was leaked: its own session, for as long as it is let.
        let _ = setsid();
        thread::sleep(Duration::from_secs(600));
        return;
    }
    for line in 0..stand.number("--chatty").unwrap_or(0.0) as u32 {
        eprintln!("line {line} of a start that goes wrong");
    }
    if let Some(text) = stand.text("--says") {
        eprintln!("{}", text.replace('_', " "));
    }
    end_at_once(&stand);
    become_another(&stand);
    leak(&stand);
    serve(&stand);
}

fn end_at_once(stand: &Stand) {
    if let Some(code) = stand.number("--exit") {
        eprintln!("the stand-in exits with {code}");
        std::process::exit(code as i32);
    }
    if let Some(signal) = stand.number("--die") {
        eprintln!("the stand-in dies by signal {signal}");
        end_by(signal as i32);
    }
}

/// Ends this process by a signal.
pub(crate) fn end_by(signal: i32) {
    let signal = Signal::from_named_raw(signal).unwrap_or(Signal::KILL);
    // The runtime's own handler takes the first of some.
    for _ in 0..2 {
        let _ = kill_process(getpid(), signal);
        thread::sleep(Duration::from_millis(50));
    }
}

/// This program again, without one argument.
fn again(stand: &Stand, without: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(stand.arguments.iter().filter(|argument| *argument != without));
    command
}

fn become_another(stand: &Stand) {
    if stand.is("--daemonise") {
        // Once more in between, so that whose it was is gone.
        match stand.is("--once-more") {
            true => drop(again(stand, "--daemonise").stdin(Stdio::null()).spawn()),
            false => drop(again(stand, "").arg("--once-more").stdin(Stdio::null()).spawn()),
        }
        std::process::exit(0);
    }
    if stand.is("--bare") {
        let error = again(stand, "--bare").env_clear().exec();
        eprintln!("cannot become another: {error}");
        std::process::exit(1);
    }
    if stand.is("--ignore-term") {
        // What is ignored stays so in the program that a shell becomes.
        let path = std::env::current_exe().unwrap_or_default();
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' TERM; exec \"$0\" \"$@\""]).arg(path);
        shell.args(stand.arguments.iter().filter(|argument| *argument != "--ignore-term"));
        let error = shell.exec();
        eprintln!("cannot become another: {error}");
        std::process::exit(1);
    }
}

fn leak(stand: &Stand) {
    if !(stand.is("--leak") || stand.is("--leak-bare")) {
        return;
    }
    let path = std::env::current_exe().unwrap_or_default();
    let mut child = Command::new("sh");
    child.args(["-c", "trap '' TERM; exec \"$0\" --sleep \"$@\""]).arg(path).args(&stand.arguments);
    child.stdin(Stdio::null());
    if stand.is("--leak-bare") {
        child.env_clear();
    }
    match child.spawn() {
        Ok(child) => eprintln!("leaked {}", child.id()),
        Err(error) => eprintln!("nothing leaked: {error}"),
    }
}

fn serve(stand: &Arc<Stand>) {
    stand.language.load(stand);
    if stand.is("--deaf") {
        thread::sleep(Duration::from_secs(600));
    }
    let port = stand.number("--port").unwrap_or(0.0) as u16;
    let port = if stand.is("--elsewhere") { 0 } else { port };
    let listener = match TcpListener::bind(("127.0.0.1", port)) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("port {port}: {error}");
            std::process::exit(1);
        }
    };
    if let Ok(address) = listener.local_addr() {
        eprintln!("the stand-in listens on {address}");
    }
    for client in listener.incoming().map_while(Result::ok) {
        let stand = Arc::clone(stand);
        thread::spawn(move || http::serve(client, &stand));
    }
}
