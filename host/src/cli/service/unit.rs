//! The unit by which systemd runs a host.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What systemd gives a host between two signs of life.
const WATCHDOG: Duration = Duration::from_secs(60);
/// What it gives an end beyond the time in which requests may end.
const STOP_MARGIN: Duration = Duration::from_secs(15);

/// Whose systemd runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manager {
    /// That of one user, as long as they are logged in or linger.
    User,
    /// That of the machine.
    System,
}

/// What a unit is made of.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) manager: Manager,
    pub(super) program: PathBuf,
    pub(super) config: PathBuf,
    /// Holds variables such as keys, a line each. It need not be there.
    pub(super) environment: PathBuf,
    /// The number of the user that it runs as, under the machine's systemd.
    pub(super) user: u32,
    /// What it writes.
    pub(super) folders: Vec<PathBuf>,
    /// How long requests may take to end.
    pub(super) drain: Duration,
}

impl Unit {
    /// The file's text. All paths are absolute.
    pub(super) fn text(&self) -> String {
        let mut text = String::from(
            "# Written by `aihost service install`, which writes it anew: changes belong into a drop-in (`systemctl edit`).\n\
             [Unit]\nDescription=aihost: generative models behind one port\nAfter=network-online.target\n\
             Wants=network-online.target\n",
        );
        let mut section = |name: &str, lines: &[(&str, String)]| {
            let _ = writeln!(text, "\n[{name}]");
            for (key, value) in lines {
                let _ = writeln!(text, "{key}={value}");
            }
        };
        section("Service", &self.service());
        let target = if self.manager == Manager::User { "default.target" } else { "multi-user.target" };
        section("Install", &[("WantedBy", target.to_owned())]);
        text
    }

    fn service(&self) -> Vec<(&'static str, String)> {
        let seconds = |time: Duration| time.as_secs().to_string();
        let mut lines = vec![
            ("Type", "notify".to_owned()),
            // `aihost restart` starts another process, which says that it is the main one from then on.
            ("NotifyAccess", "all".to_owned()),
            ("ExecStart", format!("{} serve --config {}", quoted(&self.program), quoted(&self.config))),
            ("ExecReload", "/bin/kill -HUP $MAINPID".to_owned()),
            ("EnvironmentFile", format!("-{}", specified(&self.environment))),
            ("WorkingDirectory", specified(self.config.parent().unwrap_or(Path::new("/")))),
            ("Restart", "on-failure".to_owned()),
            ("RestartSec", "2".to_owned()),
            ("WatchdogSec", seconds(WATCHDOG)),
            // The host ends its workers itself, once their requests have ended.
            ("KillMode", "mixed".to_owned()),
            ("TimeoutStopSec", seconds(self.drain + STOP_MARGIN)),
            // A worker that takes too much costs itself.
            ("OOMPolicy", "continue".to_owned()),
            ("LimitNOFILE", "65536".to_owned()),
        ];
        let yes = |key: &'static str| (key, "yes".to_owned());
        lines.extend([
            yes("NoNewPrivileges"),
            yes("LockPersonality"),
            yes("RestrictRealtime"),
            yes("RestrictSUIDSGID"),
            ("SystemCallArchitectures", "native".to_owned()),
            ("UMask", "0077".to_owned()),
        ]);
        if self.manager == Manager::User {
            return lines;
        }
        let folders: Vec<String> = self.folders.iter().map(|folder| quoted(folder)).collect();
        lines.extend([
            ("User", self.user.to_string()),
            ("CapabilityBoundingSet", String::new()),
            ("AmbientCapabilities", String::new()),
            ("ProtectSystem", "strict".to_owned()),
            ("ReadWritePaths", folders.join(" ")),
            ("ProtectHome", "read-only".to_owned()),
            yes("PrivateTmp"),
            yes("ProtectClock"),
            yes("ProtectControlGroups"),
            yes("ProtectHostname"),
            yes("ProtectKernelLogs"),
            yes("ProtectKernelModules"),
            yes("ProtectKernelTunables"),
            ("ProtectProc", "invisible".to_owned()),
            yes("RemoveIPC"),
            yes("RestrictNamespaces"),
            ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX AF_NETLINK".to_owned()),
            (
                "SystemCallFilter",
                "@system-service landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp".to_owned(),
            ),
            ("SystemCallErrorNumber", "EPERM".to_owned()),
            ("DevicePolicy", "closed".to_owned()),
        ]);
        let devices =
            ["char-nvidia", "char-nvidia-frontend", "char-nvidia-uvm", "char-nvidia-caps", "char-drm", "char-kfd"];
        lines.extend(devices.map(|device| ("DeviceAllow", format!("{device} rw"))));
        lines
    }
}

