//! Graphics cards: found, filled in order, measured. The cards exist on paper; the way to them is the real one.

use aihost_tests::server::{Server, Setup, aihost, prepare, text};
use aihost_tests::{Gate, eventually, fixture, wait_for};
use serde_json::json;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// Cards with so many bytes in all and free, and a host that finds them.
struct Cards {
    folder: tempfile::TempDir,
}

impl Cards {
    fn new(cards: &[[u64; 2]]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Under the name by which drivers are found.
        std::os::unix::fs::symlink(fixture("nvml"), folder.path().join("libnvidia-ml.so.1")).unwrap();
        let cards_on_paper = Self { folder };
        cards_on_paper.set(cards);
        cards_on_paper
    }

    fn set(&self, cards: &[[u64; 2]]) {
        let lines: String = cards.iter().map(|[total, free]| format!("{total} {free}\n")).collect();
        std::fs::write(self.folder.path().join("cards"), lines).unwrap();
    }

    /// The first card with a process on it.
    fn set_process(&self, [total, free]: [u64; 2], pid: i64, bytes: u64) {
        std::fs::write(self.folder.path().join("cards"), format!("{total} {free} {pid} {bytes}\n")).unwrap();
    }

    /// The first card as this line has it.
    fn write(&self, line: &str) {
        std::fs::write(self.folder.path().join("cards"), format!("{line}\n")).unwrap();
    }

    fn server(&self, yaml: &str, visible: Option<&str>) -> Server {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let mut env = vec![("LD_LIBRARY_PATH".into(), path("")), ("NVIDIA_FIXTURE_CARDS".into(), path("cards"))];
        env.extend(visible.map(|visible| ("CUDA_VISIBLE_DEVICES".into(), visible.into())));
        Server::start(&Setup { yaml: yaml.into(), plugins: vec!["echo", "faulty"], env, ..Setup::default() })
    }
}

fn echo(name: &str, options: &str) -> String {
    format!("  {name}:\n    type: text\n    plugin: aihost/echo\n    options: {options}\n")
}

#[tokio::test]
async fn models_fill_the_cards_and_what_runs_on_none_goes_to_the_cpu() {
    let cards = Cards::new(&[[80 * GIB, 79 * GIB], [80 * GIB, 79 * GIB]]);
    let large = format!("{{memory: {}}}", 50 * GIB);
    let faulty = "  c:\n    type: text\n    plugin: aihost/faulty\n";
    let server = cards.server(&format!("models:\n{}{}{faulty}", echo("a", &large), echo("b", &large)), None);
    for model in ["a", "b", "c"] {
        assert_eq!(server.chat(model, "hi").await.0, 200, "{model}");
    }
    for (model, device) in [("a", "cuda:0"), ("b", "cuda:1"), ("c", "cpu")] {
        assert_eq!(server.status(model, "device").await, device, "{model}");
        assert_eq!(server.status(model, "loads").await, 1, "nobody left for another");
    }
    let (_, metrics) = server.get("/metrics").await;
    let budget = format!("aihost_device_budget_bytes{{device=\"cuda:1\"}} {}", 80 * GIB * 95 / 100);
    assert!(metrics.as_str().unwrap().contains(&budget), "{metrics}");
}

#[tokio::test]
async fn what_other_programs_hold_is_not_to_be_had() {
    let cards = Cards::new(&[[80 * GIB, 20 * GIB]]);
    let models = format!("models:\n{}", echo("a", &format!("{{memory: {}}}", 50 * GIB)));
    let server = cards.server(&models, None);
    let (status, body) = server.chat("a", "hi").await;
    assert_eq!(status, 503, "{body}");
    let message = server.status("a", "error").await.to_string();
    assert!(message.contains("needs 50.0 GiB on cuda:0, where only 20.0 GiB"), "{message}");
    cards.set(&[[80 * GIB, 79 * GIB]]);
    eventually(async || match server.chat("a", "hi").await {
        (200, _) => Ok(()),
        (status, body) => Err(format!("the card is free and not used: {status}, {body}")),
    })
    .await;
}

