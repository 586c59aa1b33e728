//! Commands that speak with a server, where that is slow or does not speak.

use std::io::{Read, Write};
use std::net::TcpListener;

use aihost_tests::server::{Server, Setup, aihost, chat, prepare};
use serde_json::json;

/// Runs one command on a thread that may wait.
async fn run(arguments: Vec<String>) -> (i32, String, String) {
    let run = move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        aihost(&arguments, &[])
    };
    tokio::task::spawn_blocking(run).await.expect("the command runs")
}

#[tokio::test]
async fn a_server_that_hangs_is_told_of_within_seconds() {
    // The kernel takes connections, and nobody ever answers.
    let hung = TcpListener::bind("127.0.0.1:0").expect("a port");
    let yaml = format!(
        "listen: {}\nmodels:\n  a: {{type: text, plugin: aihost/echo}}\n",
        hung.local_addr().expect("an address")
    );
    let (_folder, config) = prepare(&Setup { yaml, plugins: vec!["echo"], ..Setup::default() });
    let commands = [
        "ps",
        "ps --json",
        "why a",
        "models list",
        "models load a",
        "models park a",
        "models unload a",
        "logs a",
        "logs a --follow",
        "run a hi",
    ];
    let ended = commands.map(|command| {
        let arguments = format!("{command} --config {}", config.display());
        run(arguments.split(' ').map(str::to_owned).collect())
    });
    for (command, (code, stdout, stderr)) in commands.iter().zip(futures_util::future::join_all(ended).await) {
        assert_eq!(code, 4, "{command}: {stderr}");
        assert!(stderr.contains("has not answered for 8 s") && stderr.contains("hint: "), "{command}: {stderr}");
        assert_eq!(stdout.contains("aihost/echo"), *command == "models list", "{command}: {stdout}");
    }
}

#[tokio::test]
async fn what_takes_long_is_waited_for_as_long_as_the_server_is_there() {
    let yaml = "models:\n  slow: {type: text, plugin: aihost/echo, options: {load_ms: 15000}}\n";
    let server = Server::start(&Setup { yaml: yaml.into(), plugins: vec!["echo"], ..Setup::default() });
    let url = server.base().to_owned();
    let commands = ["models load slow", "run slow hi"].map(|command| {
        let arguments = format!("{command} --url {url}");
        run(arguments.split(' ').map(str::to_owned).collect())
    });
    for (code, stdout, stderr) in futures_util::future::join_all(commands).await {
        assert_eq!(code, 0, "{stdout}{stderr}");
    }
    assert_eq!(server.post("/v1/chat/completions", &chat("slow", "hi")).await.0, 200);
    assert_eq!(server.status("slow", "loads").await, json!(1));
}

/// A server that answers each path with this, and any other as a host that has no such route.
fn older(answers: &'static [(&'static str, &'static str)]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut connection = connection?;
                let mut request = [0; 4096];
                let read = connection.read(&mut request)?;
                let found =
                    answers.iter().find(|(path, _)| request[..read].starts_with(format!("GET {path} ").as_bytes()));
                let unknown = "{\"error\": {\"message\": \"there is no such endpoint\", \"code\": \"unknown_url\"}}";
                let (status, body) = found.map_or(("404 Not Found", unknown), |(_, body)| ("200 OK", *body));
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 {status}\r\nx-request-id: r\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                );
                connection.write_all(head.as_bytes())?;
                connection.write_all(body.as_bytes())
            });
        }
    });
    url
}

#[tokio::test]
async fn an_older_server_tells_of_its_models_and_not_of_its_devices() {
    let url = older(&[("/admin/status", "[{\"id\": \"a\", \"plugin\": \"p\", \"state\": \"hot\"}]")]);
    let ask = |more: &str| run(format!("ps --url {url}{more}").split(' ').map(str::to_owned).collect());
    let (code, stdout, stderr) = ask("").await;
    assert!(code == 0 && stdout.contains("hot"), "{stdout}{stderr}");
    assert!(
        stderr.contains("older version, which does not tell of its devices") && !stdout.contains("BUDGET"),
        "{stderr}"
    );
    let (code, stdout, stderr) = ask(" --json").await;
    let told: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((code, &told["devices"], &told["models"][0]["id"]), (0, &json!(null), &json!("a")), "{stderr}");
}

/// A server that answers whatever it is asked with this head, and then with this text for ever. It lives, as it says.
fn endless(head: &'static str, text: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut connection = connection?;
                let mut request = [0; 4096];
                let read = connection.read(&mut request)?;
                if request[..read].starts_with(b"GET /livez") {
                    return connection
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
                }
                connection.write_all(head.as_bytes())?;
                let text = text.repeat(1 << 12);
                loop {
                    connection.write_all(text.as_bytes())?;
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn an_answer_without_an_end_is_cut_and_told_of_in_short() {
    let ok = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n";
    let error = "HTTP/1.1 500 Oh\r\nContent-Type: application/json\r\n\r\n{\"error\": {\"message\": \"";
    let (good, bad) = (endless(ok, "[{\"id\": \"aaaa\"},"), endless(error, "AAAA"));
    for (commands, url) in [
        (&["ps", "why a", "run a hi", "logs a", "logs a --follow"][..], &good),
        (&["ps", "why a", "run a hi", "logs a", "logs a --follow", "models load a"], &bad),
    ] {
        // One after the other: what is sent without an end takes a core of its own.
        for command in commands {
            let arguments = format!("{command} --url {url}");
            let (code, _, stderr) = run(arguments.split(' ').map(str::to_owned).collect()).await;
            assert_eq!(code, 1, "{command}: {stderr:.300}");
            assert!(stderr.len() < 2000, "{command}: {} bytes", stderr.len());
            assert!(stderr.contains("longer than") || stderr.contains("answered 500"), "{command}: {stderr:.300}");
        }
    }
}
