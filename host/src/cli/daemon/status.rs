//! `aihost status`: a line about the host.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::{running, server};
use crate::cli::client::{ListedModel, reachable};
use crate::cli::failure::CliError;
use crate::cli::{CommandContext, out};
use crate::config::Contact;
use crate::domain::{printable, some_names};
use crate::runtime::RunningHost;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(in crate::cli) async fn run(context: &CommandContext, arguments: Arguments) -> Result<(), CliError> {
    let (contact, running) = running(context)?;
    let Some(host) = running else {
        return Err(CliError::NoServer {
            message: format!("no aihost of this machine uses {}", contact.paths.state.display()),
            hint: "`aihost up` starts it; of a host elsewhere `aihost ps --url URL` tells".to_owned(),
        });
    };
    if !arguments.json {
        return tell(context, &contact, &host).await;
    }
    let since = host.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let models = server(context, &contact, &host)?.status().await.ok();
    out::json(&json!({
        "pid": host.pid, "address": host.listen.to_string(), "since_unix_s": since, "says": host.says, "models": models,
    }))
}

/// One line of what runs.
pub(super) async fn tell(context: &CommandContext, contact: &Contact, host: &RunningHost) -> Result<(), CliError> {
    let head = format!("aihost at http://{} (process {}, up {})", reachable(host.listen), host.pid, age(host.since));
    if let Some(says) = &host.says {
        return out::line(&format!("{head}: {}", printable(says)));
    }
    let models = server(context, contact, host)?.status().await?;
    out::line(&format!("{head}: {}", sentence(&models)))
}

fn sentence(models: &[ListedModel]) -> String {
    let loaded: Vec<&str> = models.iter().filter(|model| model.state == "hot").map(|model| model.id.as_str()).collect();
    let count = match models.len() {
        1 => "1 model".to_owned(),
        count => format!("{count} models"),
    };
    let loaded = match loaded.as_slice() {
        [] => "none loaded".to_owned(),
        loaded => format!("{} loaded", some_names(loaded.iter().copied())),
    };
    let sum = |of: fn(&ListedModel) -> u32| models.iter().map(of).fold(0, u32::saturating_add);
    let (active, queued) = (sum(|model| model.active), sum(|model| model.queued));
    let requests = if active + queued == 0 { String::new() } else { format!("; {active} requests run, {queued} wait") };
    format!("{count}, {loaded}{requests}")
}

fn age(since: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(since).unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_line_says_what_runs() {
        let model = |id: &str, state: &str, active: u32| -> ListedModel {
            serde_json::from_value(json!({"id": id, "state": state, "active": active, "queued": 1})).unwrap()
        };
        assert_eq!(sentence(&[]), "0 models, none loaded");
        let models = [model("a", "hot", 2), model("b", "cold", 0), model("c", "hot", 0)];
        assert_eq!(sentence(&models), "3 models, a, c loaded; 2 requests run, 3 wait");
        let ago = |seconds| age(SystemTime::now() - Duration::from_secs(seconds));
        assert_eq!([ago(5), ago(125), ago(3700), ago(200_000)], ["5 s", "2 min", "1 h 1 min", "2 days"]);
    }
}
