//! The host chooses a plugin by lists of its own, which are to be those of this one.

use std::collections::BTreeSet;
use std::path::Path;

use aihost_support::decoder::family::{FAMILIES, Mixture};

/// The texts of a list in the host's source, which chooses a plugin by lists of its own.
pub(crate) fn host_list(file: &str, list: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../host/src/cli/auto").join(file);
    let source = std::fs::read_to_string(path).expect("it is there");
    let list = source.split(&format!("const {list}: ")).nth(1).and_then(|rest| rest.split("];").next());
    list.expect("a list").split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_host_knows_the_same_families() {
    // Mistral's GGUF files are called another's.
    let ggufs = FAMILIES.iter().filter(|family| family.gguf != "mistral");
    let owned = |name: &str| name.to_owned();
    assert_eq!(host_list("weights.rs", "CANDLE_ARCHITECTURES"), ggufs.map(|family| owned(family.gguf)).collect());
    let experts = FAMILIES.iter().filter(|family| family.mixture != Mixture::None);
    assert_eq!(host_list("weights.rs", "CANDLE_EXPERTS"), experts.map(|family| owned(family.gguf)).collect());
    let folders = FAMILIES.iter().flat_map(|family| family.hugging_face);
    assert_eq!(host_list("folder.rs", "CANDLE_MODELS"), folders.map(|name| owned(name)).collect());
}
