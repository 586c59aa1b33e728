//! Programs that a check needs and the system's own packages have.

use std::process::Command;

use crate::shell;

/// Installs a package of a Debian system where this may, and where nobody has to be asked. Whether it did, whoever needs it looks.
pub(crate) fn install(package: &str) {
    if shell::probe("id", &["-u"]).is_none_or(|id| id.trim() != "0") {
        return;
    }
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        shell::run(command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive")).is_ok()
    };
    let install = ["install", "--yes", "--quiet", "--no-install-recommends", package];
    // The lists of packages may be old, or not there.
    if !apt(&install) && apt(&["update", "--quiet"]) {
        apt(&install);
    }
}
