//! Requests that nobody waits for: `background: true`, `/v1/jobs`, and what is refused.

use aihost_plugin_api::task::{ImageBlock, ImageHeader};
use tokio::time::timeout;

use super::*;
use crate::config::ApiKey;
use crate::http::app::App;
use crate::http::job_call::JobDispatch;
use crate::http::router::over;
use crate::jobs::{EmbeddedStore, Jobs};
use crate::runtime::Class;

const IMAGES: &str = "/v1/images/generations";
const PATIENCE: Duration = Duration::from_secs(30);

/// A host that keeps jobs, in a folder of the test's own, and runs them unless it is not to.
fn host(config: Config, script: Script, running: Running) -> (tempfile::TempDir, Host) {
    let folder = tempfile::tempdir().unwrap();
    let (commands, received) = mpsc::channel(64);
    let submitted = Arc::default();
    tokio::spawn(fake_loop(received, script, Arc::clone(&submitted)));
    let (config, in_force) = watch::channel(Arc::new(config));
    let jobs = Jobs::over(Arc::new(EmbeddedStore::open(folder.path()).unwrap())).unwrap();
    let app = App::new(Handle::new(commands, in_force, no_plugins()), jobs.clone());
    let router = over(app.clone());
    if running == Running::Yes {
        let dispatch = Arc::new(JobDispatch { app, router: router.clone() });
        tokio::spawn(async move { jobs.run(dispatch).await });
    }
    (folder, Host { router, submitted, config })
}

/// One that keeps jobs and begins none.
pub(super) fn kept_host() -> (tempfile::TempDir, Host) {
    host(config(), hello, Running::No)
}

#[derive(PartialEq)]
enum Running {
    Yes,
    No,
}

/// One grey image of 16 by 16.
fn draw(_: usize, _: &Submission) -> Result<Vec<Output>, Failure> {
    let block = ImageBlock::encode(&ImageHeader::new(16, 16), &[7; 16 * 16 * 3]).unwrap();
    let finish = json!({"reason": "stop", "seed": 3, "steps": 1, "width": 16, "height": 16});
    let done = Output::Done(Ok(Bytes::from(finish.to_string())));
    Ok(vec![Output::Progress { done: 1, total: 2 }, Output::Bytes(block.into()), done])
}