/// What `ps --json` says of a device.
async fn device(server: &Server, id: &str) -> serde_json::Value {
    let (code, stdout, stderr) = aihost(&["ps", "--json", "--url", server.base()], &[]);
    assert_eq!(code, 0, "{stderr}");
    let listed: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    let devices = listed["devices"].as_array().cloned().unwrap_or_default();
    devices.into_iter().find(|device| device["id"] == id).unwrap_or_else(|| panic!("no {id} in {stdout}"))
}

#[tokio::test]
async fn each_device_is_told_with_what_others_hold_and_what_nobody_knows() {
    // Others hold 10 GiB of the second of eight, and nobody says anything of the third.
    let mut all = vec![[80 * GIB, 80 * GIB]; 8];
    all[1][1] = 70 * GIB;
    let cards = Cards::new(&all);
    let model = format!("{}    devices: [cuda:1]\n", echo("a", &format!("{{memory: {}}}", 20 * GIB)));
    let server = cards.server(&format!("models:\n{model}"), None);
    let second = device(&server, "cuda:1").await;
    let bytes = |value: &serde_json::Value| value.as_u64();
    assert_eq!((bytes(&second["budget"]), bytes(&second["reserved"])), (Some(76 * GIB), Some(0)), "{second}");
    assert_eq!((bytes(&second["held"]), bytes(&second["others"])), (Some(0), Some(10 * GIB)), "{second}");
    assert_eq!((bytes(&second["free"]), bytes(&second["total"])), (Some(70 * GIB), Some(80 * GIB)), "{second}");
    assert_eq!(server.chat("a", "hi").await.0, 200);
    // What it was given shows on the card now, and is not taken for somebody else's.
    all[1][1] = 50 * GIB;
    cards.set(&all);
    let second = device(&server, "cuda:1").await;
    assert_eq!((bytes(&second["reserved"]), bytes(&second["held"])), (Some(20 * GIB), Some(20 * GIB)), "{second}");
    assert_eq!((bytes(&second["others"]), bytes(&second["free"])), (Some(10 * GIB), Some(50 * GIB)), "{second}");
    let (_, metrics) = server.get("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    for (name, bytes) in [("reserved", 20), ("total", 80), ("used", 30), ("free", 50), ("others", 10)] {
        let line = format!("aihost_device_{name}_bytes{{device=\"cuda:1\"}} {}\n", bytes * GIB);
        assert!(metrics.contains(&line), "no {line} in {metrics}");
    }
    let cpu = device(&server, "cpu").await;
    assert!(cpu["held"].as_u64() > Some(0) && cpu["free"].as_u64() > Some(0) && cpu["others"].is_u64(), "{cpu}");

    // The cards are lost while the host serves: what is not known is not said to be nothing.
    cards.write("");
    let second = device(&server, "cuda:1").await;
    assert!(second["free"].is_null() && second["others"].is_null() && second["total"].is_null(), "{second}");
    let (code, table, stderr) = aihost(&["ps", "--url", server.base()], &[]);
    let line = table.lines().find(|line| line.starts_with("cuda:1")).unwrap_or_default();
    assert!(code == 0 && line.matches("unknown").count() == 3, "{table}{stderr}");
    assert_eq!(table.lines().filter(|line| line.starts_with("cuda:")).count(), 8, "{table}");
    let (_, metrics) = server.get("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    assert!(!metrics.contains("aihost_device_free_bytes{device=\"cuda:1\"}"), "{metrics}");
    assert!(metrics.contains("aihost_device_budget_bytes{device=\"cuda:1\"}"), "{metrics}");
}

