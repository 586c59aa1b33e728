//! What may stand only in listed places: `unsafe`, and the types of abi_stable.

use super::Finding;
use super::source::{line_of, words};

/// Where abi_stable may be named: where the ABI is defined, carried across and opened.
const ABI_STABLE: [&str; 10] = [
    "plugin-api/abi/",
    "plugin-api/src/lib.rs",
    "plugin-api/src/sdk/glue.rs",
    "plugin-api/src/sdk/export.rs",
    "plugin-api/src/sdk/context.rs",
    "plugin-api/src/sdk/testing.rs",
    "plugin-api/src/sdk/logging.rs",
    "host/src/plugin/",
    "host/src/worker/",
    "tests/plugins/faulty/",
];

/// Where `unsafe` may stand, and why it must.
const UNSAFE: &[(&str, &str)] = &[
    ("plugin-api/src/sdk/export.rs", "the exported symbols"),
    ("host/src/cli/heap.rs", "the allocator's settings"),
    ("host/src/device/processor.rs", "a thread's share of the processors"),
    ("host/src/plugin/loader.rs", "dlopen"),
    ("host/src/worker/child/sys.rs", "trimming the heap, ending at once"),
    ("plugins/engine/src/files/map.rs", "mapping weight files"),
    ("plugins/engine/src/cpu/kernels/x86/", "vector instructions"),
    ("plugins/support/src/weights.rs", "mapping weight files"),
    ("plugins/support/src/budget.rs", "an allocator that heeds a budget"),
    ("plugins/support/src/counting.rs", "counting what is allocated"),
    ("plugins/support/src/gemm.rs", "strided products through raw pointers"),
    ("tests/plugins/faulty/src/lib.rs", "crashing on purpose"),
    ("tests/plugins/faulty/src/card.rs", "a driver's functions"),
    ("plugins/flux/examples/flux_device/card.rs", "page-locked memory"),
    ("tests/devices/nvml/src/lib.rs", "functions for C"),
    ("tests/devices/deny/src/main.rs", "denying system calls"),
];

/// Checks one file.
pub(super) fn check(path: &str, code: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !ABI_STABLE.iter().any(|place| path.starts_with(place)) {
        let sentence = "abi_stable stops at plugin-api/abi and host/src/{plugin,worker}; use std's types here";
        findings.extend(words(code, "abi_stable").map(|at| Finding::new(path, line_of(code, at), sentence)));
    }
    if !UNSAFE.iter().any(|(place, _)| path.starts_with(place)) {
        let sentence = "`unsafe` stands only in the files that tidy lists; add this one with its reason, or do without";
        findings.extend(words(code, "unsafe").map(|at| Finding::new(path, line_of(code, at), sentence)));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn fenced_words_are_found_outside_their_fence() {
        for (path, code, count) in [
            ("host/src/http/mod.rs", "use abi_stable::std_types::RVec;", 1),
            ("host/src/plugin/loader.rs", "use abi_stable::std_types::RVec; unsafe {}", 0),
            ("host/src/plugin/registry.rs", "unsafe {}", 1),
            ("plugin-api/src/sdk/plugin.rs", "abi_stable::x; unsafe_code", 1),
        ] {
            assert_eq!(check(path, code).len(), count, "in {path}");
        }
    }
}
