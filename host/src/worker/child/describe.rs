//! `aihost describe`: opens one plugin, has it say what options it takes, and ends. Nothing of it runs beside that: no threads,
//! no instance, no device.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use rustix::process::{Pid, Resource, Rlimit, Signal, getppid, set_parent_process_death_signal, setrlimit};

use super::super::limits::PARENT_VARIABLE;
use super::super::schemas::{DescribeOrder, SCHEMA_BYTES_MAX};
use super::{confine, sys};
use crate::plugin;

/// Bytes of memory of its own that a plugin may take for it; many map large tables and touch none of them.
const MEMORY_BYTES_MAX: u64 = 4 << 30;
/// Bytes of the order; a path and some numbers.
const ORDER_BYTES_MAX: u64 = 1 << 20;

/// Runs the hidden subcommand `aihost describe`.
pub fn describe_main() -> ExitCode {
    if let Err(why) = describe() {
        // It may have no standard error any more, and then nobody is left to tell.
        let _ = writeln!(io::stderr(), "aihost describe: {why}; it is started by `aihost check`, not by hand");
        return ExitCode::from(2);
    }
    // Exit handlers of the plugin's libraries may hang.
    sys::leave(0)
}

fn describe() -> Result<(), String> {
    let text = |what: &'static str| move |e: rustix::io::Errno| format!("{what}: {e}");
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(text("cannot tie itself to its parent"))?;
    let parent = std::env::var(PARENT_VARIABLE).ok().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
    if parent.is_none() || getppid() != parent {
        return Err("its parent is not an aihost".to_owned());
    }
    rustix::thread::set_no_new_privs(true).map_err(text("cannot give up new privileges"))?;
    let mut order = Vec::new();
    io::stdin().take(ORDER_BYTES_MAX).read_to_end(&mut order).map_err(|e| format!("cannot be told what to do: {e}"))?;
    let order: DescribeOrder = serde_json::from_slice(&order).map_err(|e| format!("cannot be told what to do: {e}"))?;
    // What the plugin prints is nobody's business; the answer goes by a descriptor that it does not know.
    let answer = rustix::io::fcntl_dupfd_cloexec(io::stdout().as_fd(), 3).map_err(text("cannot keep its output"))?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.map_err(|e| format!("cannot open /dev/null: {e}"))?;
    rustix::stdio::dup2_stdin(&null).map_err(text("cannot replace its input"))?;
    rustix::stdio::dup2_stdout(&null).map_err(text("cannot replace its output"))?;
    rustix::stdio::dup2_stderr(&null).map_err(text("cannot replace its messages"))?;
    drop(null);
    sys::close_all_but(&answer).map_err(text("cannot close what it inherited"))?;
    confine::drop_privileges();
    for (what, most) in [(Resource::Data, MEMORY_BYTES_MAX), (Resource::Core, 0)] {
        // A limit that is lower already is as good.
        let _ = setrlimit(what, Rlimit { current: Some(most), maximum: Some(most) });
    }
    confine::confine(&order.confinement)?;
    let described = plugin::open(&order.plugin, &order.identity).map_err(|e| e.to_string());
    let described = described.and_then(|plugin| plugin.describe().map_err(|e| e.to_string()));
    let told: Result<serde_json::Value, String> = described.map(|described| described.options_schema);
    let mut told = serde_json::to_vec(&told).map_err(|e| e.to_string())?;
    if told.len() > SCHEMA_BYTES_MAX {
        let why = format!("its description has {} bytes, of at most {SCHEMA_BYTES_MAX}", told.len());
        told = serde_json::to_vec(&Err::<(), _>(why)).map_err(|e| e.to_string())?;
    }
    let length = u64::try_from(told.len()).map_err(|e| e.to_string())?;
    let mut answer = std::fs::File::from(answer);
    answer.write_all(&length.to_le_bytes()).and_then(|()| answer.write_all(&told)).map_err(|e| e.to_string())
}