#[tokio::test]
async fn a_hidden_card_is_not_there_and_a_named_one_must_be() {
    let cards = Cards::new(&[[80 * GIB, 79 * GIB], [24 * GIB, 23 * GIB]]);
    let models = format!("models:\n{}", echo("a", &format!("{{memory: {}}}", 30 * GIB)));
    let server = cards.server(&models, Some("1"));
    let (status, body) = server.chat("a", "hi").await;
    let message = server.status("a", "error").await.to_string();
    assert!(status != 200 && message.contains("needs 30.0 GiB on cuda:0"), "the small one is all there is: {body}");

    // A list that names cards means the visible ones as well.
    let server = cards.server(&format!("devices: [{{id: cuda:0}}]\n{models}"), Some("1"));
    let (_, metrics) = server.get("/metrics").await;
    let budget = format!("aihost_device_budget_bytes{{device=\"cuda:0\"}} {}\n", 24 * GIB * 95 / 100);
    assert!(metrics.as_str().unwrap().contains(&budget), "{metrics}");

    let faulty = "  c:\n    type: text\n    plugin: aihost/faulty\n    devices: [cuda:0]\n";
    let server = cards.server(&format!("models:\n{faulty}"), None);
    assert_eq!(server.chat("c", "hi").await.0, 500);
    let message = server.status("c", "error").await.to_string();
    assert!(message.contains("runs on cpu, not on cuda:0"), "{message}");
}

/// Two models that park once the gate is open, on a card with room for one: 1200 MiB each, of which so many stay.
fn two_that_park(cards: &Cards, keeps: u64, gate: &Gate) -> Server {
    let options = format!("{{memory: {}, keeps: {keeps}, park_gate: {}}}", 1200 * MIB, gate.path().display());
    let models = ["a", "b"].map(|name| echo(name, &options));
    cards.server(&format!("models:\n{}", models.concat()), None)
}

#[tokio::test]
async fn a_card_whose_memory_comes_back_keeps_the_worker_that_parked() {
    // A little stays unsaid; what a driver takes of a process is said.
    for (keeps, stays) in [(0, 200 * MIB), (500 * MIB, 600 * MIB)] {
        let cards = Cards::new(&[[2 * GIB, 2 * GIB - 100 * MIB]]);
        let gate = Gate::closed();
        let server = two_that_park(&cards, keeps, &gate);
        assert_eq!(server.chat("a", "hi").await.0, 200);
        cards.set(&[[2 * GIB, 2 * GIB - 1300 * MIB]]);
        let worker = server.status("a", "pid").await;
        let (swapped, ()) = tokio::join!(server.chat("b", "hi"), async {
            server.until("a", "state", json!("parking")).await;
            cards.set(&[[2 * GIB, 2 * GIB - 100 * MIB - stays]]);
            gate.open();
        });
        assert_eq!(swapped.0, 200, "{swapped:?}");
        assert_eq!((server.status("a", "state").await, server.status("a", "pid").await), (json!("parked"), worker));
    }
}

#[tokio::test]
async fn a_card_whose_memory_does_not_come_back_costs_the_worker_that_parked() {
    let cards = Cards::new(&[[2 * GIB, 2 * GIB - 100 * MIB]]);
    let gate = Gate::closed();
    let server = two_that_park(&cards, 0, &gate);
    assert_eq!(server.chat("a", "hi").await.0, 200);
    // What it holds shows now, and goes on to show after it has parked.
    cards.set(&[[2 * GIB, 2 * GIB - 1300 * MIB]]);
    let worker = server.status("a", "pid").await.as_i64().unwrap();
    let (swapped, ()) = tokio::join!(server.chat("b", "through it all"), async {
        server.until("a", "state", json!("parking")).await;
        gate.open();
        wait_for("its end", || (!aihost_tests::server::alive(worker)).then_some(())).await;
        cards.set(&[[2 * GIB, 2 * GIB - 100 * MIB]]);
    });
    assert_eq!((swapped.0, text(&swapped.1)), (200, "through it all"), "{swapped:?}");
    assert_eq!(server.status("a", "state").await, "cold");
    let log = server.log();
    assert!(log.contains("1.1 GiB of its 1.1 GiB did not come back on cuda:0"), "{log}");
}

