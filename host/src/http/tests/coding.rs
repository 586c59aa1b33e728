//! Bodies that clients compress.

use async_compression::Level;
use async_compression::tokio::write::{GzipEncoder, ZlibEncoder, ZstdEncoder};
use async_compression::zstd::CParameter;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::*;

const CHAT: &str = "/v1/chat/completions";

async fn packed(coding: &str, bytes: &[u8]) -> Vec<u8> {
    async fn whole(mut encoder: impl AsyncWrite + Unpin, bytes: &[u8]) {
        encoder.write_all(bytes).await.unwrap();
        encoder.shutdown().await.unwrap();
    }
    let mut out = Vec::new();
    match coding {
        "gzip" | "x-gzip" => whole(GzipEncoder::new(&mut out), bytes).await,
        "deflate" => whole(ZlibEncoder::new(&mut out), bytes).await,
        "zstd" => whole(ZstdEncoder::new(&mut out), bytes).await,
        "far" => {
            let params = [CParameter::window_log(27)];
            whole(ZstdEncoder::with_quality_and_params(&mut out, Level::Fastest, &params), bytes).await;
        }
        _ => out.extend_from_slice(bytes),
    }
    out
}

fn coded(coding: &str, body: impl Into<Body>) -> Request<Body> {
    let mut request = post(CHAT, body);
    request.headers_mut().insert("content-encoding", coding.parse().unwrap());
    request
}

/// A body that comes in pieces of so many bytes, and does not say how many there are.
fn dribbling(bytes: &[u8], piece: usize) -> Body {
    let pieces: Vec<_> =
        bytes.chunks(piece).map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece))).collect();
    Body::from_stream(futures_util::stream::iter(pieces))
}

#[tokio::test]
async fn compressed_bodies_are_read_as_what_they_were() {
    let host = Host::new(hello);
    let body = chat(&json!({"user": "x".repeat(50_000)})).to_string();
    for codings in [
        "gzip",
        "x-gzip",
        "GZIP",
        "deflate",
        "zstd",
        "identity",
        "gzip, identity",
        "deflate, gzip",
        "gzip,zstd, deflate",
    ] {
        let mut bytes = body.clone().into_bytes();
        for coding in codings.split(',') {
            bytes = packed(coding.trim().to_ascii_lowercase().as_str(), &bytes).await;
        }
        for sent in [Body::from(bytes.clone()), dribbling(&bytes, 1), dribbling(&bytes, 1000)] {
            let reply = host.send(coded(codings, sent)).await;
            assert_eq!(reply.status, 200, "{codings}: {}", reply.body);
        }
    }
    // The same said in two headers.
    let twice = packed("zstd", &packed("gzip", body.as_bytes()).await).await;
    let mut request = coded("gzip", twice);
    request.headers_mut().append("content-encoding", "zstd".parse().unwrap());
    assert_eq!(host.send(request).await.status, 200);
    // Several, one behind the other, are one.
    let (head, tail) = body.split_at(100);
    for coding in ["gzip", "zstd"] {
        let parts = [packed(coding, head.as_bytes()).await, packed(coding, tail.as_bytes()).await].concat();
        assert_eq!(host.send(coded(coding, parts)).await.status, 200, "{coding}");
    }
}

#[tokio::test]
async fn what_is_packed_in_another_way_is_told_what_is_taken() {
    let host = Host::new(hello);
    for coding in ["br", "gzip, br", "compress", "zstd,zstd,zstd,zstd,zstd"] {
        let reply = host.send(coded(coding, "{}")).await;
        assert_eq!(reply.error(), (415, "unsupported_encoding".into(), String::new()), "{coding}");
        assert!(reply.body.contains("Content-Encoding") && reply.body.contains("zstd"), "{}", reply.body);
        assert_eq!(reply.header("accept-encoding"), "gzip, deflate, zstd");
    }
}

#[tokio::test]
async fn what_is_not_packed_as_it_says_is_the_clients_fault() {
    let host = Host::new(hello);
    let body = chat(&json!({})).to_string();
    for coding in ["gzip", "deflate", "zstd"] {
        let sound = packed(coding, body.as_bytes()).await;
        let mut damaged = sound.clone();
        damaged[sound.len() / 2] ^= 0xff;
        for broken in [
            sound[..sound.len() - 3].to_vec(),
            sound[..4].to_vec(),
            damaged,
            body.clone().into_bytes(),
            [sound.as_slice(), b"and more"].concat(),
        ] {
            let reply = host.send(coded(coding, broken.clone())).await;
            assert_eq!(reply.error().0, 400, "{coding} {broken:?}: {}", reply.body);
        }
    }
    // More of it would have to be kept than a sender may ask for.
    let reply = host.send(coded("zstd", packed("far", &vec![b' '; 9 << 20]).await)).await;
    assert!(reply.status == 400 && reply.body.contains("Content-Encoding"), "{}", reply.body);
}

/// What 16 MiB are made of is a few kilobytes. The router here reads 64 KiB, and holds 1 MiB of all requests.
#[tokio::test]
async fn a_body_that_unpacks_to_more_than_its_endpoint_reads_is_refused_where_it_does() {
    let host = Host::new(hello);
    let zeros = vec![b' '; 16 << 20];
    for codings in [&["gzip"][..], &["deflate"], &["zstd"], &["gzip", "gzip"]] {
        let mut bytes = zeros.clone();
        for coding in codings {
            bytes = packed(coding, &bytes).await;
        }
        assert!(bytes.len() < 32 << 10, "{}", bytes.len());
        let begun = std::time::Instant::now();
        // As many as would take all that there is, had they been kept.
        for _ in 0..32 {
            let reply = host.send(coded(&codings.join(", "), bytes.clone())).await;
            assert_eq!(reply.error(), (413, "request_too_large".into(), String::new()), "{codings:?}");
        }
        // Unpacking all of it would take seconds.
        assert!(begun.elapsed() < Duration::from_secs(5), "{codings:?}: {:?}", begun.elapsed());
        assert_eq!(host.post(CHAT, &chat(&json!({}))).await.status, 200);
    }
}
