//! The host as the first process of a namespace, as in a container without an init: whoever dies there is waited for.

use std::fs;
use std::process::Command;

use aihost_tests::eventually;
use aihost_tests::server::{Server, Setup};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// The shell becomes `unshare`, whose only child is the first process of a namespace, with a `/proc` of its own.
const FIRST: &str = "exec unshare --pid --fork --mount-proc --kill-child -- \"$0\" \"$@\"";

/// A process as this side of the namespace sees it.
#[derive(Clone, Debug)]
struct Seen {
    pid: i32,
    parent: i32,
    is_zombie: bool,
    words: Vec<String>,
}

/// Every process below this one.
fn below(root: i32) -> Vec<Seen> {
    let all: Vec<Seen> = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| seen(&entry.path())).collect();
    let mut found: Vec<Seen> = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for process in all.iter().filter(|process| process.parent == parent) {
            parents.push(process.pid);
            found.push(process.clone());
        }
    }
    found
}

fn seen(folder: &std::path::Path) -> Option<Seen> {
    let pid = folder.file_name()?.to_str()?.parse().ok()?;
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let (state, parent) = (fields.next()?, fields.next()?.parse().ok()?);
    let line = fs::read(folder.join("cmdline")).ok()?;
    let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    Some(Seen { pid, parent, is_zombie: state == "Z", words })
}

/// Waits until what is below the first process is like this.
async fn until(server: &Server, what: &str, is_so: impl Fn(&[Seen]) -> bool) -> Vec<Seen> {
    eventually(async || {
        let found = below(server.pid());
        if is_so(&found) { Ok(found) } else { Err(format!("{what}: not so of {found:#?}")) }
    })
    .await
}

fn is_worker(process: &Seen) -> bool {
    !process.is_zombie && process.words.get(1).is_some_and(|word| word == "worker")
}

fn is_orphan(process: &Seen) -> bool {
    process.words.first().is_some_and(|word| word == "sleep")
}

#[tokio::test]
async fn the_first_process_of_a_namespace_leaves_no_zombie_and_ends_with_all_it_has() {
    let probe = Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "true"]).output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        eprintln!(
            "not run: namespaces of processes cannot be made here; it takes root, or a container with CAP_SYS_ADMIN"
        );
        return;
    }
    let child = "exec setsid -f sleep 5";
    let yaml =
        format!("models:\n  a:\n    type: text\n    plugin: aihost/faulty\n    options: {{child: \"{child}\"}}\n");
    let setup = Setup { yaml, plugins: vec!["faulty"], before: Some(FIRST), ..Setup::default() };
    let mut server = Server::start(&setup);
    let first = below(server.pid())[0].pid;
    assert!(fs::read_to_string(format!("/proc/{first}/status")).unwrap().contains(&format!("NSpid:\t{first}\t1\n")));
    assert_eq!(server.chat("a", "hi").await.0, 200);

    // What loses its parent is the first process's; workers are killed; each is waited for.
    let adopted = |found: &[Seen]| found.iter().any(|process| is_orphan(process) && process.parent == first);
    until(&server, "an orphan is adopted", adopted).await;
    for _ in 0..3 {
        assert_eq!(server.chat("a", "hi").await.0, 200);
        let found = until(&server, "a worker serves", |found| found.iter().any(is_worker)).await;
        let worker = found.into_iter().find(is_worker).unwrap().pid;
        kill_process(Pid::from_raw(worker).unwrap(), Signal::KILL).unwrap();
        until(&server, "the worker is waited for", |found| found.iter().all(|process| process.pid != worker)).await;
    }
    assert_eq!(server.post("/models/unload", &json!({"model": "a"})).await.0, 200);
    let is_quiet =
        |found: &[Seen]| !found.iter().any(|process| process.is_zombie || is_orphan(process) || is_worker(process));
    until(&server, "nothing is left of them", is_quiet).await;

    kill_process(Pid::from_raw(first).unwrap(), Signal::TERM).unwrap();
    assert!(server.wait().success());
    assert!(!std::path::Path::new(&format!("/proc/{first}")).exists(), "the namespace has ended");
}
