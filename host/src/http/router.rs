//! Which path is answered by what, whom it is open to, and how large a body it reads.

use std::borrow::Cow;
use std::sync::LazyLock;

use axum::extract::Request;
use axum::http::uri::PathAndQuery;
use axum::http::{Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, any, get, post};
use axum::{Extension, Router};
use tower::ServiceExt;

use super::anthropic::messages;
use super::app::App;
use super::auth::Access;
use super::background::{Keeping, background};
use super::body::BodySize;
use super::divert::{Diverted, EnginePath, divert};
use super::edge::Gate;
use super::error::ApiError;
use super::ollama::{embed, generate, models as tags};
use super::openai::{audio, chat, completions, embeddings, images, models, others, responses, tokens};
use super::resolve::Wanted;
use super::{admin, artifacts, custom, edge, jobs, openapi, page, upstream};
use crate::config::Scope;
use crate::domain::Kind;
use crate::jobs::Jobs;
use crate::runtime::Handle;

/// All endpoints over this runtime, which keeps no jobs.
pub fn router(handle: Handle) -> Router {
    over(App::new(handle, Jobs::unavailable("jobs are not kept here")))
}

/// All endpoints over what they share.
pub(super) fn over(app: App) -> Router {
    let gate = |access| from_fn_with_state(Gate { app: app.clone(), access }, edge::edge);
    let add = |router: Router<App>, Route { path, access, answered, body, methods, wanted, at }: Route| {
        let methods = if answered.is_empty() { methods } else { methods.fallback(wrong_method) };
        let methods = match wanted {
            Some(_) => {
                let diverted = Diverted { app: app.clone(), wanted, at };
                methods.layer(from_fn_with_state(diverted, divert))
            }
            None => methods,
        };
        let methods = match wanted.filter(|wanted| may_wait(wanted.kind)) {
            Some(wanted) => methods.layer(from_fn_with_state(Keeping { app: app.clone(), wanted }, background)),
            None => methods,
        };
        let methods = match body {
            Some(size) => methods.layer(Extension(size)),
            None => methods,
        };
        router.route(path, methods.layer(gate(access)))
    };
    // What is layered here is the fallback alone: routes are added behind it, each with a gate of its own.
    let nowhere = Router::new().fallback(custom::answer).layer(gate(Access::AnyKey));
    let routed: Router = routes().into_iter().fold(nowhere, add).with_state(app.clone());
    // A path is what is routed by, so it is set right before.
    Router::new().fallback_service(routed.map_request(straightened))
}

/// Paths that are routed, as they are written.
static PATHS: LazyLock<Vec<&str>> = LazyLock::new(|| routes().into_iter().map(|route| route.path).collect());

/// A request with one slash where its path has several, and with none at its end, if that makes it one of a route: base
/// addresses are often written with a slash behind them. What is at an engine's or a model's own paths stays as it is.
fn straightened(mut request: Request) -> Request {
    let uri = request.uri();
    let straight = match straight(uri.path()) {
        Cow::Owned(path) if is_routed(&path) => path,
        _ => return request,
    };
    let target = match uri.query() {
        Some(query) => format!("{straight}?{query}"),
        None => straight,
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = PathAndQuery::try_from(target).ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    request
}

fn straight(path: &str) -> Cow<'_, str> {
    if !path.contains("//") && (!path.ends_with('/') || path == "/") {
        return Cow::Borrowed(path);
    }
    let segments = path.split('/').filter(|segment| !segment.is_empty());
    Cow::Owned(segments.fold(String::with_capacity(path.len()), |straight, segment| straight + "/" + segment))
}

/// Whether a path is one of a route where doubled slashes say nothing.
fn is_routed(path: &str) -> bool {
    let is_at = |pattern: &&str| match pattern.split_once('{') {
        None => *pattern == path,
        Some((before, parameter)) => {
            let (name, behind) = parameter.split_once('}').unwrap_or((parameter, ""));
            let filled = path.strip_prefix(before).and_then(|rest| rest.strip_suffix(behind));
            let is_one = |rest: &str| !rest.is_empty() && (name.starts_with('*') || !rest.contains('/'));
            before != upstream::PREFIX && filled.is_some_and(is_one)
        }
    };
    PATHS.iter().any(is_at)
}

/// Whether models of this kind answer at this path. Custom ones do wherever no route is.
pub(crate) fn is_served(path: &str, kind: Kind) -> bool {
    if kind == Kind::Custom {
        return routes().iter().all(|route| route.path != path);
    }
    let serves = |route: &Route| route.body.is_some() && route.wanted.is_some_and(|wanted| wanted.kind == kind);
    routes().iter().any(|route| route.path == path && serves(route))
}

