//! Which path is answered by what, and how large a body it reads.

use axum::extract::Request;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, Router};

use super::app::App;
use super::body::BodySize;
use super::error::ApiError;
use super::openai::{audio, chat, completions, images, models};
use super::{admin, artifacts, edge};
use crate::domain::Kind;
use crate::runtime::Handle;

/// All endpoints over this runtime.
pub fn router(handle: Handle) -> Router {
    over(App::new(handle))
}

/// All endpoints over what they share.
pub(super) fn over(app: App) -> Router {
    let add = |router: Router<App>, Route { path, body, methods, .. }: Route| match body {
        Some(size) => router.route(path, methods.layer(Extension(size))),
        None => router.route(path, methods),
    };
    let routed = routes().into_iter().fold(Router::new(), add);
    routed
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), edge::edge))
        .with_state(app)
}

/// Whether models of this kind answer at this path.
pub(crate) fn is_served(path: &str, kind: Kind) -> bool {
    routes().iter().any(|route| route.path == path && route.models == Some(kind))
}

/// One path of the router.
pub(super) struct Route {
    pub(super) path: &'static str,
    /// How large a body it reads; `None` if it reads none.
    pub(super) body: Option<BodySize>,
    /// The kind of the models that answer here; `None` if the host answers by itself.
    models: Option<Kind>,
    methods: MethodRouter<App>,
}

impl Route {
    fn get(path: &'static str, methods: MethodRouter<App>) -> Self {
        Self { path, body: None, models: None, methods }
    }

    fn post(path: &'static str, body: BodySize, methods: MethodRouter<App>) -> Self {
        Self { path, body: Some(body), models: None, methods }
    }

    fn of_models(self, kind: Kind) -> Self {
        Self { models: Some(kind), ..self }
    }
}

/// Every path, which is all that is routed.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post("/v1/chat/completions", BodySize::Text, post(chat::create)).of_models(Kind::Text),
        Route::post("/chat/completions", BodySize::Text, post(chat::create)).of_models(Kind::Text),
        Route::post("/v1/completions", BodySize::Text, post(completions::create)).of_models(Kind::Text),
        Route::post("/completions", BodySize::Text, post(completions::create)).of_models(Kind::Text),
        Route::post("/v1/audio/generations", BodySize::Prompt, post(audio::create)).of_models(Kind::Audio),
        Route::post("/v1/audio/speech", BodySize::Prompt, post(audio::speech)),
        Route::post("/v1/images/generations", BodySize::Prompt, post(images::create)).of_models(Kind::Image),
        Route::post("/v1/images/edits", BodySize::Files, post(images::unserved)),
        Route::post("/v1/images/variations", BodySize::Files, post(images::unserved)),
        Route::get("/artifacts/{name}", get(artifacts::get)),
        Route::get("/v1/models", get(models::list)),
        Route::get("/v1/models/{*id}", get(models::retrieve)),
        Route::get("/models", get(admin::models)),
        Route::post("/models/load", BodySize::Command, post(admin::load)),
        Route::post("/models/unload", BodySize::Command, post(admin::unload)),
        Route::post("/models/park", BodySize::Command, post(admin::park)),
        Route::get("/admin/plan", get(admin::plan)),
        Route::get("/admin/status", get(admin::status)),
        Route::get("/metrics", get(admin::metrics)),
        Route::get("/logs/{*model}", get(admin::logs)),
        Route::get("/health", get(admin::health)),
        Route::get("/livez", get(admin::livez)),
        Route::get("/readyz", get(admin::readyz)),
        Route::get("/ping", get(admin::ping)),
    ]
}

async fn unknown_path(request: Request) -> ApiError {
    ApiError::unknown_path(request.method().as_str(), request.uri().path())
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::wrong_method(request.method().as_str(), request.uri().path())
}
