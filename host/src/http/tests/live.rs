//! What needs a runtime that answers bit by bit, or a real socket.

use crate::jobs::Jobs;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test]
async fn tokens_leave_as_they_come() {
    let (outputs, receiver) = mpsc::channel(4);
    outputs.send(text("Hel")).await.unwrap();
    let request = post("/v1/chat/completions", chat(&json!({"stream": true})).to_string());
    let mut body = answering(receiver).oneshot(request).await.unwrap().into_body().into_data_stream();
    let first = body.next().await.unwrap().unwrap();
    assert_eq!(first.windows(6).filter(|bytes| bytes == b"data: ").count(), 2, "{first:?}");
    outputs.send(text("lo")).await.unwrap();
    outputs.send(done("stop")).await.unwrap();
    let rest = body.next().await.unwrap().unwrap();
    assert_eq!(rest.windows(6).filter(|bytes| bytes == b"data: ").count(), 3, "{rest:?}");
    assert!(body.next().await.is_none());
}

#[tokio::test]
async fn dropping_a_reply_cancels_its_request() {
    let (outputs, receiver) = mpsc::channel(4);
    outputs.send(text("Hel")).await.unwrap();
    let request = post("/v1/chat/completions", chat(&json!({"stream": true})).to_string());
    let reply = answering(receiver).oneshot(request).await.unwrap();
    assert!(!outputs.is_closed());
    drop(reply);
    outputs.closed().await;
}

pub(super) struct Listening {
    pub(super) address: SocketAddr,
    pub(super) stop: oneshot::Sender<()>,
    pub(super) serving: tokio::task::JoinHandle<()>,
}

pub(super) async fn listening(handle: Handle) -> Listening {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let jobs = Jobs::unavailable("none are kept");
    let serving = tokio::spawn(super::super::serve(vec![listener], handle, Default::default(), jobs, async {
        drop(stopped.await)
    }));
    Listening { address, stop, serving }
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_its_request() {
    for stream in [true, false] {
        let (outputs, receiver) = mpsc::channel(4);
        let (handle, submitted) = handle_answering(receiver);
        let Listening { address, stop, serving } = listening(handle).await;
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        let body = chat(&json!({"stream": stream})).to_string();
        let head =
            format!("POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n", body.len());
        client.write_all((head + &body).as_bytes()).await.unwrap();
        submitted.await.unwrap();
        if stream {
            outputs.send(text("Hel")).await.unwrap();
            let mut status = [0; 15];
            client.read_exact(&mut status).await.unwrap();
            assert_eq!(&status, b"HTTP/1.1 200 OK");
        }
        drop(client);
        outputs.closed().await;
        stop.send(()).unwrap();
        serving.await.unwrap();
    }
}

/// Time passes at once where nobody has anything to do, so the limits are met in no time.
#[tokio::test(start_paused = true)]
async fn clients_that_say_half_of_it_and_no_more_are_not_waited_for() {
    let (_outputs, receiver) = mpsc::channel(4);
    let (handle, _submitted) = handle_answering(receiver);
    let Listening { address, stop, serving } = listening(handle).await;
    let body = "Host: localhost\r\nContent-Length: 100\r\n\r\n{\"model\":";
    for (sent, wanted, limit) in [
        (String::new(), "", 10),
        ("POST /v1/chat/completions HTTP/1.1\r\nHost: loc".to_owned(), "HTTP/1.1 408", 10),
        (format!("POST /v1/chat/completions HTTP/1.1\r\n{body}"), "HTTP/1.1 408", 30),
    ] {
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        client.write_all(sent.as_bytes()).await.unwrap();
        let begun = tokio::time::Instant::now();
        let mut answer = vec![0; 12];
        let read = client.read(&mut answer).await.unwrap();
        assert_eq!(str::from_utf8(&answer[..read]).unwrap(), wanted);
        assert!((limit..limit + 2).contains(&begun.elapsed().as_secs()), "{sent:?}: {:?}", begun.elapsed());
    }
    stop.send(()).unwrap();
    serving.await.unwrap();
}