/// Whether what models of this kind make takes so long that a client may not wait for it (`background: true`).
pub(super) fn may_wait(kind: Kind) -> bool {
    matches!(kind, Kind::Image | Kind::Audio | Kind::Speech)
}

/// What a route means by the models that answer there, if a job may be for it.
pub(super) fn of_job(endpoint: &str) -> Option<Wanted<'static>> {
    let takes_jobs = |route: &Route| route.path.starts_with("/v1/") && route.path == endpoint;
    routes().into_iter().find(takes_jobs).and_then(|route| route.wanted)
}

/// One path of the router.
pub(super) struct Route {
    pub(super) path: &'static str,
    /// Whom it is open to.
    pub(super) access: Access,
    /// The methods that it answers; where GET is among them, HEAD as well; none for every one.
    pub(super) answered: Vec<Method>,
    /// How large a body it reads; `None` if it reads none.
    pub(super) body: Option<BodySize>,
    /// The models that answer here; `None` if the host answers by itself.
    wanted: Option<Wanted<'static>>,
    /// Where engines that speak HTTP answer the same.
    at: EnginePath,
    methods: MethodRouter<App>,
}

impl Route {
    fn get(path: &'static str, access: Access, methods: MethodRouter<App>) -> Self {
        Self { path, access, answered: vec![Method::GET], body: None, wanted: None, at: EnginePath::Same, methods }
    }

    fn post(path: &'static str, access: Access, body: BodySize, methods: MethodRouter<App>) -> Self {
        Self {
            path,
            access,
            answered: vec![Method::POST],
            body: Some(body),
            wanted: None,
            at: EnginePath::Same,
            methods,
        }
    }

    fn any(path: &'static str, access: Access, methods: MethodRouter<App>) -> Self {
        Self { path, access, answered: Vec::new(), body: None, wanted: None, at: EnginePath::Same, methods }
    }

    /// With this method as well.
    fn and(mut self, method: Method) -> Self {
        self.answered.push(method);
        self
    }

    /// Where engines answer the same, if that is not where this is.
    fn at(self, at: EnginePath) -> Self {
        Self { at, ..self }
    }

    /// Where the models of a kind answer, at the path that it goes by.
    fn of_models(self, kind: Kind, endpoint: &'static str) -> Self {
        Self { wanted: Some(Wanted { kind, endpoint }), ..self }
    }
}

const OPEN: Access = Access::Open;
const USE: Access = Access::Scoped(Scope::Use);
const WATCH: Access = Access::Watching(Scope::Use);
const OPERATE: Access = Access::Scoped(Scope::Operate);
/// Who watches a host has nothing under way by that.
const WATCH_ALL: Access = Access::Watching(Scope::Operate);
const METRICS: Access = Access::Scoped(Scope::Metrics);
const PAGE: Access = Access::Page(Scope::Use);
/// Where a request for text means the models that answer there.
const CHAT: &str = "/v1/chat/completions";
/// The same for embeddings.
const EMBEDDINGS: &str = embeddings::PATH;
/// The same for rankings.
const RERANK: &str = embeddings::RERANK_PATH;

