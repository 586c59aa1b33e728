//! Weight files as memory.

use std::path::Path;

use aihost_plugin_api::{Error, ErrorKind, Result};

/// Maps a weights file.
///
/// # Errors
/// [`ErrorKind::MissingFile`] if it cannot be opened, [`ErrorKind::OutOfMemory`] if the address space is too small to map it.
#[expect(unsafe_code, reason = "weights are used in place")]
pub fn map_file(path: &Path) -> Result<memmap2::Mmap> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::OutOfMemory => {
            let text = format!("cannot map {}: {error}; a limit of address space is too low for it", path.display());
            Error::new(ErrorKind::OutOfMemory, text)
        }
        _ => {
            let text = format!("cannot open {}: {error}; pull the model's files", path.display());
            Error::new(ErrorKind::MissingFile, text)
        }
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    // SAFETY: a mapped file must not be changed or cut while it is used. Weights are immutable by the host's contract: a download
    // writes another file and renames it over the old one, whose pages stay. A file that somebody shortens all the same ends this process by SIGBUS, which a worker process
    // contains.
    unsafe { memmap2::Mmap::map(&file) }.map_err(failed)
}

/// Elements of a tensor of these sizes; `None` if they cannot be counted in whatever order they are multiplied, also where one of
/// them is zero.
pub fn elements(sizes: impl IntoIterator<Item = u64>) -> Option<u64> {
    let mut is_empty = false;
    let product = sizes.into_iter().try_fold(1_u64, |product, size| {
        is_empty |= size == 0;
        product.checked_mul(size.max(1))
    })?;
    Some(if is_empty { 0 } else { product })
}

#[cfg(test)]
mod tests {
    use super::elements;

    #[test]
    fn sizes_are_multiplied_in_any_order_or_not_at_all() {
        for (sizes, wanted) in [
            (&[][..], Some(1)),
            (&[2, 3], Some(6)),
            (&[0, 7], Some(0)),
            (&[1 << 40, 1 << 40], None),
            (&[0, 1 << 40, 1 << 40], None),
            (&[1 << 40, 1 << 40, 0], None),
        ] {
            assert_eq!(elements(sizes.iter().copied()), wanted, "{sizes:?}");
        }
    }
}
