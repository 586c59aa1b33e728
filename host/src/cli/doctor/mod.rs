//! `aihost doctor`: what of this machine would keep a host from serving, or make it slow, with what to do about each.
//!
//! It changes nothing, asks nobody outside, and looks at what a host would use: the same models.yaml, folders, plugins and devices.

mod disks;
mod machine;

use serde::Serialize;

use super::check::{self, Report};
use super::failure::CliError;
use super::table::Column;
use super::vet::{self, Wrong};
use super::{CommandContext, out};
use crate::config::{Config, Contact};
use crate::runtime::running_host;

const COLUMNS: [Column; 3] = [Column::whole("VERDICT"), Column::whole("CHECK"), Column::words("FOUND")];

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How serious something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Pass,
    Warn,
    Fail,
}

/// Something that was looked at.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn pass(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Pass, found: found.into(), remedy: None }
    }

    fn warn(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warn, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn fail(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Fail, found: found.into(), remedy: Some(remedy.into()) }
    }
}

pub(super) fn run(context: &CommandContext, arguments: &Arguments) -> Result<(), CliError> {
    let findings = examine(context);
    if arguments.json {
        out::json(&findings)?;
    } else {
        let word = |verdict| match verdict {
            Verdict::Pass => "pass",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        let row = |finding: &Finding| {
            let remedy = finding.remedy.iter().map(|remedy| format!(" -> {remedy}")).collect::<String>();
            vec![word(finding.verdict).to_owned(), finding.check.to_owned(), finding.found.clone() + &remedy]
        };
        out::table(&COLUMNS, findings.iter().map(row).collect())?;
    }
    match findings.iter().filter(|finding| finding.verdict == Verdict::Fail).count() {
        0 => Ok(()),
        1 => Err(CliError::failed("one thing keeps models from being served (see above)")),
        count => Err(CliError::failed(format!("{count} things keep models from being served (see above)"))),
    }
}

fn examine(context: &CommandContext) -> Vec<Finding> {
    let mut findings = Vec::new();
    let config = context.load();
    findings.push(configuration(&config));
    findings.extend(machine::limits());
    findings.push(machine::clock(context.env.executable()));
    findings.extend(machine::driver());
    findings.push(machine::memory());
    // Folders and the address are told also of a file that is wrong elsewhere.
    let Ok(contact) = config.as_ref().map(Contact::of).or_else(|_| context.contact()) else { return findings };
    findings.extend(disks::folders(&contact.paths));
    findings.push(port(&contact));
    let Ok(config) = config else { return findings };
    findings.push(keys(&config));
    let (report, wrong) = check::survey(&config);
    findings.extend(served(&report, &wrong));
    findings.extend(disks::speed(&config));
    findings
}

fn configuration(config: &Result<Config, CliError>) -> Finding {
    const CHECK: &str = "configuration";
    match config {
        Ok(config) => {
            let file = vet::file_of(config).display();
            Finding::pass(CHECK, format!("{file} is valid, with {} models", config.models.len()))
        }
        Err(CliError::Config(error)) if error.problems.len() > 1 || error.more > 0 => {
            let count = error.problems.len() + error.more;
            Finding::fail(
                CHECK,
                format!("{count} things are wrong; the first: {}", error.lines().join("; ")),
                "aihost check",
            )
        }
        Err(error) => Finding::fail(
            CHECK,
            error.to_string(),
            "aihost init writes one to start from; aihost check says where one is wrong",
        ),
    }
}

/// Whether the address can be had.
fn port(contact: &Contact) -> Finding {
    const CHECK: &str = "port";
    let address = contact.listen;
    if let Some(host) = running_host(&contact.paths.state, contact.listen) {
        let elsewhere = if host.listen == address { "" } else { ", and models.yaml names another since" };
        return Finding::pass(CHECK, format!("process {} serves on {}{elsewhere}", host.pid, host.listen));
    }
    match std::net::TcpListener::bind(address) {
        Ok(_) => Finding::pass(CHECK, format!("{address} is free")),
        Err(error) => Finding::fail(
            CHECK,
            format!("{address} cannot be opened: {error}"),
            format!("stop what has it (`ss -ltnp 'sport = :{}'` names it), or change `listen:`", address.port()),
        ),
    }
}

fn keys(config: &Config) -> Finding {
    const CHECK: &str = "keys";
    let open = config.addresses().find(|address| !address.ip().is_loopback());
    match (config.api_keys.len(), open) {
        (0, Some(open)) => Finding::warn(
            CHECK,
            format!("whoever reaches {open} is served without a key"),
            "set `api_keys: [env:AIHOST_API_KEY]`, unless the network lets nobody else in",
        ),
        (0, None) => Finding::pass(CHECK, "none are needed: only this machine reaches the port"),
        (count, _) => match config.file.as_deref().and_then(readable_by_others) {
            Some(mode) if !vet::typed_keys(config).is_empty() => {
                let file = vet::file_of(config).display();
                Finding::warn(
                    CHECK,
                    format!("keys stand in {file}, which others may read (mode {mode:o})"),
                    format!("chmod 600 {file}, or `api_keys: [env:NAME]`"),
                )
            }
            _ => Finding::pass(CHECK, format!("{count} keys let clients in")),
        },
    }
}

/// The permissions of a file that not only its owner may read.
fn readable_by_others(file: &std::path::Path) -> Option<u32> {
    let mode = std::os::unix::fs::MetadataExt::mode(&file.metadata().ok()?) & 0o777;
    (mode & 0o044 != 0).then_some(mode)
}

/// Devices, plugins and models as `aihost check` finds them.
fn served(report: &Report, wrong: &Wrong) -> Vec<Finding> {
    let mut findings = Vec::new();
    for device in &report.devices {
        findings.push(match device.budget {
            Some(bytes) => {
                Finding::pass("device", format!("{} has {} for models", device.id, crate::domain::ByteSize(bytes)))
            }
            None => Finding::fail(
                "device",
                format!("{} is not on this machine", device.id),
                "correct `devices:`; `devices: auto` is what is here",
            ),
        });
    }
    for reason in &report.unusable_plugins {
        findings.push(Finding::fail("plugins", reason.clone(), "put a build of this host's version in its place"));
    }
    for warning in &report.warnings {
        findings.push(Finding::warn("configuration", warning.clone(), "aihost check"));
    }
    for model in &report.models {
        let first = model.problems.first();
        findings.push(match first {
            None => Finding::pass("model", format!("{}: its plugin and its files are here", model.name)),
            Some(problem) if model.files == "missing" && wrong.keys().all(|id| id.as_str() != model.name) => {
                Finding::warn(
                    "model",
                    format!("{}: {problem}", model.name),
                    format!("aihost models pull {}", model.name),
                )
            }
            Some(problem) => Finding::fail("model", format!("{}: {problem}", model.name), "aihost check"),
        });
    }
    findings
}
