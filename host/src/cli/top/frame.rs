//! One screen of `aihost top`: what the server tells as lines, within the columns and rows that there are. Pure.

use serde::Deserialize;

use super::super::table::{self, Column};
use super::screen::Key;
use crate::domain::{ByteSize, printable};

/// Columns that a bar takes.
const BAR: usize = 24;
/// Swaps and requests that are shown where there is no end of rows.
const LAST: usize = 10;
/// Models that are shown there.
const MODELS: usize = 1000;

const MODEL_COLUMNS: [Column; 9] = [
    Column::cut("MODEL"),
    Column::whole("STATE"),
    Column::whole("DEVICE").dispensable(2),
    Column::whole("MEMORY").dispensable(1),
    Column::whole("ACTIVE"),
    Column::whole("QUEUED"),
    Column::whole("WAITS").dispensable(3),
    Column::whole("TO GO").dispensable(4),
    Column::whole("IDLE").dispensable(5),
];
const SWAP_COLUMNS: [Column; 6] = [
    Column::whole("AGO"),
    Column::whole("SWAP"),
    Column::cut("MODEL"),
    Column::whole("TOOK"),
    Column::cut("PHASES").dispensable(1),
    Column::cut("WHY").dispensable(2),
];
const REQUEST_COLUMNS: [Column; 9] = [
    Column::whole("AGO"),
    Column::cut("MODEL"),
    Column::whole("STATUS"),
    Column::whole("QUEUE").dispensable(3),
    Column::whole("SWAP").dispensable(4),
    Column::whole("FIRST").dispensable(5),
    Column::whole("TOKENS/S").dispensable(1),
    Column::whole("TOTAL"),
    Column::cut("REQUEST").dispensable(2),
];

