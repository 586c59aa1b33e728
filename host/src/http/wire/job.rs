//! Jobs on the wire: what asks for one, and what is told of it. The endpoint is ours; its words are those of OpenAI's
//! Responses, batches and videos.

use serde::Serialize;
use serde_json::Value;

use super::ReceivedBody;
use super::fields::{Fields, Keys, object};
use crate::http::error::ApiError;
use crate::jobs::{Job, JobState, JobView};

/// What is read of a body that asks for a job.
pub(in crate::http) const KEYS: Keys = &["endpoint", "body"];
/// What is read of a body that may ask not to be waited for.
pub(in crate::http) const BACKGROUND_KEYS: Keys = &["model", "background"];
/// Names of a field that says that an answer is waited for all the same.
const URGENT_TIERS: [&str; 2] = ["default", "priority"];

/// A job that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::http) struct AskedJob {
    /// The route that it is for.
    pub(in crate::http) endpoint: String,
    /// What is asked there.
    pub(in crate::http) body: String,
}

/// `POST /v1/jobs`.
pub(in crate::http) fn parse(body: &ReceivedBody<'_>) -> Result<AskedJob, ApiError> {
    let fields = Fields::root(body, KEYS)?;
    let asked = fields.required("body")?;
    // It must be an object, and says so here rather than where it runs.
    Fields::of(asked, "body", &[])?;
    let endpoint = fields.required_text("endpoint")?.into_owned();
    let inner = ReceivedBody { text: asked.get(), class: body.class };
    let body = parse_background(&inner)?.unwrap_or_else(|| asked.get().to_owned());
    Ok(AskedJob { endpoint, body })
}

/// The body without `background`, if that is true. OpenAI's `background` of an image is a word, and something else.
pub(in crate::http) fn parse_background(body: &ReceivedBody<'_>) -> Result<Option<String>, ApiError> {
    let fields = Fields::root(body, BACKGROUND_KEYS)?;
    if fields.get("background").is_none_or(|value| value.get() != "true") {
        return Ok(None);
    }
    let mut whole = object(body)?;
    whole.remove("background");
    serde_json::to_string(&whole).map(Some).map_err(|error| ApiError::internal(error.to_string()))
}

/// Whether a job says that it is as urgent as what somebody waits for.
pub(in crate::http) fn is_urgent(body: &ReceivedBody<'_>) -> bool {
    let fields = Fields::root(body, &["service_tier"]).ok();
    let tier = fields.and_then(|fields| fields.text("service_tier").ok().flatten());
    tier.is_some_and(|tier| URGENT_TIERS.contains(&&*tier))
}

/// What clients call where a job stands.
pub(in crate::http) fn status(state: JobState) -> &'static str {
    match state {
        JobState::Queued => "queued",
        JobState::Running => "in_progress",
        JobState::Done => "completed",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
        JobState::Expired => "expired",
    }
}

/// A job as its client reads it. Times are seconds since 1970.
#[derive(Debug, Serialize)]
pub(in crate::http) struct JobReply {
    id: String,
    object: &'static str,
    endpoint: String,
    model: String,
    status: &'static str,
    /// In hundredths.
    progress: u16,
    created_at: u64,
    started_at: Option<u64>,
    completed_at: Option<u64>,
    /// When its answer goes, or when it is given up if it was not begun.
    expires_at: Option<u64>,
    attempts: u32,
    error: Option<Value>,
    usage: Option<Value>,
    result: Option<ResultReply>,
}

/// Where the answer is.
#[derive(Debug, Serialize)]
struct ResultReply {
    url: String,
    content_type: String,
    bytes: u64,
}

/// What jobs are told with.
#[derive(Clone, Debug)]
pub(in crate::http) struct JobShape {
    /// Where the client reaches this host.
    pub(in crate::http) base_url: String,
    /// How long an answer is kept, in seconds.
    pub(in crate::http) ttl_s: u64,
}

impl JobShape {
    /// A job for its client.
    pub(in crate::http) fn reply(&self, JobView { job, progress }: JobView) -> JobReply {
        let Job { id, owner: _, endpoint, model, state, created_s, started_s, ended_s, attempts, error, answer } = job;
        let expires_at = match state {
            JobState::Queued => Some(created_s.saturating_add(self.ttl_s)),
            JobState::Done => ended_s.map(|ended| ended.saturating_add(self.ttl_s)),
            JobState::Running | JobState::Failed | JobState::Cancelled | JobState::Expired => None,
        };
        let usage = answer.as_ref().and_then(|facts| facts.usage.clone());
        let kept = answer.filter(|_| state == JobState::Done);
        let result = kept.map(|facts| ResultReply {
            url: format!("{}/v1/jobs/{id}/result", self.base_url),
            content_type: facts.content_type,
            bytes: facts.bytes,
        });
        JobReply {
            id: id.to_string(),
            object: "job",
            endpoint,
            model,
            status: status(state),
            progress: progress / 10,
            created_at: created_s,
            started_at: started_s,
            completed_at: ended_s,
            expires_at,
            attempts,
            error: error.map(|error| error.error),
            usage,
            result,
        }
    }
}

impl JobReply {
    /// The name of the event that tells it.
    pub(in crate::http) fn event(&self) -> &'static str {
        match self.status {
            "queued" => "job.queued",
            "in_progress" => "job.progress",
            "completed" => "job.completed",
            "failed" => "job.failed",
            "cancelled" => "job.cancelled",
            _ => "job.expired",
        }
    }

    pub(in crate::http) fn id(&self) -> &str {
        &self.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Class;

    fn read<T>(text: &str, parse: impl Fn(&ReceivedBody<'_>) -> T) -> T {
        parse(&ReceivedBody { text, class: Class::default() })
    }

    #[test]
    fn only_true_is_the_background_and_it_is_taken_out() {
        let body = r#"{"prompt": "a", "background":true , "seed": 12345678901234567890}"#;
        let kept = read(body, parse_background).unwrap().unwrap();
        assert_eq!(kept, r#"{"prompt":"a","seed":12345678901234567890}"#);
        for other in [r#"{"background":"transparent"}"#, r#"{"background":false}"#, r#"{"background":null}"#, "{}"] {
            assert_eq!(read(other, parse_background).unwrap(), None, "{other}");
        }
        assert!(read("[", parse_background).is_err());
    }

    #[test]
    fn a_job_is_a_route_and_a_body() {
        let asked = read(r#"{"endpoint": "/v1/x", "body": {"a": 1, "background": true}}"#, parse).unwrap();
        assert_eq!(asked, AskedJob { endpoint: "/v1/x".into(), body: r#"{"a":1}"#.into() });
        for wrong in ["{}", r#"{"endpoint":"/v1/x"}"#, r#"{"body":{}}"#, r#"{"endpoint":"/v1/x","body":"{}"}"#] {
            assert!(read(wrong, parse).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_job_is_urgent_where_it_says_so() {
        assert!(read(r#"{"service_tier":"priority"}"#, is_urgent));
        for other in [r#"{"service_tier":"flex"}"#, r#"{"service_tier":"auto"}"#, r#"{"service_tier":1}"#, "{}", "["] {
            assert!(!read(other, is_urgent), "{other}");
        }
    }
}
