//! Files of several parts: wheels, plain files, and zips in wheels, one behind the other.

use super::standin::{Manners, Page, Standin};
use super::{CONTENT, World, digest, in_wheel, right, zipped};
use crate::config::{Location, Part, Source};

const CUTS: [usize; 2] = [20, 45];

/// The content in three pieces.
fn pieces() -> [&'static [u8]; 3] {
    [&CONTENT[..CUTS[0]], &CONTENT[CUTS[0]..CUTS[1]], &CONTENT[CUTS[1]..]]
}

/// An index with this wheel of this package.
fn serve_wheel(server: &Standin, package: &str, bytes: Vec<u8>) {
    let name = format!("{package}-1-py3-none-any.whl");
    let page = format!("<a href='/files/{name}#sha256={}'>x</a>", digest(&bytes));
    server.put(
        &format!("simple/{package}/"),
        Page { bytes: page.into_bytes(), content_type: Some("text/html"), ..Page::default() },
    );
    server.file(&format!("files/{name}"), &bytes);
}

/// A wheel, a plain file, and a zip in a wheel.
fn three(world: &World) -> Vec<Part> {
    let [first, second, third] = pieces();
    serve_wheel(&world.server, "a", zipped(&[("x.part0", first)]));
    world.server.put("x.part1", Page { bytes: second.to_vec(), ..Page::default() });
    serve_wheel(&world.server, "c", zipped(&[("deep/z.zip", &zipped(&[("in/x.part2", third)]))]));
    let locations = [
        in_wheel("a==1", "x.part0"),
        Location::Url(world.server.url("x.part1")),
        in_wheel("c==1", "deep/z.zip!/in/x.part2"),
    ];
    locations.into_iter().map(|location| Part { location, sha256: None }).collect()
}

#[tokio::test]
async fn parts_become_one_file_in_their_order() {
    let world = World::new().await;
    let parts = three(&world);
    let from = world.pull(&world.model(vec![Source::Parts(parts)], right())).await.expect("fetched").expect("just now");
    let wanted =
        format!("3 parts: pip a==1 x.part0, url {}, pip c==1 deep/z.zip!/in/x.part2", world.server.url("x.part1"));
    assert_eq!(from, format!("{wanted} from {}", world.server.url("simple")));
    world.assert_pulled();
}

#[tokio::test]
async fn finished_parts_are_not_fetched_again() {
    let world = World::new().await;
    let parts = three(&world);
    world
        .server
        .put("x.part1", Page { bytes: pieces()[1].to_vec(), manners: Manners::Vanishing(7), ..Page::default() });
    let model = world.model(vec![Source::Parts(parts)], right());
    let error = world.pull(&model).await.expect_err("the second vanished on the way");
    assert!(error.contains("part 2, url ") && error.contains("404"), "{error}");
    world.assert_absent();
    world.server.file("x.part1", pieces()[1]);
    world.pull(&model).await.expect("fetched");
    assert_eq!(world.server.ranges("files/a-1-py3-none-any.whl"), [None], "the first part was whole");
    let rest = Some("bytes=7-".to_owned());
    assert_eq!(world.server.ranges("x.part1"), [None, rest.clone(), rest], "the second goes on where it ended");
    world.assert_pulled();
}

#[tokio::test]
async fn a_wheel_with_several_parts_is_fetched_once() {
    let world = World::new().await;
    let [first, second, third] = pieces();
    serve_wheel(&world.server, "a", zipped(&[("0", first), ("1", second), ("2", third)]));
    let parts = ["0", "1", "2"].map(|file| Part { location: in_wheel("a==1", file), sha256: None });
    world.pull(&world.model(vec![Source::Parts(parts.into())], right())).await.expect("fetched");
    assert_eq!(world.server.ranges("files/a-1-py3-none-any.whl"), [None]);
    world.assert_pulled();
}

#[tokio::test]
async fn each_digest_is_checked() {
    let world = World::new().await;
    let mut parts = three(&world);
    let error =
        world.pull(&world.model(vec![Source::Parts(parts.clone())], Some(digest(b"x")))).await.expect_err("wrong");
    assert!(error.contains(&format!("its sha256 is {}, wanted {}", digest(CONTENT), digest(b"x"))), "{error}");
    assert!(!world.beside(".part").exists(), "of a wrong whole no part is known to be right");
    for (part, piece) in parts.iter_mut().zip(pieces()) {
        part.sha256 = Some(digest(piece));
    }
    parts[1].sha256 = Some(digest(b"y"));
    let model = world.model(vec![Source::Parts(parts.clone())], right());
    let error = world.pull(&model).await.expect_err("wrong");
    assert!(error.contains("part 2, url ") && error.contains(&digest(b"y")), "{error}");
    world.assert_absent();
    parts[1].sha256 = Some(digest(pieces()[1]));
    world.pull(&world.model(vec![Source::Parts(parts)], right())).await.expect("right at last");
    world.assert_pulled();
}

#[tokio::test]
async fn parts_and_whole_files_are_mirrors_of_each_other() {
    let world = World::new().await;
    let parts = three(&world);
    world.server.put("files/c-1-py3-none-any.whl", Page { manners: Manners::Status(403), ..Page::default() });
    world.server.file("good.gguf", CONTENT);
    let both = || vec![Source::Parts(parts.clone()), world.url("good.gguf")];
    let from = world.pull(&world.model(both(), right())).await.expect("the second has it whole");
    assert_eq!(from, Some(format!("url {}", world.server.url("good.gguf"))));
    world.assert_pulled();
    std::fs::remove_file(world.target()).expect("removed");
    world.server.put("good.gguf", Page { bytes: CONTENT.to_vec(), manners: Manners::Vanishing(30), ..Page::default() });
    let parts = three(&world);
    let other_way = vec![world.url("good.gguf"), Source::Parts(parts)];
    let from = world.pull(&world.model(other_way, None)).await.expect("the parts have it");
    assert!(from.is_some_and(|from| from.starts_with("3 parts")));
    world.assert_pulled();
}
