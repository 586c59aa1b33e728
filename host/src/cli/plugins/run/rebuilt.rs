//! A plugin that is built anew while it is served alone: whoever asks next is answered by the new build. What looks at the file, and what
//! becomes of a build that is not usable, is as under `serve`.

use std::sync::Arc;

use tokio::sync::watch;

use crate::cli::out;
use crate::domain::ModelId;
use crate::plugin::Registry;
use crate::runtime::{AccessEntry, Handle};

/// Unloads the model whenever another build of its plugin, of this id, is there. Requests that run end on the one before.
pub(super) async fn follow(id: String, mut plugins: watch::Receiver<Arc<Registry>>, model: ModelId, handle: Handle) {
    let mut known = digest(&plugins.borrow_and_update(), &id);
    while plugins.changed().await.is_ok() {
        let now = digest(&plugins.borrow_and_update(), &id);
        // While it is being written there may be none; a plugin of another id is said to be that by the next load.
        if now.is_none() || now == known {
            continue;
        }
        known = now;
        out::note("the plugin was built anew: the next request is answered by the new build");
        if let Err(why) = handle.unload(model.clone(), None, AccessEntry::default()).await {
            tracing::debug!(%model, "{why}");
        }
    }
}

/// What tells the plugin from another build of it.
fn digest(registry: &Registry, id: &str) -> Option<String> {
    registry.find(id, None).ok().map(|plugin| plugin.copy.digest().to_owned())
}
