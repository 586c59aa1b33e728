//! A changed models.yaml takes effect while the host serves, and touches only what changed.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use aihost_tests::server::{Server, Setup, prepare, text};
use aihost_tests::{Gate, PATIENCE, binary, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::time::timeout;

const YAML: &str =
    "models:\n  a:\n    type: text\n    plugin: aihost/echo\n  b:\n    type: text\n    plugin: aihost/echo\n";

fn rewrite(server: &Server, change: impl FnOnce(&str) -> String) {
    let file = server.folder().join("models.yaml");
    let text = std::fs::read_to_string(&file).expect("models.yaml");
    // As editors do: a new file takes the old one's place.
    let new = file.with_extension("new");
    std::fs::write(&new, change(&text)).and_then(|()| std::fs::rename(&new, &file)).expect("rewritten");
}

#[tokio::test]
async fn only_changed_models_lose_their_worker() {
    let server = Server::start(&Setup { yaml: YAML.into(), plugins: vec!["echo"], ..Setup::default() });
    for model in ["a", "b"] {
        assert_eq!(server.chat(model, "hi").await.0, 200);
    }
    let worker = server.status("a", "pid").await;
    rewrite(&server, |text| {
        text.replace(
            "  b:\n    type: text\n",
            "  c:\n    type: text\n    plugin: aihost/echo\n  b:\n    type: text\n    options: {tokens: 2}\n",
        )
    });
    server.until("c", "state", json!("cold")).await;
    server.until("b", "state", json!("cold")).await;
    assert_eq!(server.status("a", "pid").await, worker);
    assert_eq!(text(&server.chat("b", "one two three").await.1).split_whitespace().count(), 2);
    assert_eq!(text(&server.chat("c", "new here").await.1), "new here");
    assert_eq!(server.status("a", "loads").await, 1);
}

#[tokio::test]
async fn a_bad_file_is_refused_whole_and_the_next_good_one_is_not() {
    let server = Server::start(&Setup { yaml: YAML.into(), plugins: vec!["echo"], ..Setup::default() });
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let worker = server.status("a", "pid").await;
    let mut good = String::new();
    rewrite(&server, |text| {
        good = text.to_owned();
        text.replace("  b:\n", "  b:\n    nonsense: 1\n")
    });
    server.logged("nonsense").await;
    assert_eq!(server.chat("a", "hi").await.0, 200);
    assert_eq!(server.status("a", "pid").await, worker);
    rewrite(&server, |_| good.replace("  b:\n", "  d:\n"));
    server.until("d", "state", json!("cold")).await;
    assert_eq!(server.chat("b", "hi").await.0, 404);
}

#[tokio::test]
async fn a_pipe_in_its_place_is_not_waited_for() {
    let server = Server::start(&Setup { yaml: YAML.into(), plugins: vec!["echo"], ..Setup::default() });
    let file = server.folder().join("models.yaml");
    let pipe = file.with_extension("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    std::fs::rename(&pipe, &file).unwrap();
    server.logged("no regular file").await;
    std::fs::write(&pipe, YAML.replace("  b:\n", "  c:\n")).and_then(|()| std::fs::rename(&pipe, &file)).unwrap();
    server.until("c", "state", json!("cold")).await;
}

#[tokio::test]
async fn a_link_that_leads_elsewhere_is_noticed() {
    // As orchestrators mount settings: the file is a link, and the folder that it leads into is one that is replaced.
    let (folder, config) = prepare(&Setup { yaml: YAML.into(), plugins: vec!["echo"], ..Setup::default() });
    let at = |name: &str| folder.path().join(name);
    let text = std::fs::read_to_string(&config).expect("models.yaml");
    for (version, text) in [("1", text.clone()), ("2", text.replace("  b:\n", "  c:\n"))] {
        std::fs::create_dir(at(version)).and_then(|()| std::fs::write(at(version).join("models.yaml"), text)).unwrap();
    }
    std::fs::remove_file(&config).unwrap();
    symlink("1", at("data")).and_then(|()| symlink("data/models.yaml", &config)).unwrap();
    let (next, data) = (at("next"), at("data"));
    let server = Server::serving(folder);
    assert_eq!(server.chat("b", "hi").await.0, 200);
    symlink("2", &next).and_then(|()| std::fs::rename(&next, &data)).unwrap();
    server.until("c", "state", json!("cold")).await;
    assert_eq!(server.chat("b", "hi").await.0, 404);
}

#[tokio::test]
async fn a_hangup_reads_the_file_again_and_other_signals_are_outlived() {
    let server = Server::start(&Setup { yaml: YAML.into(), plugins: vec!["echo"], ..Setup::default() });
    server.log();
    server.signal(Signal::HUP);
    server.logged("nothing of it is new").await;
    rewrite(&server, |text| text.replace("  b:\n", "  b: [\n"));
    server.logged("not in force").await;
    server.signal(Signal::HUP);
    server.logged("not in force").await;
    for signal in [Signal::USR1, Signal::USR2, Signal::ALARM, Signal::PIPE, Signal::VTALARM, Signal::IO, Signal::XFSZ] {
        server.signal(signal);
        assert_eq!(server.chat("a", "hi").await.0, 200, "{signal:?}");
    }
}

#[tokio::test]
async fn a_hangup_while_the_file_is_read_for_the_first_time_ends_no_host() {
    let (folder, config) = prepare(&Setup { yaml: YAML.into(), plugins: vec!["echo"], ..Setup::default() });
    let text = std::fs::read_to_string(&config).unwrap();
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let mut writer = std::fs::File::options().read(true).write(true).open(&pipe).unwrap();
    let mut command = Command::new(binary());
    command.args(["serve", "--log-format", "text", "--config"]).arg(&pipe);
    let server = tokio::task::spawn_blocking(move || Server::of(&mut command, folder));
    // It has the pipe open, and nothing comes yet.
    let is_named = |process: &Path| {
        let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&*pipe.to_string_lossy())
    };
    let reads = |process: &Path| {
        let open = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        open.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|file| file == pipe)
    };
    let reader = wait_for("a host that reads", || {
        let processes = std::fs::read_dir("/proc").ok()?.flatten().map(|process| process.path());
        let reader = processes.into_iter().find(|process| is_named(process) && reads(process))?;
        reader.file_name()?.to_str()?.parse().ok().and_then(Pid::from_raw)
    })
    .await;
    for signal in [Signal::HUP, Signal::USR1, Signal::USR2] {
        kill_process(reader, signal).unwrap();
    }
    writer.write_all(text.as_bytes()).unwrap();
    drop(writer);
    let server = server.await.unwrap();
    assert_eq!(server.chat("a", "hi").await.0, 200);
}

