//! `aihost models pull`.

use std::collections::HashMap;
use std::sync::Arc;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use super::{known, prepare};
use crate::cli::failure::CliError;
use crate::cli::{CommandContext, auto, out};
use crate::config::{Choice, ModelConfig};
use crate::domain::{ModelId, some_names};
use crate::store::{AlreadyHere, Digests, Phase, Progress, ProgressSink, Puller};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Model or alias.
    #[arg(conflicts_with = "all")]
    name: Option<String>,
    /// Every model of models.yaml.
    #[arg(long)]
    all: bool,
    /// Fetch again what is here already.
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(context: &CommandContext, arguments: Arguments) -> Result<(), CliError> {
    let config = context.load()?;
    let models: Vec<&ModelConfig> = match &arguments.name {
        Some(name) => vec![known(&config, name)?],
        None if arguments.all => config.models.values().collect(),
        None => {
            let names = some_names(config.models.keys().map(ModelId::as_str));
            return Err(CliError::usage(format!("which model? There are: {names}"))
                .hint("aihost models pull NAME, or --all for every one"));
        }
    };
    let puller = Puller::from_env(&context.env, Digests::of(&config.paths.state)).map_err(CliError::failed)?;
    let here = if arguments.force { AlreadyHere::Replaced } else { AlreadyHere::Kept };
    let mut failed = Vec::new();
    for model in models {
        let pulled = async {
            pull(&puller, model, here).await?;
            let mut model = model.clone();
            if matches!(model.choice, Some(Choice::Open(_))) {
                auto::choose(&mut model, &config.paths, &context.env, &auto::Looks::default());
            }
            match &model.choice {
                Some(Choice::Failed { why, .. }) => Err(CliError::failed(why.clone())),
                _ => prepare::prepare(&config, &context.env, &model).await,
            }
        };
        match pulled.await {
            // Other models may still be had.
            Err(error @ CliError::Failed { .. }) => {
                out::note(&format!("error: model `{}`: {error}", model.id));
                failed.push(model.id.as_str());
            }
            other => other?,
        }
    }
    match failed.as_slice() {
        [] => Ok(()),
        names => Err(CliError::failed(format!("not pulled: {}", names.join(", ")))),
    }
}

async fn pull(puller: &Puller, model: &ModelConfig, here: AlreadyHere) -> Result<(), CliError> {
    let bars = Arc::new(Bars::new(model.id.as_str()));
    let sink: ProgressSink = {
        let bars = Arc::clone(&bars);
        Arc::new(move |progress| bars.show(&progress))
    };
    let result = tokio::select! {
        result = puller.pull(model, here, sink) => result,
        _ = tokio::signal::ctrl_c() => {
            bars.clear();
            out::note("what is fetched so far is kept; the next pull goes on from there");
            return Err(CliError::Interrupted);
        }
    };
    bars.clear();
    let pulled = result.map_err(|error| CliError::failed(error.to_string()))?;
    if pulled.is_empty() {
        out::note(&format!("{}: it has no files to fetch", model.id));
    }
    for file in pulled {
        match &file.fetched_from {
            Some(mirror) => out::note(&format!("{}: fetched from {mirror}", model.id)),
            None => out::note(&format!("{}: already there", model.id)),
        }
        out::line(&file.path.display().to_string())?;
    }
    Ok(())
}

/// What a bar is about: what is done, and to which part.
type BarStage = (Phase, Option<(usize, usize)>);

/// One progress bar per file.
struct Bars {
    model: String,
    all: MultiProgress,
    by_role: Mutex<HashMap<String, (BarStage, ProgressBar)>>,
}

impl Bars {
    fn new(model: &str) -> Self {
        Self { model: model.to_owned(), all: MultiProgress::new(), by_role: Mutex::default() }
    }

    fn show(&self, progress: &Progress) {
        let mut by_role = self.by_role.lock();
        let now = (progress.phase, progress.part);
        let (stage, bar) = by_role
            .entry(progress.role.clone())
            .or_insert_with(|| (now, self.dress(self.all.add(ProgressBar::no_length()), progress)));
        if *stage != now {
            *stage = now;
            self.dress(bar.clone(), progress);
        }
        if let Some(total) = progress.total {
            bar.set_length(total);
        }
        bar.set_position(progress.done);
    }

    fn dress(&self, bar: ProgressBar, progress: &Progress) -> ProgressBar {
        let (what, template) = match progress.phase {
            Phase::Asking => ("asking its mirrors", SPINNER),
            Phase::Downloading => ("downloading", BAR),
            Phase::Extracting => ("extracting", BAR),
            Phase::Verifying => ("verifying", BAR),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.reset_eta();
        bar.enable_steady_tick(out::TICK);
        let part = progress.part.map(|(part, of)| format!(" part {part} of {of}")).unwrap_or_default();
        bar.set_message(format!("{} {}: {what}{part}", self.model, progress.role));
        bar
    }

    fn clear(&self) {
        let by_role = self.by_role.lock();
        by_role.values().for_each(|(_, bar)| bar.finish_and_clear());
    }
}

const BAR: &str = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const SPINNER: &str = "{msg} {spinner} {elapsed}";
