//! `aihost models pull`.

use std::collections::HashMap;
use std::sync::Arc;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use super::{known, prepare};
use crate::cli::failure::CliError;
use crate::cli::{CommandContext, auto, out};
use crate::config::{Choice, ModelConfig};
use crate::domain::{ByteSize, ModelId, some_names};
use crate::store::{AlreadyHere, Digests, Missing, Phase, Progress, ProgressSink, Puller, enough_room};

/// Files that are told of one by one before a pull.
const FILES_TOLD: usize = 20;
const BAR: &str = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const SPINNER: &str = "{msg} {spinner} {elapsed}";

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
    /// Ask nobody for anything: use what is here, the hub's cache and LM Studio's folder included, and say what is missing.
    /// HF_HUB_OFFLINE=1 says the same.
    #[arg(long, conflicts_with = "force")]
    offline: bool,
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
    let env = if arguments.offline { context.env.clone().offline() } else { context.env.clone() };
    let puller = Puller::from_env(&env, Digests::of(&config.paths.state)).map_err(CliError::failed)?;
    let here = if arguments.force { AlreadyHere::Replaced } else { AlreadyHere::Kept };
    let missing = tokio::select! {
        missing = puller.survey(&models, here) => missing,
        _ = tokio::signal::ctrl_c() => return Err(CliError::Interrupted),
    };
    plan(&missing).iter().for_each(|line| out::note(line));
    enough_room(&missing).map_err(CliError::failed)?;
    let bars = Arc::new(Bars::new(&missing));
    let mut failed = Vec::new();
    for model in models {
        let pulled = async {
            pull(&puller, model, here, &bars).await?;
            let mut model = model.clone();
            if matches!(model.choice, Some(Choice::Open(_))) {
                auto::choose(&mut model, &config.paths, &context.env, &auto::Looks::default());
            }
            match &model.choice {
                Some(Choice::Failed { why, .. }) => Err(CliError::failed(why.clone())),
                _ => prepare::prepare(&config, &env, &model).await,
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
    bars.clear();
    match failed.as_slice() {
        [] => Ok(()),
        names => Err(CliError::failed(format!("not pulled: {}", names.join(", ")))),
    }
}

/// What is before a pull, in lines; nothing where nothing is.
fn plan(missing: &[Missing]) -> Vec<String> {
    let mut lines: Vec<String> = missing.iter().take(FILES_TOLD).map(line).collect();
    if missing.len() > FILES_TOLD {
        lines.push(format!("and {} more files", missing.len() - FILES_TOLD));
    }
    let fetched: Vec<&Missing> = missing.iter().filter(|file| file.kept.is_none()).collect();
    if fetched.len() > 1 {
        let rest = fetched.iter().map(|file| file.rest()).fold(0, u64::saturating_add);
        let unknown = fetched.iter().filter(|file| file.bytes.is_err()).count();
        let unknown = if unknown > 0 { format!(", and {unknown} whose size is not known") } else { String::new() };
        lines.push(format!("to fetch: {} files, {}{unknown}", fetched.len(), ByteSize(rest)));
    }
    lines
}

fn line(file: &Missing) -> String {
    let Missing { model, role, bytes, begun, kept, path } = file;
    let begun = if *begun > 0 { format!(", of which {} are here", ByteSize(*begun)) } else { String::new() };
    match (kept, bytes) {
        (Some(kept), _) => format!("{model} {role}: {} has it", kept.display()),
        (None, Ok(bytes)) => format!("{model} {role}: {}{begun}", ByteSize(*bytes)),
        (None, Err(why)) => {
            format!("{model} {role}: {} is missing; how large it is, is not known: {why}", path.display())
        }
    }
}

async fn pull(puller: &Puller, model: &ModelConfig, here: AlreadyHere, bars: &Arc<Bars>) -> Result<(), CliError> {
    let sink: ProgressSink = {
        let (bars, model) = (Arc::clone(bars), model.id.clone());
        Arc::new(move |progress| bars.show(&model, &progress))
    };
    let result = tokio::select! {
        result = puller.pull(model, here, sink) => result,
        _ = tokio::signal::ctrl_c() => {
            bars.clear();
            out::note("what is fetched so far is kept; the next pull goes on from there");
            return Err(CliError::Interrupted);
        }
    };
    bars.clear_files();
    let pulled = result.map_err(|error| CliError::failed(error.to_string()))?;
    let told = |line: &str| bars.beside(|| out::note(line));
    if pulled.is_empty() {
        told(&format!("{}: it has no files to fetch", model.id));
    }
    for file in pulled {
        match (&file.fetched_from, &file.linked_to) {
            (Some(mirror), _) => told(&format!("{}: fetched from {mirror}", model.id)),
            (None, Some(kept)) => told(&format!("{}: used from {}", model.id, kept.display())),
            (None, None) => told(&format!("{}: already there", model.id)),
        }
        bars.beside(|| out::line(&file.path.display().to_string()))?;
    }
    Ok(())
}

/// What a bar is about: what is done, and to which part.
type BarStage = (Phase, Option<(usize, usize)>);

/// One progress bar per file, and one for all of them.
struct Bars {
    all: MultiProgress,
    /// Where there are several files to fetch.
    total: Option<ProgressBar>,
    files: Mutex<HashMap<(ModelId, String), FileBar>>,
}

struct FileBar {
    stage: BarStage,
    /// Bytes that were told last.
    done: u64,
    bar: ProgressBar,
}

impl Bars {
    fn new(missing: &[Missing]) -> Self {
        let all = MultiProgress::new();
        let rest: Vec<u64> = missing.iter().map(Missing::rest).filter(|bytes| *bytes > 0).collect();
        let total = (rest.len() > 1).then(|| {
            let bar = all.add(ProgressBar::new(rest.iter().copied().fold(0, u64::saturating_add)));
            if let Ok(style) = ProgressStyle::with_template(BAR) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(out::TICK);
            bar.set_message(format!("all {} files", rest.len()));
            bar
        });
        Self { all, total, files: Mutex::default() }
    }

    fn show(&self, model: &ModelId, progress: &Progress) {
        let mut files = self.files.lock();
        let now = (progress.phase, progress.part);
        let file = files.entry((model.clone(), progress.role.clone())).or_insert_with(|| {
            let bar = self.all.insert(0, ProgressBar::no_length());
            FileBar { stage: now, done: progress.done, bar: dress(bar, model, progress) }
        });
        if file.stage != now {
            // What is here of it already, or of its next part, was not fetched now.
            (file.stage, file.done) = (now, progress.done);
            dress(file.bar.clone(), model, progress);
        }
        if let Some(total) = progress.total {
            file.bar.set_length(total);
        }
        file.bar.set_position(progress.done);
        let more = progress.done.saturating_sub(file.done);
        file.done = progress.done;
        if let Some(total) = self.total.as_ref().filter(|_| progress.phase == Phase::Downloading) {
            total.inc(more);
        }
    }

    /// Writes lines while no bar is in the way.
    fn beside<T>(&self, write: impl FnOnce() -> T) -> T {
        if self.total.is_some() { self.all.suspend(write) } else { write() }
    }

    fn clear_files(&self) {
        self.files.lock().drain().for_each(|(_, file)| file.bar.finish_and_clear());
    }

    fn clear(&self) {
        self.clear_files();
        self.total.iter().for_each(ProgressBar::finish_and_clear);
    }
}

fn dress(bar: ProgressBar, model: &ModelId, progress: &Progress) -> ProgressBar {
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
    bar.set_message(format!("{model} {}: {what}{part}", progress.role));
    bar
}