#[tokio::test]
async fn a_limit_on_the_size_of_files_ends_no_host() {
    let setup = Setup { yaml: YAML.into(), plugins: vec!["echo"], before: Some("ulimit -f 1"), ..Setup::default() };
    let server = Server::start(&setup);
    assert_eq!(server.get("/livez").await.0, 200);
    let (status, answer) = server.chat("a", "hi").await;
    assert_eq!(status, 500, "its plugin could not be copied: {answer}");
}

#[tokio::test]
async fn a_large_or_very_wrong_file_stops_neither_streams_nor_probes() {
    const STANDSTILL: std::time::Duration = std::time::Duration::from_secs(5);
    let yaml =
        "models:\n  a:\n    type: text\n    plugin: aihost/echo\n    options: {latency_ms: 20, tokens: 1000000}\n";
    let server = Server::start(&Setup { yaml: yaml.into(), plugins: vec!["echo"], ..Setup::default() });
    let mut stream = server.stream(&aihost_tests::server::chat("a", "word")).await;
    let wrong = |n: usize| format!("  m{n}: {{type: text, plugin: aihost/echo, devices: 'cuda:0', aliases: [a]}}\n");
    let good =
        |n: usize| format!("  g{n}: {{type: text, plugin: aihost/echo, aliases: [x{n}, y{n}], keep_alive: 5m}}\n");
    let text = std::fs::read_to_string(server.folder().join("models.yaml")).expect("models.yaml");
    let wrong: String = (0..2_000).map(wrong).collect();
    let good: String = (0..75_000).map(good).collect();
    for (more, told) in [(wrong, "not in force"), (good, "in force")] {
        rewrite(&server, |_| format!("{text}{more}"));
        let (mut log, mut looks) = (String::new(), 0);
        let look = async {
            while !log.contains(told) {
                let both = async { (server.get("/livez").await.0, stream.chunk().await.expect("a stream")) };
                let (live, chunk) = timeout(STANDSTILL, both).await.expect("all stood still");
                assert!(live == 200 && chunk.is_some());
                looks += 1;
                log += &server.log();
            }
        };
        timeout(4 * PATIENCE, look).await.expect("a word of the file");
        assert!(looks > 3 && log.len() < 20_000, "{looks} looks, {} bytes of log", log.len());
    }
    assert_eq!(server.get("/health").await.0, 200);
}