#[tokio::test]
async fn a_worker_that_holds_more_of_a_card_than_was_granted_is_ended() {
    let cards = Cards::new(&[[80 * GIB, 79 * GIB]]);
    let server = cards.server(&format!("models:\n{}", echo("a", &format!("{{memory: {}}}", 10 * GIB))), None);
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let pid = server.status("a", "pid").await.as_i64().unwrap();
    // A tenth, and what a driver takes of each process, is no matter.
    cards.set_process([80 * GIB, 68 * GIB], pid, 11 * GIB + 500 * MIB);
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    assert_eq!(server.status("a", "pid").await, json!(pid));
    cards.set_process([80 * GIB, 60 * GIB], pid, 19 * GIB);
    // The driver's numbers are this host's where it sees the whole machine, and nowhere else.
    if std::fs::read_link("/proc/self/ns/pid").unwrap().as_os_str() == "pid:[4026531836]" {
        server.until("a", "state", json!("cold")).await;
        // What is said of it comes through a queue.
        let mut log = String::new();
        eventually(async || {
            log += &server.log();
            if log.contains("it held 19.0 GiB of 10.0 GiB granted") { Ok(()) } else { Err(log.clone()) }
        })
        .await;
    } else {
        tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
        assert_eq!(server.status("a", "pid").await, json!(pid));
    }
}

#[tokio::test]
async fn a_plugin_whose_libraries_are_not_here_is_listed_with_what_is_missing_and_others_serve() {
    let yaml = format!("models:\n{}{}", echo("a", "{}"), "  b:\n    type: text\n    plugin: aihost/faulty\n");
    let setup = Setup { yaml, plugins: vec!["echo"], ..Setup::default() };
    // As a build for CUDA is on a machine without a driver: a library that it needs has another name there.
    let mut file = std::fs::read(fixture("faulty")).unwrap();
    let (here, elsewhere) = (b"\0libgcc_s.so.1\0", b"\0libcuda.so.1\0\0");
    let at = file.windows(here.len()).position(|window| window == here).expect("it needs libgcc");
    file[at..at + here.len()].copy_from_slice(elsewhere);
    let (folder, config) = prepare(&setup);
    std::fs::write(folder.path().join("plugins/faulty.so"), &file).unwrap();
    let config = config.display().to_string();
    let (code, stdout, stderr) = aihost(&["plugins", "list", "--json", "--config", &config], &[]);
    assert_eq!(code, 0, "{stderr}");
    let wanted = "it needs libcuda.so.1, which is not on this machine; there is no NVIDIA driver here";
    assert!(stdout.contains(wanted) && stdout.contains("aihost/echo"), "{stdout}");
    let (code, _, stderr) = aihost(&["check", "--config", &config], &[]);
    assert!(code != 0 && stderr.contains(wanted), "{stderr}");

    let server = Server::serving(folder);
    let (status, body) = server.chat("b", "x").await;
    assert_eq!((status, &body["error"]["code"]), (500, &json!("model_not_usable")), "{body}");
    assert!(server.why("b").await.contains(wanted));
    assert_eq!(server.chat("a", "x").await.0, 200);
}

/// The time that the host's own loop takes to answer.
async fn answers_within_its_patience(server: &Server, what: &str) {
    for _ in 0..20 {
        let asked = server.get("/admin/status");
        let answered = tokio::time::timeout(aihost_tests::PATIENCE / 6, asked).await;
        assert_eq!(answered.unwrap_or_else(|_| panic!("{what} holds the host up")).0, 200, "{what}");
    }
}