/// What the server tells.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Told {
    now_ms: u64,
    host: ToldHost,
    models: Vec<ToldModel>,
    devices: Vec<ToldDevice>,
    waiting: Vec<ToldWaiting>,
    swaps: Vec<ToldSwap>,
    requests: Vec<ToldRequest>,
    jobs: Vec<ToldJob>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ToldHost {
    version: String,
    started_s: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ToldModel {
    id: String,
    kind: String,
    state: String,
    device: Option<String>,
    memory: u64,
    active: u32,
    queued: u32,
    progress: Option<u32>,
    step: Option<String>,
    left_ms: Option<u64>,
    waits_ms: Option<u64>,
    idle_ms: Option<u64>,
    pinned: bool,
    quarantined: bool,
    error: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ToldDevice {
    id: String,
    budget: u64,
    reserved: u64,
    held: Option<u64>,
    others: Option<u64>,
    free: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ToldWaiting {
    request: String,
    model: String,
    waited_ms: u64,
    awaits: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ToldSwap {
    model: String,
    kind: String,
    cause: String,
    #[serde(rename = "for")]
    whom: Option<String>,
    requests: Option<String>,
    began_ms: u64,
    steps: Vec<ToldStep>,
    outcome: String,
    error: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ToldStep {
    name: String,
    ms: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ToldRequest {
    ended_ms: u64,
    id: String,
    model: Option<String>,
    status: u16,
    queue_ms: Option<u64>,
    swap_ms: Option<u64>,
    first_token_ms: Option<u64>,
    tokens_out: Option<u64>,
    duration_ms: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ToldJob {
    status: String,
}

/// What is looked at of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Frame {
    /// Words that models and requests have in them.
    pub(super) filter: String,
    /// Whether the filter is being typed.
    pub(super) is_typing: bool,
    /// Models above the first that is shown.
    above: usize,
    /// Why the server does not answer any more.
    pub(super) lost: Option<String>,
}

impl Frame {
    /// All that has these words in it.
    pub(super) fn of(filter: String) -> Self {
        Self { filter, ..Self::default() }
    }

    /// A key was pressed.
    pub(super) fn take(&mut self, key: Key) {
        match key {
            Key::Letter(letter) if self.is_typing => self.filter.push(letter),
            Key::Quit if self.is_typing => self.filter.push('q'),
            Key::Backspace if self.is_typing => _ = self.filter.pop(),
            Key::Enter => self.is_typing = false,
            Key::Escape => (self.is_typing, self.filter) = (false, String::new()),
            Key::Letter('/') => self.is_typing = true,
            Key::Up | Key::Letter('k') => self.above = self.above.saturating_sub(1),
            Key::Down | Key::Letter('j') => self.above += 1,
            Key::PageUp => self.above = self.above.saturating_sub(LAST),
            Key::PageDown => self.above += LAST,
            Key::Quit | Key::Interrupt | Key::Backspace | Key::Letter(_) => {}
        }
    }

    /// The lines of the screen, which steer no terminal. `rows`: as many as there may be; none: all.
    pub(super) fn lines(&mut self, told: &Told, columns: Option<usize>, rows: Option<usize>) -> Vec<String> {
        let mut lines = vec![self.head(told)];
        lines.extend(told.devices.iter().map(device_line));
        let failures: Vec<String> = told.models.iter().filter_map(failure_line).collect();
        let room = rows.map(|rows| rows.saturating_sub(lines.len() + 1));
        let failures_shown = failures.len().min(room.map_or(usize::MAX, |room| room / 4));
        lines.extend(failures.into_iter().take(failures_shown));
        let waiting = told.waiting.iter().map(waiting_line).take(room.map_or(LAST, |room| room / 6));
        lines.extend(waiting.collect::<Vec<_>>());
        // Each table has an empty line before it and a head.
        let room = rows.map(|rows| rows.saturating_sub(lines.len() + 7));
        let (models_max, last) = room.map_or((MODELS, LAST), |room| (room - room / 2, room / 4));
        lines.push(String::new());
        lines.extend(self.models(told, columns, models_max));
        let swaps: Vec<Vec<String>> =
            told.swaps.iter().rev().take(last).map(|swap| swap_row(swap, told.now_ms)).collect();
        add_table(&mut lines, &SWAP_COLUMNS, &swaps, columns);
        let fits = |request: &&ToldRequest| {
            self.fits(&[&request.id, request.model.as_deref().unwrap_or_default(), &request.status.to_string()])
        };
        let requests: Vec<Vec<String>> =
            told.requests.iter().rev().filter(fits).take(last).map(|one| request_row(one, told.now_ms)).collect();
        add_table(&mut lines, &REQUEST_COLUMNS, &requests, columns);
        if let Some(rows) = rows {
            lines.truncate(rows.saturating_sub(1));
            lines.resize(rows.saturating_sub(1), String::new());
            lines.push(self.foot());
        }
        let cut = |line: String| match columns {
            Some(columns) => line.chars().take(columns).collect(),
            None => line,
        };
        lines.iter().map(|line| cut(printable(line).trim_end().to_owned())).collect()
    }

    fn head(&self, told: &Told) -> String {
        if let Some(why) = &self.lost {
            return format!("CONNECTION LOST: {why}; trying again");
        }
        let loaded = told.models.iter().filter(|model| matches!(model.state.as_str(), "hot" | "draining")).count();
        let queued: u32 = told.models.iter().map(|model| model.queued).sum();
        let jobs = told.jobs.iter().filter(|job| matches!(job.status.as_str(), "queued" | "in_progress")).count();
        let up = span((told.now_ms / 1000).saturating_sub(told.host.started_s) * 1000);
        format!(
            "aihost {}  up {up}  models {}, loaded {loaded}  waiting {queued}  jobs {jobs}",
            told.host.version,
            told.models.len()
        )
    }

    fn foot(&self) -> String {
        match (self.is_typing, self.filter.is_empty()) {
            (true, _) => format!("filter: {}_  (enter keeps it, escape ends it)", self.filter),
            (false, true) => "q quit   arrows scroll   / filter".to_owned(),
            (false, false) => format!("q quit   arrows scroll   / filter: {}   escape shows all", self.filter),
        }
    }

    fn fits(&self, texts: &[&str]) -> bool {
        let all = texts.join(" ").to_lowercase();
        self.filter.to_lowercase().split_whitespace().all(|word| all.contains(word))
    }

    /// Those in use before all others.
    fn models(&mut self, told: &Told, columns: Option<usize>, most: usize) -> Vec<String> {
        let mut models: Vec<&ToldModel> = told
            .models
            .iter()
            .filter(|model| {
                self.fits(&[&model.id, &model.kind, state_of(model), model.device.as_deref().unwrap_or("")])
            })
            .collect();
        models.sort_by_key(|model| (model.state == "cold" && model.queued == 0, model.state == "parked"));
        self.above = self.above.min(models.len().saturating_sub(most.max(1)));
        let rows: Vec<Vec<String>> = models.iter().skip(self.above).take(most).map(|model| model_row(model)).collect();
        let mut lines = table::lines(&MODEL_COLUMNS, &rows, columns);
        let hidden = models.len() - rows.len();
        if hidden > 0 {
            lines.push(format!("({} above, {} below)", self.above, hidden - self.above));
        }
        lines
    }
}

fn add_table(lines: &mut Vec<String>, columns: &[Column], rows: &[Vec<String>], width: Option<usize>) {
    if !rows.is_empty() {
        lines.push(String::new());
        lines.extend(table::lines(columns, rows, width));
    }
}

fn device_line(device: &ToldDevice) -> String {
    let held = device.held.unwrap_or(device.reserved);
    let share = held.saturating_mul(BAR as u64).checked_div(device.budget).unwrap_or(0);
    let full = usize::try_from(share).unwrap_or(BAR).min(BAR);
    let bar = "#".repeat(full) + &".".repeat(BAR - full);
    let told = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), |bytes| ByteSize(bytes).to_string());
    format!(
        "{:<8} [{bar}] {} of {}, others {}, free {}",
        device.id,
        ByteSize(held),
        ByteSize(device.budget),
        told(device.others),
        told(device.free)
    )
}

/// The cause, and the one command.
fn failure_line(model: &ToldModel) -> Option<String> {
    let error = model.error.as_ref()?;
    let named = error.split('`').find(|text| text.starts_with("aihost "));
    let command = named.map_or_else(|| format!("; try `aihost models load {}`", model.id), |_| String::new());
    Some(format!("! {} {}: {error}{command}", model.id, state_of(model)))
}

fn waiting_line(waiting: &ToldWaiting) -> String {
    let whom = if waiting.request.is_empty() { "an operator" } else { &waiting.request };
    let what = if waiting.awaits == "slot" { "a slot of" } else { "the load of" };
    format!("> {whom} waits for {what} {} for {}", waiting.model, span(waiting.waited_ms))
}

fn state_of(model: &ToldModel) -> &str {
    if model.quarantined { "quarantined" } else { &model.state }
}

fn model_row(model: &ToldModel) -> Vec<String> {
    let dash = || "-".to_owned();
    let count = |count: u32| if count == 0 { dash() } else { count.to_string() };
    let time = |ms: Option<u64>| ms.map_or_else(dash, span);
    let name = model.step.as_deref().unwrap_or(state_of(model));
    let state = match model.progress {
        Some(progress) => format!("{name} {}%", progress / 10),
        None if model.pinned => format!("{name}, pinned"),
        None => name.to_owned(),
    };
    vec![
        model.id.clone(),
        state,
        model.device.clone().unwrap_or_else(dash),
        if model.memory == 0 { dash() } else { ByteSize(model.memory).to_string() },
        count(model.active),
        count(model.queued),
        time(model.waits_ms),
        time(model.left_ms),
        time(model.idle_ms),
    ]
}

fn swap_row(swap: &ToldSwap, now_ms: u64) -> Vec<String> {
    let took: u64 = swap.steps.iter().map(|step| step.ms).sum();
    let steps: Vec<String> = swap.steps.iter().map(|step| format!("{} {}", step.name, span(step.ms))).collect();
    let why = match (&swap.error, &swap.whom, &swap.requests) {
        (Some(error), ..) => error.clone(),
        (None, Some(whom), _) => format!("for {whom}"),
        (None, None, Some(requests)) => format!("{} {requests}", swap.cause),
        (None, None, None) => swap.cause.clone(),
    };
    let kind = match swap.outcome.as_str() {
        "done" => swap.kind.clone(),
        outcome => format!("{} {outcome}", swap.kind),
    };
    vec![span(now_ms.saturating_sub(swap.began_ms)), kind, swap.model.clone(), span(took), steps.join(", "), why]
}

fn request_row(request: &ToldRequest, now_ms: u64) -> Vec<String> {
    let time = |ms: Option<u64>| ms.map_or_else(|| "-".to_owned(), span);
    let before = request.first_token_ms.unwrap_or_default();
    let ran_ms = request.duration_ms.saturating_sub(before);
    let speed = request.tokens_out.filter(|tokens| *tokens > 0 && ran_ms > 0).map(|tokens| tokens * 1000 / ran_ms);
    vec![
        span(now_ms.saturating_sub(request.ended_ms)),
        request.model.clone().unwrap_or_else(|| "-".to_owned()),
        if request.status == 499 { "left".to_owned() } else { request.status.to_string() },
        time(request.queue_ms),
        time(request.swap_ms),
        time(request.first_token_ms),
        speed.map_or_else(|| "-".to_owned(), |speed| speed.to_string()),
        span(request.duration_ms),
        request.id.clone(),
    ]
}

fn span(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..10_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        10_000..120_000 => format!("{} s", ms / 1000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(models: usize) -> Told {
        let model = |at: usize| json!({"id": format!("library/model-{at:03}"), "kind": "text", "state": "cold"});
        let mut all: Vec<_> = (0..models).map(model).collect();
        all.push(json!({
            "id": "hot", "kind": "text", "state": "hot", "device": "cpu", "memory": 1 << 30, "active": 2, "queued": 1,
            "waits_ms": 1500, "pinned": true,
        }));
        all.push(json!({"id": "bad", "kind": "text", "state": "failed", "error": "it is \u{1b}[31mbroken"}));
        let told = json!({
            "now_ms": 100_000, "host": {"version": "0.1.0", "started_s": 40}, "models": all,
            "devices": [{"id": "cpu", "budget": 2_u64 << 30, "reserved": 1_u64 << 30, "held": null, "others": null, "free": 5}],
            "waiting": [{"request": "req_1", "model": "hot", "waited_ms": 1500, "awaits": "slot"}],
            "swaps": [{
                "number": 1, "model": "hot", "kind": "load", "cause": "request", "requests": "req_0", "began_ms": 50_000,
                "steps": [{"name": "start", "ms": 5}, {"name": "load", "ms": 1500}], "outcome": "done",
            }],
            "requests": [{
                "ended_ms": 99_000, "id": "req_0", "model": "hot", "status": 200, "queue_ms": 1, "swap_ms": 1505,
                "first_token_ms": 1600, "tokens_out": 50, "duration_ms": 2100,
            }],
            "jobs": [{"status": "queued"}],
        });
        serde_json::from_value(told).expect("what a server tells")
    }

    #[test]
    fn one_screen_has_every_fact_and_steers_no_terminal() {
        let text = Frame::default().lines(&told(0), Some(140), None).join("\n");
        for fact in [
            "aihost 0.1.0  up 60 s  models 2, loaded 1  waiting 1  jobs 1",
            "cpu      [############............] 1.0 GiB of 2.0 GiB, others unknown, free 5 B",
            "! bad failed: it is \\u{1b}[31mbroken; try `aihost models load bad`",
            "> req_1 waits for a slot of hot for 1.5 s",
            "hot, pinned",
            "start 5 ms, load 1.5 s",
            "request req_0",
            "req_0",
        ] {
            assert!(text.contains(fact), "{fact} is not in:\n{text}");
        }
        // 50 tokens in half a second.
        assert!(text.lines().last().is_some_and(|line| line.contains(" 100 ")), "{text}");
    }

    #[test]
    fn a_screen_has_no_more_lines_and_columns_than_there_are() {
        let mut frame = Frame::default();
        for (columns, rows) in [(40, 10), (80, 24), (200, 60), (20, 3)] {
            let lines = frame.lines(&told(500), Some(columns), Some(rows));
            assert_eq!(lines.len(), rows, "{columns}x{rows}");
            assert!(lines.iter().all(|line| line.chars().count() <= columns), "{lines:#?}");
        }
    }

    #[test]
    fn arrows_scroll_and_a_filter_is_typed() {
        let mut frame = Frame::default();
        let first = |frame: &mut Frame| frame.lines(&told(500), Some(100), Some(40)).join("\n");
        assert!(first(&mut frame).contains("hot, pinned"), "who is in use comes first");
        (0..30).for_each(|_| frame.take(Key::Down));
        assert!(!first(&mut frame).contains("hot, pinned"));
        (0..9999).for_each(|_| frame.take(Key::PageDown));
        assert!(first(&mut frame).contains("model-499"));
        assert!(first(&mut frame).contains(", 0 below)"));
        "/model-49q".chars().for_each(|c| frame.take(if c == 'q' { Key::Quit } else { Key::Letter(c) }));
        frame.take(Key::Backspace);
        frame.take(Key::Enter);
        let shown = first(&mut frame);
        assert!(shown.contains("model-490") && !shown.contains("model-480"), "{shown}");
        frame.take(Key::Escape);
        assert!(first(&mut frame).contains("above"));
        frame.lost = Some("it is gone".to_owned());
        assert!(first(&mut frame).starts_with("CONNECTION LOST: it is gone"));
    }
}
