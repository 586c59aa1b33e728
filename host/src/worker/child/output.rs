//! Standard output and error of the worker and of all it starts: read here, line by line, so that whoever writes there never
//! waits for the host. What a dying process wrote last stays in the pipe, whose other reader is the host.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use super::super::limits::{OUTPUT_FLOOD_PAUSE, OUTPUT_LINE_WAIT, OUTPUT_LINGER, OUTPUT_PIPE_BYTES};
use super::super::log::Lines;
use super::log::Log;

/// An output of this process, seen from its other end.
#[derive(Debug)]
struct Output {
    name: &'static str,
    pipe: File,
    /// Bytes that the pipe holds.
    capacity: usize,
    lines: Lines,
}

/// What there is to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    Something,
    /// Nothing for a while.
    Nothing,
    Never,
}

/// Standard output and standard error of the worker.
#[derive(Debug)]
pub(super) struct Outputs([Output; 2]);

impl Outputs {
    /// Opens the other ends of the pipes that the host gave this process to write to.
    pub(super) fn open() -> Result<Self, String> {
        Ok(Self([open(1, "stdout")?, open(2, "stderr")?]))
    }

    /// Hands lines on for as long as there is a process.
    pub(super) fn drain(mut self, log: &Log) -> ! {
        self.read(log);
        // The plugin closed them under us. What is closed must not be closed again: the number may be another's by now.
        loop {
            thread::park();
        }
    }

    fn read(&mut self, log: &Log) {
        let mut buffer = vec![0; OUTPUT_PIPE_BYTES];
        let mut pause = OUTPUT_LINGER;
        loop {
            match self.wait() {
                Ready::Something => thread::sleep(pause),
                Ready::Nothing => {
                    for Output { name, lines, .. } in &mut self.0 {
                        lines.end(|line| log.output(name, line));
                    }
                    continue;
                }
                Ready::Never => return,
            }
            pause = OUTPUT_LINGER;
            for Output { name, pipe, capacity, lines } in &mut self.0 {
                match pipe.read(&mut buffer) {
                    Ok(read) => {
                        lines.push(&buffer[..read], |line| log.output(name, line));
                        // So much at a time must not have to wait for room.
                        if read >= *capacity / 2 {
                            pause = OUTPUT_FLOOD_PAUSE;
                        }
                    }
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                    Err(_) => return,
                }
            }
        }
    }

    fn wait(&self) -> Ready {
        let open = self.0.iter().any(|output| output.lines.is_open());
        let limit = Timespec::try_from(OUTPUT_LINE_WAIT).ok().filter(|_| open);
        let mut ready = self.0.each_ref().map(|output| PollFd::new(&output.pipe, PollFlags::IN));
        match rustix::io::retry_on_intr(|| poll(&mut ready, limit.as_ref())) {
            Ok(0) => Ready::Nothing,
            Ok(_) if ready.iter().all(|fd| !fd.revents().contains(PollFlags::NVAL)) => Ready::Something,
            _ => Ready::Never,
        }
    }
}

fn open(number: u32, name: &'static str) -> Result<Output, String> {
    let mut options = File::options();
    options.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    let path = format!("/proc/self/fd/{number}");
    let pipe = options.open(&path).map_err(|e| format!("cannot read its own {name} ({path}): {e}"))?;
    // A larger pipe takes more of a burst; the usual one does.
    let _ = rustix::pipe::fcntl_setpipe_size(&pipe, OUTPUT_PIPE_BYTES);
    let capacity = rustix::pipe::fcntl_getpipe_size(&pipe).map_err(|e| format!("its own {name} is no pipe: {e}"))?;
    Ok(Output { name, pipe, capacity, lines: Lines::default() })
}