#[tokio::test]
async fn a_file_that_changes_in_the_middle_of_a_swap_loses_no_request() {
    let yaml = "devices: [{id: cpu, memory: 1GiB, max_loaded: 1}]\nmodels:\n  a:\n    type: text\n    plugin: aihost/echo\n  b:\n    type: text\n    plugin: aihost/echo\n    options: {load_gate: GATE}\n";
    let gate = Gate::closed();
    let yaml = yaml.replace("GATE", &gate.path().display().to_string());
    let server = Server::start(&Setup { yaml, plugins: vec!["echo"], ..Setup::default() });
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let (swapped, ()) = tokio::join!(server.chat("b", "through it all"), async {
        server.until("b", "state", json!("loading")).await;
        // The evicted model goes, a new one comes, the one that loads stays as it is.
        rewrite(&server, |text| text.replace("  a:\n", "  c:\n"));
        server.until("c", "state", json!("cold")).await;
        gate.open();
    });
    assert_eq!((swapped.0, text(&swapped.1)), (200, "through it all"), "{swapped:?}");
    assert_eq!(server.status("b", "loads").await, 1);
    assert_eq!(server.chat("c", "new here").await.0, 200);
    assert_eq!(server.chat("a", "hi").await.0, 404);
}

#[tokio::test]
async fn who_waits_for_a_model_that_changes_while_it_loads_gets_the_new_one() {
    let gate = Gate::closed();
    let held = format!("{{load_gate: {}}}", gate.path().display());
    let yaml = format!("models:\n  b:\n    type: text\n    plugin: aihost/echo\n    options: {held}\n");
    let server = Server::start(&Setup { yaml, plugins: vec!["echo"], ..Setup::default() });
    let ((status, body), ()) = tokio::join!(server.chat("b", "one two three"), async {
        server.until("b", "state", json!("loading")).await;
        rewrite(&server, |text| text.replace(&held, "{tokens: 2}"));
    });
    assert_eq!((status, text(&body).split_whitespace().count()), (200, 2), "{body}");
}

#[tokio::test]
async fn what_is_to_be_preloaded_from_now_on_is_loaded() {
    let server = Server::start(&Setup { yaml: YAML.into(), plugins: vec!["echo"], ..Setup::default() });
    rewrite(&server, |text| format!("{text}    preload: true\n"));
    server.until("b", "state", json!("hot")).await;
    assert_eq!(server.get("/readyz").await.0, 200);
    assert_eq!(server.status("a", "state").await, "cold");
}

#[tokio::test]
async fn folders_wait_for_the_next_start_whole_and_the_log_says_which() {
    let server = Server::start(&Setup { yaml: YAML.into(), plugins: vec!["echo"], ..Setup::default() });
    let models = server.folder().join("models");
    let file = models.join("url/h.example/x.bin");
    std::fs::create_dir_all(file.parent().unwrap()).and_then(|()| std::fs::write(&file, "x")).unwrap();
    rewrite(&server, |text| format!("{text}    source: {{url: 'http://h.example/x.bin'}}\n"));
    server.logged("in force").await;
    assert_eq!(server.chat("b", "hi").await.0, 200);
    let worker = server.status("b", "pid").await;
    rewrite(&server, |text| text.replace("models_dir: ", "models_dir: /nowhere").replace("/state\n", "/state2\n"));
    server.logged("`models_dir:`, `state_dir:` of the changed file take effect when").await;
    assert_eq!(server.chat("b", "still here").await.0, 200);
    assert_eq!(server.status("b", "pid").await, worker);
}

#[tokio::test]
async fn lowered_budgets_are_kept_at_once_and_told() {
    let yaml = format!("devices: [{{id: cpu, memory: 1GiB, max_loaded: 2}}]\n{YAML}");
    let server = Server::start(&Setup { yaml, plugins: vec!["echo"], ..Setup::default() });
    for model in ["a", "b"] {
        assert_eq!(server.chat(model, "hi").await.0, 200);
    }
    rewrite(&server, |text| text.replace("max_loaded: 2", "max_loaded: 1"));
    server.until("a", "state", json!("cold")).await;
    assert_eq!(server.status("b", "state").await, "hot");
    assert!(server.logged("no room for them").await.contains("leaving=\"a\""));
}

#[tokio::test]
async fn who_waits_is_not_lost_to_an_entry_that_cannot_work() {
    let gate = Gate::closed();
    let yaml = format!(
        "models:\n  b:\n    type: text\n    plugin: aihost/echo\n    options: {{load_gate: {}}}\n",
        gate.path().display()
    );
    let server = Server::start(&Setup { yaml, plugins: vec!["echo"], ..Setup::default() });
    let ((status, body), ()) = tokio::join!(server.chat("b", "hi"), async {
        server.until("b", "state", json!("loading")).await;
        rewrite(&server, |text| text.replace("type: text", "type: image"));
        server.logged("models.b.type: plugin `aihost/echo` serves text, not image").await;
        gate.open();
    });
    assert_eq!((status, text(&body)), (200, "hi"), "{body}");
}

