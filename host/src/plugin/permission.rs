//! What a plugin asks of the operator beyond its model's files and its device.

use aihost_plugin_api::abi::Manifest;
use serde::{Deserialize, Serialize};

use crate::domain::named;

named! {
    /// Something that a plugin may do only if its manifest says so, by this name.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Permission {
        /// Opens TCP connections and listens on ports.
        Network = "network",
        /// Starts programs; these may read and run what the system has installed.
        Subprocess = "subprocess",
        /// Reads and writes whatever file the host's user may.
        Files = "files",
    }
}

/// What a manifest asks for.
///
/// # Errors
/// When it asks for something that this host does not know: it cannot be granted, and the plugin needs it. The sentence
/// goes without the file's name.
pub fn permissions(manifest: &Manifest) -> Result<Vec<Permission>, String> {
    let known = |name: &String| Permission::ALL.into_iter().find(|permission| permission.name() == name);
    let asked = manifest.permissions.iter().map(|name| {
        known(name).ok_or_else(|| {
            let all = Permission::NAMES.join(", ");
            format!("it asks for permission `{name}`, and this host knows {all}; a newer host may know it")
        })
    });
    asked.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(names: &str) -> Result<Vec<Permission>, String> {
        let json =
            format!(r#"{{"id":"a","version":"1.0.0","kinds":["text"],"devices":["cpu"],"permissions":{names}}}"#);
        permissions(&Manifest::parse(json.as_bytes()).unwrap())
    }

    #[test]
    fn what_is_asked_for_is_known_or_refused_by_name() {
        assert_eq!(asked("[]"), Ok(vec![]));
        assert_eq!(asked(r#"["files", "network"]"#), Ok(vec![Permission::Files, Permission::Network]));
        let refused = asked(r#"["network", "camera"]"#).unwrap_err();
        assert!(refused.contains("`camera`") && refused.contains("network, subprocess, files"), "{refused}");
    }
}
