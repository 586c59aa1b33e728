//! The SDK's promises to authors, through the same ABI objects the host uses.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use aihost_plugin_api::testing::MockHost;
use aihost_plugin_api::{
    Context, Engine, Error, ErrorKind, FinishReason, LoadContext, LoadRequest, MemoryPlan, Plugin, Result, Text,
    TextInput, TextOutput, TextRequest,
};
use serde_json::json;

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default)]
    panic_in: String,
}

/// Says its prompt byte by byte, and panics where it is told to.
struct Sayer(String);

struct Engaged(String);

fn maybe_panic(wanted: &str, here: &str) {
    assert!(wanted != here, "told to panic in {here}");
}

impl Plugin for Sayer {
    type Options = Options;
    type Engine = Engaged;

    fn new(options: Options) -> Result<Self> {
        maybe_panic(&options.panic_in, "new");
        Ok(Self(options.panic_in))
    }

    fn plan(&self, _: &LoadRequest) -> Result<MemoryPlan> {
        maybe_panic(&self.0, "plan");
        let other = (self.0 == "several").then(|| ("cuda:1".to_owned(), 5));
        Ok(MemoryPlan::new(1).preferred(2).others(other.into_iter().collect()))
    }

    fn load(&self, _: &LoadRequest, ctx: &LoadContext) -> Result<Engaged> {
        maybe_panic(&self.0, "load");
        ctx.progress(7, 10);
        tracing::info!(bytes = 7, "loading");
        Ok(Engaged(self.0.clone()))
    }
}

impl Engine for Engaged {
    type Task = Text;

    fn generate(&self, request: TextRequest, output: &TextOutput, ctx: &Context) -> Result<FinishReason> {
        maybe_panic(&self.0, "generate");
        let TextInput::Prompt { text, .. } = request.input else { return Err(Error::invalid_request("prompts only")) };
        if text == "stop" {
            return Err(Error::new(ErrorKind::Stopped, "as I like"));
        }
        if text == "cancel" {
            return Ok(FinishReason::Cancelled);
        }
        if text == "shout" {
            tracing::warn!(tensor = ?vec![0.5; 8 << 20], "{}", "x".repeat(8 << 20));
            panic!("{}", "y".repeat(8 << 20));
        }
        output.prompt(3, 0);
        for byte in text.bytes() {
            ctx.check()?;
            output.token(&[byte])?;
        }
        Ok(FinishReason::Length)
    }

    fn health(&self) -> Result<()> {
        maybe_panic(&self.0, "health");
        Ok(())
    }
}

impl Drop for Engaged {
    fn drop(&mut self) {
        maybe_panic(&self.0, "drop");
    }
}

fn host(panic_in: &str) -> Result<MockHost> {
    MockHost::new::<Sayer>(json!({"panic_in": panic_in}), &[])
}

fn ask(text: &str, stop: &[&str]) -> TextRequest {
    TextRequest::prompt(text).stop(stop.iter().map(|stop| (*stop).to_owned()).collect())
}

#[test]
fn characters_are_whole_and_tokens_are_counted() {
    let mut host = host("").unwrap();
    host.load().unwrap();
    let answer = host.generate(&ask("héllo", &[])).unwrap();
    assert_eq!(answer.text, "héllo");
    assert_eq!((answer.finish.usage.prompt_tokens, answer.finish.usage.completion_tokens), (3, 6));
    assert_eq!(answer.finish.reason, FinishReason::Length);
    assert_eq!(host.progress(), 7);
    assert!(host.logs().iter().any(|line| line == "3 loading"), "{:?}", host.logs());
}

#[test]
fn a_stop_string_ends_the_text_as_stop() {
    let mut host = host("").unwrap();
    host.load().unwrap();
    let answer = host.generate(&ask("one two three", &["tw", "zzz"])).unwrap();
    assert_eq!((answer.text.as_str(), answer.finish.reason), ("one ", FinishReason::Stop));
    assert_eq!(answer.finish.usage.completion_tokens, 6);
}

