//! What the name of a wheel says (the binary distribution format): `name-version(-build)?-python-abi-platform.whl`. The
//! wheel's code is never run, so that only its platform matters.

use super::normalised;
use super::version::Version;

/// How well a wheel suits this machine, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fit {
    /// For every machine.
    Anywhere,
    /// For Linux on this processor.
    Here,
}

/// A wheel of the package in question.
#[derive(Clone, Debug)]
pub(super) struct WheelName<'a> {
    pub(super) version: &'a str,
    /// `None`: for other machines.
    pub(super) fit: Option<Fit>,
}

impl<'a> WheelName<'a> {
    /// `None` if it is no wheel, or one of another package.
    pub(super) fn parse(file: &'a str, package: &str) -> Option<Self> {
        let parts: Vec<&str> = file.strip_suffix(".whl")?.split('-').collect();
        let (name, version, platform) = match parts.as_slice() {
            [name, version, _, _, platform] | [name, version, _, _, _, platform] => (name, version, platform),
            _ => return None,
        };
        (normalised(name) == normalised(package)).then(|| Self { version, fit: fit(platform) })
    }

    /// Whether it is of this version. What is not of PEP 440's form must be the very same text.
    pub(super) fn is_of(&self, version: &str) -> bool {
        match (Version::parse(version), Version::parse(&self.version.replace('_', "-"))) {
            (Some(pin), Some(candidate)) => pin.pins(&candidate),
            _ => self.version == version,
        }
    }
}

/// `any`, or `manylinux_2_17_x86_64.linux_x86_64` and the like: several platforms, one after the other.
fn fit(platforms: &str) -> Option<Fit> {
    let here = |platform: &str| platform.contains("linux") && platform.ends_with(std::env::consts::ARCH);
    platforms
        .split('.')
        .filter_map(|platform| match platform {
            "any" => Some(Fit::Anywhere),
            other if here(other) => Some(Fit::Here),
            _ => None,
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::{Fit, WheelName};

    #[test]
    fn names_are_read() {
        let here = format!("my_pkg-1.0-cp311-cp311-manylinux_2_17_{0}.manylinux2014_{0}.whl", std::env::consts::ARCH);
        for (file, version, fit) in [
            ("My.Pkg-1.0-py3-none-any.whl", "1.0", Some(Fit::Anywhere)),
            ("my_pkg-1.0.post1-7-py2.py3-none-any.whl", "1.0.post1", Some(Fit::Anywhere)),
            (here.as_str(), "1.0", Some(Fit::Here)),
            ("my_pkg-1.0-py3-none-win_amd64.whl", "1.0", None),
            ("my_pkg-1.0-py3-none-macosx_11_0_arm64.whl", "1.0", None),
        ] {
            let name = WheelName::parse(file, "my-pkg").expect(file);
            assert_eq!((name.version, name.fit), (version, fit), "{file}");
        }
        for other in ["my_pkg-1.0.tar.gz", "my_pkg_extra-1.0-py3-none-any.whl", "my_pkg-1.0.whl", ".whl"] {
            assert!(WheelName::parse(other, "my-pkg").is_none(), "{other}");
        }
    }

    #[test]
    fn versions_are_compared_by_meaning() {
        let name = WheelName { version: "1.0.0", fit: None };
        assert!(name.is_of("1.0") && name.is_of("1") && !name.is_of("1.0.1"));
        let odd = WheelName { version: "2012b_x", fit: None };
        assert!(odd.is_of("2012b_x") && !odd.is_of("2012b"));
    }
}
