//! Files that the hub's own programs and LM Studio keep are used where they lie.

use std::path::PathBuf;

use super::{CONTENT, World, digest, right};
use crate::config::{Location, Source};
use crate::store::AlreadyHere;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn hub(revision: &str) -> Source {
    Source::Whole(Location::HuggingFace { repo: "org/repo".into(), file: "w.gguf".into(), revision: revision.into() })
}

/// A file in the hub's cache: a link to a blob, as the hub's programs lay it.
fn keep(world: &World, bytes: &[u8]) -> PathBuf {
    let folder = world.folder.path().join(".cache/huggingface/hub/models--org--repo");
    let (blob, snapshot) = (folder.join("blobs").join(digest(CONTENT)), folder.join("snapshots").join(COMMIT));
    for folder in [blob.parent().expect("parent"), &snapshot] {
        std::fs::create_dir_all(folder).expect("made");
    }
    std::fs::write(&blob, bytes).expect("written");
    std::os::unix::fs::symlink(&blob, snapshot.join("w.gguf")).expect("linked");
    blob
}

#[tokio::test]
async fn a_file_of_the_hubs_cache_is_linked_to_and_nobody_is_asked() {
    for sha256 in [right(), None] {
        let world = World::new().await;
        let blob = keep(&world, CONTENT);
        let model = world.model(vec![hub(COMMIT)], sha256);
        let puller = world.puller().expect("a client");
        let missing = puller.survey(&[&model], AlreadyHere::Kept).await;
        assert_eq!((missing[0].rest(), missing[0].kept.is_some()), (0, true), "{missing:?}");
        let pulled = puller.pull(&model, AlreadyHere::Kept, super::silent()).await.expect("there");
        assert!(pulled[0].linked_to.is_some() && pulled[0].fetched_from.is_none());
        assert_eq!(world.target().canonicalize().expect("a link"), blob.canonicalize().expect("there"));
        assert_eq!(world.server.asked(), []);
        world.assert_pulled();
        let again = puller.pull(&model, AlreadyHere::Kept, super::silent()).await.expect("there");
        assert_eq!((&again[0].linked_to, &again[0].fetched_from), (&None, &None), "it is there now");
    }
}

#[tokio::test]
async fn a_damaged_one_is_passed_by_and_never_written() {
    let world = World::new().await;
    let blob = keep(&world, b"GGUF, and damaged");
    world.server.file(&format!("org/repo/resolve/{COMMIT}/w.gguf"), CONTENT);
    let model = world.model(vec![hub(COMMIT)], right());
    assert!(world.pull(&model).await.expect("fetched").is_some());
    world.assert_pulled();
    assert_eq!(std::fs::read(blob).expect("there"), b"GGUF, and damaged");
}

#[tokio::test]
async fn a_forced_pull_replaces_the_link_and_not_what_it_leads_to() {
    let world = World::new().await;
    let blob = keep(&world, CONTENT);
    let model = world.model(vec![hub(COMMIT)], None);
    world.pull(&model).await.expect("linked");
    let other = b"GGUF, which is newer";
    world.server.file(&format!("org/repo/resolve/{COMMIT}/w.gguf"), other);
    let puller = world.puller().expect("a client");
    puller.pull(&model, AlreadyHere::Replaced, super::silent()).await.expect("fetched");
    assert_eq!(std::fs::read(world.target()).expect("there"), other);
    assert_eq!(std::fs::read(blob).expect("there"), CONTENT);
}

#[tokio::test]
async fn lm_studio_is_believed_by_digest_alone() {
    let world = World::new().await;
    let path = world.folder.path().join(".lmstudio/models/org/repo/w.gguf");
    std::fs::create_dir_all(path.parent().expect("parent")).expect("made");
    std::fs::write(&path, CONTENT).expect("written");
    let error = world.pull(&world.model(vec![hub("main")], None)).await.expect_err("which revision is it?");
    assert!(error.contains("404"), "{error}");
    world.pull(&world.model(vec![hub("main")], right())).await.expect("linked");
    assert_eq!(world.target().canonicalize().expect("a link"), path.canonicalize().expect("there"));
}

#[tokio::test]
async fn a_link_whose_file_is_gone_is_no_file() {
    let world = World::new().await;
    let blob = keep(&world, CONTENT);
    let model = world.model(vec![hub(COMMIT)], right());
    world.pull(&model).await.expect("linked");
    std::fs::remove_file(blob).expect("removed");
    assert!(crate::store::locate(&model, &world.digests()).is_err());
    world.server.file(&format!("org/repo/resolve/{COMMIT}/w.gguf"), CONTENT);
    assert!(world.pull(&model).await.expect("fetched").is_some());
    world.assert_pulled();
}
