//! `aihost run`: a chat with a text model, streamed to stdout; or what another model makes, written to a file.

use std::io::{IsTerminal, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use futures_util::StreamExt;
use serde_json::{Value, json};

use super::client::{Server, ServerTarget};
use super::failure::CliError;
use super::hosting::Hosted;
use super::signals::Signals;
use super::sse::{EventReader, TEXT_EVENT_BYTES};
use super::watchdog::Watchdog;
use super::{CommandContext, audio, image, out};
use crate::config::{Config, Contact};
use crate::telemetry::{self, LogFormat};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Model or alias.
    model: String,
    /// What to say, or what to make; `-` reads stdin. Without it: a conversation.
    prompt: Option<String>,
    /// Instructions before the conversation.
    #[arg(long)]
    system: Option<String>,
    /// Most tokens of an answer.
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// How adventurous, from 0 to 2.
    #[arg(long)]
    temperature: Option<f32>,
    /// The same seed gives the same answer.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<i64>,
    /// File for what an audio or image model makes, .wav or .flac, .png, .jpg or .webp; `-` is stdout.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Length of the audio.
    #[arg(long, value_name = "SECONDS")]
    duration: Option<f32>,
    /// Pixels of the image.
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    size: Option<String>,
    /// Steps that the image is made in.
    #[arg(long, value_name = "N")]
    steps: Option<u32>,
    /// Weight of the prompt in an image.
    #[arg(long)]
    guidance: Option<f32>,
    #[command(flatten)]
    target: ServerTarget,
}

pub(super) async fn run(context: &CommandContext, arguments: Arguments) -> Result<(), CliError> {
    let prompt = prompt(arguments.prompt.as_deref())?;
    let mut signals = Signals::of_command()?;
    // Whoever reads stdout may hang, and a command that waits for that hears no signal.
    let watchdog = Watchdog::start(Signals::of_command)?;
    let (server, own) = tokio::select! {
        connected = connect(context, &arguments) => connected?,
        () = signals.next() => return Err(CliError::Interrupted),
    };
    let Some(mut own) = own else {
        return tokio::select! {
            result = ask(&server, &arguments, prompt) => result,
            () = signals.next() => Err(CliError::Interrupted),
        };
    };
    watchdog.hosts(own.handle());
    let result = tokio::select! {
        result = ask(&server, &arguments, prompt) => result,
        () = signals.next() => Err(CliError::Interrupted),
        error = own.broken() => {
            watchdog.host_broke();
            return Err(error);
        }
    };
    tokio::select! {
        () = own.shutdown() => result,
        () = signals.next() => Err(CliError::Interrupted),
    }
}

/// Does what the model is for.
async fn ask(server: &Server, arguments: &Arguments, prompt: Option<String>) -> Result<(), CliError> {
    // A server that is no aihost does not say what kinds its models are of, but may well chat.
    let models = server.served().await.unwrap_or_default();
    let is_meant = |name: &String| *name == arguments.model;
    let model = models.iter().find(|model| is_meant(&model.id) || model.aliases.iter().any(is_meant));
    let kind = model.map(|model| model.kind.as_str()).filter(|kind| !kind.is_empty()).unwrap_or("text");
    arguments.fit(kind)?;
    if matches!(kind, "audio" | "image") {
        return make(server, arguments, kind, prompt).await;
    }
    let messages = arguments.system.iter().map(|text| json!({"role": "system", "content": text})).collect();
    let mut chat = Chat { server, arguments, messages };
    match prompt {
        Some(prompt) => chat.say(prompt).await,
        None => chat.converse().await,
    }
}

/// Makes one file.
async fn make(server: &Server, arguments: &Arguments, kind: &str, prompt: Option<String>) -> Result<(), CliError> {
    let prompt = prompt.ok_or_else(|| {
        let example = if kind == "audio" { "\"lo-fi beat\" -o out.wav" } else { "\"a red fox\" -o out.png" };
        CliError::usage(format!("a model of type {kind} needs a description"))
            .hint(format!("aihost run MODEL {example}"))
    })?;
    // What was not said is null, which the server takes for absent.
    let request = json!({
        "model": arguments.model,
        "prompt": prompt,
        "duration": arguments.duration,
        "temperature": arguments.temperature,
        "size": arguments.size,
        "steps": arguments.steps,
        "guidance": arguments.guidance,
        "seed": arguments.seed,
    });
    let output = arguments.output.as_deref();
    if kind == "audio" {
        audio::make(server, request, output).await
    } else {
        image::make(server, request, output).await
    }
}

impl Arguments {
    /// Refuses what models of this type do not read.
    fn fit(&self, kind: &str) -> Result<(), CliError> {
        let options: [(&str, bool, &[&str]); 8] = [
            ("--system", self.system.is_some(), &["text"]),
            ("--max-tokens", self.max_tokens.is_some(), &["text"]),
            ("--temperature", self.temperature.is_some(), &["text", "audio"]),
            ("--output", self.output.is_some(), &["audio", "image"]),
            ("--duration", self.duration.is_some(), &["audio"]),
            ("--size", self.size.is_some(), &["image"]),
            ("--steps", self.steps.is_some(), &["image"]),
            ("--guidance", self.guidance.is_some(), &["image"]),
        ];
        match options.into_iter().find(|(_, said, kinds)| *said && !kinds.contains(&kind)) {
            Some((name, _, kinds)) => {
                let kinds = kinds.join(" or ");
                Err(CliError::usage(format!("`{name}` is for models of type {kinds}, and this one is of type {kind}")))
            }
            None => Ok(()),
        }
    }
}

