//! What a plugin can reach: its model's files and a folder of its own, not the host, its keys, or anyone else's files.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use aihost::worker::{InstanceHandle, WorkerPlacement, is_confinement_available};
use aihost_tests::binary;
use aihost_tests::server::{Server, Setup};
use serde_json::json;

use super::bench::{Bench, LOAD_DEADLINE, Limits, ask, collect};

/// What the spy came to.
async fn spied(instance: &Arc<dyn InstanceHandle>, order: &str) -> String {
    let (said, end) = collect(ask(instance, 1, order, None)).await;
    end.unwrap();
    said
}

/// A spy under other permissions than its manifest's, with a model's file and a folder of its own.
async fn spy(bench: &Bench, permissions: &[&str], model: &Path) -> Arc<dyn InstanceHandle> {
    let mut spec = bench.spec("aihost/spy", json!({}));
    let mut plugin = (*spec.plugin).clone();
    plugin.manifest.permissions = permissions.iter().map(|&name| name.to_owned()).collect();
    spec.plugin = Arc::new(plugin);
    spec.load.files = BTreeMap::from([("model".to_owned(), model.to_owned())]);
    spec.own_folder = Some(model.parent().unwrap().join("own"));
    let placement = WorkerPlacement { executable: binary() };
    let instance = bench.start_as(&placement, spec).await.unwrap();
    instance.load(1 << 30, LOAD_DEADLINE).await.unwrap();
    instance
}

#[tokio::test]
async fn a_plugin_has_what_its_manifest_asks_for_and_no_more() {
    assert!(is_confinement_available(), "this kernel has no Landlock, and nothing here can be seen");
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    for (name, content) in [("model.gguf", "weights"), ("tokenizer.json", "{}"), ("models.yaml", "api_keys: [secret]")]
    {
        std::fs::write(file(name), content).unwrap();
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connect = format!("connect {}", listener.local_addr().unwrap());
    let order = |verb: &str, name: &str| format!("{verb} {}", file(name).display());
    for (permissions, network, programs, files) in [
        (&[][..], false, false, false),
        (&["network"], true, false, false),
        (&["subprocess"], false, true, false),
        (&["files"], false, true, true),
        (&["network", "subprocess", "files"], true, true, true),
    ] {
        let bench = Bench::with(&["spy"], Limits::default());
        let spy = spy(&bench, permissions, &file("model.gguf")).await;
        for (order, allowed) in [
            (order("read", "model.gguf"), true),
            (order("read", "tokenizer.json"), true),
            ("own ".to_owned(), true),
            ("read /proc/self/status".to_owned(), true),
            ("write /dev/null".to_owned(), true),
            (order("read", "models.yaml"), files),
            (order("write", "model.gguf"), files),
            (order("write", "new"), files),
            (order("list", ""), files),
            ("read /etc/shadow".to_owned(), files),
            ("write /usr/spied".to_owned(), files),
            ("run /bin/true".to_owned(), programs),
            (connect.clone(), network),
            ("listen 127.0.0.1:0".to_owned(), network),
        ] {
            let said = spied(&spy, &order).await;
            assert_eq!(said.starts_with("done: "), allowed, "{permissions:?}: {order}: {said}");
        }
        std::fs::write(file("model.gguf"), "weights").unwrap();
        drop(std::fs::remove_file("/usr/spied"));
    }
}

#[tokio::test]
async fn no_plugin_reads_what_the_host_knows() {
    let yaml = "api_keys: ['env:SPIED_KEYS']\nmodels:\n  spy: {type: text, plugin: aihost/spy}\n  bold: {type: text, plugin: aihost/faulty}\n";
    let env = vec![("SPIED_KEYS".to_owned(), "the-key-of-this-host".to_owned())];
    // A descriptor that whoever starts the host left open.
    let before = Some("exec 9</etc/hostname");
    let server = Server::start(&Setup { yaml: yaml.to_owned(), plugins: vec!["spy", "faulty"], env, before });
    let ask = async |order: String| {
        let body = json!({"model": "spy", "prompt": order});
        let request = reqwest::Client::new().post(format!("{}/v1/completions", server.base()));
        let answer = request.bearer_auth("the-key-of-this-host").json(&body).send().await.unwrap();
        let answer: serde_json::Value = answer.json().await.unwrap();
        answer["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    };
    let host = server.pid();
    for order in [
        format!("read /proc/{host}/environ"),
        format!("read /proc/{host}/mem"),
        format!("list /proc/{host}/fd"),
        format!("read /proc/{host}/maps"),
        format!("read {}/models.yaml", server.folder().display()),
        format!("list {}/state", server.folder().display()),
        format!("connect {}", server.base().trim_start_matches("http://")),
    ] {
        let said = ask(order.clone()).await;
        assert!(said.starts_with("refused: "), "{order}: {}", said.chars().take(200).collect::<String>());
    }
    let environment = ask("environment ".to_owned()).await;
    assert!(environment.contains("PATH=") && !environment.contains("the-key"), "{environment}");
    let links = ask("links ".to_owned()).await;
    assert!(links.starts_with("done: ") && !links.contains("hostname"), "{links}");
    let status = ask("read /proc/self/status".to_owned()).await;
    for line in
        ["CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"]
    {
        assert!(status.contains(line), "{line}: {status}");
    }
}