#[tokio::test]
async fn a_folder_that_is_replaced_and_an_edit_that_keeps_length_and_time_are_noticed() {
    let (folder, config) = prepare(&Setup { yaml: YAML.into(), plugins: vec!["echo"], ..Setup::default() });
    let at = |name: &str| folder.path().join(name);
    let text = std::fs::read_to_string(&config).expect("models.yaml");
    for (name, text) in [("live", text.clone()), ("next", text.replace("  b:\n", "  c:\n"))] {
        std::fs::create_dir(at(name)).and_then(|()| std::fs::write(at(name).join("models.yaml"), text)).unwrap();
    }
    let (live, next, old) = (at("live"), at("next"), at("old"));
    let mut command = std::process::Command::new(aihost_tests::binary());
    command.args(["serve", "--log-format", "text", "--config"]).arg(live.join("models.yaml"));
    let server = Server::of(&mut command, folder);
    assert_eq!(server.chat("b", "hi").await.0, 200);
    std::fs::rename(&live, &old).and_then(|()| std::fs::rename(&next, &live)).unwrap();
    server.until("c", "state", json!("cold")).await;
    // In the folder that nothing watches, with the old time put back.
    let file = std::fs::File::options().write(true).open(live.join("models.yaml")).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    std::fs::write(live.join("models.yaml"), text.replace("  b:\n", "  d:\n")).unwrap();
    file.set_modified(modified).unwrap();
    server.until("d", "state", json!("cold")).await;
}

#[tokio::test]
async fn an_entry_that_cannot_work_does_not_replace_one_that_serves() {
    let server = Server::start(&Setup { yaml: YAML.into(), plugins: vec!["echo"], ..Setup::default() });
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let worker = server.status("a", "pid").await;
    let file = server.folder().join("models.yaml");
    let good = std::fs::read_to_string(&file).expect("models.yaml");
    let mut heard = String::new();
    let with = |more: &str| good.replacen("plugin: aihost/echo\n", &format!("plugin: aihost/echo\n{more}"), 1);
    for (text, told) in [
        (
            with("    options: {tokns: 2}\n"),
            "models.a.options.tokns: is not an option of the plugin; did you mean `tokens`?",
        ),
        (with("    options: {tokens: two}\n"), "models.a.options.tokens: `two` is not a whole number"),
        (good.replacen("aihost/echo", "aihost/ehco", 1), "models.a.plugin: no plugin `aihost/ehco`"),
        (good.replacen("type: text", "type: image", 1), "models.a.type: plugin `aihost/echo` serves text, not image"),
        (with("    source: {path: absent.gguf}\n"), "models.a.source: model `a`: its file"),
    ] {
        rewrite(&server, |_| text.clone());
        let log = server.logged(told).await;
        let line = log.lines().find(|line| line.contains(told)).expect("it is told");
        assert!(
            line.contains("ERROR") && line.contains("models.yaml:") && line.contains("the one before serves on"),
            "{line}"
        );
        assert_eq!(server.chat("a", "hi").await.0, 200, "{told}");
        assert_eq!(server.status("a", "pid").await, worker, "{told}");
        heard += &log;
        let shown = server.status("a", "error").await;
        assert!(shown.as_str().is_some_and(|shown| shown.contains("the one before serves on")), "{shown}");
    }
    rewrite(&server, |_| with("    options: {tokens: 2}\n"));
    // Of all these changes this one alone is in force.
    heard += &server.logged("in force").await;
    assert_eq!(heard.matches(" in force").count(), 1, "{heard}");
    server.until("a", "error", json!(null)).await;
    assert_eq!(text(&server.chat("a", "one two three").await.1).split_whitespace().count(), 2);
}

#[tokio::test]
async fn a_wrong_option_is_told_at_the_start_while_others_serve() {
    let yaml = format!("{YAML}  c: {{type: text, plugin: aihost/echo, options: {{latency: 1}}}}\n");
    let server = Server::start(&Setup { yaml, plugins: vec!["echo"], ..Setup::default() });
    let told = "models.c.options.latency: is not an option of the plugin; did you mean `latency_ms`?";
    server.logged(told).await;
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let (status, answer) = server.chat("c", "hi").await;
    assert_eq!((status, &answer["error"]["code"]), (500, &json!("model_not_usable")), "{answer}");
    assert!(server.why("c").await.contains(told));
}
