//! The cache over folders of a test's own, without any model.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::super::digest::hex;
use super::*;
use crate::config::{self, Config, Env, Selection};

/// Files in one folder, and a cache in another.
struct World {
    folder: tempfile::TempDir,
    size: Option<&'static str>,
}

impl World {
    fn new(size: Option<&'static str>) -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap(), size };
        fs::create_dir(world.at("models")).unwrap();
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn lay(&self, name: &str, content: &str) -> PathBuf {
        let path = self.at("models").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// models.yaml with an entry for each of these files, which it names by path and digest.
    fn config(&self, files: &[(&str, Option<&str>)]) -> Config {
        let here = self.folder.path().display();
        let size = self.size.map(|size| format!("cache_size: {size}\n")).unwrap_or_default();
        let mut text =
            format!("cache_dir: {here}/cache\n{size}models_dir: {here}/models\nstate_dir: {here}/state\nmodels:\n");
        for (at, (name, sha256)) in files.iter().enumerate() {
            text += &format!("  m{at}: {{type: text, plugin: p, source: {{path: {here}/models/{name}}}");
            text += &sha256.map(|sha256| format!(", sha256: {sha256}")).unwrap_or_default();
            text += "}\n";
        }
        config::parse(&text, &self.at("models.yaml"), &Selection::default(), &Env::default()).unwrap()
    }

    fn cache(&self) -> Arc<Cache> {
        Arc::new(Cache::of(&self.config(&[("x", None)]).paths).unwrap())
    }

    /// What the file of a model is opened as.
    async fn open(&self, cache: &Arc<Cache>, name: &str, sha256: Option<&str>) -> Opened {
        self.open_unless_stopped(cache, name, sha256, &Arc::default()).await.unwrap()
    }

    async fn open_unless_stopped(
        &self,
        cache: &Arc<Cache>,
        name: &str,
        sha256: Option<&str>,
        check: &Arc<Verification>,
    ) -> Result<Opened, Failure> {
        let config = self.config(&[(name, sha256)]);
        let model = config.models.values().next().unwrap();
        let files: BTreeMap<String, PathBuf> =
            model.files.iter().map(|(role, file)| (role.clone(), file.path.clone())).collect();
        let lease = CacheLease::default();
        let taken = Arc::clone(cache).take(model, files, Arc::clone(check), lease.clone()).await?;
        let path = taken.files["model"].clone();
        Ok(Opened { is_copy: path.starts_with(self.at("cache")) && !path.is_symlink(), path, taken, lease })
    }

    /// Names of files under the cache that are whole copies, and of those that are not.
    fn files(&self) -> (Vec<String>, Vec<String>) {
        let (mut copies, mut parts) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(self.at("cache")).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
            for inside in fs::read_dir(entry.path()).unwrap().flatten() {
                let name = inside.file_name().to_string_lossy().into_owned();
                if inside.path().is_dir() {
                    let files = fs::read_dir(inside.path()).unwrap().flatten();
                    let files = files.filter(|file| file.file_type().unwrap().is_file());
                    copies.extend(files.map(|file| file.file_name().to_string_lossy().into_owned()));
                } else if name.starts_with("part-") {
                    parts.push(name);
                }
            }
        }
        copies.sort();
        (copies, parts)
    }
}

#[derive(Debug)]
struct Opened {
    path: PathBuf,
    is_copy: bool,
    taken: Taken,
    lease: CacheLease,
}

impl Opened {
    fn text(&self) -> String {
        fs::read_to_string(&self.path).unwrap()
    }
}

fn sha256(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

#[tokio::test]
async fn a_file_is_copied_once_and_opened_from_its_copy_by_this_host_and_the_next() {
    let world = World::new(None);
    let original = world.lay("org/x.gguf", "weights");
    world.lay("org/config.json", "settings");
    let cache = world.cache();
    let first = world.open(&cache, "org/x.gguf", Some(&sha256("weights"))).await;
    assert!(first.is_copy && first.text() == "weights", "{first:?}");
    assert_eq!((first.taken.copied_from, first.lease.note()), (vec![original.clone()], None));
    assert_eq!(first.taken.hashed, ["model".to_owned()].into());
    // Its name and that of its folder stay, and what lies beside it is beside it.
    assert!(first.path.ends_with("org/x.gguf"), "{}", first.path.display());
    assert_eq!(fs::read_to_string(first.path.with_file_name("config.json")).unwrap(), "settings");
    assert_eq!(world.at("cache").metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let made = first.path.metadata().unwrap();
    drop((first.lease, cache));

    let cache = world.cache();
    let (next, other) = (world.open(&cache, "org/x.gguf", None).await, world.open(&cache, "org/x.gguf", None).await);
    assert_eq!((next.path.clone(), next.lease.fingerprint()), (other.path, other.lease.fingerprint()));
    assert_eq!(
        std::os::unix::fs::MetadataExt::ino(&next.path.metadata().unwrap()),
        std::os::unix::fs::MetadataExt::ino(&made)
    );
    assert_eq!(world.files(), (vec!["x.gguf".to_owned()], vec![]));
}

#[tokio::test]
async fn a_changed_original_has_a_new_copy_and_the_old_one_goes() {
    let world = World::new(None);
    world.lay("x", "one");
    let cache = world.cache();
    assert_eq!(world.open(&cache, "x", None).await.text(), "one");
    world.lay("x", "other");
    let second = world.open(&cache, "x", None).await;
    assert!(second.is_copy && second.text() == "other");
    // Another file under the same name, of the same size and time.
    let fresh = world.lay("fresh", "OTHER");
    let time = world.at("models/x").metadata().unwrap().modified().unwrap();
    fs::File::options().write(true).open(&fresh).unwrap().set_modified(time).unwrap();
    fs::rename(&fresh, world.at("models/x")).unwrap();
    let third = world.open(&cache, "x", None).await;
    assert!(third.is_copy && third.text() == "OTHER");
    assert_eq!(world.files().0, ["x"]);
    assert_ne!(second.lease.fingerprint(), third.lease.fingerprint(), "their pages are not the same");
}

#[tokio::test]
async fn those_that_were_used_longest_ago_make_room_also_after_a_restart() {
    let world = World::new(Some("25"));
    for name in ["a", "b", "c", "d"] {
        world.lay(name, "ten bytes.");
    }
    let tick = |at: SystemTime| {
        while unix_ms() == u64::try_from(at.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()).unwrap() {}
    };
    let cache = world.cache();
    for name in ["a", "b", "a"] {
        assert!(world.open(&cache, name, None).await.is_copy);
        tick(SystemTime::now());
    }
    drop(cache);
    let cache = world.cache();
    assert!(world.open(&cache, "c", None).await.is_copy);
    assert_eq!(world.files().0, ["a", "c"]);
    // Who reads in the folder of one that is gone finds the original.
    let entry = fs::read_dir(world.at("cache")).unwrap().flatten().find(|entry| entry.path().is_dir()).unwrap();
    assert_eq!(fs::read_to_string(entry.path().join("models/b")).unwrap(), "ten bytes.");
    tick(SystemTime::now());
    assert!(world.open(&cache, "d", None).await.is_copy);
    assert_eq!(world.files().0, ["c", "d"]);
    drop(cache);
    // With less room than there was, one of them has to go.
    let world = World { size: Some("15"), ..world };
    let cache = world.cache();
    assert!(world.open(&cache, "d", None).await.is_copy);
    assert_eq!(world.files().0, ["d"]);
}

#[tokio::test]
async fn a_cache_that_somebody_removes_is_made_anew() {
    let world = World::new(None);
    world.lay("x", "weights");
    let cache = world.cache();
    let opened = world.open(&cache, "x", None).await;
    fs::remove_dir_all(world.at("cache")).unwrap();
    let again = world.open(&cache, "x", None).await;
    assert!(again.is_copy && again.text() == "weights", "{:?}", again.lease.note());
    assert_eq!(world.at("cache").metadata().unwrap().permissions().mode() & 0o777, 0o700);
    drop(opened);
}

#[tokio::test]
async fn what_is_in_use_stays_and_what_finds_no_room_is_opened_where_it_lies() {
    let world = World::new(Some("25"));
    for name in ["a", "b", "c"] {
        world.lay(name, "ten bytes.");
    }
    world.lay("large", "more than twenty-five bytes");
    let cache = world.cache();
    let (a, b) = (world.open(&cache, "a", None).await, world.open(&cache, "b", None).await);
    let c = world.open(&cache, "c", None).await;
    let note = c.lease.note().unwrap();
    assert!(!c.is_copy && c.text() == "ten bytes.", "{c:?}");
    assert!(
        note.contains("models/c is opened where it lies") && note.contains("20 B of 25 B are copies in use"),
        "{note}"
    );
    drop(a);
    assert!(world.open(&cache, "c", None).await.is_copy);
    assert_eq!(world.files().0, ["b", "c"]);
    assert!(b.path.is_file() && !b.path.is_symlink());
    let large = world.open(&cache, "large", None).await;
    assert!(!large.is_copy && large.text().starts_with("more"));
    let note = large.lease.note().unwrap();
    assert!(note.contains("its 27 B are more than `cache_size` (25 B)"), "{note}");
    assert_eq!(world.files().0, ["b", "c"], "nothing left for what does not fit anyway");
}

#[tokio::test]
async fn what_is_half_does_not_count_and_is_removed_at_the_next_start() {
    let world = World::new(None);
    let original = world.lay("x", "weights");
    world.lay("y", "weights");
    let cache = world.cache();
    let opened = world.open(&cache, "x", None).await;
    let (view, entry) = (opened.path.parent().unwrap().to_owned(), opened.path.ancestors().nth(2).unwrap().to_owned());
    drop((opened, cache));
    // As a host leaves it that was killed: a part, and a copy that was put in its place and not noted.
    fs::write(entry.join("part-x"), "wei").unwrap();
    fs::remove_file(view.join("y")).unwrap();
    fs::write(view.join("y"), "half").unwrap();
    let foreign = world.at("cache").join("mine.txt");
    fs::write(&foreign, "somebody's").unwrap();
    let cache = world.cache();
    let opened = world.open(&cache, "y", None).await;
    assert!(opened.is_copy && opened.text() == "weights");
    assert_eq!(world.files(), (vec!["x".to_owned(), "y".to_owned()], vec![]));
    assert!(foreign.is_file(), "what is not its own it leaves alone");
    drop(cache);

    // A copy that lost its end, as a disk leaves it whose machine lost its power, or that somebody wrote to.
    fs::set_permissions(view.join("x"), Permissions::from_mode(0o600)).unwrap();
    fs::write(view.join("x"), "weigh").unwrap();
    // And a note that cannot be read.
    let cache = world.cache();
    assert_eq!(world.open(&cache, "x", None).await.text(), "weights");
    drop(cache);
    fs::write(entry.join("copies.json"), "{").unwrap();
    let cache = world.cache();
    let opened = world.open(&cache, "x", None).await;
    assert!(opened.is_copy && opened.text() == "weights");
    assert_eq!(world.files().0, ["x"], "what nobody has noted is removed");
    drop(original);
}

#[tokio::test]
async fn a_copy_that_is_stopped_goes_on_where_it_was_and_leaves_none_behind_that_is_half() {
    let world = World::new(None);
    world.lay("x", "weights");
    let cache = world.cache();
    let check = Arc::new(Verification::default());
    check.stop();
    let failure = world.open_unless_stopped(&cache, "x", None, &check).await.unwrap_err();
    assert_eq!((failure.kind, world.files().0), (FailureKind::Cancelled, vec![]));
    let opened = world.open(&cache, "x", None).await;
    assert!(opened.is_copy && opened.text() == "weights");
    assert_eq!(world.files(), (vec!["x".to_owned()], vec![]));
}

#[tokio::test]
async fn bytes_that_are_not_what_models_yaml_wants_are_no_copy() {
    let world = World::new(None);
    world.lay("x", "weights");
    let cache = world.cache();
    let wrong = world.open(&cache, "x", Some(&sha256("others"))).await;
    assert!(!wrong.is_copy && wrong.taken.hashed.is_empty());
    assert_eq!(world.files(), (vec![], vec![]));
    // A copy that was made when nobody wanted to know is no copy for who does.
    assert!(world.open(&cache, "x", None).await.is_copy);
    let right = world.open(&cache, "x", Some(&sha256("weights"))).await;
    assert!(right.is_copy && right.taken.hashed.len() == 1);
}

#[tokio::test]
async fn loads_that_come_at_once_copy_a_file_once() {
    let world = World::new(None);
    world.lay("x", &"weights ".repeat(1 << 17));
    let cache = world.cache();
    let checks: Vec<Arc<Verification>> = (0..4).map(|_| Arc::default()).collect();
    let opened =
        futures_util::future::join_all(checks.iter().map(|check| world.open_unless_stopped(&cache, "x", None, check)));
    let opened: Vec<Opened> = opened.await.into_iter().map(Result::unwrap).collect();
    let inodes: BTreeSet<u64> =
        opened.iter().map(|opened| std::os::unix::fs::MetadataExt::ino(&opened.path.metadata().unwrap())).collect();
    assert!(opened.iter().all(|opened| opened.is_copy) && inodes.len() == 1, "{inodes:?}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_had_costs_a_copy_and_no_load() {
    let world = World::new(None);
    world.lay("x", "weights");
    let (first, second) = (world.cache(), world.cache());
    assert!(world.open(&first, "x", None).await.is_copy);
    let opened = world.open(&second, "x", None).await;
    let note = opened.lease.note().unwrap();
    assert!(!opened.is_copy && note.contains("is used by another host"), "{note}");
    // It is left, and the other may have it.
    first.leave();
    assert!(world.open(&second, "x", None).await.is_copy);
    assert!(!world.open(&first, "x", None).await.is_copy);
    drop((first, second));

    fs::set_permissions(world.at("cache"), Permissions::from_mode(0o777)).unwrap();
    let opened = world.open(&world.cache(), "x", None).await;
    assert!(!opened.is_copy && opened.lease.note().unwrap().contains("chmod go-w"));
    let told = Cache::check_owner(&world.config(&[("x", None)]).paths).unwrap_err();
    assert!(told.starts_with("`cache_dir`: any user may write"), "{told}");
    fs::remove_dir_all(world.at("cache")).unwrap();
    fs::write(world.at("cache"), "a file").unwrap();
    assert!(!world.open(&world.cache(), "x", None).await.is_copy);
    fs::remove_file(world.at("cache")).unwrap();
    // A link that leads to where models lie.
    std::os::unix::fs::symlink(world.at("models"), world.at("cache")).unwrap();
    let opened = world.open(&world.cache(), "x", None).await;
    assert!(opened.lease.note().unwrap().contains("leads to"), "{opened:?}");
    assert!(Path::new(&opened.path).starts_with(world.at("models")));
}

#[test]
fn a_budget_in_which_nothing_fits_is_told() {
    let world = World::new(Some("5"));
    let config = world.config(&[("x", None), ("y", None)]);
    assert_eq!(too_small(&config), None, "nothing is there yet");
    world.lay("x", "weights");
    world.lay("y", "more weights");
    let told = too_small(&config).unwrap();
    assert!(told.contains("fits in 5 B, the smallest has 7 B"), "{told}");
    world.lay("y", "few");
    assert_eq!(too_small(&config), None);
}
