//! Plain files: resume, digests, what servers do wrong.

use super::standin::{Manners, Page};
use super::{CONTENT, World, right};
use crate::config::{FileConfig, Location, Source};
use crate::domain::FailureKind;
use crate::store::{AlreadyHere, Digests, Presence, locate, presence};

fn page(manners: Manners) -> Page {
    Page { bytes: CONTENT.to_vec(), manners, ..Page::default() }
}

#[tokio::test]
async fn a_file_is_fetched_once() {
    let world = World::new().await;
    world.server.file("good.gguf", CONTENT);
    let model = world.model(vec![world.url("good.gguf")], right());
    let failure = locate(&model, &world.digests()).expect_err("not there yet");
    assert_eq!(failure.kind, FailureKind::NotPulled);
    assert!(failure.message.contains("aihost models pull m") && failure.message.contains("weights.gguf"), "{failure}");
    assert!(world.pull(&model).await.expect("fetched").is_some());
    assert_eq!(world.pull(&model).await.expect("there"), None, "the second pull finds it");
    assert_eq!(world.server.asked().len(), 1);
    assert_eq!(locate(&model, &world.digests()).expect("there")["model"], world.target());
    world.assert_pulled();
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_ended() {
    let world = World::new().await;
    world.server.put("cut.gguf", page(Manners::CutOnce(33)));
    world.pull(&world.model(vec![world.url("cut.gguf")], right())).await.expect("fetched in two parts");
    assert_eq!(world.server.ranges("cut.gguf"), [None, Some("bytes=33-".to_owned())]);
    world.assert_pulled();
}

#[tokio::test]
async fn a_download_goes_on_as_long_as_bytes_come() {
    let world = World::new().await;
    world.server.put("cut.gguf", page(Manners::CutAlways(8)));
    world.pull(&world.model(vec![world.url("cut.gguf")], None)).await.expect("fetched in nine parts");
    assert_eq!(world.server.ranges("cut.gguf").len(), 9);
    world.assert_pulled();
}

#[tokio::test]
async fn the_next_pull_goes_on_where_the_last_one_ended() {
    let world = World::new().await;
    world.server.put("cut.gguf", page(Manners::Vanishing(33)));
    let model = world.model(vec![world.url("cut.gguf")], None);
    let error = world.pull(&model).await.expect_err("it vanished on the way");
    assert!(error.contains("404"), "{error}");
    world.assert_absent();
    world.server.put("cut.gguf", page(Manners::Good));
    world.pull(&model).await.expect("fetched");
    let rest = Some("bytes=33-".to_owned());
    assert_eq!(world.server.ranges("cut.gguf"), [None, rest.clone(), rest]);
    world.assert_pulled();
}

#[tokio::test]
async fn what_does_not_fit_what_is_here_is_not_put_behind_it() {
    for manners in [Manners::WrongOffset(33), Manners::ShortRange(33), Manners::Grown(33), Manners::Plain] {
        let world = World::new().await;
        world.server.put("odd.gguf", page(manners));
        // Without a digest nothing else would notice.
        world.pull(&world.model(vec![world.url("odd.gguf")], None)).await.expect("fetched");
        world.assert_pulled();
    }
}

#[tokio::test]
async fn what_is_whole_is_not_fetched_again() {
    let world = World::new().await;
    world.server.file("good.gguf", CONTENT);
    let model = world.model(vec![world.url("good.gguf")], right());
    // As a pull leaves it that is killed between the last byte and the final name.
    std::fs::create_dir_all(world.target().parent().expect("parent")).expect("created");
    let url = super::digest(world.server.url("good.gguf").as_bytes());
    for total in [CONTENT.len().to_string(), String::new()] {
        std::fs::write(world.beside(".part"), CONTENT).expect("written");
        std::fs::write(world.beside(".part.from"), format!("{url}\n0\n{total}\n\"v1\"\n")).expect("written");
        world.pull(&model).await.expect("whole");
        world.assert_pulled();
        std::fs::remove_file(world.target()).expect("removed");
    }
    // The size was noted once; the other time the server says that there is nothing behind what is here.
    assert_eq!(world.server.ranges("good.gguf"), [Some(format!("bytes={}-", CONTENT.len()))]);
}

#[tokio::test]
async fn a_part_of_something_else_is_not_continued() {
    let world = World::new().await;
    world.server.file("good.gguf", CONTENT);
    std::fs::create_dir_all(world.target().parent().expect("parent")).expect("created");
    std::fs::write(world.beside(".part"), b"left over from elsewhere").expect("written");
    world.pull(&world.model(vec![world.url("good.gguf")], None)).await.expect("fetched");
    world.assert_pulled();
}

#[tokio::test]
async fn what_is_no_file_is_not_kept() {
    let world = World::new().await;
    world.server.put("gzip.gguf", page(Manners::Gzip));
    world.server.put("login.gguf", Page { content_type: Some("text/html; charset=utf-8"), ..page(Manners::Good) });
    for (path, wanted) in
        [("gzip.gguf", "sends the file compressed (gzip)"), ("login.gguf", "does it ask for a login?")]
    {
        let error = world.pull(&world.model(vec![world.url(path)], None)).await.expect_err("refused");
        assert!(error.contains(wanted), "{error}");
        world.assert_absent();
    }
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let world = World::new().await;
    world.server.put("locked.gguf", Page { authorization: Some("Basic dTpwYTU1"), ..page(Manners::Good) });
    world
        .server
        .put("org/repo/resolve/main/locked.gguf", Page { authorization: Some("Bearer x"), ..page(Manners::Good) });
    world.server.put("busy.gguf", page(Manners::Status(429)));
    let hub = |file: &str| {
        Source::Whole(Location::HuggingFace { repo: "org/repo".into(), file: file.into(), revision: "main".into() })
    };
    let with_password =
        |password: &str, path: &str| super::url(&world.server.url(path).replace("//", &format!("//u:{password}@")));
    for (source, wanted) in [
        (world.url("absent.gguf"), "404 Not Found: the server has no such file"),
        (world.url("locked.gguf"), "401 Unauthorized: it asks for credentials; write them into the URL"),
        (with_password("wr0ng", "locked.gguf"), "it does not accept the user and password of the URL"),
        (world.url("busy.gguf"), "429 Too Many Requests (4 tries)"),
        (hub("absent.gguf"), "404 Not Found: the repository has no such file at that revision"),
        (hub("locked.gguf"), "401 Unauthorized: HF_TOKEN does not give access to it"),
    ] {
        let error = world.pull(&world.model(vec![source], None)).await.expect_err("refused");
        assert!(error.contains(wanted), "wanted `{wanted}` in {error}");
        assert!(!error.contains("wr0ng"), "a password in {error}");
        assert_eq!(error.contains("HF_TOKEN"), wanted.contains("HF_TOKEN"), "only the hub takes a token: {error}");
    }
    let from = world.pull(&world.model(vec![with_password("pa55", "locked.gguf")], None)).await.expect("let in");
    assert_eq!(from, Some(format!("url {}", world.server.url("locked.gguf"))));
    let no_token = World::of(world.server.clone()).with("HF_TOKEN", "");
    let error = no_token.pull(&no_token.model(vec![hub("locked.gguf")], None)).await.expect_err("refused");
    assert!(error.contains("set HF_TOKEN to a token that has access"), "{error}");
}

#[tokio::test]
async fn wrong_bytes_on_disk_are_seen_and_replaced() {
    let world = World::new().await;
    world.server.file("good.gguf", CONTENT);
    std::fs::create_dir_all(world.target().parent().expect("parent")).expect("created");
    std::fs::write(world.target(), b"tampered").expect("written");
    let local = world.model(Vec::new(), right());
    assert!(world.pull(&local).await.expect_err("nothing to fetch it from").contains("nothing says where to get it"));
    assert!(
        matches!(presence(&local.files["model"], &world.digests()), Presence::WrongDigest(_)),
        "the pull noted its digest"
    );
    assert_eq!(locate(&local, &world.digests()).expect_err("wrong").kind, FailureKind::NotUsable);
    world.pull(&world.model(vec![world.url("good.gguf")], right())).await.expect("replaced");
    world.assert_pulled();
}

#[test]
fn an_empty_file_is_not_present() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x");
    let file = FileConfig { sources: Vec::new(), sha256: None, path: path.clone() };
    let digests = Digests::of(folder.path());
    assert_eq!(presence(&file, &digests), Presence::Absent);
    std::fs::write(&path, b"").expect("written");
    assert!(matches!(presence(&file, &digests), Presence::Unusable(_)));
}

