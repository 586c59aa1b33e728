//! Where models, plugins and state lie: whether there is room, who may write, and how fast it is read.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{Access, Advice, access, fadvise, statfs};

use super::Finding;
use crate::config::{Config, Paths};
use crate::domain::ByteSize;

/// Less than this is no room.
const ROOM_LEAST: u64 = 64 << 20;
/// Less than this is little.
const ROOM_LITTLE: u64 = 5 << 30;
/// What is read to see how fast a file is.
const READ_BYTES: u64 = 256 << 20;
/// A file that is smaller says nothing.
const READ_LEAST: u64 = 16 << 20;
/// Bytes a second below which a load is waited for.
const SLOW: f64 = 200e6;

/// Filesystems by their numbers: those of a network, and those that end with a container.
const NETWORK: [(u64, &str); 5] =
    [(0x6969, "NFS"), (0x517b, "SMB"), (0xff53_4d42, "CIFS"), (0x6573_5546, "FUSE"), (0x0bd0_0bd0, "Lustre")];
const PASSING: [(u64, &str); 2] = [(0x794c_7630, "the container's own layer"), (0x0102_1994, "memory (tmpfs)")];

/// The folders.
pub(super) fn folders(paths: &Paths) -> Vec<Finding> {
    let of = [("models_dir", &paths.models), ("plugins_dir", &paths.plugins), ("state_dir", &paths.state)];
    let cache = paths.cache.as_ref().map(|cache| ("cache_dir", &cache.folder));
    of.into_iter().chain(cache).map(|(key, path)| folder(key, path, paths)).collect()
}

fn folder(key: &'static str, path: &Path, paths: &Paths) -> Finding {
    let shown = path.display();
    let there = existing(path);
    let writes = key != "plugins_dir";
    if writes && access(there, Access::WRITE_OK).is_err() {
        return Finding::fail(
            key,
            format!("this user may not write {}", there.display()),
            format!("chown it, or name another folder: `{key}:` of models.yaml"),
        );
    }
    if let Err(why) = paths.sharing.check(path) {
        return Finding::fail(key, why, "until then nothing that lies there is used");
    }
    let Ok(found) = statfs(there) else {
        return Finding::warn(key, format!("{shown} does not say how much room it has"), "df -h");
    };
    let free = found.f_bavail.saturating_mul(found.f_bsize as u64);
    let named = |kinds: &[(u64, &'static str)]| {
        kinds.iter().find(|(number, _)| *number == found.f_type as u64).map(|(_, name)| *name)
    };
    let room = format!("{shown}: {} free", ByteSize(free));
    match (free, named(&NETWORK), named(&PASSING)) {
        (..ROOM_LEAST, ..) if writes => Finding::fail(key, room, "remove what is not needed"),
        (_, Some(kind), _) if key == "cache_dir" => Finding::warn(
            key,
            format!("{room}, over a network ({kind}): copies there gain nothing"),
            "name a folder of a fast local disk: `cache_dir:`",
        ),
        (_, _, Some("memory (tmpfs)")) if key == "cache_dir" => Finding::warn(
            key,
            format!("{room}, on memory (tmpfs): copies there take memory from models"),
            "name a folder of a local disk: `cache_dir:`; or bound it by `cache_size:`",
        ),
        _ if key == "cache_dir" && is_one_disk(there, existing(&paths.models)) => Finding::warn(
            key,
            format!("{room}, on the disk of `models_dir`: copies there gain nothing"),
            "leave `cache_dir` out, or name a folder of another, faster disk",
        ),
        (_, Some(kind), _) if key == "state_dir" => Finding::warn(
            key,
            format!("{room}, over a network ({kind})"),
            "name a folder of a local disk: `state_dir:`; locks and small files are slow or unsure there",
        ),
        (_, _, Some(kind)) if key == "models_dir" => Finding::warn(
            key,
            format!("{room}, on {kind}: what is fetched there goes with it"),
            "name a folder of a volume: `models_dir:`",
        ),
        (..ROOM_LITTLE, ..) if key == "models_dir" => {
            Finding::warn(key, room, "most models need more; `aihost models pull` says how much before it begins")
        }
        (_, Some(kind), _) if key == "models_dir" && paths.cache.is_none() => Finding::warn(
            key,
            format!("{room}, over a network ({kind}), and no `cache_dir` is set"),
            "where the machine has a fast disk of its own, `cache_dir:` in models.yaml keeps copies of weights there",
        ),
        (_, Some(kind), _) => Finding::pass(key, format!("{room}, over a network ({kind})")),
        _ => Finding::pass(key, room),
    }
}

fn is_one_disk(one: &Path, other: &Path) -> bool {
    let disk = |path: &Path| path.metadata().ok().map(|found| found.dev());
    disk(one).is_some() && disk(one) == disk(other)
}

/// The folder, or the nearest above it that is there.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"))
}

