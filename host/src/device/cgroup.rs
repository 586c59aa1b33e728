//! What the control groups around this process leave below their memory limits. Reads version 1 and 2; a machine without
//! limits has none to read.

use std::fs;
use std::path::{Path, PathBuf};

use super::Memory;

/// How one version names its files.
struct Version {
    limit: &'static str,
    usage: &'static str,
    /// Lines of `memory.stat` that are file cache, which the system gives up when asked for memory.
    cache: [&'static str; 2],
}

const ONE: Version = Version {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cache: ["total_active_file", "total_inactive_file"],
};
const TWO: Version = Version { limit: "memory.max", usage: "memory.current", cache: ["active_file", "inactive_file"] };

/// Bytes of the tightest limit, that of which least is left, and those below it; `None` where there is none.
pub(super) fn memory() -> Option<Memory> {
    memory_in(Path::new("/sys/fs/cgroup"), &fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// `groups` is /proc/self/cgroup: `number:controllers:path`, the controllers empty in version 2.
fn memory_in(root: &Path, groups: &str) -> Option<Memory> {
    let lines = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        Some((parts.next()?, parts.next()?))
    });
    let limits = lines.filter_map(|(controllers, path)| match controllers {
        "" => tightest(root, path, &TWO),
        _ if controllers.split(',').any(|name| name == "memory") => tightest(&root.join("memory"), path, &ONE),
        _ => None,
    });
    limits.min_by_key(|memory| memory.free)
}

/// The least that a group or one around it leaves.
fn tightest(root: &Path, path: &str, version: &Version) -> Option<Memory> {
    // In a container the path may be one of the machine outside; the root is the container's own group then.
    let own: PathBuf = root.join(path.trim_start_matches('/'));
    let groups = own.ancestors().take_while(|group| group.starts_with(root));
    groups.filter_map(|group| memory_of(group, version)).min_by_key(|memory| memory.free)
}

fn memory_of(group: &Path, version: &Version) -> Option<Memory> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    // "max" is no number; version 1 says it with one beyond any machine, which is never the least.
    let limit: u64 = read(version.limit)?.trim().parse().ok()?;
    let usage: u64 = read(version.usage)?.trim().parse().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let bytes = |line: &str| {
        let (name, bytes) = line.split_once(' ')?;
        version.cache.contains(&name).then(|| bytes.trim().parse::<u64>().ok())?
    };
    let cache: u64 = stat.lines().filter_map(bytes).sum();
    Some(Memory { total: limit, free: limit.saturating_sub(usage.saturating_sub(cache)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_limit_counts_and_file_cache_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let file = dir.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        let left = |groups: &str| memory_in(dir.path(), groups).map(|memory| memory.free);
        assert_eq!(left("0::/a/b\n"), None, "no limit at all");

        write("a/b/memory.max", "max\n");
        write("a/b/memory.current", "100\n");
        assert_eq!(left("0::/a/b\n"), None);
        write("a/memory.max", "1000\n");
        write("a/memory.current", "700\n");
        assert_eq!(left("0::/a/b\n"), Some(300), "the group around it has one");
        write("a/memory.stat", "anon 200\nactive_file 150\ninactive_file 350\nfile 600\n");
        assert_eq!(left("0::/a/b\n"), Some(800));
        assert_eq!(memory_in(dir.path(), "0::/a/b\n"), Some(Memory { total: 1000, free: 800 }));
        write("a/memory.max", "10\n");
        assert_eq!(left("0::/a/b\n"), Some(0));

        write("memory/limit/memory.limit_in_bytes", "5000\n");
        write("memory/limit/memory.usage_in_bytes", "4000\n");
        write("memory/limit/memory.stat", "active_file 1\ntotal_active_file 100\ntotal_inactive_file 200\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/memory.usage_in_bytes", "1\n");
        let one = "3:cpuset:/\n5:cpu,memory:/limit\n0::/\n";
        assert_eq!(left(one), Some(1300));
        assert_eq!(left("5:memory:/outside/of/the/container\n"), Some(9223372036854771711));
        assert_eq!(left("nonsense"), None);
    }
}