#[test]
fn a_client_that_leaves_is_a_normal_end() {
    let mut host = host("").unwrap();
    host.load().unwrap();
    host.stop_after(2);
    assert_eq!(host.generate(&ask("abcdef", &[])).unwrap().finish.reason, FinishReason::Cancelled);
    host.stop_after(usize::MAX);
    host.cancel();
    let answer = host.generate(&ask("abcdef", &[])).unwrap();
    assert_eq!((answer.text.as_str(), answer.finish.reason), ("", FinishReason::Cancelled));
}

#[test]
fn a_panic_in_any_entry_is_an_error_and_the_instance_is_not_used_again() {
    assert_eq!(host("new").err().map(|e| e.kind()), Some(ErrorKind::Panicked));
    assert_eq!(host("plan").unwrap().plan().err().map(|e| e.kind()), Some(ErrorKind::Panicked));
    assert_eq!(host("load").unwrap().load().err().map(|e| e.kind()), Some(ErrorKind::Panicked));
    let mut panicking = host("generate").unwrap();
    panicking.load().unwrap();
    let first = panicking.generate(&ask("x", &[])).unwrap_err();
    assert!(first.message().contains("told to panic in generate"), "{first}");
    let second = panicking.generate(&ask("x", &[])).unwrap_err();
    assert!(second.message().contains("panicked before"), "{second}");
}

#[test]
fn a_panic_in_drop_does_not_leave_the_plugin() {
    let mut releasing = host("drop").unwrap();
    releasing.load().unwrap();
    assert_eq!(releasing.release().err().map(|e| e.kind()), Some(ErrorKind::Panicked));
    // Without the guard in the glue's own Drop, this would abort the test process.
    let mut dropped = host("drop").unwrap();
    dropped.load().unwrap();
    drop(dropped);
}

#[test]
fn a_plan_of_several_devices_is_refused_as_by_a_host() {
    let error = host("several").unwrap().load().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("5 bytes on cuda:1"), "{error}");
}

#[test]
fn wrong_options_are_named() {
    let error = MockHost::new::<Sayer>(json!({"panics_in": "x"}), &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOptions);
    assert!(error.message().contains("panics_in"), "{error}");
}

#[test]
fn what_the_engine_refuses_reaches_the_host() {
    let mut host = host("").unwrap();
    host.load().unwrap();
    let request = ask("", &[]).input(TextInput::tokens(vec![1]));
    assert_eq!(host.generate(&request).unwrap_err().kind(), ErrorKind::InvalidRequest);
    assert_eq!(host.park().unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn a_stop_that_nobody_asked_for_is_the_plugins_error_not_the_clients_leaving() {
    let mut host = host("").unwrap();
    host.load().unwrap();
    let error = host.generate(&ask("stop", &[])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.message().contains("nobody asked for"), "{error}");
    let error = host.generate(&ask("cancel", &[])).unwrap_err();
    assert!(error.kind() == ErrorKind::Internal && error.message().contains("nobody asked for"), "{error}");
    host.cancel();
    assert_eq!(host.generate(&ask("cancel", &[])).unwrap().finish.reason, FinishReason::Cancelled);
    assert_eq!(host.generate(&ask("stop", &[])).unwrap().finish.reason, FinishReason::Cancelled);
}

#[test]
fn what_a_plugin_logs_or_panics_with_crosses_in_a_bounded_form() {
    let mut host = host("").unwrap();
    host.load().unwrap();
    let error = host.generate(&ask("shout", &[])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Panicked);
    assert!(error.message().len() <= 4096 && error.message().contains("yyyy"), "{} bytes", error.message().len());
    let logs = host.logs();
    assert!(logs.iter().any(|line| line.contains("xxxx")), "no record");
    assert!(logs.iter().all(|line| line.len() < 5000), "{:?}", logs.iter().map(String::len).max());
}
