//! What the hub says of a repository, what is told of sizes before a pull, and what is done where nobody may be asked.

use super::standin::{Manners, Page};
use super::{CONTENT, World, digest, right};
use crate::config::{Location, Source};
use crate::store::{AlreadyHere, HubFile};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const API: &str = "api/models/org/repo";

fn location(file: &str) -> Location {
    Location::HuggingFace { repo: "org/repo".into(), file: file.into(), revision: "main".into() }
}

fn answer() -> Vec<u8> {
    let digest = digest(CONTENT);
    format!(
        r#"{{"id": "org/repo", "sha": "{COMMIT}", "gated": "manual", "private": false, "pipeline_tag": "text-generation",
            "tags": ["gguf", "license:mit"], "cardData": {{"license": "other", "license_name": "llama3"}}, "siblings": [
            {{"rfilename": "w.gguf", "size": 67, "lfs": {{"sha256": "{digest}", "size": 67, "pointerSize": 130}}}},
            {{"rfilename": "config.json", "size": 12, "blobId": "abc"}}, {{"rfilename": "unknown"}}]}}"#
    )
    .into_bytes()
}

#[tokio::test]
async fn a_repository_is_told_with_sizes_digests_and_licence() {
    let world = World::new().await;
    world.server.put(
        API,
        Page { bytes: answer(), manners: Manners::Busy(2), authorization: Some("Bearer t"), ..Page::default() },
    );
    let repository =
        world.puller().expect("a client").repository("org/repo", None).await.expect("told, at the third try");
    assert_eq!((repository.commit.as_str(), repository.licence.as_deref()), (COMMIT, Some("llama3")));
    assert!(repository.is_gated);
    let file = |path: &str, bytes, sha256| HubFile { path: path.to_owned(), bytes, sha256 };
    assert_eq!(repository.files, [file("w.gguf", 67, right()), file("config.json", 12, None)]);
    world.server.file(&format!("{API}/revision/v1"), &answer());
    world.puller().expect("a client").repository("org/repo", Some("v1")).await.expect("told of a revision");
}

#[tokio::test]
async fn a_hub_that_does_not_tell_says_what_to_do() {
    let page =
        |bytes: &[u8], manners, content_type| Page { bytes: bytes.to_vec(), manners, content_type, ..Page::default() };
    for (page, words) in [
        (
            Page { authorization: Some("Bearer x"), ..Page::default() },
            "401 Unauthorized: HF_TOKEN does not give access to it",
        ),
        (page(b"", Manners::Gated, None), "the repository is gated: accept its terms at "),
        (page(b"", Manners::Status(429), None), "429 Too Many Requests (4 tries)"),
        (page(b"<html>", Manners::Good, Some("text/html")), "it answers with a web page; does HF_ENDPOINT name a hub"),
        (page(b"{\"sha\": 7}", Manners::Good, None), "is not what a hub says"),
        (page(b"{}", Manners::Good, None), "does not say which commit"),
        (page(&answer(), Manners::Lying(10), None), "the connection to localhost broke"),
    ] {
        let world = World::new().await;
        world.server.put(API, page);
        let told = world.puller().expect("a client").repository("org/repo", None).await.expect_err(words);
        assert!(
            told.contains(words) && told.starts_with("the hub does not tell of org/repo: "),
            "wanted `{words}` in {told}"
        );
    }
    let world = World::new().await.with("HF_TOKEN", "");
    let told = world.puller().expect("a client").repository("org/repo", None).await.expect_err("not there");
    assert!(told.contains("404 Not Found: it has no such repository"), "{told}");
    world.server.put(API, page(b"", Manners::Gated, None));
    let told = world.puller().expect("a client").repository("org/repo", None).await.expect_err("gated");
    assert!(told.contains("/org/repo and set HF_TOKEN to a token of the account that did"), "{told}");
}

