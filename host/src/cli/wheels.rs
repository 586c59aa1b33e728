//! `aihost wheels`: whole wheels of the package index in a folder, without Python. What builds for graphics cards takes its
//! toolkit from there; nothing of a package is run.

use std::path::PathBuf;
use std::sync::Arc;

use super::failure::CliError;
use super::{CommandContext, out};
use crate::store::{Digests, Puller, unpack};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The folder that the files are put into.
    dir: PathBuf,
    /// The packages, each as `name==version`.
    #[arg(required = true)]
    wheels: Vec<String>,
}

pub(super) async fn run(context: &CommandContext, arguments: Arguments) -> Result<(), CliError> {
    let puller = Puller::from_env(&context.env, Digests::of(&crate::config::default_folders(&context.env).state))
        .map_err(CliError::failed)?;
    for pinned in arguments.wheels {
        let wheel = arguments.dir.join(format!("{pinned}.whl"));
        let pulled = puller.pull_wheel(&pinned, wheel, Arc::new(|_| ())).await;
        let pulled = pulled.map_err(|error| CliError::failed(error.to_string()))?;
        let (path, dir) = (pulled.path, arguments.dir.clone());
        let unpacking = tokio::task::spawn_blocking(move || {
            let bytes = unpack(&path, &dir)?;
            // Twice the room otherwise, and no use.
            std::fs::remove_file(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            Ok::<u64, String>(bytes)
        });
        let bytes = unpacking.await.map_err(|e| CliError::failed(e.to_string()))?.map_err(CliError::failed)?;
        out::note(&format!("{pinned}: {}", crate::domain::ByteSize(bytes)));
    }
    Ok(())
}