/// Every path, which is all that is routed.
pub(super) fn routes() -> Vec<Route> {
    let text = |path, methods| Route::post(path, USE, BodySize::Text, methods).of_models(Kind::Text, CHAT);
    // What engines may lack becomes a conversation for those that do.
    let made = |path, methods| text(path, methods).at(EnginePath::Maybe(path));
    // For clients whose base address has no /v1.
    let short = |path, whole, methods| text(path, methods).at(EnginePath::Maybe(whole));
    let kept = |path| {
        let methods = get(responses::retrieve).delete(responses::delete);
        Route::get(path, USE, methods).and(Method::DELETE)
    };
    let embedded = |path, methods| {
        let route = Route::post(path, USE, BodySize::Text, methods).of_models(Kind::Embedding, EMBEDDINGS);
        route.at(EnginePath::Maybe(path))
    };
    let files = |path, kind, methods| Route::post(path, USE, BodySize::Files, methods).of_models(kind, path);
    let prompt = |path, kind, methods| Route::post(path, USE, BodySize::Prompt, methods).of_models(kind, path);
    let others = |path, kind| Route::post(path, USE, BodySize::Files, post(others::create)).of_models(kind, path);
    vec![
        text("/v1/chat/completions", post(chat::create)),
        text("/chat/completions", post(chat::create)).at(EnginePath::At(CHAT)),
        made("/v1/completions", post(completions::create)),
        short("/completions", completions::PATH, post(completions::create)),
        made("/v1/chat/completions/input_tokens", post(chat::input_tokens)),
        short("/chat/completions/input_tokens", "/v1/chat/completions/input_tokens", post(chat::input_tokens)),
        made("/v1/responses", post(responses::create)),
        short("/responses", "/v1/responses", post(responses::create)),
        made("/v1/responses/input_tokens", post(responses::input_tokens)),
        short("/responses/input_tokens", "/v1/responses/input_tokens", post(responses::input_tokens)),
        kept("/v1/responses/{id}"),
        kept("/responses/{id}"),
        made("/v1/messages", post(messages::create)),
        made("/v1/messages/count_tokens", post(messages::count_tokens)),
        made("/api/chat", post(generate::chat)),
        made("/api/generate", post(generate::generate)),
        Route::post("/api/show", USE, BodySize::Command, post(tags::show)),
        embedded("/api/embed", post(embed::embed)),
        embedded("/api/embeddings", post(embed::embeddings)),
        Route::get("/api/tags", USE, get(tags::tags)),
        Route::get("/api/ps", USE, get(tags::ps)),
        Route::get("/api/version", USE, get(tags::version)),
        Route::get("/running", USE, get(tags::running)),
        Route::get("/", OPEN, get(page::root)),
        Route::get("/page/{name}", OPEN, get(page::asset)),
        Route::get("/openapi.json", USE, get(openapi::openapi)),
        Route::get("/docs", USE, get(openapi::docs)),
        made("/tokenize", post(tokens::tokenize)),
        made("/detokenize", post(tokens::detokenize)),
        prompt("/v1/audio/generations", Kind::Audio, post(audio::create)),
        prompt("/v1/audio/speech", Kind::Speech, post(others::create)),
        prompt("/v1/images/generations", Kind::Image, post(images::create)),
        files("/v1/images/edits", Kind::Image, post(images::unserved)),
        files("/v1/images/variations", Kind::Image, post(images::unserved)),
        Route::post("/v1/jobs", USE, BodySize::Text, post(jobs::create).get(jobs::list)).and(Method::GET),
        Route::get("/v1/jobs/{id}", WATCH, get(jobs::retrieve).delete(jobs::delete)).and(Method::DELETE),
        Route::get("/v1/jobs/{id}/events", WATCH, get(jobs::events)),
        Route::get("/v1/jobs/{id}/result", WATCH, get(jobs::result)),
        Route { answered: vec![Method::POST], ..Route::get("/v1/jobs/{id}/cancel", WATCH, post(jobs::cancel)) },
        Route::any("/upstream/{*rest}", PAGE, any(upstream::answer)),
        Route::get("/artifacts/{name}", USE, get(artifacts::get)),
        Route::get("/v1/models", USE, get(models::list)),
        Route::get("/v1/models/{*id}", USE, get(models::retrieve)),
        Route::get("/props", USE, get(models::props)),
        Route::get("/models", USE, get(admin::models)),
        Route::post("/models/load", OPERATE, BodySize::Command, post(admin::load)),
        Route::post("/models/unload", OPERATE, BodySize::Command, post(admin::unload)),
        Route::post("/models/park", OPERATE, BodySize::Command, post(admin::park)),
        Route::post("/models/pin", OPERATE, BodySize::Command, post(admin::pin)),
        others("/v1/audio/transcriptions", Kind::Transcription),
        others("/v1/audio/translations", Kind::Transcription),
        files(EMBEDDINGS, Kind::Embedding, post(embeddings::create)),
        files(RERANK, Kind::Embedding, post(embeddings::rerank)),
        others("/v1/moderations", Kind::Text),
        files("/embeddings", Kind::Embedding, post(embeddings::create))
            .of_models(Kind::Embedding, EMBEDDINGS)
            .at(EnginePath::At(EMBEDDINGS)),
        files("/rerank", Kind::Embedding, post(embeddings::rerank))
            .of_models(Kind::Embedding, RERANK)
            .at(EnginePath::At(RERANK)),
        Route::get("/admin/plan", OPERATE, get(admin::plan)),
        Route::get("/admin/status", OPERATE, get(admin::status)),
        Route::get("/admin/devices", OPERATE, get(admin::devices)),
        Route::get("/admin/overview", OPERATE, get(page::overview)),
        Route::get("/admin/events", WATCH_ALL, get(page::events)),
        Route::get("/admin/options", OPERATE, get(page::options)),
        Route::get("/metrics", METRICS, get(admin::metrics)),
        Route::get("/logs/{*model}", OPERATE, get(admin::logs)),
        Route::get("/health", OPEN, get(admin::health)),
        Route::get("/livez", OPEN, get(admin::livez)),
        Route::get("/readyz", OPEN, get(admin::readyz)),
        Route::get("/ping", OPEN, get(admin::ping)),
    ]
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::wrong_method(request.method().as_str(), request.uri().path())
}
