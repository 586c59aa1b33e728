//! An old kernel or a strict container on paper: `fixture_deny NUMBER ERRNO PROGRAM ARGUMENT...` becomes the program, for which
//! the system call of this number fails with this error.

#![expect(clippy::print_stderr, reason = "a command line tool prints")]

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// `offsetof(struct seccomp_data, nr)`.
const NUMBER_AT: u32 = 0;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [number, error, program, rest @ ..] = arguments.as_slice() else {
        eprintln!("fixture_deny NUMBER ERRNO PROGRAM ARGUMENT...");
        return ExitCode::from(2);
    };
    let (Ok(number), Ok(error)) = (number.parse(), error.parse()) else { return ExitCode::from(2) };
    if let Err(e) = deny(number, error) {
        eprintln!("no filter can be set: {e}");
        return ExitCode::from(3);
    }
    eprintln!("{program}: {}", Command::new(program).args(rest).exec());
    ExitCode::from(4)
}

/// From now on the system call fails, in this process and all that come of it.
#[expect(unsafe_code, reason = "filters have no safe face")]
fn deny(number: u32, error: u32) -> std::io::Result<()> {
    let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, NUMBER_AT),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | error),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the numbers are those of prctl(2); it reads nothing else.
    let privileges = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the filter lives until the call is over, and its length is the one given.
    let filtered = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if privileges == 0 && filtered == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
