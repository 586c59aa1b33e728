//! Who is asked, in which order, and what a silent one costs.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, SockFilter, Socket, Type};
use tokio::net::TcpListener;

use super::standin::{Manners, Page};
use super::{CONTENT, World, right, url};
use crate::config::{Location, Source};
use crate::store::client::Waits;
use crate::store::fetch::Patience;

/// A server that accepts connections and never answers.
async fn mute() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    (listener, base)
}

/// A server that does not even accept connections: its socket drops every packet.
fn black_hole() -> (Socket, String) {
    let nothing = SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.attach_filter(&[nothing]).expect("a filter");
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().expect("an address").into()).expect("a port");
    socket.listen(1).expect("it listens");
    let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
    (socket, format!("http://{address}"))
}

#[tokio::test]
async fn mirrors_are_tried_in_order_and_each_failure_is_told() {
    let world = World::new().await;
    world.server.file("other.gguf", b"other bytes");
    world.server.put("dead.gguf", Page { manners: Manners::Status(502), ..Page::default() });
    let sources = || vec![world.url("absent.gguf"), world.url("other.gguf"), world.url("dead.gguf")];
    let error = world.pull(&world.model(sources(), right())).await.expect_err("no mirror has it");
    for part in ["no mirror has it", "absent.gguf: 404", "other.gguf: its sha256 is", "dead.gguf: 502", "(4 tries)"] {
        assert!(error.contains(part), "wanted `{part}` in {error}");
    }
    assert_eq!(world.server.ranges("dead.gguf").len(), 4);
    assert_eq!(world.server.ranges("absent.gguf").len() + world.server.ranges("other.gguf").len(), 2);
    world.assert_absent();
    world.server.file("org/repo/resolve/main/a/good.gguf", CONTENT);
    let hub = Source::Whole(Location::HuggingFace {
        repo: "org/repo".into(),
        file: "a/good.gguf".into(),
        revision: "main".into(),
    });
    let model = world.model(sources().into_iter().chain([hub]).collect(), right());
    let from = format!("hf org/repo/a/good.gguf@main from {}", world.server.base);
    assert_eq!(world.pull(&model).await.expect("the last has it"), Some(from));
    assert_eq!(world.server.ranges("dead.gguf").len(), 5, "it is not tried again while another mirror has it");
    let tokens: Vec<_> = world.server.asked().into_iter().filter_map(|asked| asked.authorization).collect();
    assert_eq!(tokens, ["Bearer t"], "the token is for the hub alone");
}

#[tokio::test]
async fn a_silent_mirror_holds_up_nobody() {
    let ((_mute, mute), (_hole, hole)) = (mute().await, black_hole());
    let mut world = World::new().await;
    world.patience.stagger = Duration::from_millis(20);
    world.server.file("good.gguf", CONTENT);
    let sources = vec![url(&format!("{mute}/x.gguf")), url(&format!("{hole}/x.gguf")), world.url("good.gguf")];
    let model = world.model(sources, right());
    // The silent ones would be waited for ten times as long.
    let pulled = tokio::time::timeout(Duration::from_secs(60), world.pull(&model)).await.expect("nobody held it up");
    assert_eq!(pulled.expect("the third has it"), Some(format!("url {}", world.server.url("good.gguf"))));
    world.assert_pulled();
}

#[tokio::test]
async fn silence_is_told_from_absence() {
    let ((_mute, mute), (_hole, hole)) = (mute().await, black_hole());
    let mut world = World::new().await;
    let short = Duration::from_millis(500);
    world.patience = Patience {
        stagger: Duration::from_millis(20),
        // An answer is waited for with its connection: of two times that end together either may be told.
        waits: Waits { connect: short, answer: 3 * short },
        ..world.patience
    };
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        format!("http://{}/x.gguf", listener.local_addr().expect("an address"))
    };
    let silent = || vec![url(&format!("{mute}/x.gguf")), url(&format!("{hole}/x.gguf")), url(&nobody)];
    let error = world.pull(&world.model(silent(), None)).await.expect_err("nobody answers");
    for part in [
        "none of its mirrors can be reached",
        "127.0.0.1 accepts connections and does not answer (1.5 s waited)",
        "127.0.0.1 accepts no connection; is there a network, or a proxy to set (HTTPS_PROXY)? (0.5 s waited)",
        "127.0.0.1 cannot be reached (Connection refused",
    ] {
        assert!(error.contains(part), "wanted `{part}` in {error}");
    }
    let absent = silent().into_iter().chain([world.url("absent.gguf")]).collect();
    let error = world.pull(&world.model(absent, None)).await.expect_err("nobody has it");
    assert!(error.contains("no mirror has it"), "there is a network: {error}");
}

#[tokio::test]
async fn a_name_that_nobody_knows_is_told() {
    let mut world = World::new().await;
    // Where there is no network, nobody says that the name is unknown.
    world.patience.waits.connect = Duration::from_secs(2);
    let nowhere = url("http://no-such-host.invalid/x.gguf");
    let error = world.pull(&world.model(vec![nowhere], None)).await.expect_err("nowhere");
    assert!(error.contains("no-such-host.invalid ") && error.contains("is there a network"), "{error}");
    assert!(error.contains("none of its mirrors can be reached"), "{error}");
}

#[tokio::test]
async fn what_was_begun_is_gone_on_with_before_others_are_asked() {
    let world = World::new().await;
    world.server.put("b.gguf", Page { bytes: CONTENT.to_vec(), manners: Manners::Vanishing(33), ..Page::default() });
    let sources = || vec![world.url("a.gguf"), world.url("b.gguf")];
    world.pull(&world.model(sources(), right())).await.expect_err("half of it");
    world.server.file("a.gguf", CONTENT);
    world.server.file("b.gguf", CONTENT);
    let from = world.pull(&world.model(sources(), right())).await.expect("fetched");
    assert_eq!(from, Some(format!("url {}", world.server.url("b.gguf"))));
    assert_eq!(world.server.ranges("b.gguf").last(), Some(&Some("bytes=33-".to_owned())));
    world.assert_pulled();
}

#[tokio::test]
async fn what_one_mirror_left_is_no_beginning_of_anothers() {
    let world = World::new().await;
    let half = Page {
        bytes: b"quite other bytes, and more of them than one would think".to_vec(),
        manners: Manners::Vanishing(20),
        ..Page::default()
    };
    world.server.put("a.gguf", half);
    world.server.file("b.gguf", CONTENT);
    world.pull(&world.model(vec![world.url("a.gguf"), world.url("b.gguf")], None)).await.expect("the second has it");
    assert_eq!(world.server.ranges("b.gguf"), [None]);
    world.assert_pulled();
}