#[tokio::test]
async fn a_card_that_does_not_answer_holds_nobody_up_and_is_asked_again_when_it_does() {
    let cards = Cards::new(&[[80 * GIB, 79 * GIB]]);
    let large = format!("{{memory: {}}}", 50 * GIB);
    let cpu = format!("{}    devices: [cpu]\n", echo("c", "{}"));
    let server = cards.server(&format!("models:\n{}{}{cpu}", echo("a", &large), echo("b", &large)), None);
    assert_eq!(server.chat("a", "hi").await.0, 200);
    cards.write(&format!("{} {} hangs", 80 * GIB, 29 * GIB));
    // A swap on that card, which is measured before and after; and all that has nothing to do with it.
    let swap = async { server.chat("b", "hi").await };
    let beside = async {
        answers_within_its_patience(&server, "a card that hangs").await;
        for _ in 0..20 {
            assert_eq!(server.chat("c", "hi").await.0, 200, "a model on the CPU");
        }
    };
    let (swapped, ()) = tokio::join!(swap, beside);
    assert_eq!(swapped.0, 200, "what cannot be measured is believed: {swapped:?}");
    let mut log = server.log();
    assert!(log.contains("cuda:0 has not answered for 500 ms"), "{log}");
    cards.write(&format!("{} {}", 80 * GIB, 29 * GIB));
    eventually(async || {
        log += &server.log();
        if log.contains("a card answers again") { Ok(()) } else { Err(log.clone()) }
    })
    .await;
    assert_eq!(log.matches("has not answered").count(), 1, "{log}");
}

#[tokio::test]
async fn a_card_that_vanishes_in_a_swap_costs_neither_the_host_nor_models_elsewhere() {
    let cards = Cards::new(&[[2 * GIB, 2 * GIB - 100 * MIB]]);
    let cpu = format!("{}    devices: [cpu]\n", echo("c", "{}"));
    let gate = Gate::closed();
    let options = format!("{{memory: {}, park_gate: {}}}", 1200 * MIB, gate.path().display());
    let models = ["a", "b"].map(|name| echo(name, &options)).concat();
    let server = cards.server(&format!("models:\n{models}{cpu}"), None);
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let (swapped, ()) = tokio::join!(server.chat("b", "hi"), async {
        server.until("a", "state", json!("parking")).await;
        cards.write("");
        gate.open();
    });
    // A plugin that really uses the card says that it is gone; one that does not has no reason to fail.
    assert_eq!(swapped.0, 200, "{swapped:?}");
    assert_eq!(server.chat("c", "hi").await.0, 200);
    answers_within_its_patience(&server, "a card that is gone").await;
}

#[tokio::test]
async fn a_slice_of_a_card_is_found_by_its_uuid_and_a_wrong_name_is_told_of() {
    let cards = Cards::new(&[]);
    cards.write(&format!("{} {}\n{} {} MIG-5f-3/1", 80 * GIB, 79 * GIB, 20 * GIB, 19 * GIB));
    let models = format!("models:\n{}", echo("a", &format!("{{memory: {}}}", 15 * GIB)));
    let server = cards.server(&models, Some("MIG-5f-3/1"));
    assert_eq!(server.chat("a", "hi").await.0, 200);
    assert_eq!(server.status("a", "device").await, "cuda:0");
    let (_, metrics) = server.get("/metrics").await;
    let budget = format!("aihost_device_budget_bytes{{device=\"cuda:0\"}} {}\n", 20 * GIB * 95 / 100);
    assert!(metrics.as_str().unwrap().contains(&budget), "{metrics}");

    let small = format!("models:\n{}", echo("a", "{}"));
    for wrong in ["MIG-other", "7", "", "all"] {
        let server = cards.server(&small, Some(wrong));
        assert_eq!(server.chat("a", "hi").await.0, 200, "on the CPU");
        assert_eq!(server.status("a", "device").await, "cpu", "{wrong}");
        let path = |name: &str| cards.folder.path().join(name).display().to_string();
        let env = [
            ("LD_LIBRARY_PATH", path("")),
            ("NVIDIA_FIXTURE_CARDS", path("cards")),
            ("CUDA_VISIBLE_DEVICES", wrong.to_owned()),
        ];
        let (_kept, config) = prepare(&Setup { yaml: small.clone(), plugins: vec!["echo"], ..Setup::default() });
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (_, _, stderr) = aihost(&["check", "--config", &config.display().to_string()], &env);
        let wanted = format!("CUDA_VISIBLE_DEVICES is `{wrong}`, which names none of this machine's 1 cards");
        assert!(stderr.contains(&wanted), "{stderr}");
    }
}
