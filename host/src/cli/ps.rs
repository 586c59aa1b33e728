//! `aihost ps`: how full each device of a running server is, and where each model stands.

use std::time::Duration;

use serde_json::json;

use super::client::{ListedDevice, ListedModel, Listing, Server};
use super::failure::CliError;
use super::table::Column;
use super::{CommandContext, out};
use crate::domain::{ByteSize, printable};

const COLUMNS: [Column; 11] = [
    Column::whole("MODEL"),
    Column::whole("STATE"),
    Column::whole("DEVICE").dispensable(1),
    Column::whole("MEMORY"),
    Column::whole("HELD").dispensable(5),
    Column::whole("ACTIVE").dispensable(3),
    Column::whole("QUEUED").dispensable(2),
    Column::whole("LOADS").dispensable(7),
    Column::whole("IDLE").dispensable(4),
    Column::whole("PID").dispensable(6),
    Column::cut("PLUGIN").dispensable(8),
];

const DEVICE_COLUMNS: [Column; 7] = [
    Column::whole("DEVICE"),
    Column::whole("BUDGET"),
    Column::whole("PLANNED").dispensable(2),
    Column::whole("HELD").dispensable(3),
    Column::whole("OTHERS"),
    Column::whole("FREE"),
    Column::whole("TOTAL").dispensable(1),
];

pub(super) async fn run(context: &CommandContext, arguments: Listing) -> Result<(), CliError> {
    let server = Server::of(context, &arguments.target)?;
    let (models, devices) = tokio::try_join!(server.status(), server.devices())?;
    if arguments.json {
        return out::json(&json!({"models": models, "devices": devices}));
    }
    out::table(&COLUMNS, models.iter().map(row).collect())?;
    out::line("")?;
    match devices {
        Some(devices) => out::table(&DEVICE_COLUMNS, devices.iter().map(device_row).collect())?,
        None => out::note("this server is of an older version, which does not tell of its devices"),
    }
    for (model, error) in models.iter().filter_map(|model| Some((&model.id, model.error.as_ref()?))) {
        out::note(&format!("{model}: {}", printable(error)));
    }
    for (model, note) in models.iter().filter_map(|model| Some((&model.id, model.note.as_ref()?))) {
        out::note(&format!("{model}: {}", printable(note)));
    }
    Ok(())
}

fn device_row(device: &ListedDevice) -> Vec<String> {
    let told = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), |bytes| ByteSize(bytes).to_string());
    vec![
        device.id.clone(),
        ByteSize(device.budget).to_string(),
        ByteSize(device.reserved).to_string(),
        told(device.held),
        told(device.others),
        told(device.free),
        told(device.total),
    ]
}

fn row(model: &ListedModel) -> Vec<String> {
    let dash = || "-".to_owned();
    let state = match model.progress {
        Some(progress) => format!("{} {}%", model.step.as_ref().unwrap_or(&model.state), progress / 10),
        None => model.state.clone(),
    };
    vec![
        model.id.clone(),
        state,
        model.device.clone().unwrap_or_else(dash),
        if model.memory == 0 { dash() } else { ByteSize(model.memory).to_string() },
        model.measured.map_or_else(dash, |bytes| ByteSize(bytes).to_string()),
        model.active.to_string(),
        model.queued.to_string(),
        model.loads.to_string(),
        model.idle_ms.map_or_else(dash, |idle| span(Duration::from_millis(idle))),
        model.pid.map_or_else(dash, |pid| pid.to_string()),
        model.plugin.clone(),
    ]
}

fn span(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7199 => format!("{}m", seconds / 60),
        seconds => format!("{}h", seconds / 3600),
    }
}