/// A path as one word of a line.
fn quoted(path: &Path) -> String {
    let text = specified(path);
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+@%".contains(c);
    match text.chars().all(is_plain) {
        true => text,
        false => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "$$")),
    }
}

/// A path as the rest of a line.
fn specified(path: &Path) -> String {
    path.display().to_string().replace('%', "%%")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn unit(manager: Manager, folder: &Path) -> Unit {
        Unit {
            manager,
            program: "/bin/true".into(),
            config: folder.join("a b/models.yaml"),
            environment: folder.join("aihost.env"),
            user: 1000,
            folders: vec![folder.join("state"), folder.join("my \"models\"")],
            drain: Duration::from_secs(60),
        }
    }

    /// What `systemd-analyze` says, where there is one.
    fn analyze(words: &[&str], folder: &Path) -> Option<(bool, String)> {
        // Where a user has no session there is no such folder, without which nothing is said.
        let output = Command::new("systemd-analyze").args(words).env("XDG_RUNTIME_DIR", folder).output().ok()?;
        let said = [output.stdout, output.stderr].concat();
        Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    #[test]
    fn paths_are_words_whatever_is_in_them() {
        for (path, word) in [
            ("/usr/bin/aihost", "/usr/bin/aihost"),
            ("/a b", "\"/a b\""),
            ("/50%", "/50%%"),
            ("/a\"b\\$c", "\"/a\\\"b\\\\$$c\""),
        ] {
            assert_eq!(quoted(Path::new(path)), word);
        }
    }

    #[test]
    fn systemd_finds_nothing_wrong_and_little_exposed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a b")).unwrap();
        for (manager, flags) in [(Manager::System, &["verify"][..]), (Manager::User, &["verify", "--user"][..])] {
            let file = folder.path().join("aihost.service");
            std::fs::write(&file, unit(manager, folder.path()).text()).unwrap();
            let file = file.to_str().unwrap();
            let words: Vec<&str> = flags.iter().copied().chain(["--man=no", file]).collect();
            let Some((is_good, said)) = analyze(&words, folder.path()) else { return };
            assert!(is_good && !said.contains("aihost.service:"), "{said}");
            if manager == Manager::System {
                let (is_good, said) =
                    analyze(&["security", "--offline=true", "--threshold=29", file], folder.path()).unwrap();
                assert!(is_good, "{said}");
            }
        }
    }

    #[test]
    fn a_unit_of_a_user_has_what_a_user_may_ask_for() {
        let folder = Path::new("/home/a");
        let [user, system] = [Manager::User, Manager::System].map(|manager| unit(manager, folder).text());
        assert!(user.contains("WantedBy=default.target") && !user.contains("ProtectSystem") && !user.contains("User="));
        assert!(
            system.contains("ReadWritePaths=/home/a/state \"/home/a/my \\\"models\\\"\"")
                && system.contains("User=1000")
        );
        for text in [&user, &system] {
            assert!(
                text.contains("Type=notify") && text.contains("WatchdogSec=60") && text.contains("TimeoutStopSec=75")
            );
            assert!(text.contains("ExecStart=/bin/true serve --config \"/home/a/a b/models.yaml\""), "{text}");
        }
    }
}