fn fox(extra: &Value) -> Value {
    let mut body = json!({"model": "flux", "prompt": "a red fox", "size": "16x16", "seed": 3});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

async fn kept(host: &Host, body: &Value) -> String {
    let reply = host.post(IMAGES, body).await;
    assert_eq!(reply.status, 202, "{}", reply.body);
    reply.json()["id"].as_str().unwrap().to_owned()
}

/// A job, once it has this status.
async fn until(host: &Host, id: &str, status: &str) -> Value {
    let reached = async {
        loop {
            let job = host.get(&format!("/v1/jobs/{id}")).await.json();
            if job["status"] == status {
                return job;
            }
            assert!(
                !["completed", "failed", "cancelled", "expired"].contains(&job["status"].as_str().unwrap()),
                "{job}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, reached).await.expect("it comes to that")
}

#[tokio::test]
async fn a_job_is_answered_as_the_same_request_whose_client_waits() {
    let (_folder, host) = host(config(), draw, Running::Yes);
    let waited = host.post(IMAGES, &fox(&json!({}))).await.json();
    let reply = host.post(IMAGES, &fox(&json!({"background": true}))).await;
    let job = reply.json();
    assert_eq!((reply.status.as_u16(), &job["status"], &job["model"]), (202, &json!("queued"), &json!("flux")));
    let id = job["id"].as_str().unwrap();
    assert_eq!(reply.header("location"), format!("/v1/jobs/{id}"));
    let job = until(&host, id, "completed").await;
    assert_eq!((&job["progress"], &job["attempts"], &job["error"]), (&json!(100), &json!(1), &Value::Null));
    assert_eq!(job["result"]["content_type"], "application/json");
    let result = host.get(&format!("/v1/jobs/{id}/result")).await;
    assert_eq!(result.json()["data"], waited["data"]);
    assert_eq!(job["result"]["bytes"].to_string(), result.header("content-length"));
    let url = job["result"]["url"].as_str().unwrap();
    assert!(url.ends_with(&format!("/v1/jobs/{id}/result")), "{url}");
    let classes: Vec<_> = host.submitted.lock().unwrap().iter().map(|submission| submission.class).collect();
    assert_eq!(classes, [Class::Interactive, Class::Batch], "nobody waits for a job");
}

#[tokio::test]
async fn a_job_is_for_any_route_of_a_model_and_tells_its_usage() {
    let (_folder, host) = host(config(), hello, Running::Yes);
    let urgent = chat(&json!({"service_tier": "priority"}));
    let asked = host.post("/v1/jobs", &json!({"endpoint": "/v1/chat/completions", "body": urgent})).await;
    assert_eq!(asked.status, 202, "{}", asked.body);
    let job = until(&host, asked.json()["id"].as_str().unwrap(), "completed").await;
    assert_eq!((&job["usage"]["completion_tokens"], &job["endpoint"]), (&json!(2), &json!("/v1/chat/completions")));
    let result = host.get(&format!("/v1/jobs/{}/result", job["id"].as_str().unwrap())).await;
    assert_eq!(result.json()["choices"][0]["message"]["content"], "Hello");
    assert_eq!(host.submitted.lock().unwrap()[0].class, Class::Interactive);
}

#[tokio::test]
async fn what_is_wrong_is_said_before_anything_is_kept() {
    let (_folder, host) = host(config(), draw, Running::No);
    let job = |endpoint: &str, body: Value| json!({"endpoint": endpoint, "body": body});
    for (path, body, wanted) in [
        (IMAGES, fox(&json!({"background": true, "size": "17x17"})), (400, "invalid_value", "size")),
        (IMAGES, fox(&json!({"background": true, "stream": true})), (400, "unsupported_parameter", "stream")),
        (IMAGES, fox(&json!({"background": true, "model": "nobody"})), (404, "model_not_found", "model")),
        (IMAGES, fox(&json!({"background": true, "model": "a"})), (400, "unsupported_endpoint_for_model", "model")),
        ("/v1/audio/generations", json!({"background": true}), (400, "missing_required_parameter", "prompt")),
        ("/v1/jobs", json!({}), (400, "missing_required_parameter", "body")),
        ("/v1/jobs", job("/v1/nothing", json!({})), (400, "invalid_value", "endpoint")),
        ("/v1/jobs", job("/v1/jobs", json!({})), (400, "invalid_value", "endpoint")),
        ("/v1/jobs", job("/models/unload", json!({})), (400, "invalid_value", "endpoint")),
        ("/v1/jobs", job(IMAGES, json!("{}")), (400, "invalid_type", "body")),
        ("/v1/jobs", job(IMAGES, fox(&json!({"n": 99}))), (400, "invalid_value", "n")),
    ] {
        let refused = host.post(path, &body).await.error();
        assert_eq!(refused, (wanted.0, wanted.1.into(), wanted.2.into()), "{path} {body}");
    }
    assert_eq!(host.get("/v1/jobs").await.json()["data"], json!([]));
    // What is no job stays what it was.
    assert_eq!(host.post(IMAGES, &fox(&json!({"background": "transparent"}))).await.status, 200);
    assert_eq!(host.post(IMAGES, &fox(&json!({"background": false}))).await.status, 200);
}

#[tokio::test]
async fn a_job_fails_with_what_its_client_would_have_read() {
    fn overloaded(_: usize, _: &Submission) -> Result<Vec<Output>, Failure> {
        Err(Failure::new(FailureKind::OutOfMemory, "it needs 9 GiB of 8"))
    }
    let (_folder, host) = host(config(), overloaded, Running::Yes);
    let id = kept(&host, &fox(&json!({"background": true}))).await;
    let job = until(&host, &id, "failed").await;
    assert_eq!((&job["error"]["code"], &job["result"]), (&json!("insufficient_vram"), &Value::Null));
    assert_eq!(host.get(&format!("/v1/jobs/{id}/result")).await.error().0, 409);
}

#[tokio::test]
async fn a_model_that_loads_is_waited_for_without_an_attempt() {
    fn loading_first(number: usize, submission: &Submission) -> Result<Vec<Output>, Failure> {
        if number == 0 {
            return Err(Failure::new(FailureKind::QueueFull, "the queue is full"));
        }
        draw(number, submission)
    }
    let (_folder, host) = host(config(), loading_first, Running::Yes);
    let id = kept(&host, &fox(&json!({"background": true}))).await;
    assert_eq!(until(&host, &id, "completed").await["attempts"], 1);
}

#[tokio::test]
async fn a_model_that_is_gone_when_its_turn_comes_is_said() {
    fn full(_: usize, _: &Submission) -> Result<Vec<Output>, Failure> {
        Err(Failure::new(FailureKind::QueueFull, "the queue is full"))
    }
    let (_folder, host) = host(config(), full, Running::Yes);
    let id = kept(&host, &fox(&json!({"background": true}))).await;
    host.config.send_modify(|config| {
        let mut without = Config::clone(config);
        without.models.remove("flux");
        *config = Arc::new(without);
    });
    assert_eq!(until(&host, &id, "failed").await["error"]["code"], "model_not_found");
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn a_key_sees_its_own_jobs_and_they_run_as_it_may() {
    let one = ApiKey { concurrency: Some(1), ..key("one") };
    let config = Config { api_keys: vec![Arc::new(one), Arc::new(key("two"))], ..config() };
    let (_folder, host) = host(config, draw, Running::Yes);
    let asked = post(IMAGES, fox(&json!({"background": true})).to_string());
    let id = host.send(with_key(asked, "one")).await.json()["id"].as_str().unwrap().to_owned();
    for (method, path) in [
        ("GET", format!("/v1/jobs/{id}")),
        ("GET", format!("/v1/jobs/{id}/result")),
        ("GET", format!("/v1/jobs/{id}/events")),
        ("POST", format!("/v1/jobs/{id}/cancel")),
        ("DELETE", format!("/v1/jobs/{id}")),
    ] {
        let request = Request::builder().method(method).uri(&path).body(Body::empty()).unwrap();
        let reply = host.send(with_key(request, "two")).await;
        assert_eq!(reply.error(), (404, "job_not_found".into(), "id".into()), "{method} {path}");
    }
    assert_eq!(host.send(get(&format!("/v1/jobs/{id}"))).await.status, 401);
    let listed =
        async |key: &str| host.send(with_key(get("/v1/jobs"), key)).await.json()["data"].as_array().unwrap().len();
    assert_eq!((listed("one").await, listed("two").await), (1, 0));
    let events = host.send(with_key(get(&format!("/v1/jobs/{id}/events")), "one")).await;
    assert!(events.body.contains("event: job.completed"), "its only place is no hindrance to its job: {}", events.body);
}

#[tokio::test]
async fn a_job_whose_key_is_gone_is_not_run() {
    let config = Config { api_keys: vec![Arc::new(key("gone")), Arc::new(key("stays"))], ..config() };
    let (folder, host) = host(config, draw, Running::No);
    let asked = post(IMAGES, fox(&json!({"background": true})).to_string());
    let id = host.send(with_key(asked, "gone")).await.json()["id"].as_str().unwrap().to_owned();
    drop(host);
    let without = Config { api_keys: vec![Arc::new(key("stays"))], ..super::config() };
    let store = crate::jobs::EmbeddedStore::open(folder.path()).unwrap();
    let jobs = Jobs::over(Arc::new(store)).unwrap();
    let (commands, received) = mpsc::channel(64);
    tokio::spawn(fake_loop(received, draw, Arc::default()));
    let app = App::new(Handle::new(commands, watch::channel(Arc::new(without)).1, no_plugins()), jobs.clone());
    let dispatch = Arc::new(JobDispatch { router: over(app.clone()), app });
    let runner = jobs.clone();
    tokio::spawn(async move { runner.run(dispatch).await });
    let mut follower = jobs.follow(Some("of gone"), &crate::jobs::JobId::parse(&id).unwrap()).await.unwrap();
    let failed = timeout(PATIENCE, follower.wait_for(|view| view.job.state.is_over())).await.unwrap().unwrap().clone();
    assert_eq!(failed.job.error.unwrap().error["code"], "invalid_api_key");
}

#[tokio::test]
async fn jobs_are_listed_page_by_page_and_no_more_are_kept_than_may() {
    let (_folder, host) = host(config(), draw, Running::No);
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.insert(0, kept(&host, &fox(&json!({"background": true}))).await);
        // Ids of one millisecond are in no order.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let refused = host.post(IMAGES, &fox(&json!({"background": true}))).await;
    assert_eq!((refused.error(), refused.header("retry-after")), ((429, "too_many_jobs".into(), String::new()), "10"));
    let page = host.get("/v1/jobs?limit=3").await.json();
    let listed =
        |page: &Value| page["data"].as_array().unwrap().iter().map(|job| job["id"].clone()).collect::<Vec<_>>();
    assert_eq!((listed(&page), &page["has_more"]), (ids[..3].iter().map(|id| json!(id)).collect(), &json!(true)));
    let rest = host.get(&format!("/v1/jobs?after={}", page["last_id"].as_str().unwrap())).await.json();
    assert_eq!((listed(&rest), &rest["has_more"]), (vec![json!(ids[3])], &json!(false)));
    assert_eq!(host.get("/v1/jobs?limit=0").await.error().0, 400);
    assert_eq!(host.get("/v1/jobs?after=x").await.error().0, 404);
    let deleted = host.send(Request::delete(format!("/v1/jobs/{}", ids[0])).body(Body::empty()).unwrap()).await;
    assert_eq!(deleted.json(), json!({"id": ids[0], "object": "job.deleted", "deleted": true}));
    assert_eq!(host.get(&format!("/v1/jobs/{}", ids[0])).await.error().0, 404);
    for _ in 0..2 {
        let cancelled = host.post(&format!("/v1/jobs/{}/cancel", ids[1]), &json!({})).await;
        assert_eq!((cancelled.status.as_u16(), &cancelled.json()["status"]), (200, &json!("cancelled")));
    }
    assert_eq!(
        host.get(&format!("/v1/jobs/{}/result", ids[2])).await.error(),
        (409, "job_conflict".into(), "id".into())
    );
}

#[tokio::test]
async fn events_tell_what_becomes_of_a_job_and_go_on_where_they_were() {
    let (_folder, host) = host(config(), draw, Running::Yes);
    let id = kept(&host, &fox(&json!({"background": true}))).await;
    let path = format!("/v1/jobs/{id}/events");
    let told = timeout(PATIENCE, host.get(&path)).await.expect("they end").body;
    let events: Vec<&str> = told.split_terminator("\n\n").collect();
    assert!(events.iter().all(|event| event.starts_with("id: ") && event.contains("\nevent: job.")), "{told}");
    let last = events.last().unwrap();
    let data: Value = serde_json::from_str(last.split_once("data: ").unwrap().1).unwrap();
    assert_eq!((&data["type"], &data["job"]["status"]), (&json!("job.completed"), &json!("completed")));
    // Of one that is over the end is told again, whatever was seen of it.
    let seen = last.lines().next().unwrap().trim_start_matches("id: ").to_owned();
    let again = Request::get(&path).header("last-event-id", seen).body(Body::empty()).unwrap();
    assert_eq!(host.send(again).await.body, format!("{last}\n\n"));
}

#[tokio::test]
async fn silent_events_say_that_they_are_there_and_do_not_repeat_themselves() {
    let config = Config { limits: Limits { sse_ping: Some(Duration::from_millis(5)), ..config().limits }, ..config() };
    let (_folder, host) = host(config, draw, Running::No);
    let id = kept(&host, &fox(&json!({"background": true}))).await;
    for (seen, first) in [("", "id: 0.0\nevent: job.queued\n"), ("0.0", ": ping\n\n")] {
        let request = Request::get(format!("/v1/jobs/{id}/events")).header("last-event-id", seen);
        let reply = host.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let mut pieces = reply.into_body().into_data_stream();
        let piece = timeout(PATIENCE, pieces.next()).await.unwrap().unwrap().unwrap();
        assert!(piece.starts_with(first.as_bytes()), "{piece:?}");
        assert_eq!(timeout(PATIENCE, pieces.next()).await.unwrap().unwrap().unwrap(), ": ping\n\n");
    }
}

#[tokio::test]
async fn where_no_jobs_can_be_kept_everything_else_is_served() {
    let host = Host::new(draw);
    let refused = host.post(IMAGES, &fox(&json!({"background": true}))).await;
    assert_eq!(
        (refused.error(), refused.header("x-should-retry")),
        ((503, "jobs_unavailable".into(), String::new()), "false")
    );
    assert_eq!(host.post(IMAGES, &fox(&json!({}))).await.status, 200);
}

#[tokio::test]
async fn an_answer_that_made_room_for_another_is_gone() {
    let limits = Limits { job_bytes: ByteSize(700), jobs_at_once: 1, ..config().limits };
    let (_folder, host) = host(Config { limits, ..config() }, draw, Running::Yes);
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(kept(&host, &fox(&json!({"background": true}))).await);
        until(&host, &ids[ids.len() - 1], "completed").await;
    }
    assert_eq!(host.get(&format!("/v1/jobs/{}", ids[0])).await.json()["status"], "expired");
    let refused = host.get(&format!("/v1/jobs/{}/result", ids[0])).await;
    assert_eq!(refused.error(), (410, "job_expired".into(), "id".into()));
    assert_eq!(host.get(&format!("/v1/jobs/{}/result", ids[1])).await.status, 200);
}