/// How fast the largest file of a model is read that is here.
pub(super) fn speed(config: &Config) -> Option<Finding> {
    const CHECK: &str = "read speed";
    let files = config.models.values().flat_map(|model| model.files.values()).map(|file| &file.path);
    let sized = files.filter_map(|path| Some((path.metadata().ok().filter(|found| found.is_file())?.len(), path)));
    let (bytes, path) = sized.max()?;
    if bytes < READ_LEAST {
        return None;
    }
    let rate = match read_rate(path) {
        Ok(rate) => rate,
        Err(error) => {
            return Some(Finding::fail(CHECK, format!("{}: {error}", path.display()), "aihost models pull --force"));
        }
    };
    let seconds = bytes as f64 / rate;
    let found = format!(
        "{} is read at {}/s: {} in {seconds:.0} s, where it is not in memory already",
        path.display(),
        ByteSize(rate as u64),
        ByteSize(bytes)
    );
    Some(match rate {
        SLOW.. => Finding::pass(CHECK, found),
        _ if config.paths.cache.is_some() => Finding::pass(CHECK, format!("{found}; its copy in `cache_dir` is not")),
        _ => Finding::warn(
            CHECK,
            found,
            "keep models on a faster disk (`models_dir:`), copies of them on one (`cache_dir:`), or loaded (`pinned: true`)",
        ),
    })
}

/// Bytes a second from the disk, as far as the system lets go of what it has in memory.
fn read_rate(path: &PathBuf) -> std::io::Result<f64> {
    let mut file = File::open(path)?;
    // What another program has mapped stays in memory; then this reads memory, and says so by its speed.
    fadvise(&file, 0, None, Advice::DontNeed)?;
    let mut piece = vec![0; 1 << 20];
    let (begun, mut read) = (Instant::now(), 0);
    while read < READ_BYTES {
        match file.read(&mut piece)? {
            0 => break,
            count => read += count as u64,
        }
    }
    Ok(read as f64 / begun.elapsed().as_secs_f64().max(1e-6))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::config::{Env, Selection, parse};

    fn config(folder: &Path, more: &str) -> Config {
        let here = folder.display();
        let text = format!("models_dir: {here}/m\nplugins_dir: {here}/p\nstate_dir: {here}/s\n{more}");
        parse(&text, &folder.join("models.yaml"), &Selection::default(), &Env::default()).unwrap()
    }

    #[test]
    fn folders_that_are_not_there_yet_are_judged_by_what_is_above_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path(), "models: {}");
        assert_eq!(existing(&folder.path().join("a/b/c")), folder.path());
        let verdicts =
            |config: &Config| folders(&config.paths).into_iter().map(|found| found.verdict).collect::<Vec<_>>();
        assert!(!verdicts(&config).contains(&Verdict::Fail));
        config.paths.state = "/proc/no/state".into();
        assert_eq!(verdicts(&config)[2], Verdict::Fail);
        std::fs::create_dir(folder.path().join("p")).unwrap();
        let shared = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(folder.path().join("p"), shared).unwrap();
        let finding = &folders(&config.paths)[1];
        assert!(finding.verdict == Verdict::Fail && finding.found.contains("chmod go-w"), "{finding:?}");
    }

    #[test]
    fn a_cache_on_the_disk_of_the_models_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().display();
        let config = config(folder.path(), &format!("cache_dir: {here}/c\nmodels: {{}}"));
        let found = folders(&config.paths);
        let cache = found.last().unwrap();
        // Where tests run in memory that is told first.
        let is_told =
            ["on the disk of `models_dir`", "on memory (tmpfs)"].iter().any(|said| cache.found.contains(said));
        assert!(found.len() == 4 && cache.verdict == Verdict::Warn && is_told, "{cache:?}");
    }

    #[test]
    fn the_largest_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.gguf");
        File::create(&file).unwrap().set_len(READ_LEAST - 1).unwrap();
        let config = config(
            folder.path(),
            &format!("models: {{a: {{type: text, plugin: p, source: {{path: {}}}}}}}", file.display()),
        );
        assert!(speed(&config).is_none());
        File::create(&file).unwrap().set_len(2 * READ_LEAST).unwrap();
        let finding = speed(&config).unwrap();
        assert!(finding.found.contains("a.gguf is read at"), "{finding:?}");
    }
}
