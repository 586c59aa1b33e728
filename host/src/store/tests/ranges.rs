//! Large files in several ranges at once: whole however ranges end, never of two files, and gone on with where they stopped.

use super::standin::{Manners, Page};
use super::{World, digest};
use crate::store::download::Ranges;

/// Bytes of a range, and how many of those a file has.
const RANGE: usize = 1000;
const COUNT: usize = 10;

/// Bytes of which each range differs from the others.
fn large() -> Vec<u8> {
    let numbers = (0..(RANGE * COUNT / 4) as u32).flat_map(|number| (number.wrapping_mul(2_654_435_761)).to_le_bytes());
    b"GGUF".iter().copied().chain(numbers).collect()
}

async fn world(manners: Manners) -> World {
    let mut world = World::new().await;
    world.patience.ranges = Some(Ranges { at_once: 3, bytes: RANGE as u64 });
    world.server.put("large.gguf", Page { bytes: large(), manners, ..Page::default() });
    world
}

fn assert_whole(world: &World, wanted: &[u8]) {
    assert_eq!(std::fs::read(world.target()).expect("there"), wanted);
    for left in [".part", ".part.from", ".part.from.new"] {
        assert!(!world.beside(left).exists(), "{left} is left over");
    }
}

/// Where the ranges begin that were asked for, after so many answers.
fn begins_after(world: &World, answers: usize) -> Vec<usize> {
    let ranges = world.server.ranges("large.gguf").into_iter().skip(answers).flatten();
    let begin = |range: String| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok();
    let mut begins: Vec<usize> = ranges.filter_map(begin).collect();
    begins.sort_unstable();
    begins
}

fn begins(world: &World) -> Vec<usize> {
    begins_after(world, 0)
}

#[tokio::test]
async fn a_large_file_comes_in_ranges_and_its_digest_is_that_of_the_whole() {
    let world = world(Manners::Good).await;
    let model = world.model(vec![world.url("large.gguf")], Some(digest(&large())));
    world.pull(&model).await.expect("fetched");
    assert_whole(&world, &large());
    // The first answer is the first range; the last one has the four bytes over.
    let wanted: Vec<usize> = (1..=COUNT).map(|range| range * RANGE).collect();
    assert_eq!(begins(&world), wanted);
    let wrong = world.model(vec![world.url("large.gguf")], Some(digest(b"another")));
    let told = world.pull(&wrong).await.expect_err("it is another file");
    assert!(told.contains(&format!("its sha256 is {}", digest(&large()))), "{told}");
}

#[tokio::test]
async fn a_small_file_and_one_without_ranges_come_in_one_piece() {
    for manners in [Manners::Plain, Manners::Good] {
        let mut world = world(manners).await;
        if manners == Manners::Good {
            world.patience.ranges = Some(Ranges { at_once: 3, bytes: large().len() as u64 });
        }
        world.pull(&world.model(vec![world.url("large.gguf")], None)).await.expect("fetched");
        assert_whole(&world, &large());
        assert_eq!(world.server.ranges("large.gguf"), [None]);
    }
}

#[tokio::test]
async fn ranges_that_break_off_are_gone_on_with() {
    let world = world(Manners::CutRanges(300)).await;
    world.pull(&world.model(vec![world.url("large.gguf")], None)).await.expect("fetched");
    assert_whole(&world, &large());
    assert!(begins(&world).contains(&(RANGE + 300)), "{:?}", begins(&world));
}

#[tokio::test]
async fn a_server_that_gives_no_ranges_after_all_is_asked_for_the_rest_in_one_piece() {
    let world = world(Manners::Unranged).await;
    world.pull(&world.model(vec![world.url("large.gguf")], Some(digest(&large())))).await.expect("fetched");
    assert_whole(&world, &large());
}

#[tokio::test]
async fn a_file_that_is_replaced_meanwhile_is_not_put_together_from_two() {
    let world = world(Manners::Replaced).await;
    // Without a digest nothing else would notice.
    let mut model = world.model(vec![world.url("large.gguf")], None);
    let file = model.files.get_mut("model").expect("there");
    file.path.set_extension("bin");
    let target = file.path.clone();
    world.pull(&model).await.expect("fetched");
    let other: Vec<u8> = large().into_iter().rev().collect();
    assert!(std::fs::read(target).expect("there") == other, "it is of two files");
}

#[tokio::test]
async fn what_is_whole_from_the_beginning_is_kept_and_holes_are_not() {
    let world = world(Manners::Leaving(6)).await;
    let model = world.model(vec![world.url("large.gguf")], Some(digest(&large())));
    world.pull(&model).await.expect_err("it is gone");
    let part = std::fs::read(world.beside(".part")).expect("a part");
    let whole = part.len();
    assert!(whole >= RANGE && whole < large().len(), "{whole} bytes are kept");
    assert_eq!(part, large()[..whole], "there is no hole in it");
    let before = world.server.ranges("large.gguf").len();
    world.server.put("large.gguf", Page { bytes: large(), ..Page::default() });
    world.pull(&model).await.expect("fetched");
    assert_whole(&world, &large());
    let begins = begins_after(&world, before);
    assert_eq!(begins[0], whole, "it goes on behind what is whole");
    assert!(begins.len() > 1, "in several ranges again: {begins:?}");
}

#[tokio::test]
async fn a_part_with_holes_that_a_killed_pull_left_is_trusted_as_far_as_it_was_noted() {
    let world = world(Manners::Good).await;
    std::fs::create_dir_all(world.target().parent().expect("parent")).expect("created");
    // Three ranges are whole; of what is behind them a later one came, and the one between did not.
    let mut part = large();
    part[3 * RANGE..4 * RANGE].fill(0);
    part.truncate(5 * RANGE);
    std::fs::write(world.beside(".part"), part).expect("written");
    let url = digest(world.server.url("large.gguf").as_bytes());
    let note = format!("{url}\n0\n{}\n\"v1\"\nwhole {}\n", large().len(), 3 * RANGE);
    std::fs::write(world.beside(".part.from"), note).expect("written");
    world.pull(&world.model(vec![world.url("large.gguf")], None)).await.expect("fetched");
    assert_whole(&world, &large());
    assert_eq!(begins(&world)[0], 3 * RANGE);
}