#[tokio::test]
async fn the_beginning_of_a_file_is_all_that_is_read() {
    for manners in [Manners::Good, Manners::Plain] {
        let world = World::new().await;
        world.server.put("org/repo/resolve/main/w.gguf", Page { bytes: CONTENT.to_vec(), manners, ..Page::default() });
        let puller = world.puller().expect("a client");
        let beginning = puller.beginning(&location("w.gguf"), 4).await.expect("told");
        assert_eq!((beginning.bytes.as_slice(), beginning.total), (&b"GGUF"[..], Some(CONTENT.len() as u64)));
        let all = puller.beginning(&location("w.gguf"), 1000).await.expect("told");
        assert_eq!(all.bytes, CONTENT);
        assert_eq!(world.server.ranges("org/repo/resolve/main/w.gguf")[0].as_deref(), Some("bytes=0-3"));
        let told = puller.beginning(&location("absent.gguf"), 4).await.expect_err("not there");
        assert!(told.contains("the repository has no such file"), "{told}");
    }
}

#[tokio::test]
async fn sizes_are_told_before_the_first_byte() {
    let world = World::new().await;
    let page = |manners| Page { bytes: CONTENT.to_vec(), manners, ..Page::default() };
    world.server.put("org/repo/resolve/main/w.gguf", page(Manners::Redirect));
    world.server.put("cdn/org/repo/resolve/main/w.gguf", page(Manners::Good));
    world.server.put("org/repo/resolve/main/gated.gguf", page(Manners::Gated));
    let puller = world.puller().expect("a client");
    let mirrors = vec![world.url("absent.gguf"), Source::Whole(location("w.gguf"))];
    let model = world.model(mirrors, None);
    let missing = puller.survey(&[&model, &model], AlreadyHere::Kept).await;
    assert_eq!(missing.len(), 1, "each file once");
    assert_eq!((&missing[0].bytes, missing[0].rest()), (&Ok(CONTENT.len() as u64), CONTENT.len() as u64));
    assert!(!world.target().exists() && !world.beside(".part").exists(), "nothing is fetched");
    let gated = world.model(vec![Source::Whole(location("gated.gguf"))], None);
    let missing = puller.survey(&[&gated], AlreadyHere::Kept).await;
    assert!(missing[0].bytes.as_ref().is_err_and(|why| why.contains("accept its terms")), "{missing:?}");
    // What is begun counts as far as it is on the disk.
    std::fs::create_dir_all(world.target().parent().expect("parent")).expect("made");
    std::fs::write(world.beside(".part"), &CONTENT[..20]).expect("written");
    let missing = puller.survey(&[&model], AlreadyHere::Kept).await;
    assert_eq!(missing[0].rest(), CONTENT.len() as u64 - 20);
    world.pull(&model).await.expect("fetched");
    assert_eq!(puller.survey(&[&model], AlreadyHere::Kept).await, []);
    assert_eq!(puller.survey(&[&model], AlreadyHere::Replaced).await.len(), 1);
}

#[tokio::test]
async fn a_length_that_is_a_lie_is_no_whole_file() {
    let world = World::new().await;
    world.server.put("lying.gguf", Page { bytes: CONTENT.to_vec(), manners: Manners::Lying(5), ..Page::default() });
    let told = world.pull(&world.model(vec![world.url("lying.gguf")], None)).await.expect_err("it ends too early");
    assert!(told.contains("(4 tries)"), "{told}");
    world.assert_absent();
}

#[tokio::test]
async fn offline_nobody_is_asked_and_what_is_missing_is_told() {
    let world = World::new().await.with("HF_HUB_OFFLINE", "1");
    world.server.file("good.gguf", CONTENT);
    let model = world.model(vec![world.url("good.gguf")], None);
    let puller = world.puller().expect("a client");
    let missing = puller.survey(&[&model], AlreadyHere::Kept).await;
    assert_eq!((missing.len(), missing[0].bytes.is_err()), (1, true));
    let told = world.pull(&model).await.expect_err("nobody is asked");
    assert!(told.contains("weights.gguf is not there, and nobody is asked for it (offline)"), "{told}");
    let told = puller.repository("org/repo", None).await.expect_err("nobody is asked");
    assert!(told.contains("HF_HUB_OFFLINE is set"), "{told}");
    assert_eq!(world.server.asked(), []);
    assert!(world.env().fetching().contains_key("PIP_NO_INDEX"));
}
