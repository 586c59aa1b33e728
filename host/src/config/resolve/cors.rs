//! `cors:`.

use super::Checker;
use crate::config::locate::KeyPath;
use crate::config::origin::{BadOrigin, Cors, OriginPattern};
use crate::config::raw::RawCors;

/// Most origins: each request of a page is compared with all of them.
const ORIGINS_MAX: usize = 256;

/// Which pages and apps may use this host.
pub(super) fn resolve(check: &mut Checker, typed: Option<&RawCors>) -> Cors {
    let Some(typed) = typed.and_then(|cors| cors.origins.as_ref()) else { return Cors::default() };
    let key = KeyPath::root().key("cors").key("origins");
    if typed.items.len() > ORIGINS_MAX {
        let message = format!("has {} origins, of at most {ORIGINS_MAX}", typed.items.len());
        check.fail(&key, None, message).hint("a `*` stands for several: https://*.example.com");
        return Cors::default();
    }
    let mut origins = Vec::with_capacity(typed.items.len());
    for (position, origin) in typed.items.iter().enumerate() {
        match OriginPattern::parse(origin.0.trim()) {
            Ok(origin) => origins.push(origin),
            Err(BadOrigin { message, hint }) => {
                let at = if typed.list { key.index(position) } else { key.clone() };
                check.fail(&at, Some(&origin.0), message).hint(hint);
            }
        }
    }
    Cors { origins }
}