/// The prompt, if one was given: as an argument, or by a pipe.
fn prompt(typed: Option<&str>) -> Result<Option<String>, CliError> {
    let piped = !std::io::stdin().is_terminal();
    match typed {
        Some("-") => {}
        None if piped => {}
        other => return Ok(other.map(str::to_owned)),
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|e| CliError::failed(format!("stdin cannot be read: {e}")))?;
    match text.trim_end() {
        "" => Err(CliError::usage("stdin has no prompt").hint("aihost run MODEL \"What is a swap?\"")),
        text => Ok(Some(text.to_owned())),
    }
}

/// A server that is up, or one of our own for as long as the command takes.
async fn connect(context: &CommandContext, arguments: &Arguments) -> Result<(Server, Option<Hosted>), CliError> {
    let server = Server::of(context, &arguments.target)?;
    match server.status().await {
        Err(CliError::Unreachable { .. }) if arguments.target.url.is_none() => {}
        Err(error @ CliError::Unreachable { .. }) => return Err(error),
        _ => return Ok((server, None)),
    }
    let config = context.load()?;
    super::models::known(&config, &arguments.model)?;
    telemetry::init(LogFormat::Text, Some(context.env.log_filter().unwrap_or("warn"))).map_err(CliError::usage)?;
    let listen = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    let hosted = Hosted::start(Config { listen, ..config.clone() }, &context.env).await?;
    let server = Server::of_contact(&Contact { listen: hosted.address, ..Contact::of(&config) }, None)?;
    Ok((server, Some(hosted)))
}

/// A conversation, with what has been said so far.
struct Chat<'a> {
    server: &'a Server,
    arguments: &'a Arguments,
    messages: Vec<Value>,
}

impl Chat<'_> {
    /// Reads what the user says, line by line, until `/bye` or the end of stdin.
    async fn converse(&mut self) -> Result<(), CliError> {
        out::note("type a message; /bye or Ctrl-D ends");
        loop {
            let line = tokio::task::spawn_blocking(read_line).await;
            let line = line.map_err(|e| CliError::failed(format!("stdin cannot be read: {e}")))??;
            match line.as_deref().map(str::trim) {
                None | Some("/bye" | "/exit" | "/quit") => return Ok(()),
                Some(command) if command.starts_with('/') => out::note(&format!("{command} is no command; /bye ends")),
                Some("") => {}
                Some(text) => match self.say(text.to_owned()).await {
                    // A refused turn does not end the conversation.
                    Err(error @ CliError::Failed { .. }) => out::note(&format!("error: {error}")),
                    other => other?,
                },
            }
        }
    }

    /// One turn: sends the conversation, streams the answer, remembers both.
    async fn say(&mut self, text: String) -> Result<(), CliError> {
        self.messages.push(json!({"role": "user", "content": text}));
        let answered = self.server.attended(self.stream()).await;
        match &answered {
            Ok(answer) => self.messages.push(json!({"role": "assistant", "content": answer})),
            Err(_) => drop(self.messages.pop()),
        }
        answered.map(|_| ())
    }

    async fn stream(&self) -> Result<String, CliError> {
        let mut body = json!({"model": self.arguments.model, "messages": self.messages, "stream": true});
        if let Some(max_tokens) = self.arguments.max_tokens {
            body["max_tokens"] = json!(max_tokens);
        }
        if let Some(temperature) = self.arguments.temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(seed) = self.arguments.seed {
            body["seed"] = json!(seed);
        }
        let response = self.server.post("/v1/chat/completions", &body).await?;
        let mut answer = String::new();
        let mut events = EventReader::new(TEXT_EVENT_BYTES);
        let mut pieces = response.bytes_stream();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| self.server.broke_off("the answer", &error))?;
            for data in events.push(&piece)? {
                if data == "[DONE]" {
                    out::line("")?;
                    return Ok(answer);
                }
                let text = delta(&data)?;
                out::text(&text)?;
                answer.push_str(&text);
            }
        }
        Err(CliError::failed("the answer broke off before its end"))
    }
}

/// The text that an event adds.
fn delta(data: &str) -> Result<String, CliError> {
    let event: Value =
        serde_json::from_str(data).map_err(|e| CliError::failed(format!("the answer is not JSON: {e}")))?;
    if let Some(error) = event.get("error") {
        let message = error.get("message").and_then(Value::as_str).unwrap_or("the model failed");
        return Err(CliError::failed(message));
    }
    Ok(event.pointer("/choices/0/delta/content").and_then(Value::as_str).unwrap_or_default().to_owned())
}

fn read_line() -> Result<Option<String>, CliError> {
    // What was noted before it comes before it.
    telemetry::flush();
    drop(write!(std::io::stderr().lock(), "> "));
    let mut line = String::new();
    match std::io::stdin().read_line(&mut line) {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some(line)),
        Err(error) => Err(CliError::failed(format!("stdin cannot be read: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::delta;

    #[test]
    fn events_give_text_or_the_servers_error() {
        for (data, wanted) in [
            (r#"{"choices":[{"delta":{"content":"hi"}}]}"#, Ok("hi")),
            (r#"{"choices":[{"delta":{"role":"assistant"}}]}"#, Ok("")),
            (r#"{"choices":[],"usage":{}}"#, Ok("")),
            (r#"{"error":{"message":"it died"}}"#, Err("it died")),
        ] {
            let found = delta(data).map_err(|error| error.to_string());
            assert_eq!(found.as_deref().map_err(String::as_str), wanted, "{data}");
        }
    }
}