#[test]
fn no_disk_is_large_enough_for_everything() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("x");
    assert!(crate::store::download::enough_space(&file, 1).is_ok());
    let error = crate::store::download::enough_space(&file, u64::MAX).expect_err("too much");
    assert!(error.contains("free; make room, or set `models_dir`"), "{error}");
}

#[tokio::test]
async fn a_page_instead_of_weights_is_refused_and_the_next_mirror_asked() {
    let world = World::new().await;
    world.server.file("page.gguf", b"<!DOCTYPE html><title>sign in</title>");
    world.server.file("good.gguf", CONTENT);
    let error = world.pull(&world.model(vec![world.url("page.gguf")], None)).await.expect_err("a page");
    assert!(error.contains("it is a web page") && error.contains("sha256:"), "{error}");
    world.assert_absent();
    world.pull(&world.model(vec![world.url("page.gguf"), world.url("good.gguf")], None)).await.expect("pulled");
    world.assert_pulled();
}

#[tokio::test]
async fn what_an_earlier_pull_took_for_weights_is_fetched_again() {
    let world = World::new().await;
    world.server.file("good.gguf", CONTENT);
    let target = world.target();
    std::fs::create_dir_all(target.parent().expect("a folder")).expect("made");
    std::fs::write(&target, "<html>sign in</html>").expect("written");
    assert!(world.pull(&world.model(vec![world.url("good.gguf")], None)).await.expect("pulled").is_some());
    world.assert_pulled();
}

#[tokio::test]
async fn a_pull_can_be_forced_and_what_is_here_stays_until_the_new_one_is_whole() {
    let world = World::new().await;
    world.server.file("good.gguf", CONTENT);
    let target = world.target();
    std::fs::create_dir_all(target.parent().expect("a folder")).expect("made");
    std::fs::write(&target, "GGUF, and damaged").expect("written");
    let puller = world.puller().expect("a client");
    let lost = world.model(vec![world.url("gone.gguf")], None);
    puller.pull(&lost, AlreadyHere::Replaced, super::silent()).await.expect_err("nothing there");
    assert_eq!(std::fs::read(&target).expect("there"), b"GGUF, and damaged");
    let good = world.model(vec![world.url("good.gguf")], None);
    let pulled = puller.pull(&good, AlreadyHere::Kept, super::silent()).await.expect("there");
    assert_eq!(pulled[0].fetched_from, None);
    let pulled = puller.pull(&good, AlreadyHere::Replaced, super::silent()).await.expect("pulled");
    assert!(pulled[0].fetched_from.is_some());
    world.assert_pulled();
}
